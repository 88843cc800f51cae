"""Savings, validated: what requests of the hold-out used against those that policies chose for."""

from __future__ import annotations

from math import sqrt

import msgspec

from meters.arms import ArmSums, arm_sums
from meters.ledger import Ledger
from policies.experiment import t_80


class Validated(msgspec.Struct, frozen=True, kw_only=True):
    """The hold-out of a period. ``saved`` is 1 - treated / held out, of energy a request, with its
    80 % interval; None where either arm has fewer than two conversations."""

    simulated: bool
    held_out: int  # requests
    treated: int
    held_out_j: float | None  # a request, on average
    treated_j: float | None
    metered: float  # part of the requests whose energy was metered, the others' is estimated
    saved: float | None = None
    saved_low: float | None = None
    saved_high: float | None = None

    @property
    def validates(self) -> bool:
        """Whether the interval excludes zero."""
        return self.saved_low is not None and self.saved_low > 0.0


def validated(
    ledger: Ledger,
    from_s: float,
    to_s: float,
    *,
    team: str | None = None,
    policy: str | None = None,
) -> list[Validated]:
    """What the hold-out of a period says; simulated and other requests apart. Empty where no
    request was in an arm."""
    with ledger.database.read() as connection:
        sums = arm_sums(connection, from_s, to_s, team=team, policy=policy)
    found = []
    for simulated in sorted({s.simulated for s in sums}):
        arms = {s.arm: s for s in sums if s.simulated == simulated}
        found.append(compared(simulated, arms.get("treated"), arms.get("hold_out")))
    return found


def compared(simulated: bool, treated: ArmSums | None, held_out: ArmSums | None) -> Validated:
    """Two arms, by the delta method on ratios of conversations' sums."""
    both = [arm for arm in (treated, held_out) if arm is not None]
    asked = sum(arm.requests for arm in both)
    found = Validated(
        simulated=simulated,
        held_out=held_out.requests if held_out else 0,
        treated=treated.requests if treated else 0,
        held_out_j=held_out.energy_j / held_out.requests if held_out else None,
        treated_j=treated.energy_j / treated.requests if treated else None,
        metered=sum(arm.metered for arm in both) / asked if asked else 0.0,
    )
    if treated is None or held_out is None or held_out.energy_j <= 0.0:
        return found
    if min(treated.conversations, held_out.conversations) < 2:
        return found
    (mean_t, error_t), (mean_h, error_h) = mean(treated), mean(held_out)
    ratio = mean_t / mean_h
    draws = min(treated.conversations, held_out.conversations)
    half = t_80(draws) * sqrt(error_t**2 + (ratio * error_h) ** 2) / mean_h
    return msgspec.structs.replace(
        found, saved=1.0 - ratio, saved_low=1.0 - ratio - half, saved_high=1.0 - ratio + half
    )


def mean(arm: ArmSums) -> tuple[float, float]:
    """Joules a request and the standard error of that, conversations being what was drawn."""
    joules, k = arm.energy_j / arm.requests, arm.conversations
    squares = max(0.0, arm.ee - 2.0 * joules * arm.ne + joules * joules * arm.nn)
    return joules, sqrt(k / (k - 1) * squares) / arm.requests
