"""The values that meters, attribution and the ledger speak in. SI units; times as said per field.

Two clocks appear and are never mixed: ``*_s`` fields of readings are a node's monotonic clock;
``*_s`` fields of windows, activities and records are Unix time on the proxy's clock (a node's
windows are mapped to it with a measured offset before they are stored).
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol

import msgspec


class Evidence(StrEnum):
    """Where a figure comes from. A sum carries the mix, never one word for all of it."""

    METERED = "metered"  # a hardware counter's joules, attributed
    CALIBRATED = "calibrated"  # our estimator, taught by this engine's own windows
    BENCHMARK = "benchmark"  # our prior, from published measurements of such hardware
    MODELLED = "modelled"  # parametric, such as EcoLogits for closed APIs
    SIMULATED = "simulated"  # made by a simulated engine; never added to measured figures
    UNKNOWN = "unknown"  # no figure: null, never 0


class StepPhysics(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine's energy and time grow with its work; all coefficients are >= 0.

    Over a window: ``E = idle_power_w*t + step_j*steps + token_j*generated + context_j*context_steps
    + prefill_j*prefilled`` for all GPUs of the engine together, and busy time likewise with the
    ``*_s`` coefficients. ``context_steps`` is the sum over decode steps of the context lengths.
    """

    idle_power_w: float
    step_j: float  # reading all weights once, whatever the batch
    token_j: float  # one generated token's own work
    context_j: float  # reading one cached token in one decode step
    prefill_j: float  # one prompt token that was not cached
    step_s: float
    token_s: float
    context_s: float
    prefill_s: float


class Reading(msgspec.Struct, frozen=True, gc=False):
    """One look at a cumulative energy counter."""

    device: str  # "gpu0", "gpu0/mig1", "cpu0", "dram0"
    at_s: float  # the reading process's monotonic clock
    energy_j: float  # since an arbitrary zero; goes down only when the counter was reset


class EngineCounters(msgspec.Struct, frozen=True, kw_only=True):
    """One look at an engine's own counters and gauges; None where the engine does not say."""

    at_s: float  # the reading process's monotonic clock
    prompt_tokens: float | None = None  # counter, cached ones included
    cached_prompt_tokens: float | None = None  # counter
    generated_tokens: float | None = None  # counter
    steps: float | None = None  # counter of engine iterations
    running: float | None = None  # gauge
    waiting: float | None = None  # gauge
    kv_usage: float | None = None  # gauge, 0..1
    asleep: bool | None = None
    flops: float | None = None  # counter per GPU
    read_bytes: float | None = None  # counter per GPU
    version: str | None = None
    started_s: float | None = None  # Unix time the engine's process started, where it says so
    late: tuple[str, ...] = ()  # counters above that move only when a request ends
    # each engine's own where several share the devices, by backend; the fields above are sums
    engines: dict[str, EngineCounters] = {}


