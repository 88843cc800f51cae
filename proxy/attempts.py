"""What a request takes: the attempt that answered, by the tokens that were counted, and what was
asked for along the way and not handed to its client: backends given up for another, answers that
did not pass, judges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from estimators.types import Backend, Band, Estimate, Features
from proxy.flight import Attempt, Flight

# What a backend, the flight's own if none is named, takes for these features and output tokens.
Recount = Callable[[Flight, Features, int, Backend | None], Estimate | None]
ADDED = ("energy_j", "marginal_energy_j", "carbon_g", "money_usd")


def tokens_counted(flight: Flight) -> tuple[int, int] | None:
    """Tokens read and written by the attempt that answered; None where nobody counted."""
    usage = flight.usage
    if usage is not None and usage.prompt_tokens is not None:
        output = usage.completion_tokens  # Messages that broke off tell of their prompt alone
        return usage.prompt_tokens, flight.events if output is None else output
    if not flight.events or flight.features is None:
        return None
    return flight.features.prompt_tokens, flight.events  # a stream that broke off


def as_counted(
    flight: Flight, counted: tuple[int, int], recount: Recount, backend: Backend | None = None
) -> Estimate | None:
    """What a backend, the one that answered if none is named, takes for the tokens that were read
    and written; None where that cannot be told."""
    told, usage, (prompt, output) = flight.features, flight.usage, counted
    if told is None or flight.estimate is None:
        return None
    cached = min((usage.cached_tokens if usage else None) or 0, prompt)
    if prompt != told.prompt_tokens or cached != told.cached_prompt_tokens:
        told = msgspec.structs.replace(told, prompt_tokens=prompt, cached_prompt_tokens=cached)
    return recount(flight, told, output, backend)


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
            hosted=engine.facts.engine == "api",
            sent_s=flight.start_s if flight.sent_s is None else flight.sent_s,
            end_s=time.monotonic(),
            first_token_s=None,
            prompt_tokens=told.prompt_tokens if told else None,
            output_tokens=None,
            estimate=flight.estimate,
            against="no answer in time",
        )
    )


def whole(flight: Flight, counted: Estimate | None = None) -> Estimate | None:
    """What all that was sent for a request is expected to take; of the attempt that answered what
    is ``counted``, if that is known."""
    estimate = flight.estimate
    if estimate is not None and counted is not None:
        estimate = msgspec.structs.replace(
            estimate,
            energy_j=counted.energy_j or estimate.energy_j,
            carbon_g=counted.carbon_g or estimate.carbon_g,
        )
    if not flight.earlier or estimate is None:
        return estimate
    if flight.sent_s is None:  # the last one was never sent
        *before, last = flight.earlier
        return last.estimate and with_earlier(last.estimate, before)
    return with_earlier(estimate, flight.earlier)


def hosted_part(flight: Flight, last: Estimate | None) -> Band | None:
    """Of the joules of all that was sent, those of others' APIs, where engines of ours were asked
    as well; None else. ``last`` is the estimate of the attempt that answered."""
    asked = [(attempt.hosted, attempt.estimate) for attempt in flight.earlier]
    if flight.sent_s is not None and flight.engine is not None:
        asked.append((flight.engine.facts.engine == "api", last))
    if {hosted for hosted, _ in asked} != {True, False}:
        return None
    bands = [estimate.energy_j if estimate else None for hosted, estimate in asked if hosted]
    known = [band for band in bands if band is not None]
    if len(known) < len(bands):
        return None
    return Band(*(sum(column) for column in zip(*known, strict=True)))


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
