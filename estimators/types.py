"""The values that estimators speak in: what is known of a request and a backend, and the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from meters.types import Evidence

Z_80 = 1.2816  # the normal quantile of an 80 % interval


class Band(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An 80 % interval and its middle; low <= mid <= high, all finite and >= 0."""

    low: float
    mid: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.low, self.mid, self.high))


class Lengths(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many output tokens to expect: quantiles for intervals, the mean for totals."""

    q10: float
    q50: float
    q90: float
    mean: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.q10, self.q50, self.q90, self.mean))


class Features(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a request before it is sent."""

    prompt_tokens: int
    prompt_tokens_counted: bool = False  # False: guessed from bytes
    max_tokens: int | None = None  # the caller's limit on output
    task: str | None = None  # coarse class: code, math, extraction, chat, ...
    text: str = ""  # what predictors may look at; never logged or stored
    team: str = ""
    messages: int = 1
    has_tools: bool = False
    has_schema: bool = False
    has_images: bool = False
    cached_prompt_tokens: int = 0  # expected prefix-cache hit
    n: int = 1  # answers asked for

    def __repr__(self) -> str:
        return f"Features(prompt_tokens={self.prompt_tokens}, task={self.task!r})"


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A model's architecture. Sizes in billions of parameters; None where unknown."""

    params_b: float
    active_params_b: float | None = None  # per token, for mixtures of experts; None: dense
    layers: int | None = None
    hidden_size: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    kv_bytes_per_token: float | None = None  # overrides what the four above give (MLA)
    # Layers that only keep the last so many tokens (sliding windows), and what those keep.
    window_tokens: int | None = None
    window_kv_bytes_per_token: float | None = None  # not in kv_bytes_per_token
    state_bytes: float | None = None  # a sequence's state in layers without a cache (Mamba)
    experts: int | None = None  # routed experts of a layer; None: unknown, or dense
    experts_per_token: int | None = None  # of them, how many one token uses
    expert_layers: int | None = None  # layers that choose among experts; None: all of a mixture's
    vocabulary: int | None = None  # tokens it can choose among
    tied_embeddings: bool | None = None  # one table both reads tokens in and chooses them


class GpuFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU's data sheet. Dense FLOP/s, no sparsity."""

    name: str
    memory_gb: float
    mem_bandwidth_gbs: float  # 1e9 bytes a second
    fp16_tflops: float
    tdp_w: float
    fp8_tflops: float | None = None
    int8_tflops: float | None = None
    fp4_tflops: float | None = None
    idle_w: float | None = None
    link_gbs: float | None = None  # to the other GPUs of its machine, both ways together


class Load(msgspec.Struct, frozen=True, gc=False):
    """An engine's present load."""

    running: float = 0.0  # sequences in its batch now
    waiting: float = 0.0  # sequences in its queue
    context_tokens: float = 0.0  # tokens in the KV cache of the running batch
    kv_usage: float = 0.0  # 0..1
    asleep: bool = False
    known: bool = False  # False: nobody told; the band widens


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider says that its answers use, in joules; unknown parts are None."""

    j_per_request: float | None = None
    j_per_output_token: float | None = None  # reasoning tokens are output tokens
    j_per_input_token: float | None = None  # of those not read from the provider's cache
    source: str = ""
    whole: bool = True  # building's overhead included


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """One place that can serve a request: static facts, the same for its whole life."""

    name: str  # "llama-3.1-8b@int4"
    group: str  # "llama-3.1-8b"
    precision: str = "bf16"
    engine: str = "vllm"  # vllm | sglang | tensorrt-llm | tgi | llama.cpp | transformers | api
    engine_version: str | None = None
    gpu: GpuFacts | None = None  # None: not known, or not ours (an API)
    num_gpus: int = 1
    model: ModelFacts | None = None
    max_num_seqs: int | None = None
    context_tokens: int | None = None  # what it accepts, prompt and output together
    provider: str | None = None  # for APIs: "openai", "anthropic", ...
    provider_model: str | None = None
    node: str | None = None  # the meter that sees its GPUs
    zone: str | None = None  # grid zone, "DE", "US-CAL-CISO"
    region: str | None = None  # where data goes, "eu", "us"
    intensity_g_per_kwh: float | None = None
    intensity_tier: str = ""  # the step of the ladder it stands on; "fixed" when set by hand
    pue: float | None = None
    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None
    cached_input_usd_per_mtok: float | None = None
    declared: Declared | None = None  # by the provider, of an API
    quality: float | None = None  # 0..1, from the config
    quality_by_task: dict[str, float] = {}
    quality_error: dict[str, float] = {}  # standard errors by task, "" of ``quality``
    supports_tools: bool = True
    supports_schema: bool = True
    supports_images: bool | None = None  # None: nobody said
    embodied_g_per_gpu_hour: float | None = None
    simulated: bool = False
    answer_budget: str | None = None  # its answers are kept short so; None: as they come


class Estimate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one request would cost and give on one backend. Unknown is None."""

    backend: str
    energy_j: Band | None  # attributed: this request's part, all GPUs together, above nothing
    marginal_energy_j: Band | None  # added to that engine by serving this too
    ttft_s: Band | None
    latency_s: Band | None
    carbon_g: Band | None
    money_usd: Band | None
    quality: Band | None
    output_tokens: Lengths | None
    evidence: Evidence
    version: str = ""
    why: str = ""  # in a few words, where the figure comes from


def unknown(backend: str) -> Estimate:
    """The estimate of what nothing is known of."""
    return Estimate(
        backend=backend,
        energy_j=None,
        marginal_energy_j=None,
        ttft_s=None,
        latency_s=None,
        carbon_g=None,
        money_usd=None,
        quality=None,
        output_tokens=None,
        evidence=Evidence.UNKNOWN,
    )


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one request really took; None where it was not seen. Teaches the estimators."""

    backend: str
    features: Features
    load: Load
    energy_j: float | None = None
    evidence: Evidence = Evidence.UNKNOWN
    ttft_s: float | None = None
    latency_s: float | None = None
    output_tokens: int | None = None
    score: float | None = None  # 0..1
    answer_budget: str | None = None  # the answer was kept short so: it says less of the backend


class LengthPredictor(Protocol):
    """Says how long answers will be. Injected into the energy estimator."""

    def predict(self, features: Features, backends: Sequence[Backend]) -> list[Lengths]:
        """Tokens of one answer, one figure per backend, in order.

        Capped by ``features.max_tokens``; never raises for a backend unknown to it.
        """
        ...


class QualityPredictor(Protocol):
    """Says how good answers will be, 0..1. Injected into the energy estimator."""

    def predict(self, features: Features, backends: Sequence[Backend]) -> list[Band | None]:
        """One band per backend, in order; None where nothing at all is known of it."""
        ...


class Estimator(Protocol):
    """Answers for all candidates in one call; learns off the request path."""

    version: str

    def estimate(
        self, features: Features, backends: Sequence[Backend], loads: Sequence[Load]
    ) -> list[Estimate]:
        """One estimate per backend, in the same order; never raises for a backend unknown to it."""
        ...

    def learn(self, outcome: Outcome) -> None:
        """Take one outcome in. An outcome without figures teaches nothing."""
        ...
