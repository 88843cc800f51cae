"""How good a backend's estimates have been lately, and whether they drift. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from meters.judged_estimates import JudgedEstimate

RECENT = 200  # requests that count as the present; those before are what drift is measured from
_SURE = 2.0  # standard errors beyond which drift is no chance
_MATTERS = 0.03  # and no less than this


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """One request's energy as predicted when it was sent, with its 80 % band, and as metered; J."""

    backend: str
    energy_j: float
    metered_j: float
    low_j: float | None = None
    high_j: float | None = None
    start_s: float | None = None  # Unix time
    version: str = ""
    simulated: bool = False

    @staticmethod
    def of(one: JudgedEstimate) -> Judgement:
        """A row of the ledger."""
        return Judgement(
            backend=one.backend,
            energy_j=one.energy_j,
            metered_j=one.metered_j,
            low_j=one.low_j,
            high_j=one.high_j,
            start_s=one.start_s,
            version=one.version,
            simulated=one.simulated,
        )


class Lately(msgspec.Struct, frozen=True, kw_only=True):
    """The last so many requests of one backend, and the drift from those before them."""

    backend: str
    simulated: bool
    requests: int  # that were judged
    recent: int  # of them those that the next four are of
    error: float  # mean |predicted - metered| / metered (MAPE)
    median: float  # of the same
    bias: float  # exp of the mean log ratio, less 1: above 0 is over-estimated
    total: float  # all that was predicted / all that was metered, less 1
    band_holds: float | None  # share within the 80 % band; None where none had one
    drift: float | None  # bias of the recent ones less that of those before; None: too few before
    drifts: bool  # whether that is more than chance, and matters
    from_s: float | None  # of all that were judged
    to_s: float | None
    versions: tuple[str, ...]  # of the estimators that said it, the latest last


def lately(judgements: Iterable[Judgement]) -> list[Lately]:
    """What outcomes in order of time say of each backend; simulated ones apart."""
    by_backend: dict[tuple[str, bool], list[Judgement]] = {}
    for one in judgements:
        if one.energy_j > 0.0 and one.metered_j > 0.0:
            by_backend.setdefault((one.backend, one.simulated), []).append(one)
    return [_lately(all_of_it) for _, all_of_it in sorted(by_backend.items())]


def _lately(judged: Sequence[Judgement]) -> Lately:
    ratios = [math.log(one.energy_j / one.metered_j) for one in judged]
    # With few requests, half of them are the present: drift is told from a dozen on.
    present = min(RECENT, max(1, len(judged) // 2)) if len(judged) >= 12 else len(judged)
    new, old = ratios[-present:], ratios[:-present]
    recent = judged[-present:]
    missed = sorted(abs(math.expm1(ratio)) for ratio in new)
    bias = math.expm1(_mean(new))
    inside = [
        one.low_j <= one.metered_j <= one.high_j
        for one in recent
        if one.low_j is not None and one.high_j is not None
    ]
    drift = bias - math.expm1(_mean(old)) if old else None
    times = [one.start_s for one in judged if one.start_s is not None]
    return Lately(
        backend=judged[0].backend,
        simulated=judged[0].simulated,
        requests=len(judged),
        recent=present,
        error=_mean(missed),
        median=missed[len(missed) // 2],
        bias=bias,
        total=sum(o.energy_j for o in recent) / sum(o.metered_j for o in recent) - 1.0,
        band_holds=sum(inside) / len(inside) if inside else None,
        drift=drift,
        drifts=drift is not None and abs(drift) > _MATTERS and _apart(new, old) > _SURE,
        from_s=min(times, default=None),
        to_s=max(times, default=None),
        versions=tuple(dict.fromkeys(one.version for one in judged if one.version)),
    )


def _apart(new: Sequence[float], old: Sequence[float]) -> float:
    """The difference of two means in its standard errors."""
    error = math.sqrt(_variance(new) / len(new) + _variance(old) / len(old))
    between = abs(_mean(new) - _mean(old))
    return between / error if error > 0.0 else math.inf if between > 0.0 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    middle = _mean(values)
    return sum((value - middle) ** 2 for value in values) / (len(values) - 1)
