"""What a decision was made from, small enough to keep with each request.

``record`` takes what a policy looked at and what it decided, without the prompt's text;
``replay_decision`` puts the same question to the same version of the policy again. Pure policies
and a recorded draw make the answer the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from estimators.types import Backend, Band, Estimate, GpuFacts, Load, ModelFacts
from meters.types import Evidence
from policies.types import (
    Candidate,
    Decision,
    Limits,
    NoBackendWithinLimits,
    Policy,
    Rejection,
    Request,
)


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """One candidate as policies see it, in a few hundred bytes of JSON."""

    name: str
    group: str
    energy_j: Band | None
    marginal_energy_j: Band | None
    ttft_s: Band | None
    latency_s: Band | None
    carbon_g: Band | None
    money_usd: Band | None
    quality: Band | None
    asleep: bool = False
    num_gpus: int = 1
    context_tokens: int | None = None
    region: str | None = None
    provider: str | None = None
    intensity_g_per_kwh: float | None = None
    supports_tools: bool = True
    supports_schema: bool = True
    supports_images: bool | None = False
    hardware: tuple[float, float, float] | None = None  # FLOP/s (1e12), W, active parameters (1e9)
    answer_budget: str | None = None


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A decision, or a refusal, with its inputs."""

    policy: str  # the name under which it was asked for
    version: str
    request: Request
    limits: Limits
    candidates: tuple[Seen, ...]
    decision: Decision | None = None
    refused: tuple[Rejection, ...] = ()


class OtherVersion(Exception):
    """The policy at hand is not the version that decided; ``asked`` and ``found`` say which."""

    def __init__(self, name: str, asked: str, found: str | None) -> None:
        self.asked = asked
        self.found = found
        have = f"the one at hand is {found}" if found else "there is no policy of that name now"
        super().__init__(f"policy {name!r} decided in version {asked}; {have}")


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def record(
    policy: Policy,
    request: Request,
    candidates: Sequence[Candidate],
    limits: Limits,
    outcome: Decision | NoBackendWithinLimits,
) -> Record:
    """The record of a decision or a refusal. The prompt's text is left out."""
    features = request.features
    if features.text:
        request = msgspec.structs.replace(
            request, features=msgspec.structs.replace(features, text="")
        )
    in_session = request.session_backend is not None and features.cached_prompt_tokens > 0
    return Record(
        policy=policy.name,
        version=policy.version,
        request=request,
        limits=limits,
        candidates=tuple(_seen(c, in_session) for c in candidates),
        decision=outcome if isinstance(outcome, Decision) else None,
        refused=() if isinstance(outcome, Decision) else outcome.rejections,
    )


def decision_to_json(kept: Record) -> str:
    """The record as compact JSON."""
    return _encoder.encode(kept).decode()


def decision_from_json(text: str | bytes) -> Record:
    """The record in that JSON. Raises msgspec.ValidationError."""
    return _decoder.decode(text)


def replay_decision(
    kept: Record, policies: Mapping[str, Policy], any_version: bool = False
) -> Decision:
    """What the policy decides from the recorded inputs; the recorded decision, if all is well.

    Raises OtherVersion when the policy has changed since, unless ``any_version``, and
    NoBackendWithinLimits for a refusal.
    """
    policy = policies.get(kept.policy)
    if policy is None or (policy.version != kept.version and not any_version):
        raise OtherVersion(kept.policy, kept.version, policy.version if policy else None)
    candidates = [_candidate(seen) for seen in kept.candidates]
    return policy.choose(kept.request, candidates, kept.limits)


def _seen(candidate: Candidate, in_session: bool) -> Seen:
    backend, estimate = candidate.backend, candidate.estimate
    hardware = None
    if in_session and backend.gpu is not None and backend.model is not None:
        model = backend.model
        active_b = model.active_params_b or model.params_b
        hardware = (backend.gpu.fp16_tflops, backend.gpu.tdp_w, active_b)
    return Seen(
        backend.name,
        backend.group,
        estimate.energy_j,
        estimate.marginal_energy_j,
        estimate.ttft_s,
        estimate.latency_s,
        estimate.carbon_g,
        estimate.money_usd,
        estimate.quality,
        candidate.load.asleep,
        backend.num_gpus,
        backend.context_tokens,
        backend.region,
        backend.provider,
        backend.intensity_g_per_kwh,
        backend.supports_tools,
        backend.supports_schema,
        backend.supports_images,
        hardware,
        backend.answer_budget,
    )


def _candidate(seen: Seen) -> Candidate:
    gpu = model = None
    if seen.hardware is not None:
        tflops, power_w, active_b = seen.hardware
        gpu = GpuFacts(
            name="", memory_gb=0.0, mem_bandwidth_gbs=0.0, fp16_tflops=tflops, tdp_w=power_w
        )
        model = ModelFacts(params_b=active_b)
    backend = Backend(
        name=seen.name,
        group=seen.group,
        gpu=gpu,
        model=model,
        num_gpus=seen.num_gpus,
        context_tokens=seen.context_tokens,
        region=seen.region,
        provider=seen.provider,
        intensity_g_per_kwh=seen.intensity_g_per_kwh,
        supports_tools=seen.supports_tools,
        supports_schema=seen.supports_schema,
        supports_images=seen.supports_images,
        answer_budget=seen.answer_budget,
    )
    estimate = Estimate(
        backend=seen.name,
        energy_j=seen.energy_j,
        marginal_energy_j=seen.marginal_energy_j,
        ttft_s=seen.ttft_s,
        latency_s=seen.latency_s,
        carbon_g=seen.carbon_g,
        money_usd=seen.money_usd,
        quality=seen.quality,
        output_tokens=None,
        evidence=Evidence.UNKNOWN,
    )
    return Candidate(backend, estimate, Load(asleep=seen.asleep))
