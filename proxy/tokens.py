"""Counting prompt tokens before sending, without network; long prompts off the event loop.

tiktoken ships no encodings and would fetch them; litellm's package carries them, so its folder is
named as tiktoken's cache. A thread counts long prompts; a count that is not back within
`PATIENCE_S` is replaced by a guess from bytes, and says so. The books use the upstream's own count
in any case.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import tiktoken

log = logging.getLogger("joulegate.tokens")

BYTES_PER_TOKEN = 4.0  # English text in cl100k: 4.0 to 4.7; code and other languages less
PATIENCE_S = 0.004
REMEMBERED_CHARS = 2_000  # of a message, from which on its count is: a shorter one takes 0.1 ms
MOST_REMEMBERED = 16_384
T = TypeVar("T")
_Submitted = list[tuple[asyncio.AbstractEventLoop, asyncio.Future[object], Callable[[], object]]]


def bundled_encodings() -> Path | None:
    """The folder of encodings inside litellm's package, found without importing it."""
    spec = importlib.util.find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"
    return folder if folder.is_dir() else None


class Uncountable(Exception):
    """The tokenizer fell over a text, such as a million spaces: its stack is finite."""


class TokenCounter:
    """Counts with one encoding for all models: within 10 % of most models' own tokenizers, and
    the same for every candidate, so that it never decides between them.

    Each turn of a conversation brings all that was said before: the counts of long messages are
    remembered, by a hash of the text and not by the text. May be used from several threads.
    """

    def __init__(self) -> None:
        self._remembered: dict[tuple[int, int], int] = {}
        folder = bundled_encodings()
        if folder is not None:
            os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(folder))
        try:
            self._encoding: tiktoken.Encoding | None = tiktoken.get_encoding("o200k_base")
        except Exception as error:  # no folder, no network: counting is not worth failing for
            log.warning("tokens are guessed from bytes: no encoding could be read (%s)", error)
            self._encoding = None

    @property
    def exact(self) -> bool:
        return self._encoding is not None

    def count(self, texts: Sequence[str]) -> int:
        """Tokens in a prompt's messages or other parts, together. Raises Uncountable."""
        short = [text for text in texts if len(text) < REMEMBERED_CHARS]
        tokens = self._tokens("\n".join(short)) if short else 0
        if len(short) < len(texts):
            tokens += sum(self._looked_up(text) for text in texts if len(text) >= REMEMBERED_CHARS)
        return tokens

    def _looked_up(self, text: str) -> int:
        key = (hash(text), len(text))
        tokens = self._remembered.get(key)
        if tokens is None:
            tokens = self._remembered[key] = self._tokens(text)
            if len(self._remembered) > MOST_REMEMBERED:
                for old in list(islice(self._remembered, MOST_REMEMBERED // 2)):
                    self._remembered.pop(old, None)
        return tokens

    def _tokens(self, text: str) -> int:
        if self._encoding is None:
            return guess(len(text.encode("utf-8", "replace")))
        try:
            return len(self._encoding.encode_ordinary(text))
        except BaseException as error:
            # A panic of Rust's is no Exception, and has no name to import.
            if type(error).__name__ != "PanicException":
                raise
            raise Uncountable from None


def guess(size_bytes: int) -> int:
    """Tokens in that many bytes of text, roughly."""
    return max(1, round(size_bytes / BYTES_PER_TOKEN))


class Worker:
    """One thread for work that must stay off the event loop; cheaper than an executor's pool.

    Waking a thread costs more than counting a short prompt: what one round of the event loop
    submits is handed over together, and what is done by then comes back together.
    """

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[_Submitted | None] = queue.SimpleQueue()
        self._gathered: _Submitted = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """A future of the running loop that gets what ``work`` gives."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if not self._gathered:
            loop.call_soon(self._hand_over)
        self._gathered.append((loop, future, work))  # type: ignore[arg-type]
        return future

    def _hand_over(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._queue.put(gathered)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while (submitted := self._queue.get()) is not None:
            done = [(loop, future, _result(work)) for loop, future, work in submitted]
            try:
                done[0][0].call_soon_threadsafe(_deliver, done)
            except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
                continue


def _result(work: Callable[[], object]) -> tuple[bool, object]:
    try:
        return True, work()
    except Exception as error:
        return False, error
    except BaseException as error:  # the thread is everybody's: it goes on whatever one text does
        return False, RuntimeError(type(error).__name__)


def _deliver(
    done: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[object], tuple[bool, object]]],
) -> None:
    for _, future, (ok, value) in done:
        if future.done():
            continue
        if ok:
            future.set_result(value)
        else:
            future.set_exception(value)  # type: ignore[arg-type]
