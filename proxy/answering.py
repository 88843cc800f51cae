"""What goes to the client: our headers, whole answers, errors; and when a request is booked."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from estimators.types import Estimate
from meters.types import Evidence
from proxy.asgi import RawHeaders, Send
from proxy.attempts import whole
from proxy.backends import Engine
from proxy.cache import Answer
from proxy.errors import ApiError
from proxy.flight import Flight

log = logging.getLogger("joulegate.answering")


class Accounts(Protocol):
    """Who is told of finished requests."""

    def finished(self, flight: Flight) -> asyncio.Future[bool] | None: ...

    async def on_disk(self, written: asyncio.Future[bool]) -> None: ...


class Answering:
    """Answers clients, and puts every request on the books before its last byte leaves."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts

    async def book(self, flight: Flight) -> None:
        """Put a request on the books, once: before its last byte leaves, so that no client ever
        holds a whole answer that a killed replica did not record."""
        if flight.booked:
            return
        flight.booked = True
        if (written := self.accounts.finished(flight)) is not None:
            await self.accounts.on_disk(written)

    async def send(
        self, flight: Flight, send: Send, status: int, headers: RawHeaders, body: bytes
    ) -> None:
        flight.headers_sent = True
        if flight.end_s is None:
            flight.end_s = time.monotonic()
        flight.body_sent = True
        await self.book(flight)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def from_cache(self, flight: Flight, answer: Answer, send: Send) -> None:
        if flight.cache == "miss":
            flight.cache = "hit"
        flight.hit = Evidence(answer.evidence)
        flight.status = 200
        now_s = flight.end_s = time.monotonic()
        headers: RawHeaders = [
            (b"content-type", answer.content_type),
            (b"x-request-id", flight.request_id.encode()),
            (b"x-joulegate-backend", answer.backend.encode()),
            (b"x-joulegate-policy", b"cache"),
            (b"x-joulegate-cache", flight.cache.encode()),
            (b"x-joulegate-energy-j", b"0"),
            (b"x-joulegate-energy-range-j", b"0-0"),
            (b"x-joulegate-carbon-g", b"0"),
            (b"x-joulegate-evidence", answer.evidence.encode()),
            overhead(flight, now_s),
            content_length(str(len(answer.body))),
        ]
        await self.send(flight, send, 200, headers, answer.body)

    async def refuse(self, flight: Flight, error: ApiError, send: Send) -> None:
        """Send an error, unless the answer has begun already."""
        flight.error = error
        flight.status = error.status
        flight.outcome = "refused" if flight.attempts == 0 else "failed"
        if flight.headers_sent:
            return
        body = error.body(flight.endpoint)
        headers = error.headers()
        headers.append((b"x-request-id", flight.request_id.encode()))
        if flight.engine is not None:
            headers.append((b"x-joulegate-backend", flight.engine.name.encode()))
        if flight.policy:
            headers.append((b"x-joulegate-policy", flight.policy.encode("latin-1", "replace")))
        headers.append((b"x-joulegate-cache", flight.cache.encode()))
        headers += estimate_headers(whole(flight))
        headers.append(overhead(flight, time.monotonic()))
        headers.append(content_length(str(len(body))))
        try:
            await self.send(flight, send, error.status, headers, body)
        except OSError:
            log.debug("%s: the client was gone before its error", flight.request_id)


def own_headers(flight: Flight, engine: Engine, warnings: RawHeaders) -> RawHeaders:
    """Our own response headers."""
    headers = [
        (b"x-request-id", flight.request_id.encode()),
        (b"x-joulegate-backend", engine.name.encode()),
        (b"x-joulegate-policy", flight.policy.encode()),
        (b"x-joulegate-cache", flight.cache.encode()),
    ]
    headers += estimate_headers(flight.estimate if not flight.earlier else whole(flight))
    if flight.budget is not None:
        headers.append((b"x-joulegate-answer-budget", flight.budget.name.encode()))
    if flight.earlier:
        first = next((a.backend for a in flight.earlier if a.kind == "answer"), None)
        if first is not None:
            headers.append((b"x-joulegate-escalated-from", first.encode()))
    if engine.facts.simulated:
        headers.append((b"x-joulegate-simulated", b"true"))
    return headers + warnings


def estimate_headers(estimate: Estimate | None) -> RawHeaders:
    """The estimate as response headers; an unknown figure is left out."""
    if estimate is None:
        return [(b"x-joulegate-evidence", Evidence.UNKNOWN.encode())]
    headers = [(b"x-joulegate-evidence", estimate.evidence.encode())]
    energy = estimate.energy_j
    if energy is not None:
        headers.append((b"x-joulegate-energy-j", b"%.4g" % energy.mid))
        headers.append((b"x-joulegate-energy-range-j", b"%.4g-%.4g" % (energy.low, energy.high)))
    if estimate.carbon_g is not None:
        headers.append((b"x-joulegate-carbon-g", b"%.4g" % estimate.carbon_g.mid))
    return headers


def overhead(flight: Flight, now_s: float) -> tuple[bytes, bytes]:
    """The time until now that was ours, not the upstream's."""
    ours_ms = max(0.0, (now_s - flight.start_s - flight.wait_s) * 1e3)
    return b"x-joulegate-overhead-ms", b"%.2f" % ours_ms


def content_length(value: str) -> tuple[bytes, bytes]:
    return b"content-length", value.encode()
