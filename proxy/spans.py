"""A finished request as an OpenTelemetry span, and nodes' energy as ``hw.energy``. Pure.

Names are those of the GenAI semantic conventions (github.com/open-telemetry/semantic-conventions-
genai) and of the hardware conventions; energy of a request has no name there yet, so it has
``joulegate.`` ones. Nothing holds a prompt, an answer or a key. The form is OTLP's JSON: ids in
hexadecimal, 64-bit numbers as text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from estimators.types import Backend
from meters.carbon import operational_g
from meters.types import Evidence, UsageRecord

CLIENT = 3  # SpanKind: a call to a model that runs elsewhere
ERROR = 2  # StatusCode
CUMULATIVE = 2  # AggregationTemporality
OPERATIONS = {
    "chat.completions": "chat",
    "responses": "chat",
    "messages": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SCOPE = {"name": "joulegate"}


class Metered(NamedTuple):
    """What windows said of a request so far, in joules."""

    energy_j: float
    evidence: Evidence


def span(
    record: UsageRecord,
    parent: str | None = None,
    facts: Backend | None = None,
    metered: Metered | None = None,
) -> dict[str, Any]:
    """The span of a request; ``parent`` is the client's ``traceparent``, if it sent one."""
    operation = OPERATIONS.get(record.endpoint, record.endpoint)
    known = _TRACEPARENT.fullmatch(parent or "")
    own = hashlib.sha256(record.request_id.encode()).hexdigest()
    found: dict[str, Any] = {
        "traceId": known[1] if known else own[:32],
        "spanId": own[32:48],
        "name": f"{operation} {record.model_asked}".strip(),
        "kind": CLIENT,
        "startTimeUnixNano": _nanoseconds(record.start_s),
        "endTimeUnixNano": _nanoseconds(record.end_s),
        "attributes": attributes(_about(record, operation, facts, metered)),
    }
    if known:
        found["parentSpanId"] = known[2]
    if record.outcome in ("failed", "refused") or record.status >= 500:
        found["status"] = {"code": ERROR, "message": record.error_code or record.outcome}
    return found


def _about(
    record: UsageRecord, operation: str, facts: Backend | None, metered: Metered | None
) -> dict[str, Any]:
    energy_j = metered.energy_j if metered else record.energy_j
    evidence = metered.evidence if metered else record.evidence
    pue, g_per_kwh = record.pue, record.intensity_g_per_kwh
    grams = (
        None
        if energy_j is None or pue is None or g_per_kwh is None
        else operational_g(energy_j, pue, g_per_kwh)
    )
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider_of(facts),
        "gen_ai.request.model": record.model_asked or None,
        "gen_ai.response.model": record.group,
        "gen_ai.response.id": record.request_id,
        "gen_ai.request.stream": record.stream,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_prompt_tokens,
        "gen_ai.usage.reasoning.output_tokens": record.reasoning_tokens,
        "gen_ai.response.time_to_first_chunk": record.ttft_s,
        "http.response.status_code": record.status,
        "error.type": record.error_code,
        "joulegate.team": record.team or None,
        "joulegate.backend": record.backend,
        "joulegate.policy": record.policy or None,
        "joulegate.cache": record.cache,
        "joulegate.simulated": record.simulated,
        "joulegate.energy": energy_j,  # joules of GPUs caused by the request
        "joulegate.energy.evidence": None if energy_j is None else evidence.value,
        "joulegate.energy.estimated": record.energy_j,
        "joulegate.co2e": grams,  # grams, location-based, PUE included, without hosts
        "joulegate.grid.zone": record.zone,
        "joulegate.grid.intensity": g_per_kwh,
        "joulegate.estimator.version": record.estimator_version or None,
    }


def provider_of(facts: Backend | None) -> str:
    """The provider as the conventions spell it; the engine's name for our own."""
    if facts is None:
        return "joulegate"
    if facts.engine == "api":
        return facts.provider or "openai"
    return facts.engine


def attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """OTLP's list of keys and values, without what is not known."""
    return [
        {"key": key, "value": _value(value)} for key, value in values.items() if value is not None
    ]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": str(value)}


def _nanoseconds(unix_s: float) -> str:
    return str(round(unix_s * 1e9))


def traces(spans: Iterable[Mapping[str, Any]], resource: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request to ``/v1/traces``."""
    scoped = [{"scope": _SCOPE, "spans": list(spans)}]
    return {"resourceSpans": [{"resource": _resource(resource), "scopeSpans": scoped}]}


def energy_metric(
    by_node: Mapping[tuple[str, str], float],
    since_s: float,
    now_s: float,
    resource: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of a request to ``/v1/metrics``: joules of each node's GPUs since ``since_s``, by
    (node, evidence)."""
    points = [
        {
            "attributes": attributes(
                {"hw.id": node, "hw.type": "gpu", "joulegate.energy.evidence": evidence}
            ),
            "startTimeUnixNano": _nanoseconds(since_s),
            "timeUnixNano": _nanoseconds(now_s),
            "asDouble": joules,
        }
        for (node, evidence), joules in sorted(by_node.items())
    ]
    metric = {
        "name": "hw.energy",
        "unit": "J",
        "description": "Energy consumed by the component.",
        "sum": {
            "aggregationTemporality": CUMULATIVE,
            "isMonotonic": True,
            "dataPoints": points,
        },
    }
    scoped = [{"scope": _SCOPE, "metrics": [metric]}]
    return {"resourceMetrics": [{"resource": _resource(resource), "scopeMetrics": scoped}]}


def _resource(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"attributes": attributes(values)}
