"""How a backend's part in a request ends."""

from __future__ import annotations

import asyncio
import time

from proxy import errors
from proxy.errors import ApiError
from proxy.flight import Flight
from proxy.settings import Retries


def left(flight: Flight) -> None:
    """Take a request's load off its engine again, once; a probe that ends so lets another in."""
    engine = flight.loads
    if engine is None:
        return
    flight.loads = None
    if flight.begins is not None:
        if flight.first_token_s is not None:  # its prompt may have been read after that
            flight.begins.first_token(flight.first_token_s)
        elif not flight.stream and 200 <= flight.status < 300:
            flight.begins.first_token(time.monotonic())
        flight.begins.ended()
    engine.ended(flight.context_tokens)
    flight.context_tokens = 0
    if flight.probes:
        engine.probing = flight.probes = False


def broken(flight: Flight, error: BaseException, rules: Retries, *, fault: bool = True) -> ApiError:
    """What a failure in the middle of an answer means. Re-raises when the client left."""
    engine = flight.engine
    assert engine is not None  # it was answering
    late = isinstance(error, asyncio.CancelledError)
    if late:
        if flight.late is None:
            raise error
        asyncio.current_task().uncancel()  # type: ignore[union-attr]
        flight.late = None
    if fault:
        engine.failed(time.monotonic(), rules)
    if late:
        return errors.upstream_timeout(f"The backend {engine.name} stopped sending.")
    return errors.upstream_failed(
        f"The backend {engine.name} broke off before the answer was complete."
    )
