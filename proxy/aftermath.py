"""What policies learn from a finished request: promises given, canaries tried, prefixes kept.

Called once for each request, after it was answered; does nothing for a policy that asks for
nothing.
"""

from __future__ import annotations

from meters.types import UsageRecord
from proxy.canaries import Canaries
from proxy.flight import Flight
from proxy.routing import NO_NEEDS, Router


class Aftermath:
    """Tells the router's memories what came of a decision. Used from the event loop only."""

    def __init__(self, router: Router, canaries: Canaries) -> None:
        self.router = router
        self.canaries = canaries

    def finished(self, flight: Flight, record: UsageRecord) -> None:
        """One request has ended."""
        routed, told = flight.routed, flight.features
        if routed is None or told is None or record.sent_s is None or record.backend is None:
            return
        expected, cached = told.cached_prompt_tokens, record.cached_prompt_tokens
        decision = routed.decision
        if expected and cached is not None and record.backend == routed.request.session_backend:
            self.router.conversations.saw(record.backend, expected, cached)
        need = routed.needs
        if need is NO_NEEDS or record.outcome == "cancelled":
            return
        policy = routed.policy.name
        if need.promised is not None and record.outcome == "ok" and record.quality is not None:
            self.router.promises.gave(record.team, policy, need.promised, record.quality)
        if need.canary is not None:
            # Where it failed and another answered, the client saw nothing of it; it failed still.
            meant = (decision.chosen, decision.escalate_to)  # the second of a cascade, too
            ok = record.outcome == "ok" and flight.served_by in meant
            self.canaries.finished(policy, decision.arm, ok, record.latency_s)

    def scored(self, record: UsageRecord, score: float, before: float | None = None) -> None:
        """An answer has been judged, 0 to 1; ``before`` is what it was judged then, if it was."""
        need = self.router.needs.get(record.policy, NO_NEEDS)
        if record.sent_s is None:
            return  # from the cache: this was no trial, and no promise was booked for it
        if need.promised is not None and record.outcome == "ok" and record.quality is not None:
            booked = record.quality if before is None else before
            self.router.promises.corrected(record.team, record.policy, booked, score)
        if need.canary is not None and before is None:
            self.canaries.scored(record.policy, record.arm, score)

    def compared(self, flight: Flight, other: str, points: float) -> None:
        """A judge gave a request's answer so many points, 0 to 1, against another backend's."""
        routed, engine = flight.routed, flight.engine
        if routed is None or engine is None or routed.needs.canary is None:
            return
        new, policy = routed.needs.canary.backend, routed.policy.name
        if engine.name == new:
            self.canaries.compared(policy, points)
        elif other == new:
            self.canaries.compared(policy, 1.0 - points)
