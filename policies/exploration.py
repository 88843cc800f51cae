"""Exploration: a few requests go elsewhere, so that estimates of idle backends stay fresh.

Bounded three ways. Only candidates that fit every limit are explored. Never more than ``share`` of
the requests. And a candidate that would add much energy is tried more rarely, so that on average
exploring adds at most ``extra_energy`` of what the choice would have used:
``Σ p_i · (E_i - E_chosen) <= extra_energy · E_chosen``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from policies.draws import drawn
from policies.ranking import INF, figures
from policies.types import Candidate, Decision, Limits, Policy, Rejection, Request


class Exploring:
    """Lets ``policy`` choose, and now and then takes another of those that fit."""

    def __init__(self, policy: Policy, share: float = 0.01, extra_energy: float = 0.005) -> None:
        """``share`` of requests at most, adding ``extra_energy`` (a share) at most; both 0..1.

        Raises ValueError outside that range.
        """
        if not (0.0 <= share <= 1.0 and 0.0 <= extra_energy <= 1.0):
            raise ValueError("the share of requests and of extra energy must lie between 0 and 1")
        self.name = policy.name
        self.version = policy.version
        self.policy = policy
        self.share = share
        self.extra_energy = extra_energy

    def choose(self, request: Request, candidates: Sequence[Candidate], limits: Limits) -> Decision:
        """The policy's decision, or one that says it was explored."""
        decision = self.policy.choose(request, candidates, limits)
        others = sorted(decision.order[1:])
        # A conversation would stay where it was tried, or pay for its prefix twice.
        held = request.session_backend is not None or decision.arm is not None
        draw = drawn(request.draw, "explore")
        if not others or held or draw >= self.share:
            return decision
        # The draw is below the share: use what is left of it to pick one, each equally likely.
        position = draw / self.share * len(others)
        name = others[int(position)]
        by_name = {c.backend.name: c for c in candidates}
        chosen_j = figures(by_name[decision.chosen]).energy_j
        extra_j = figures(by_name[name]).energy_j - chosen_j
        if extra_j == INF or extra_j != extra_j:
            return decision
        if extra_j * self.share > self.extra_energy * chosen_j:
            odds = self.extra_energy * chosen_j / (extra_j * self.share)
            if position - int(position) >= odds:
                return decision
        return switched(
            decision,
            name,
            reason=f"tried to keep its estimates fresh; {decision.chosen} ranks first",
            code="explored_another",
        )


def switched(
    decision: Decision, name: str, reason: str, code: str, arm: str | None = None
) -> Decision:
    """The decision with ``name``, one of its order, in the place of the chosen backend.

    Where that was the first of a cascade nobody is asked after ``name``, and the first, which only
    had to pass its checks, is no fallback.
    """
    if name == decision.chosen:
        return msgspec.structs.replace(decision, arm=arm or decision.arm)
    first = Rejection(decision.chosen, code, f"ranked first, but {name} was {reason}")
    rest = [r for r in decision.rejections if r.backend != name]
    order = [n for n in decision.order if n != name]
    second = decision.escalate_to
    if second is not None:
        order.remove(decision.chosen)
        message = f"only after {decision.chosen}, which was not asked"
        rest = [Rejection(second, r.code, message) if r.backend == second else r for r in rest]
    return msgspec.structs.replace(
        decision,
        chosen=name,
        order=(name, *order),
        escalate_to=None,
        reason=f"{name} was {reason}",
        rejections=tuple(sorted([*rest, first], key=lambda r: r.backend)),
        explored=True,
        arm=arm or decision.arm,
        kept=None,
    )
