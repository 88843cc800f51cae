"""A strategy with its own limits, and what to do when nothing fits them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from policies.limits import tighten
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
    ) -> None:
        self.name = name
        self.version = version
        self.strategy = strategy
        self.limits = limits or Limits()
        self.otherwise = otherwise

    def choose(self, request: Request, candidates: Sequence[Candidate], limits: Limits) -> Decision:
        """The strategy's choice within both limits, else that of ``otherwise``."""
        try:
            decision = self.strategy.choose(request, candidates, tighten(limits, self.limits))
        except NoBackendWithinLimits as nothing:
            if self.otherwise is None:
                raise
            decision = self.otherwise.choose(request, candidates, limits)
            reason = f"nothing fits the limits of {self.name}, so {self.otherwise.name}: "
            return msgspec.structs.replace(
                decision,
                policy=self.name,
                version=self.version,
                reason=reason + decision.reason,
                rejections=_with(decision.rejections, nothing.rejections),
            )
        return msgspec.structs.replace(decision, policy=self.name, version=self.version)


def _with(second: tuple[Rejection, ...], first: tuple[Rejection, ...]) -> tuple[Rejection, ...]:
    """The second choice's rejections, with the limit each one broke in the first, if it did."""
    broke = {r.backend: r for r in first if r.code != "not_asked_for"}
    return tuple(broke.get(r.backend, r) for r in second)
