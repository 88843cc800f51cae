"""The physics of a step with free constants: what the published measurements are fitted to.

The same terms as roofline.py, each with a constant, and with what data sheets do not tell: how
far an engine's host code holds the GPUs up, what a GPU draws when it merely waits, how mixtures,
low precisions and consumer cards differ. Constants are logarithms, added up per case, so none can
turn negative. Arrays in, arrays out; numpy only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from estimators.hardware import link_bandwidth_gbs
from estimators.models import WEIGHT_BYTES, precision_named, shape_of
from estimators.roofline import compute_flops
from estimators.types import Backend

Array = NDArray[np.float64]

# name -> (middle, spread) of the constant's logarithm before any measurement was seen. Times in
# seconds, shares of data-sheet rates or of the power limit otherwise.
CONSTANTS: dict[str, tuple[float, float]] = {
    "weight_rate": (np.log(0.82), 0.06),  # share of bandwidth reached when reading weights
    "cache_rate": (np.log(0.6), 0.4),  # ... when reading the cache
    "decode_rate": (np.log(0.5), 0.2),  # share of FLOP/s reached in decoding
    "prefill_rate": (np.log(0.5), 0.3),  # ... in prefilling
    "layer_s": (np.log(25e-6), 0.35),  # a layer's launches
    "hop_s": (np.log(12e-6), 0.7),  # latency of one all-reduce among two GPUs
    "hop_factor": (np.log(2.0), 0.7),  # transfer time over the link's own
    "host_s": (np.log(1e-3), 0.5),  # the engine's own code, per step
    "sequence_s": (np.log(2e-5), 1.0),  # ... per sequence of a step
    "worker_part": (np.log(0.05), 0.5),  # host code takes longer by, per doubling of the GPUs
    "head_s": (np.log(2e-7), 1.0),  # attention of one sequence in one layer, by one GPU
    "expert_s": (np.log(25e-6), 0.5),  # choosing and launching the experts of one layer
    "skew": (np.log(0.6), 0.2),  # of a batch's tokens, those that choose experts of their own
    "tile_s": (np.log(3e-7), 0.25),  # one expert more to work on in a layer, however few rows
    "uneven": (np.log(0.5), 0.5),  # of the expected excess of the GPU with most experts to read
    "attention_rate": (np.log(0.5), 0.3),  # share of 16-bit FLOP/s reached in a prompt's attention
    "request_s": (np.log(1e-3), 1.0),  # ... per request
    "begin_s": (np.log(3e-5), 0.7),  # a layer's launches for a prompt, outside any graph
    "first_own": (np.log(1.2), 0.2),  # time to the first token, in own prefills
    "first_crowd": (np.log(0.15), 0.7),  # ... in prefills of each that came with it
    "first_steps": (np.log(2.0), 0.4),  # ... in steps of those that are running
    "busy_share": (np.log(0.31), 0.15),  # of the power limit, drawn by clocks and leakage at work
    "wait_share": (np.log(0.24), 0.3),  # ... while the host holds the GPU up
    "memory_share": (np.log(0.45), 0.2),  # ... on top when memory is saturated
    "operand_part": (np.log(0.2), 0.7),  # ... as a part of that, for working with what is read
    "cache_share": (np.log(0.45), 0.3),  # ... when reading the cache
    "tile_share": (np.log(0.5), 0.2),  # ... when experts wait for one another's rows
    "kernel_share": (np.log(0.3), 0.3),  # ... in a sequence's own kernels
    "compute_share": (np.log(0.9), 0.3),  # ... when arithmetic is saturated, decoding
    "prefill_share": (np.log(0.6), 0.3),  # ... prefilling
}
# constant -> the kinds of case in which it may differ, by a factor around 1
KINDS: dict[str, tuple[str, ...]] = {
    "weight_rate": ("consumer", "moe_new", "moe_old", "fp8_moe", "narrow", "old"),
    "cache_rate": ("old", "consumer"),
    "decode_rate": ("old", "consumer", "moe_new", "moe_old", "low"),
    "prefill_rate": ("old", "consumer", "moe_new", "moe_old", "low", "hybrid"),
    "attention_rate": ("consumer",),
    "layer_s": ("old", "hybrid", "plain"),
    "expert_s": ("old", "fp8_moe"),
    "tile_s": ("old", "fp8_moe", "narrow"),
    "head_s": ("old", "consumer"),
    "hop_s": ("old", "consumer", "moe_new"),
    "hop_factor": ("old", "consumer", "moe_new"),
    "begin_s": ("old",),
    "host_s": ("old", "plain"),
    "sequence_s": ("old", "hybrid"),
    "worker_part": ("old",),
    "request_s": ("old", "plain"),
    "busy_share": ("old", "consumer", "plain"),
    "wait_share": ("old", "plain"),
    "memory_share": ("old", "consumer", "moe_new", "fp8_moe"),
    "cache_share": ("old", "consumer"),
    "compute_share": ("old", "consumer", "low", "moe_new"),
    "prefill_share": ("old", "consumer"),
}
_KIND_SPREAD = 0.25
# Kinds known to differ before any row was seen. A block-scaled fp8 product of a few rows passes
# over an expert in some thirty turns of under a microsecond on a fifth of the GPU: about 6 µs.
_KIND_MIDDLES = {"tile_s/fp8_moe": np.log(10.0)}
_WIDE = {
    "weight_rate/moe_new": 0.05,
    "weight_rate/moe_old": 0.1,
    "weight_rate/fp8_moe": 0.1,
    "memory_share/fp8_moe": 0.1,
    "memory_share/moe_new": 0.1,
    # The same silicon draws the same for the same work, whatever engine asks for it.
    "memory_share/old": 0.08,
    "compute_share/moe_new": 0.08,
    "cache_share/old": 0.08,
    "compute_share/old": 0.08,
    "prefill_share/old": 0.08,
    "host_s/old": 1.5,
    "sequence_s/old": 1.5,
    "layer_s/old": 1.5,
    "request_s/old": 1.5,
    "worker_part/old": 1.5,
    "layer_s/plain": 2.0,
    "host_s/plain": 2.0,
    "expert_s/old": 1.0,
    "expert_s/fp8_moe": 0.7,
    "head_s/old": 2.0,
    "prefill_rate/hybrid": 0.8,
    "tile_s/fp8_moe": 0.5,
    "begin_s/old": 1.0,
    "sequence_s/hybrid": 0.5,
    "prefill_rate/consumer": 0.6,
    "prefill_rate/low": 0.6,
    "decode_rate/consumer": 0.5,
    "weight_rate/narrow": 0.2,
    "weight_rate/consumer": 0.1,
}
# How the joules of a byte follow the data sheet: 1: in proportion to power limit / bandwidth.
_SCALING = (1.0, 0.05)
_REFERENCE_BYTES_PER_J = 3.35e12 / 700.0  # H100 SXM

NAMES: tuple[str, ...] = (
    *CONSTANTS,
    *(f"{name}/{kind}" for name, kinds in KINDS.items() for kind in kinds),
    "scaling",
)
MIDDLES: Array = np.array(
    [
        *(middle for middle, _ in CONSTANTS.values()),
        *(
            _KIND_MIDDLES.get(f"{name}/{kind}", 0.0)
            for name, kinds in KINDS.items()
            for kind in kinds
        ),
        _SCALING[0],
    ]
)
SPREADS: Array = np.array(
    [
        *(spread for _, spread in CONSTANTS.values()),
        *(
            _WIDE.get(f"{name}/{kind}", _KIND_SPREAD)
            for name, kinds in KINDS.items()
            for kind in kinds
        ),
        _SCALING[1],
    ]
)

# (constant, kind of case, place in NAMES) of every constant that differs in a kind of case
_DIFFERING = [
    (name, kind, NAMES.index(f"{name}/{kind}")) for name, kinds in KINDS.items() for kind in kinds
]


@dataclass(frozen=True, slots=True)
class Cases:
    """Requests on backends, one per row; every field an array of the same length."""

    gpus: Array
    bandwidth: Array  # bytes a second, one GPU
    flops: Array  # a second, one GPU
    flops16: Array  # the same in 16 bits, which attention is calculated in whatever the weights
    limit_w: Array  # one GPU
    link: Array  # bytes a second, one way
    weight_bytes: Array
    params: Array
    active: Array
    always: Array
    expert_share: Array
    experts_per_token: Array
    layers: Array
    hidden: Array
    kv_bytes: Array
    window: Array  # tokens
    window_kv_bytes: Array
    state_bytes: Array  # of one sequence
    always_bytes: Array  # of one weight that every token uses
    expert_layers: Array
    cache_layers: Array
    unread_share: Array  # of all parameters, the table that tokens are read in by
    head_share: Array  # of all parameters, those that tokens are chosen by; never quantised
    low: Array  # 0 or 1, like the next four: calculates in fewer bits than 16
    hybrid: Array
    old: Array  # vLLM before its second engine; between 0 and 1 on the way there
    plain: Array  # transformers' own generate()
    consumer: Array  # a card for desktops
    batch: Array
    prompt: Array
    output: Array

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Cases:
        """The rows of ``index``."""
        return Cases(*(getattr(self, field.name)[index] for field in fields(self)))


_SIZES_AT = tuple(
    [field.name for field in fields(Cases)].index(name) for name in ("params", "active", "always")
)
_SIZE_STEPS = 3  # sizes on the scale per doubling
_SMALLER = 6  # of them looked at


@dataclass(frozen=True, slots=True)
class Physics:
    """What the constants say of each case."""

    log_energy: Array  # ln joules of the request, all GPUs
    log_time: Array  # ln seconds of engine time the request takes
    step_s: Array
    memory_s: Array  # parts of one step
    compute_s: Array
    exchange_s: Array
    held_s: Array  # layers' launches and host code
    prefill_s: Array
    cache_share: Array  # of the bytes of a step, the cache's
    first_s: Array  # to the first token with nothing waiting


def static_row(backend: Backend) -> tuple[float, ...] | None:
    """All fields of Cases but the last three; None where model or GPU is not known.

    Raises UnknownPrecision.
    """
    if backend.model is None or backend.gpu is None:
        return None
    precision = precision_named(backend.precision)
    shape, gpu = shape_of(backend.model), backend.gpu
    old, plain = engine_kind(backend.engine, backend.engine_version)
    return (
        float(max(1, backend.num_gpus)),
        gpu.mem_bandwidth_gbs * 1e9,
        compute_flops(gpu, precision),
        gpu.fp16_tflops * 1e12,
        gpu.tdp_w,
        link_bandwidth_gbs(gpu) * 1e9 / 2.0,
        WEIGHT_BYTES[precision],
        shape.params,
        shape.active,
        shape.always,
        shape.expert_share,
        shape.experts_per_token,
        shape.layers,
        shape.hidden,
        shape.kv_bytes_per_token,
        shape.window_tokens,
        shape.window_kv_bytes_per_token,
        shape.state_bytes,
        # MXFP4 models keep everything but their experts in bf16 (gpt-oss model card).
        2.0 if precision == "mxfp4" and shape.expert_share < 1.0 else WEIGHT_BYTES[precision],
        shape.expert_layers,
        shape.cache_layers,
        shape.unread / shape.params,
        shape.head / shape.params,
        float(compute_flops(gpu, precision) > gpu.fp16_tflops * 1e12),
        float(shape.hybrid),
        old,
        plain,
        float(gpu.name.startswith("RTX") and "6000" not in gpu.name),
    )


def smaller(static: tuple[float, ...]) -> list[tuple[float, ...]]:
    """The same with fewer parameters: at the sizes of a fixed scale down to a quarter of them.

    What is said of a model is never less than what is said of these: a correction learnt from
    other models may dip along the size, the cost of a model of one kind does not.
    """
    params = static[_SIZES_AT[0]]
    last = math.ceil(math.log2(params) * _SIZE_STEPS) - 1
    found = []
    for step in range(last, last - _SMALLER, -1):
        share = 2.0 ** (step / _SIZE_STEPS) / params
        row = list(static)
        for place in _SIZES_AT:
            row[place] *= share
        found.append(tuple(row))
    return found


def cases(rows: Sequence[tuple[float, ...]], batch: Array, prompt: Array, output: Array) -> Cases:
    """Static rows and what is asked of each, one column a field."""
    columns = list(np.array(rows, dtype=np.float64).T)
    return Cases(*[*columns, np.maximum(batch, 1.0), prompt, np.maximum(output, 1.0)])


def engine_kind(engine: str, version: str | None) -> tuple[float, float]:
    """(old vLLM, plain transformers), 0..1 each; other engines and unknown versions are new."""
    name = engine.lower()
    if name in ("transformers", "hf", "huggingface"):
        return 0.0, 1.0
    match = re.match(r"v?(\d+)\.(\d+)", version or "")
    if name != "vllm" or match is None or int(match[1]) > 0:
        return 0.0, 0.0
    # 0.6 overlapped host and GPU, 0.8 made the second engine the default (vLLM release notes).
    return {6: 0.5, 7: 0.3}.get(int(match[2]), 1.0 if int(match[2]) < 6 else 0.0), 0.0


def physics(constants: Mapping[str, float] | Array, rows: Cases) -> Physics:
    """Energy and time of every row under the constants (logarithms, in the order of NAMES)."""
    if isinstance(constants, Mapping):
        constants = np.array([constants[name] for name in NAMES])
    q, scaling = _constants(constants, rows)
    gpus, batch, output, prompt = rows.gpus, rows.batch, rows.output, rows.prompt
    context = prompt + 0.5 * output
    bandwidth, flops = rows.bandwidth * gpus, rows.flops * gpus
    own = 1.0 + q["skew"] * (batch - 1.0)
    covered = 1.0 - (1.0 - np.minimum(rows.expert_share, 1.0)) ** own
    experts = rows.params - rows.always
    moe = (rows.expert_share < 1.0).astype(np.float64)
    # what the data sheet alone would need
    head, unread = rows.head_share * rows.params, rows.unread_share * rows.params
    always_bytes = (rows.always - unread - head) * rows.always_bytes
    always_s = (always_bytes + head * np.maximum(rows.always_bytes, 2.0)) / bandwidth
    experts_s = experts * covered * rows.weight_bytes / bandwidth
    weights_s = always_s + experts_s
    # A weight is worked with whatever its bits: joules for each as for two bytes of it.
    operands_s = (rows.always - unread + experts * covered) * 2.0 / bandwidth
    kept = context * rows.kv_bytes + np.minimum(context, rows.window) * rows.window_kv_bytes
    cache_s = batch * (kept + 2.0 * rows.state_bytes) / bandwidth
    inner = rows.active - unread - head
    products_s = 2.0 * batch * (inner / flops + head / (rows.flops16 * gpus))
    many = gpus > 1.0
    hop_bytes_s = 2.0 * rows.hidden * 2.0 * (gpus - 1.0) / gpus / rows.link  # of one token
    attention = 2.0 * prompt * prompt * rows.hidden * rows.cache_layers
    prompt_s = 2.0 * inner * prompt / flops
    attention_s = attention / (rows.flops16 * gpus) / q["attention_rate"]

    # Experts live whole on one GPU each: a step waits for the one that has most of them to read.
    each = np.maximum(rows.experts_per_token / rows.expert_share / gpus, 1.0)
    tiles_s = moe * rows.expert_layers * each * covered * q["tile_s"]
    excess = np.sqrt(2.0 * np.log(gpus) * (1.0 - covered) / np.maximum(each * covered, 0.1))
    slowest = 1.0 + moe * q["uneven"] * excess
    memory_s = (always_s + experts_s * slowest) / q["weight_rate"] + cache_s / q["cache_rate"]
    compute_s = products_s / q["decode_rate"]
    hops_s = q["hop_s"] * np.log2(np.maximum(gpus, 2.0)) + q["hop_factor"] * batch * hop_bytes_s
    exchange_s = np.where(many, 2.0 * rows.layers * hops_s, 0.0)
    launch_s = rows.layers * q["layer_s"] + rows.expert_layers * q["expert_s"]
    # One process tells the workers of all GPUs what to do, and waits for each.
    longer = 1.0 + q["worker_part"] * np.log2(gpus)
    sequences_s = longer * q["sequence_s"] * batch
    host_s = longer * q["host_s"]
    # Heads are dealt out to the GPUs, so that each has its share of every sequence's attention.
    heads_s = q["head_s"] * batch * rows.cache_layers / gpus
    step_s = np.hypot(memory_s, compute_s) + launch_s + exchange_s + tiles_s
    step_s = step_s + sequences_s + heads_s + host_s
    sent_s = np.where(many, 2.0 * rows.layers * q["hop_factor"] * prompt * hop_bytes_s, 0.0)
    worked_s = prompt_s / q["prefill_rate"] + attention_s
    prefill_s = worked_s + sent_s + rows.layers * q["begin_s"]
    time_s = output * step_s / batch + prefill_s + q["request_s"]

    # In the first engine the host's work per layer and sequence kept the GPU waiting. Now it
    # overlaps with the GPU's, and what a sequence costs beyond its bytes are kernels of its own.
    first = rows.old + rows.plain > 0.0
    waited_s = host_s + np.where(first, sequences_s + launch_s + heads_s, 0.0)
    kernels_s = np.where(first, 0.0, sequences_s + heads_s)
    steps = output / batch
    bytes_per_j = (rows.bandwidth / rows.limit_w / _REFERENCE_BYTES_PER_J) ** (1.0 - scaling)
    drawn = (
        q["busy_share"] * (steps * (step_s - waited_s) + prefill_s)
        + q["wait_share"] * (steps * waited_s + q["request_s"])
        + q["memory_share"] * bytes_per_j * (weights_s + q["operand_part"] * operands_s) * steps
        + q["cache_share"] * bytes_per_j * cache_s * steps
        + q["tile_share"] * tiles_s * steps
        + q["kernel_share"] * kernels_s * steps
        + q["compute_share"] * products_s * steps
        + q["prefill_share"] * worked_s
    )
    share = drawn / time_s
    share *= (1.0 + share**8) ** -0.125  # a GPU draws its limit at most
    # Whom nobody was before, as often as arrivals are Poisson, waits for no step but its own.
    first_steps = 1.0 + (q["first_steps"] - 1.0) * -np.expm1(1.0 - batch)
    return Physics(
        log_energy=np.log(share * time_s * gpus * rows.limit_w),
        log_time=np.log(time_s),
        step_s=step_s,
        memory_s=memory_s,
        compute_s=compute_s,
        exchange_s=exchange_s,
        held_s=launch_s + sequences_s + heads_s + host_s,
        prefill_s=prefill_s,
        cache_share=cache_s / (cache_s + weights_s),
        first_s=prefill_s * (q["first_own"] + q["first_crowd"] * (batch - 1.0))
        + first_steps * step_s,
    )


# What the correction looks at: name -> the length over which it may change.
FEATURES: dict[str, float] = {
    "log_batch": 1.5,
    "log_active": 1.2,
    "log_gpus": 1.2,
    "log_sparsity": 1.0,
    "experts": 1.5,
    "moe": 1.0,
    "log_weight_bytes": 0.6,
    "held": 0.25,
    "memory": 0.25,
    "compute": 0.25,
    "cache": 0.25,
    "exchange": 0.15,
    "prefill": 0.2,
    "log_context": 1.2,
    "log_kv": 0.6,
    "old": 1.0,
    "plain": 1.0,
    "consumer": 1.0,
    "hybrid": 1.0,
    "log_limit": 0.7,
}


def features(rows: Cases, found: Physics) -> Array:
    """Dimensionless figures of each case, in the order of FEATURES, scaled to their lengths."""
    columns = {
        "log_batch": np.log(rows.batch),
        "log_active": np.log(rows.active / 8e9),
        "log_gpus": np.log2(rows.gpus),
        "log_sparsity": np.log(rows.params / rows.active),
        "experts": np.log2(1.0 + rows.experts_per_token),
        "moe": (rows.expert_share < 1.0).astype(np.float64),
        "log_weight_bytes": np.log2(rows.weight_bytes),
        "held": found.held_s / found.step_s,
        "memory": found.memory_s / found.step_s,
        "compute": found.compute_s / found.step_s,
        "cache": found.cache_share,
        "exchange": found.exchange_s / found.step_s,
        "prefill": found.prefill_s / np.exp(found.log_time),
        "log_context": np.log(rows.prompt + 0.5 * rows.output),
        "log_kv": np.log((rows.kv_bytes + rows.window_kv_bytes) / rows.layers / 4096.0),
        "old": rows.old,
        "plain": rows.plain,
        "consumer": rows.consumer,
        "hybrid": rows.hybrid,
        "log_limit": np.log(rows.limit_w / 700.0),
    }
    return np.stack([columns[name] / scale for name, scale in FEATURES.items()], axis=1)


def _constants(values: Array, rows: Cases) -> tuple[dict[str, Array], float]:
    moe = (rows.expert_share < 1.0).astype(np.float64)
    new = np.clip(1.0 - rows.old - rows.plain, 0.0, 1.0)
    flags = {
        "consumer": rows.consumer,
        "moe_new": moe * new,
        "moe_old": moe * rows.old,
        "fp8_moe": moe * (rows.weight_bytes == 1.0),
        "narrow": (rows.weight_bytes < 1.0).astype(np.float64),
        "low": rows.low,
        "old": rows.old,
        "plain": rows.plain,
        "hybrid": rows.hybrid,
    }
    met = {kind for kind, flag in flags.items() if flag.any()}
    sums: dict[str, Array] = dict(zip(CONSTANTS, values, strict=False))
    for name, kind, place in _DIFFERING:
        if kind in met:
            sums[name] = sums[name] + values[place] * flags[kind]
    return {name: np.exp(total) for name, total in sums.items()}, float(values[-1])
