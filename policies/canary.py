"""Canaries: a new backend gets a little traffic, more when it does well, none when it does not.

``Canarying`` keeps the new backend to its share; ``Canary`` is the roll-out as a state machine
without a clock: what each finished request showed goes in, the share to give comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import msgspec

from policies.experiment import moments, place
from policies.exploration import switched
from policies.types import (
    Candidate,
    Decision,
    Limits,
    NoBackendWithinLimits,
    Policy,
    Rejection,
    Request,
)

LEAST_DUELS = 10  # judged comparisons before any verdict
# Standard errors beyond which chance explains nothing. High, because every request looks again.
BEYOND_CHANCE = 3.5


class Canarying:
    """Gives a new backend a ``share`` of what it fits, and keeps it from all other requests."""

    def __init__(self, policy: Policy, backend: str, share: float) -> None:
        self.name = policy.name
        self.version = policy.version
        self.policy = policy
        self.backend = backend
        self.share = share

    def choose(self, request: Request, candidates: Sequence[Candidate], limits: Limits) -> Decision:
        """The policy's decision without the canary, or the canary if it is its turn and it fits."""
        share = self.share if request.canary_share is None else request.canary_share
        if share >= 1.0:  # it has passed: a backend like any other
            return self.policy.choose(request, candidates, limits)
        if place(request, f"canary {self.backend}") < share:
            decision = self.policy.choose(request, candidates, limits)
            if self.backend in decision.order:
                return switched(
                    decision,
                    self.backend,
                    "given its share of traffic as a new backend",
                    "canary",
                    arm="canary",
                )
        others = [c for c in candidates if c.backend.name != self.backend]
        canary = tuple(c for c in candidates if c.backend.name == self.backend)
        # It may be the model that a share of quality is meant of, also where it is not to serve.
        measured = msgspec.structs.replace(request, references=(*request.references, *canary))
        try:
            decision = self.policy.choose(measured, others, limits)
        except NoBackendWithinLimits:
            # A new backend is better than none; when it does not fit either, this says so.
            return self.policy.choose(request, candidates, limits)
        if len(others) == len(candidates):
            return decision
        waits = Rejection(self.backend, "canary", f"new: it gets {share:.0%} of requests")
        both = sorted([*decision.rejections, waits], key=lambda r: r.backend)
        return msgspec.structs.replace(decision, rejections=tuple(both), arm="control")


class Arm(msgspec.Struct, frozen=True):
    """What one arm of a canary showed so far: sums, so that it can be kept and merged cheaply."""

    requests: int = 0
    errors: int = 0
    latency_s: float = 0.0  # sum over the answered
    latency_s2: float = 0.0  # sum of squares
    judged: int = 0
    quality: float = 0.0
    quality2: float = 0.0

    def with_request(
        self, ok: bool, latency_s: float | None = None, quality: float | None = None
    ) -> Arm:
        """This arm with one more request in it."""
        seen, judged = latency_s or 0.0, quality or 0.0
        return Arm(
            self.requests + 1,
            self.errors + (not ok),
            self.latency_s + seen,
            self.latency_s2 + seen * seen,
            self.judged + (quality is not None),
            self.quality + judged,
            self.quality2 + judged * judged,
        )

    def with_score(self, quality: float) -> Arm:
        """This arm with one more judged answer, of a request that is in it already."""
        return msgspec.structs.replace(
            self,
            judged=self.judged + 1,
            quality=self.quality + quality,
            quality2=self.quality2 + quality * quality,
        )


class Duels(msgspec.Struct, frozen=True):
    """Answers of the canary compared with those of what it may replace: sums of the canary's
    points, 0 (worse) to 1 (better). Apart from scores, which are given to one answer alone."""

    fought: int = 0
    points: float = 0.0
    points2: float = 0.0

    def with_points(self, points: float) -> Duels:
        """These and one more comparison."""
        return Duels(self.fought + 1, self.points + points, self.points2 + points * points)


