"""A strategy with its own limits, what to do when nothing fits them, and rules."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from policies.conditions import Condition
from policies.limits import within
from policies.types import (
    Candidate,
    Decision,
    Limits,
    NoBackendWithinLimits,
    Policy,
    Rejection,
    Request,
)


class Configured:
    """Tightens the limits it is handed with its own, then lets ``strategy`` choose.

    When nothing fits, ``otherwise`` chooses within the limits that were handed in: a policy may
    give up its own limits, never those of the team or the caller. Without ``otherwise`` it refuses.
    """

    def __init__(
        self,
        name: str,
        strategy: Policy,
        limits: Limits | None = None,
        otherwise: Policy | None = None,
        version: str = "",
        compare_with: str | None = None,
    ) -> None:
        """``compare_with`` names the backend that would have served without us, if it is known."""
        self.name = name
        self.version = version
        self.strategy = strategy
        self.limits = limits or Limits()
        self.otherwise = otherwise
        self.compare_with = compare_with

    def choose(self, request: Request, candidates: Sequence[Candidate], limits: Limits) -> Decision:
        """The strategy's choice within both limits, else that of ``otherwise``."""
        try:
            decision = self.strategy.choose(request, candidates, within(limits, self.limits))
        except NoBackendWithinLimits as nothing:
            if self.otherwise is None:
                raise
            decision = self.otherwise.choose(request, candidates, limits)
            reason = f"nothing fits the limits of {self.name}, so {self.otherwise.name}: "
            decision = msgspec.structs.replace(
                decision,
                reason=reason + decision.reason,
                rejections=_with(decision.rejections, nothing.rejections),
            )
        without_us = decision.counterfactual
        if self.compare_with is not None and any(
            c.backend.name == self.compare_with for c in candidates
        ):
            without_us = self.compare_with
        return msgspec.structs.replace(
            decision, policy=self.name, version=self.version, counterfactual=without_us
        )


class Ruled:
    """The first rule whose condition holds decides; without one, ``plain`` does."""

    def __init__(
        self,
        name: str,
        rules: Sequence[tuple[Condition, Policy]],
        plain: Policy,
        version: str = "",
    ) -> None:
        self.name = name
        self.version = version
        self.rules = tuple(rules)
        self.plain = plain

    def choose(self, request: Request, candidates: Sequence[Candidate], limits: Limits) -> Decision:
        """What the policy of the first rule that applies decides."""
        for when, policy in self.rules:
            if when.holds(request, candidates):
                decision = policy.choose(request, candidates, limits)
                break
        else:
            decision = self.plain.choose(request, candidates, limits)
        if decision.policy == self.name:
            return decision
        reason = f"by the rule that uses {decision.policy}: {decision.reason}"
        return msgspec.structs.replace(
            decision, policy=self.name, version=self.version, reason=reason
        )


def _with(second: tuple[Rejection, ...], first: tuple[Rejection, ...]) -> tuple[Rejection, ...]:
    """The second choice's rejections, each behind the limit that it broke in the first, if it did:
    the one that was chosen broke one, too."""
    broke = {r.backend: r for r in first if r.code != "not_asked_for"}
    found = []
    for rejection in second:
        before = broke.get(rejection.backend)
        if before is not None and before.message != rejection.message:
            message = f"{before.message}; then {rejection.message}"
            rejection = Rejection(before.backend, before.code, message)
        found.append(rejection)
    return tuple(found)
