"""Experiments: hold-outs that prove savings, and A/B tests of policies.

Which arm a request is in comes from its draw (or its session, so that a conversation stays in one
arm), so a record replays. What a hold-out showed is judged here too, from plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, sqrt
from typing import NamedTuple

import msgspec

from estimators.types import Z_80
from policies.draws import drawn, steady
from policies.exploration import switched
from policies.types import Candidate, Decision, Limits, Policy, Request


def t_80(draws: int) -> float:
    """Likewise Student's, where the spread is known from so many draws: few of them tell it badly.

    Fisher's expansion around the normal quantile (Cornish and Fisher 1937; Abramowitz and Stegun
    26.7.5). Raises ValueError for fewer than two.
    """
    if draws < 2:
        raise ValueError(f"{draws} draws tell no spread")
    n, z = draws - 1, Z_80
    if n == 1:
        return 3.0777  # the expansion is too short for it
    first = (z**3 + z) / (4 * n)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    return z + first + second + third


class HeldOut:
    """A ``share`` of requests gets what would have served without us, where that fits the limits.

    Requests whose counterfactual does not fit are in no arm: neither ``hold_out`` nor ``treated``,
    so that the two arms are alike in everything but the choice.
    """

    def __init__(self, policy: Policy, share: float = 0.01) -> None:
        if not 0.0 <= share <= 0.5:
            raise ValueError("a hold-out is a share between 0 and 0.5")
        self.name = policy.name
        self.version = policy.version
        self.policy = policy
        self.share = share

    def choose(self, request: Request, candidates: Sequence[Candidate], limits: Limits) -> Decision:
        """The policy's decision, or the counterfactual's, with the arm it belongs to."""
        decision = self.policy.choose(request, candidates, limits)
        without_us = decision.counterfactual
        if without_us is None or without_us not in decision.order:
            return decision
        if decision.escalate_to is not None and without_us == decision.chosen:
            return decision  # the first of a cascade keeps to the limits only if it is checked
        if place(request, "hold-out") >= self.share:
            return msgspec.structs.replace(decision, arm=decision.arm or "treated")
        return switched(
            decision,
            without_us,
            "taken for the hold-out, which is served as if we were not there",
            "held_out",
            arm="hold_out",
        )


class Split:
    """An A/B test: each request, or whole session, is decided by one of several policies."""

    def __init__(self, name: str, arms: Mapping[str, tuple[Policy, float]]) -> None:
        """``arms`` maps each arm's name to its policy and share; shares must add up to 1."""
        total = sum(share for _, share in arms.values())
        if not arms or abs(total - 1.0) > 1e-6 or any(s < 0 for _, s in arms.values()):
            raise ValueError(f"the shares of {name} must add up to 1, not to {total:g}")
        self.name = name
        self.version = ";".join(f"{arm}={p.version}@{s:g}" for arm, (p, s) in arms.items())
        self.arms = dict(arms)

    def choose(self, request: Request, candidates: Sequence[Candidate], limits: Limits) -> Decision:
        """What the policy of this request's arm decides."""
        arm = self._arm(place(request, f"split {self.name}"))
        if request.previous_by_arm:  # one arm's requests hold none of another's
            last = request.previous_by_arm.get(arm)
            request = msgspec.structs.replace(request, previous_backend=last)
        decision = self.arms[arm][0].choose(request, candidates, limits)
        return msgspec.structs.replace(decision, arm=arm, policy=self.name, version=self.version)

    def _arm(self, at: float) -> str:
        upto = 0.0
        for arm, (_, share) in self.arms.items():
            upto += share
            if at < upto:
                return arm
        return next(reversed(self.arms))


class Saving(NamedTuple):
    """A share saved, 1 - treated / hold-out, with its interval; None where it cannot be said."""

    share: float
    low: float
    high: float
    treated: int
    held_out: int


def saving(treated: Sequence[float], held_out: Sequence[float], z: float = Z_80) -> Saving | None:
    """The share saved per request, with the interval of ``z`` standard errors (80 % by default).

    The ratio of two means by the delta method. None with fewer than two requests in an arm or a
    hold-out that used nothing.
    """
    if len(treated) < 2 or len(held_out) < 2:
        return None
    mean_t, error_t = mean_error(treated)
    mean_h, error_h = mean_error(held_out)
    if mean_h <= 0.0:
        return None
    ratio = mean_t / mean_h
    error = sqrt(error_t**2 + (ratio * error_h) ** 2) / mean_h
    share = 1.0 - ratio
    return Saving(share, share - z * error, share + z * error, len(treated), len(held_out))


def place(request: Request, purpose: str) -> float:
    """Where a request, or its whole session, falls in [0, 1) for one experiment."""
    if request.session is not None:
        return steady(request.session, purpose)
    return drawn(request.draw, purpose)


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return moments(len(values), sum(values), sum(v * v for v in values))


def moments(n: int, total: float, squares: float) -> tuple[float, float]:
    """Mean and its standard error from sums; the error is infinite with fewer than two."""
    if n < 2:
        return (total / n if n else 0.0), inf
    mean = total / n
    variance = max(0.0, (squares - n * mean * mean) / (n - 1))
    return mean, sqrt(variance / n)
