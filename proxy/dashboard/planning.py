"""The planning page: what a request like yours would cost elsewhere, by the estimator, in ranges.

The quantities of the published decision framework (model size, precision, serving engine, prompt
and output length, region, hardware) are the form's fields; the answers come from the same
estimator that routes requests, with its 80 % bands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from estimators.types import Backend, Band, Estimate, Estimator, Features, Load, ModelFacts
from meters.carbon import R_ICE_PUE, operational_g, r_ice_g
from meters.intensity import IntensityBook
from proxy.dashboard.account import Line

ENGINES = ("vllm", "sglang", "tensorrt-llm", "tgi", "llama.cpp", "transformers")
COMPARED_GPUS = ("L40S", "H200-SXM", "H100-SXM")
COMPARED_ZONES = ("FR", "PL", "DE")
PRECISIONS = ("bf16", "fp16", "fp8", "int8", "int4", "nvfp4")


@runtime_checkable
class AtLengths(Protocol):
    """An estimator that can be told how long an answer is, rather than predict it."""

    def at_lengths(
        self, features: Features, backend: Backend, load: Load, output_tokens: int
    ) -> Estimate: ...


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration, as the form gives it."""

    params_b: float = 8.0
    precision: str = "bf16"
    engine: str = "vllm"
    gpu: str = "H100-SXM"
    num_gpus: int = 1
    concurrency: float = 16.0
    prompt_tokens: int = 500
    output_tokens: int = 300
    zone: str = "DE"
    pue: float = R_ICE_PUE
    requests: int = 100_000


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What one configuration would use for one request; None: the estimator cannot say."""

    what: str
    plan: Plan
    energy_j: Band | None
    carbon_g: Band | None
    latency_s: Band | None
    evidence: str
    tier: str
    r_ice_g: float | None = None


_BOUNDS: Mapping[str, tuple[float, float]] = {
    "params_b": (0.1, 2000.0),
    "num_gpus": (1, 64),
    "concurrency": (1, 4096),
    "prompt_tokens": (1, 1_000_000),
    "output_tokens": (1, 200_000),
    "pue": (1.0, 3.0),
    "requests": (1, 10**9),
}


def usual(line: Line) -> Plan:
    """A plan with the team's own mean lengths and number of requests, where it has some."""
    plan = Plan()
    if not line.requests:
        return plan
    return msgspec.structs.replace(
        plan,
        prompt_tokens=max(1, round(line.prompt_tokens / line.requests)) or plan.prompt_tokens,
        output_tokens=max(1, round(line.output_tokens / line.requests)) or plan.output_tokens,
        requests=line.requests,
    )


def parse(query: Mapping[str, str], gpus: Sequence[str], plan: Plan | None = None) -> Plan:
    """The form's fields; what is missing or makes no sense takes ``plan``'s, within bounds."""
    plan = plan or Plan()
    values: dict[str, Any] = {}
    for name, (least, most) in _BOUNDS.items():
        try:
            number = float(query[name].replace(",", "."))
        except (KeyError, ValueError):
            continue
        if number == number:  # not NaN
            kind = type(getattr(plan, name))
            values[name] = kind(min(max(number, least), most))
    for name, known in (("precision", PRECISIONS), ("engine", ENGINES), ("gpu", gpus)):
        if query.get(name) in known:
            values[name] = query[name]
    if gpus and values.get("gpu", plan.gpu) not in gpus:
        values["gpu"] = gpus[0]
    if query.get("zone"):
        values["zone"] = query["zone"][:32]
    return msgspec.structs.replace(plan, **values)


def compare(
    plan: Plan,
    estimator: Estimator,
    gpus: Mapping[str, Any],
    book: IntensityBook,
    now_s: float,
) -> list[Planned]:
    """The configuration, and it with one thing changed at a time."""
    smaller = msgspec.structs.replace(plan, params_b=max(0.1, round(plan.params_b / 4, 1)))
    lighter = "fp8" if plan.precision in ("bf16", "fp16") else "int4"
    variants = [
        ("as asked", plan),
        (f"a model of {smaller.params_b:g} B", smaller),
        (f"in {lighter}", msgspec.structs.replace(plan, precision=lighter)),
        (
            "half the output",
            msgspec.structs.replace(plan, output_tokens=max(1, plan.output_tokens // 2)),
        ),
        (
            "half the prompt",
            msgspec.structs.replace(plan, prompt_tokens=max(1, plan.prompt_tokens // 2)),
        ),
        (
            f"batch of {min(plan.concurrency * 4, 512):g}",
            msgspec.structs.replace(plan, concurrency=min(plan.concurrency * 4, 512.0)),
        ),
    ]
    other = next(e for e in ENGINES if e != plan.engine)
    variants.append((f"on {other}", msgspec.structs.replace(plan, engine=other)))
    variants += [
        (f"on {gpu}", msgspec.structs.replace(plan, gpu=gpu))
        for gpu in COMPARED_GPUS
        if gpu in gpus and gpu != plan.gpu
    ][:2]
    variants += [
        (f"in zone {zone}", msgspec.structs.replace(plan, zone=zone))
        for zone in COMPARED_ZONES
        if zone != plan.zone
    ][:2]
    return [_planned(what, each, estimator, gpus, book, now_s) for what, each in variants]


def _planned(
    what: str,
    plan: Plan,
    estimator: Estimator,
    gpus: Mapping[str, Any],
    book: IntensityBook,
    now_s: float,
) -> Planned:
    answer = book.at(plan.zone, now_s)
    backend = Backend(
        name=f"plan-{plan.params_b:g}b",
        group="plan",
        precision=plan.precision,
        engine=plan.engine,
        gpu=gpus.get(plan.gpu),
        num_gpus=plan.num_gpus,
        model=ModelFacts(params_b=plan.params_b),
        zone=plan.zone,
        pue=plan.pue,
        intensity_g_per_kwh=answer.g_per_kwh,
    )
    features = Features(
        prompt_tokens=plan.prompt_tokens,
        prompt_tokens_counted=True,
        max_tokens=plan.output_tokens,  # for estimators that know no other way to be told
    )
    context = plan.prompt_tokens + plan.output_tokens / 2
    load = Load(
        running=plan.concurrency - 1.0,  # beside this one
        context_tokens=(plan.concurrency - 1.0) * context,
        known=True,
    )
    # The form says how long the answer is: a prediction under that limit would be another figure.
    estimate = (
        estimator.at_lengths(features, backend, load, plan.output_tokens)
        if isinstance(estimator, AtLengths)
        else estimator.estimate(features, [backend], [load])[0]
    )
    energy = estimate.energy_j
    carbon = (
        None
        if energy is None
        else Band(*(operational_g(j, plan.pue, answer.g_per_kwh) for j in energy))
    )
    latency = estimate.latency_s
    tdp_w = getattr(gpus.get(plan.gpu), "tdp_w", None)
    parametric = (
        None
        if latency is None or tdp_w is None
        else r_ice_g(plan.num_gpus, tdp_w, latency.mid / plan.concurrency, answer.g_per_kwh)
    )
    return Planned(
        what=what,
        plan=plan,
        energy_j=energy,
        carbon_g=carbon,
        latency_s=latency,
        evidence=estimate.evidence.value,
        tier=answer.tier.value,
        r_ice_g=parametric,
    )
