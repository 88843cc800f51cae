"""What a request asked for along the way and did not hand to its client: backends given up for
another, answers that did not pass, judges. Each has its part in what the whole request takes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from estimators.types import Band, Estimate
from proxy.flight import Attempt, Flight

ADDED = ("energy_j", "marginal_energy_j", "carbon_g", "money_usd")


def give_up(flight: Flight) -> None:
    """Put the attempt under way on the books: nobody waits for its answer, but it may have
    worked all the while, or go on."""
    engine, told = flight.engine, flight.features
    assert engine is not None
    flight.earlier.append(
        Attempt(
            kind="given up",
            backend=engine.name,
            node=engine.node,
            sent_s=flight.start_s if flight.sent_s is None else flight.sent_s,
            end_s=time.monotonic(),
            first_token_s=None,
            prompt_tokens=told.prompt_tokens if told else None,
            output_tokens=None,
            estimate=flight.estimate,
            against="no answer in time",
        )
    )


def whole(flight: Flight) -> Estimate | None:
    """What all that was sent for a request is expected to take."""
    if not flight.earlier or flight.estimate is None:
        return flight.estimate
    if flight.sent_s is None:  # the last one was never sent
        *before, last = flight.earlier
        return last.estimate and with_earlier(last.estimate, before)
    return with_earlier(flight.estimate, flight.earlier)


def with_earlier(estimate: Estimate, earlier: Sequence[Attempt]) -> Estimate:
    """What an attempt and those before it are expected to take; unknown where a part of it is."""
    total: dict[str, Band | None] = {}
    for name in ADDED:
        bands = [getattr(estimate, name)]
        bands += [getattr(a.estimate, name) if a.estimate else None for a in earlier]
        known = [band for band in bands if band is not None]
        total[name] = (
            Band(*(sum(column) for column in zip(*known, strict=True)))
            if len(known) == len(bands)
            else None
        )
    return msgspec.structs.replace(estimate, **cast(Any, total))
