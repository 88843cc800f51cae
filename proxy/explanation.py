"""A decision as JSON, for ``POST /v1/route``, ``joulegate explain`` and people."""

from __future__ import annotations

from typing import Any

import msgspec

from estimators.types import Band, Estimate, Features, Lengths
from policies.explanation import explained
from policies.explanation import refused as refused_in_words
from policies.types import Candidate, Decision, NoBackendWithinLimits, Rejection
from proxy.routing import Routed


def band(value: Band | None) -> dict[str, float] | None:
    return None if value is None else {"low": value.low, "mid": value.mid, "high": value.high}


def lengths(value: Lengths | None) -> dict[str, float] | None:
    return None if value is None else msgspec.structs.asdict(value)


def estimate(value: Estimate) -> dict[str, Any]:
    """One estimate; unknown figures are null."""
    return {
        "quality": band(value.quality),
        "output_tokens": lengths(value.output_tokens),
        "energy_j": band(value.energy_j),
        "marginal_energy_j": band(value.marginal_energy_j),
        "carbon_g": band(value.carbon_g),
        "money_usd": band(value.money_usd),
        "ttft_s": band(value.ttft_s),
        "latency_s": band(value.latency_s),
        "evidence": value.evidence.value,
        "why": value.why,
    }


def candidate(value: Candidate, rejection: Rejection | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"backend": value.backend.name, **estimate(value.estimate)}
    entry["simulated"] = value.backend.simulated
    if rejection is not None:
        entry["rejected"] = {"code": rejection.code, "message": rejection.message}
    return entry


def routed(value: Routed) -> dict[str, Any]:
    """The whole decision, candidates with what each would cost and why it was not chosen."""
    decision = value.decision
    return _of(
        value.request.features,
        decision,
        value.candidates,
        decision.rejections,
        explained(decision),
    )


def refused(told: Features, error: NoBackendWithinLimits) -> dict[str, Any]:
    """The same for a request that no backend may serve: nothing chosen, every reason listed."""
    return _of(told, None, error.candidates, error.rejections, refused_in_words(error))


def _of(
    told: Features,
    decision: Decision | None,
    candidates: tuple[Candidate, ...],
    rejections: tuple[Rejection, ...],
    sentences: list[str],
) -> dict[str, Any]:
    why_not = {r.backend: r for r in rejections}
    return {
        "object": "joulegate.decision",
        "chosen": decision.chosen if decision else None,
        "policy": decision.policy if decision else None,
        "policy_version": decision.version if decision else None,
        "reason": decision.reason if decision else "No backend fits the limits.",
        "explained": sentences,
        "order": list(decision.order) if decision else [],
        "counterfactual": decision.counterfactual if decision else None,
        "arm": decision.arm if decision else None,
        "escalate_to": decision.escalate_to if decision else None,
        "kept": decision.kept if decision else None,
        "moving_energy_j": decision.moving_energy_j if decision else None,
        "task": told.task,
        "prompt_tokens": told.prompt_tokens,
        "prompt_tokens_counted": told.prompt_tokens_counted,
        "candidates": [candidate(c, why_not.get(c.backend.name)) for c in candidates],
    }
