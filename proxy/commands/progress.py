"""Progress of a command, on standard error from two seconds on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

_EVERY_S = 2.0


def progress(what: str) -> Callable[..., None]:
    """A function of how much is done, and of how much there is where that is known."""
    began_s = said_s = time.monotonic()

    def tell(done: int, total: int | None = None) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        if now_s - said_s < _EVERY_S:
            return
        said_s = now_s
        line = f"{done} {what}"
        if total is not None:
            left_s = (now_s - began_s) / max(1, done) * (total - done)
            line = f"{done} of {total} {what}, {left_s:.0f} s left"
        print(line, file=sys.stderr, flush=True)

    return tell


@contextmanager
def busy(with_what: str) -> Iterator[None]:
    """Around a step that cannot say how far it is."""
    ended = Event()

    def say() -> None:
        began_s = time.monotonic()
        while not ended.wait(_EVERY_S):
            print(f"{with_what}: {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)

    voice = Thread(target=say, daemon=True)
    voice.start()
    try:
        yield
    finally:
        ended.set()
        voice.join()
