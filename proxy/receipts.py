"""Receipts as JSON: what one request was estimated to use, and what it was metered to use."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from meters.carbon import operational_g
from meters.receipts import Receipt, WindowShare
from meters.types import Evidence, UsageRecord
from policies.explanation import explained
from policies.records import decision_from_json

SIMULATED_NOTE = (
    "This request was served by a simulated engine: its energy comes from a simulation, "
    "not from a counter."
)


def of_record(record: UsageRecord) -> Receipt:
    """The receipt of a request that the ledger does not have yet."""
    return Receipt(
        record=record,
        shares=(),
        attributed_j=None,
        energy_j=record.energy_j,
        evidence=record.evidence,
        state="none" if record.energy_j is None else "estimated",
        settled=False,
        covered=0.0,
    )


def status_of(receipt: Receipt) -> str:
    """``estimated``, ``partial``, ``metered`` or ``unknown``; a simulation says that it is one."""
    simulated = receipt.record.simulated or receipt.evidence == Evidence.SIMULATED
    state = "unknown" if receipt.state == "none" else receipt.state
    return f"{state} (simulated)" if simulated and state in ("metered", "partial") else state


def decision_of(recorded: str | None) -> dict[str, Any] | None:
    """Why this backend and, for each other, why not; what replays it stays in the ledger."""
    if recorded is None:
        return None
    decision = decision_from_json(recorded).decision
    if decision is None:
        return None
    return {**msgspec.to_builtins(decision), "explained": explained(decision)}


# What a window says of everybody on its node, second by second.
_OF_ALL = ("metered_j", "idle_j", "external_j", "unattributed_j", "host_energy_j")


def _window(share: WindowShare, whole: bool) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(share)
    return told if whole else {name: told[name] for name in told if name not in _OF_ALL}


def as_json(receipt: Receipt, whole_windows: bool = True) -> dict[str, Any]:
    """The body of ``GET /v1/usage/{request_id}``. Unknown is null, never 0.

    ``whole_windows``: with what each window held beside the request's share; one can tell from it
    when other teams were busy on the node, as from its hours on the dashboard.
    """
    record = receipt.record
    energy_j = receipt.energy_j
    carbon_g = record.carbon_g
    if (
        receipt.state == "metered"
        and energy_j is not None
        and record.intensity_g_per_kwh is not None
        and record.pue is not None
    ):
        carbon_g = operational_g(energy_j, record.pue, record.intensity_g_per_kwh)
    body: dict[str, Any] = {
        "object": "joulegate.receipt",
        "request_id": record.request_id,
        "status": status_of(receipt),
        "simulated": record.simulated,
        "team": record.team,
        "project": record.project,
        "tags": record.tags,
        "endpoint": record.endpoint,
        "model": record.model_asked,
        "backend": record.backend,
        "policy": record.policy,
        "policy_version": record.policy_version,
        "outcome": record.outcome,
        "http_status": record.status,
        "error_code": record.error_code,
        "cache": record.cache,
        "attempts": record.attempts,
        "created": int(record.start_s),
        "latency_s": record.latency_s,
        "ttft_s": record.ttft_s,
        "tokens": {
            "prompt": record.prompt_tokens,
            "cached_prompt": record.cached_prompt_tokens,
            "output": record.output_tokens,
            "reasoning": record.reasoning_tokens,
            "source": record.usage_source,
        },
        "energy": {
            "energy_j": energy_j,
            "evidence": receipt.evidence.value,
            "estimated_j": {
                "low": record.energy_low_j,
                "mid": record.energy_j,
                "high": record.energy_high_j,
                "evidence": record.evidence.value,
                "estimator": record.estimator_version,
            },
            "attributed_j": receipt.attributed_j,
            "settled": receipt.settled,
            "covered": receipt.covered,
            "windows": [_window(share, whole_windows) for share in receipt.shares],
        },
        "carbon": {
            "carbon_g": carbon_g,
            "zone": record.zone,
            "pue": record.pue,
            "intensity_g_per_kwh": record.intensity_g_per_kwh,
        },
        "money_usd": record.money_usd,
        "quality": record.quality,
        "counterfactual": {
            "backend": record.counterfactual_backend,
            "energy_j": record.counterfactual_energy_j,
            "carbon_g": record.counterfactual_carbon_g,
        },
        "answer_budget": record.answer_budget,
        "earlier": json.loads(record.earlier) if record.earlier else [],
        "decision": decision_of(record.decision),
    }
    if record.simulated:
        body["note"] = SIMULATED_NOTE
    return body
