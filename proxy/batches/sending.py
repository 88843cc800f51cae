"""One request of a batch, sent through the very steps that every request takes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from proxy.asgi import RawHeaders
from proxy.auth import Caller
from proxy.batches.lines import Line, answered
from proxy.batches.store import Result
from proxy.front import ENDPOINTS
from proxy.steps import CALLER, Steps

TAG = b"batch"
# What is tried again: the caller's limits, and what is no fault of the request.
PASSING = frozenset({408, 429, 500, 502, 503, 504})
# Without being told to wait: refused is refused, after so many times.
ATTEMPTS = {500: 3, 502: 5, 504: 3}
_LONGEST_WAIT_S = 60.0


class Answer(msgspec.Struct):
    """What came back."""

    status: int = 0
    headers: dict[bytes, bytes] = {}
    body: bytes = b""

    def number(self, name: bytes) -> float | None:
        """The value of one of our headers; None where it is absent."""
        value = self.headers.get(name)
        try:
            return None if value is None else float(value)
        except ValueError:
            return None

    def result(self, number: int, line: Line) -> Result:
        """The answer as a batch keeps it."""
        request_id = self.headers.get(b"x-request-id", b"").decode("latin-1")
        ok = 200 <= self.status < 300
        return Result(
            number,
            ok,
            answered(line.custom_id, request_id, self.status, self.body),
            self.number(b"x-joulegate-energy-j") if ok else None,
            self.number(b"x-joulegate-carbon-g") if ok else None,
            self.headers.get(b"x-joulegate-evidence", b"").decode() if ok else None,
        )

    def again_in_s(self, attempt: int) -> float | None:
        """When it may be sent again; None where nothing would change."""
        if self.status not in PASSING or self.headers.get(b"x-should-retry") == b"false":
            return None
        if attempt >= ATTEMPTS.get(self.status, attempt + 1):
            return None
        told_s = self.number(b"retry-after") or 0.0
        wait_s = min(max(told_s, 0.5 * 2.0 ** min(attempt, 10)), _LONGEST_WAIT_S)
        return wait_s * random.uniform(1.0, 1.25)


def headers_of(asked: Mapping[str, str]) -> RawHeaders:
    """A request's headers, where its batch was made with ``asked``."""
    headers = [(name.encode(), value.encode("latin-1")) for name, value in asked.items()]
    tags = asked.get("x-joulegate-tags", "").encode("latin-1")
    headers = [(name, value) for name, value in headers if name != b"x-joulegate-tags"]
    headers.append((b"x-joulegate-tags", b",".join(filter(None, (tags, TAG)))))
    headers.append((b"content-type", b"application/json"))
    return headers


async def send(steps: Steps, line: Line, headers: RawHeaders, caller: Caller) -> Answer:
    """Send it once. What the backends and limits say comes back as an answer."""
    body = bytes(line.body)
    parts = [body]
    found = Answer()
    received = bytearray()

    async def receive() -> dict[str, Any]:
        if not parts:  # nobody goes away
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": parts.pop(), "more_body": False}

    async def take(message: Any) -> None:
        if message["type"] == "http.response.start":
            found.status = message["status"]
            found.headers = dict(message["headers"])
        else:
            received.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "method": "POST",
        "path": line.url,
        "headers": headers,
        "client": ("batch", 0),
        CALLER: caller,
    }
    await steps.serve(ENDPOINTS[line.url], scope, receive, take)
    found.body = bytes(received)
    return found


async def sent(
    once: Callable[[], Awaitable[Answer | None]], wait: Callable[[float], Awaitable[bool]]
) -> Answer | None:
    """The answer that is kept: ``once`` again until nothing passes any more. None when ``once``
    or ``wait`` says that it is over."""
    attempt = 0
    while True:
        attempt += 1
        answer = await once()
        if answer is None:
            return None
        again_s = answer.again_in_s(attempt)
        if again_s is None:
            return answer
        if not await wait(again_s):
            return None
