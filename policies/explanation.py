"""A decision in words: why this one, and for each other why not."""

from __future__ import annotations

from policies.types import Decision, NoBackendWithinLimits, Rejection

# Broken limits first, since that is what a person can change; then what was merely not the best.
_LAST = ("not_chosen", "dominated", "figure_unknown", "explored_another", "held_out")


def why(decision: Decision) -> str:
    """One sentence: who was chosen, by which policy, and why."""
    version = f" (version {decision.version})" if decision.version else ""
    text = f"{decision.policy}{version} chose {decision.chosen}: {decision.reason}."
    if decision.moving_energy_j:
        text += (
            f" Leaving the session's cached prefix takes {decision.moving_energy_j:.3g} J of "
            "prefilling again."
        )
    if decision.escalate_to:
        text += f" If its answer fails the checks, {decision.escalate_to} answers."
    return text


def why_not(rejection: Rejection) -> str:
    """One sentence: why this backend was not chosen."""
    return f"{rejection.backend}: {rejection.message}."


def explained(decision: Decision) -> list[str]:
    """The choice, then each other candidate, broken limits first."""
    order = {name: place for place, name in enumerate(decision.order)}
    rejections = sorted(
        decision.rejections,
        key=lambda r: (r.code in _LAST, order.get(r.backend, 0), r.backend),
    )
    return [why(decision), *(f"Not {why_not(r)}" for r in rejections)]


def refused(error: NoBackendWithinLimits) -> list[str]:
    """A refusal: that nothing fits, then each candidate's reason."""
    first = "Nothing was chosen: no backend fits the limits."
    return [first, *(f"Not {why_not(r)}" for r in error.rejections)]