class Canary(msgspec.Struct, frozen=True, kw_only=True):
    """A roll-out in steps: ``rolling`` until it is ``promoted`` or ``rolled_back``.

    A value: ``after`` gives the next one. A step goes up after ``requests_per_step`` canary
    requests without a verdict against it. It is rolled back as soon as errors, latency or quality
    are worse than the control's by more than allowed, beyond what chance explains.
    """

    backend: str
    steps: tuple[float, ...] = (0.02, 0.1, 0.5)
    step: int = 0
    state: str = "rolling"
    why: str = ""
    requests_per_step: int = 200
    least_requests: int = 20  # before any verdict
    more_errors: float = 0.02  # difference of error rates that is allowed
    slower: float = 0.2  # share by which mean latency may be longer
    worse: float = 0.03  # quality points that may be lost
    canary: Arm = Arm()
    control: Arm = Arm()
    duels: Duels = Duels()

    @property
    def share(self) -> float:
        """The share of requests the canary should get now."""
        if self.state == "rolling":
            return self.steps[self.step]
        return 1.0 if self.state == "promoted" else 0.0

    def after(
        self,
        arm: str,
        ok: bool,
        latency_s: float | None = None,
        quality: float | None = None,
    ) -> Canary:
        """The roll-out after one more finished request of ``arm``, "canary" or "control"."""
        if self.state != "rolling" or arm not in ("canary", "control"):
            return self
        arms = {"canary": self.canary, "control": self.control}
        arms[arm] = arms[arm].with_request(ok, latency_s if ok else None, quality)
        canary, control = arms["canary"], arms["control"]
        following = msgspec.structs.replace(self, canary=canary, control=control)
        if why := following._against():
            return msgspec.structs.replace(following, state="rolled_back", why=why)
        if canary.requests < self.requests_per_step * (self.step + 1):
            return following
        if self.step + 1 < len(self.steps):
            return msgspec.structs.replace(following, step=self.step + 1)
        return msgspec.structs.replace(following, state="promoted", why="passed every step")

    def judged(self, against: str = "") -> Canary:
        """Where the roll-out stands with the sums it has, however they were added up; ``against``
        is why it was rolled back before."""
        if why := against or self._against():
            return msgspec.structs.replace(self, state="rolled_back", why=why)
        step = self.canary.requests // self.requests_per_step
        if step >= len(self.steps):
            return msgspec.structs.replace(
                self, step=len(self.steps) - 1, state="promoted", why="passed every step"
            )
        return msgspec.structs.replace(self, step=step)

    def _against(self) -> str:
        """Why it must be rolled back now; empty when nothing speaks against it."""
        return self._worse() or self._beaten()

    def _worse(self) -> str:
        """What its own requests showed against it; empty when nothing."""
        canary, control = self.canary, self.control
        if canary.requests < self.least_requests or control.requests < self.least_requests:
            return ""
        bad, base = canary.errors / canary.requests, control.errors / control.requests
        # Agresti-Caffo: one success and one failure more in each arm, so that 0 has an error too.
        error = sqrt(
            _spread(canary.errors, canary.requests) + _spread(control.errors, control.requests)
        )
        if bad - base - self.more_errors > BEYOND_CHANCE * error:
            return f"errors: {bad:.1%} of its requests against {base:.1%}"
        ours = moments(canary.requests - canary.errors, canary.latency_s, canary.latency_s2)
        theirs = moments(control.requests - control.errors, control.latency_s, control.latency_s2)
        allowed = theirs[0] * (1.0 + self.slower)
        if ours[0] - allowed > BEYOND_CHANCE * sqrt(ours[1] ** 2 + theirs[1] ** 2):
            return f"latency: {ours[0]:.3g} s on average against {theirs[0]:.3g} s"
        ours = moments(canary.judged, canary.quality, canary.quality2)
        theirs = moments(control.judged, control.quality, control.quality2)
        if theirs[0] - self.worse - ours[0] > BEYOND_CHANCE * sqrt(ours[1] ** 2 + theirs[1] ** 2):
            return f"quality: {ours[0]:.3g} on average against {theirs[0]:.3g}"
        return ""

    def _beaten(self) -> str:
        """Why comparisons of answers speak against it; empty when they do not."""
        fought, points, points2 = self.duels.fought, self.duels.points, self.duels.points2
        if fought < LEAST_DUELS:
            return ""
        # One win and one defeat more, so that ten defeats have an error too.
        mean, error = moments(fought + 2, points + 1.0, points2 + 1.0)
        if 0.5 - self.worse - mean > BEYOND_CHANCE * error:
            return f"quality: {points / fought:.3g} of the points in {fought} judged comparisons"
        return ""


def _spread(errors: int, requests: int) -> float:
    rate = (errors + 1) / (requests + 2)
    return rate * (1.0 - rate) / (requests + 2)