class EngineWork(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one of several engines on the same devices did in a window; None where unknown."""

    engine: str  # a backend's name
    prompt_tokens: float | None = None  # cached ones included
    cached_prompt_tokens: float | None = None
    generated_tokens: float | None = None
    steps: float | None = None
    flops: float | None = None
    read_bytes: float | None = None
    version: str | None = None


class Window(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The energy of one engine's devices in one interval, with what the engine did in it.

    Energy is all devices together. A counter that was not readable is None, never 0. Where several
    engines share the devices, the counters are their sums and ``engines`` has each one's own.
    """

    window_id: str  # unique for ever: recording the same window twice changes nothing
    node: str  # the meter's name; backends name the node that serves them
    start_s: float
    end_s: float
    energy_j: float
    idle_power_w: float | None = None
    prompt_tokens: float | None = None  # cached ones included
    cached_prompt_tokens: float | None = None
    generated_tokens: float | None = None
    steps: float | None = None
    running: float | None = None  # mean over the window
    waiting: float | None = None
    flops: float | None = None
    read_bytes: float | None = None
    evidence: Evidence = Evidence.METERED  # SIMULATED for the simulated engine's meter
    meter: str = ""  # "nvml", "replay", "simulated", ...
    resolution_j: float | None = None  # half-width of what the meter cannot know of energy_j
    host_energy_j: float | None = None  # CPU and DRAM, where readable; its own column
    devices: tuple[str, ...] = ()  # what energy_j is the sum of; empty where not said
    engine_version: str | None = None  # at its end; another one means other coefficients
    asleep: bool | None = None  # the engine, at its end
    engines: tuple[EngineWork, ...] = ()  # where several share the devices


class Activity(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one request did on a node, as the proxy saw it."""

    request_id: str
    node: str
    start_s: float  # sent upstream
    first_token_s: float | None = None
    end_s: float | None = None  # None: still in flight
    prompt_tokens: float = 0.0  # cached ones included
    cached_prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    # (time, cumulative output tokens) where the stream was watched; may be empty
    progress: tuple[tuple[float, float], ...] = ()
    engine: str = ""  # the backend, where several share the node's devices
    # Where the engine does not say (yet) how much of this prompt was cached: the tokens with which
    # it begins as earlier ones did (``meters.prefixes``). None where it said, or nobody knows.
    likely_cached_tokens: float | None = None


class Share(msgspec.Struct, frozen=True, gc=False):
    """The part of one window's energy that one request caused, above idle."""

    window_id: str
    request_id: str
    energy_j: float


class Around(NamedTuple):
    """A window's neighbours: of its node, in order, divided before and yet to be divided."""

    before: tuple[Window, ...] = ()
    after: tuple[Window, ...] = ()


class Attribution(msgspec.Struct, frozen=True, kw_only=True):
    """One window, divided. ``sum(shares) + idle_j + external_j + unattributed_j == metered_j``."""

    window_id: str
    node: str
    start_s: float
    end_s: float
    metered_j: float
    idle_j: float  # idle power x time, also while the engine is busy
    external_j: float  # work the engine did for traffic that did not come through here
    unattributed_j: float  # what nobody can be charged for
    shares: tuple[Share, ...]
    evidence: Evidence
    meter: str = ""


class Meter(Protocol):
    """Reads cumulative energy counters. Missing hardware is a meter that reads nothing.

    Where it has them, the sampler goes by these as well: ``min_poll_s`` (seconds between two
    looks, at least), ``continuous`` (joules integrated from power: no steps to wait for),
    ``relative_error`` (of a window's joules, beside ``resolution_j``), ``notes`` (sentences for
    the log when it is opened) and ``missing`` (why each device that is not read now is not).
    """

    name: str
    evidence: Evidence

    @property
    def resolution_j(self) -> float | None:
        """Of one difference of two readings; None when unknown."""
        ...

    def read(self) -> list[Reading]:
        """One reading per device, now. Raises MeterUnavailable, saying what a person can do."""
        ...

    def close(self) -> None: ...


class MeterUnavailable(Exception):
    """The hardware cannot be read; the message says why and what to do."""


CACHE_HITS = frozenset({"hit", "similar"})  # answered from the cache: nothing was sent


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One finished request, as it is journalled and kept. No prompt, no answer, no key.

    Estimates are what was predicted when the request was sent; of others' APIs, and of answers that
    did not come to their end, what the tokens take that were counted. Unknown is None.
    """

    request_id: str
    start_s: float  # Unix time the request arrived
    end_s: float
    team: str
    key_id: str | None = None  # the key's public prefix, never the key
    project: str | None = None
    tags: tuple[str, ...] = ()
    endpoint: str = "chat.completions"
    model_asked: str = ""
    backend: str | None = None  # None: nothing was sent (refused, or answered from the cache)
    group: str | None = None
    node: str | None = None
    policy: str = ""
    policy_version: str = ""
    status: int = 200
    error_code: str | None = None
    outcome: str = "ok"  # ok | refused | failed | cancelled
    stream: bool = False
    cache: str = "off"  # hit | similar | miss | off
    attempts: int = 1
    task: str | None = None
    prompt_tokens: int | None = None
    prompt_tokens_counted: bool = False  # False: guessed from bytes
    cached_prompt_tokens: int | None = None
    likely_cached_tokens: int | None = None  # as expected, where the engine does not say
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    usage_source: str = "unknown"  # upstream | counted | unknown
    sent_s: float | None = None  # Unix time it was sent upstream
    first_token_s: float | None = None
    ttft_s: float | None = None
    latency_s: float | None = None
    energy_j: float | None = None  # estimate, middle
    energy_low_j: float | None = None
    energy_high_j: float | None = None
    marginal_energy_j: float | None = None
    carbon_g: float | None = None  # estimate at decision time
    money_usd: float | None = None
    quality: float | None = None
    evidence: Evidence = Evidence.UNKNOWN
    estimator_version: str = ""
    zone: str | None = None
    pue: float | None = None
    intensity_g_per_kwh: float | None = None
    intensity_tier: str = ""  # the step of the ladder that was, if said
    counterfactual_backend: str | None = None
    counterfactual_energy_j: float | None = None
    counterfactual_carbon_g: float | None = None
    simulated: bool = False
    answer_budget: str | None = None  # what the policy asked the backend to keep its answer to
    running: float | None = None  # sequences in its engine's batch when it was sent, as expected
    earlier: str | None = None  # answers that were asked for and not given to the client, as JSON
    # Of the estimate: what others' APIs take, where engines with meters were asked as well. No
    # window ever replaces it.
    hosted_j: float | None = None
    hosted_low_j: float | None = None
    hosted_high_j: float | None = None
    arm: str | None = None  # of an experiment: "hold_out" was served as asked, "treated" was not
    replica: str = ""
    user_hash: str | None = None  # of whom the caller named; only where its team wants it kept
    session: str | None = None  # hash of the session or of the conversation's prefix
    decision: str | None = None  # the decision as compact JSON, for replay and explanation
