"""Runs a prompt set over backends through a running proxy: answers, checks, verdicts, receipts.

Each answer is kept in a JSON Lines file as soon as it is there, so that a run that was broken off
goes on where it was. Of answers that a judge compares the file holds the text too.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import re
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson

from estimators.evaluated import Answered
from meters.unreadable import UNREADABLE
from proxy import prompt_set, verdicts
from proxy.prompt_set import Item

TAG = "eval"
TIMEOUT_S = 600.0
FIRST_WINDOW_S = 10.0
_CLOSED = re.compile(r"^joulegate_meter_closed_windows_total\{[^}]*\} (\S+)", re.MULTILINE)


class ProxyAway(Exception):
    """The proxy cannot be used; the message says what to do."""


class Said(NamedTuple):
    """What came of a chat: its JSON, or why there is none."""

    headers: dict[str, str]
    latency_s: float  # of the asking that counted, without what was waited before
    body: Any = None
    error: str | None = None


class Client:
    """Calls one running proxy."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        self.secure = parts.scheme == "https"
        self.host = parts.netloc
        self.headers = {"content-type": "application/json", "x-joulegate-tags": TAG}
        self.headers["cache-control"] = "no-cache, no-store"  # an answer of now, by this backend
        if key:
            self.headers["authorization"] = f"Bearer {key}"

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of an answer. Raises ProxyAway."""
        try:
            status, headers, read = self._answer(method, path, body)
            return status, headers, orjson.loads(read) if read else None
        except (OSError, http.client.HTTPException) as error:
            raise ProxyAway(
                f"{self.host} does not answer ({error}). Start it, or name it."
            ) from None
        except ValueError:
            raise ProxyAway(f"{self.host} answers with something that is not JSON.") from None

    def wait_for_meters(self) -> None:
        """Until every meter of a proxy that has just started has closed a window: what is asked
        before is not metered. Not for long: a meter may have nothing to read."""
        deadline_s = time.monotonic() + FIRST_WINDOW_S
        while time.monotonic() < deadline_s:
            try:
                page = self._answer("GET", "/metrics")[2].decode("utf-8", "replace")
            except (OSError, http.client.HTTPException):
                return  # what is asked next says so
            if "0.0" not in _CLOSED.findall(page):
                return
            time.sleep(0.1)

    def _answer(
        self, method: str, path: str, body: Any = None
    ) -> tuple[int, dict[str, str], bytes]:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = kind(self.host, timeout=TIMEOUT_S)
        try:
            raw = None if body is None else orjson.dumps(body)
            connection.request(method, path, raw, self.headers)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    def chat(self, backend: str, messages: Any, **more: Any) -> Said:
        """One answer of one backend, policies aside.

        Waits where it is told when to ask again. Raises ProxyAway, also for what the proxy would
        refuse of every other prompt as well: a key that is not good, a day's budget used up.
        """
        body = {"model": backend, "messages": messages, "temperature": 0, **more}
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            begun_s = time.monotonic()
            status, headers, said = self.call("POST", "/v1/chat/completions", body)
            latency_s = time.monotonic() - begun_s
            if status == 200:
                return Said(headers, latency_s, said)
            told = _message(status, said)
            final = status in (401, 403) or headers.get("x-should-retry") == "false"
            if final and "x-joulegate-backend" not in headers:
                raise ProxyAway(f"The proxy says: {told} What was answered is kept.")
            wait_s = _number(headers.get("retry-after"))
            if final or status not in (429, 503) or wait_s is None:
                return Said(headers, latency_s, error=told)
            if time.monotonic() + wait_s > deadline_s:
                return Said(headers, latency_s, error=told)
            time.sleep(max(wait_s, 0.1))


def answered(client: Client, item: Item, backend: str) -> Answered:
    """One prompt on one backend, checked where that needs no judge."""
    more = {} if item.max_tokens is None else {"max_tokens": item.max_tokens}
    headers, latency_s, said, failed = client.chat(backend, item.chat, **more)
    base = Answered(
        item=item.key,
        backend=backend,
        task=item.kind,
        request_id=headers.get("x-request-id"),
        latency_s=latency_s,
    )
    text = None if said is None else verdicts.answer_in(orjson.dumps(said))
    if text is None:
        return msgspec.structs.replace(base, error=failed or "The answer has no text.")
    score = None
    if item.check is not None and not item.judged:
        score = prompt_set.score(item.check, text)
    usage = said.get("usage") or {}
    return msgspec.structs.replace(
        base,
        score=score,
        output_tokens=usage.get("completion_tokens"),
        energy_j=_number(headers.get("x-joulegate-energy-j")),
        evidence=f"{headers.get('x-joulegate-evidence', 'unknown')} (estimate)",
        answer=text if item.judged else None,
    )


class Run:
    """A prompt set on some backends, kept in ``path``."""

    def __init__(self, client: Client, items: Sequence[Item], backends: Sequence[str], path: Path):
        self.client = client
        self.items = {item.key: item for item in items}
        self.backends = list(backends)
        self.path = path
        self.found = {(a.backend, a.item): a for a in _kept(path)}

    @property
    def failures(self) -> Counter[str]:
        """Why prompts have no answer, and how many."""
        return Counter(answer.error for answer in self.answers if answer.error is not None)

    @property
    def answers(self) -> list[Answered]:
        """What there is of these prompts and backends, in their order."""
        keys = [(backend, item) for backend in self.backends for item in self.items]
        return [self.found[key] for key in keys if key in self.found]

    def answer(self, parallel: int, progress: Callable[[int, int], None]) -> None:
        """Ask for what is missing. Raises ProxyAway; what was answered until then is kept."""
        keys = [(backend, item) for item in self.items for backend in self.backends]
        left = [k for k in keys if k not in self.found or self.found[k].error is not None]
        with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
            work = [pool.submit(answered, self.client, self.items[i], b) for b, i in left]
            try:
                for done, future in enumerate(concurrent.futures.as_completed(work), 1):
                    self.keep(future.result())
                    progress(done, len(left))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def judge(self, judge: str, progress: Callable[[int, int], None]) -> int:
        """Compare with the first backend's answers, in both orders; how many had no verdict.

        An answer's score is its points of the two games, so that the first backend's is a half.
        """
        unread = 0
        pairs = list(self._pairs())
        for done, (item, base, other) in enumerate(pairs, 1):
            if other is base:
                self.keep(msgspec.structs.replace(base, score=0.5))
                continue
            prompt = "\n\n".join(f"{m.get('role')}: {m.get('content')}" for m in item.chat)
            forward = self._verdict(judge, prompt, other.answer or "", base.answer or "")
            backward = self._verdict(judge, prompt, base.answer or "", other.answer or "")
            if forward is None or backward is None:
                unread += 1
                continue
            weights = forward[1] + backward[1]
            points = (forward[0] * forward[1] + (1 - backward[0]) * backward[1]) / weights
            self.keep(msgspec.structs.replace(other, score=points, answer=None))
            progress(done, len(pairs))
        return unread

    def meter(self, patience_s: float, progress: Callable[[int, int], None]) -> None:
        """Take the energy over from the receipts as soon as it is metered."""
        deadline_s = time.monotonic() + patience_s
        while True:
            left = [a for a in self.answers if a.request_id and a.evidence.endswith(" (estimate)")]
            for answer in left:
                status, _, receipt = self.client.call("GET", f"/v1/usage/{answer.request_id}")
                if status == 200 and str(receipt["status"]).startswith("metered"):
                    energy = receipt["energy"]
                    self.keep(
                        msgspec.structs.replace(
                            answer, energy_j=energy["energy_j"], evidence=energy["evidence"]
                        )
                    )
            still = sum(a.evidence.endswith(" (estimate)") for a in self.answers)
            progress(len(self.answers) - still, len(self.answers))
            if not still or time.monotonic() > deadline_s:
                return
            time.sleep(0.5)

    def keep(self, answer: Answered) -> None:
        """Note an answer, or what became known of it, and write it down."""
        self.found[answer.backend, answer.item] = answer
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(answer) + b"\n")

    def _pairs(self) -> Iterator[tuple[Item, Answered, Answered]]:
        for key, item in self.items.items():
            base = self.found.get((self.backends[0], key))
            if not item.judged or base is None or base.answer is None:
                continue
            for backend in self.backends:
                other = self.found.get((backend, key))
                if other is not None and other.answer is not None and other.score is None:
                    yield item, base, other

    def _verdict(self, judge: str, prompt: str, a: str, b: str) -> tuple[float, float] | None:
        messages = verdicts.comparison(prompt, a, b)
        said = self.client.chat(judge, messages, max_tokens=verdicts.JUDGE_TOKENS).body
        text = None if said is None else verdicts.answer_in(orjson.dumps(said))
        return None if text is None else verdicts.verdict_in(text)


def _kept(path: Path) -> Iterator[Answered]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                yield msgspec.json.decode(line, type=Answered)
            except UNREADABLE:
                continue  # a line that a broken run left half written


def _message(status: int, said: Any) -> str:
    """What an error says, on one line."""
    error = said.get("error") if isinstance(said, dict) else None
    told = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(told or f"status {status}").split())[:300]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
