"""Step physics from data sheets alone: nothing here is fitted.

One decode step of an engine reads the weights its tokens touch, reads every sequence's cache,
calculates, and exchanges activations between GPUs. A prompt is calculated at once. Power lies
between idle and the limit, by how busy memory and arithmetic are.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from estimators.hardware import idle_power_w, link_bandwidth_gbs
from estimators.models import WEIGHT_BYTES, Shape, precision_named, shape_of
from estimators.types import Backend, GpuFacts
from meters.types import StepPhysics

# What kernels reach of the data sheet: STREAM-like reads 80 % and more, large matrix products
# 50-70 % ("Efficiently Scaling Transformer Inference", arXiv 2211.05102, tables 2 and D.2).
MEMORY_EFFICIENCY = 0.8
COMPUTE_EFFICIENCY = 0.6
# A layer's kernels one after another, even with nothing to read: about ten launches of 1.5 µs
# inside a CUDA graph ("Getting Started with CUDA Graphs", NVIDIA technical blog, 2019).
LAYER_OVERHEAD_S = 15e-6
# Latency of one all-reduce inside a machine; two a layer (NCCL tests, small messages).
ALL_REDUCE_S = 12e-6
# Scheduling, sampling and detokenising of one step on the host (vLLM v0.6 blog, 2024).
STEP_OVERHEAD_S = 1e-3
# Shares of the span from idle to the power limit drawn by saturated memory and saturated
# arithmetic, and by a GPU that merely has work (clocks up); together they stay under the limit.
BUSY_SHARE = 0.15
MEMORY_SHARE = 0.45
COMPUTE_SHARE = 0.5

_NOMINAL_BATCH = 32.0
_NOMINAL_CONTEXT = 1000.0


class StepCost(NamedTuple):
    """Seconds of one step by what takes them, over all GPUs working at once."""

    weights_s: float
    cache_s: float
    compute_s: float
    exchange_s: float
    overhead_s: float

    @property
    def step_s(self) -> float:
        """Reading and calculating overlap; exchange and overhead do not."""
        read_s = self.weights_s + self.cache_s
        return max(read_s, self.compute_s) + self.exchange_s + self.overhead_s


class RequestCost(NamedTuple):
    """One request's part of a steadily busy engine."""

    time_s: float  # engine time this request takes from it: busy time / requests
    energy_j: float  # all GPUs, idle power included
    step_s: float  # one decode step
    prefill_s: float  # the prompt's own calculation


class Roofline(msgspec.Struct, frozen=True):
    """One model on one set of GPUs at one precision."""

    shape: Shape
    weight_bytes: float  # of one weight
    bandwidth: float  # bytes a second, one GPU
    flops: float  # a second, one GPU, at the precision it calculates in
    num_gpus: float
    link: float  # bytes a second between GPUs
    idle_w: float  # one GPU
    limit_w: float  # one GPU

    def step(self, batch: float, context: float) -> StepCost:
        """One decode step of ``batch`` sequences of ``context`` tokens each."""
        shape, gpus = self.shape, self.num_gpus
        read = self.bandwidth * gpus * MEMORY_EFFICIENCY
        exchange_s = 0.0
        if gpus > 1.0:
            moved = 2.0 * batch * shape.hidden * 2.0 * (gpus - 1.0) / gpus
            exchange_s = 2.0 * shape.layers * (ALL_REDUCE_S + moved / self.link)
        return StepCost(
            weights_s=shape.touched(batch) * self.weight_bytes / read,
            cache_s=batch * shape.cache_bytes(context) / read,
            compute_s=2.0 * shape.active * batch / (self.flops * gpus * COMPUTE_EFFICIENCY),
            exchange_s=exchange_s,
            overhead_s=STEP_OVERHEAD_S + shape.layers * LAYER_OVERHEAD_S,
        )

    def prefill_s(self, tokens: float) -> float:
        """The prompt's calculation: its weights' products, and attention over itself."""
        shape, gpus = self.shape, self.num_gpus
        speed = self.flops * gpus * COMPUTE_EFFICIENCY
        products = 2.0 * shape.active * tokens
        # scores and values: 4 * tokens**2 / 2 * q_width a layer, and q_width is about hidden
        attention = 2.0 * tokens * tokens * shape.hidden * shape.layers
        exchange_s = 0.0
        if gpus > 1.0:
            moved = 2.0 * tokens * shape.hidden * 2.0 * (gpus - 1.0) / gpus
            exchange_s = 2.0 * shape.layers * moved / self.link
        return (products + attention) / speed + exchange_s

    def power_w(self, memory: float, compute: float) -> float:
        """All GPUs, when memory and arithmetic are busy that share (0..1) of the time."""
        share = BUSY_SHARE + MEMORY_SHARE * memory + COMPUTE_SHARE * compute
        return self.num_gpus * (self.idle_w + (self.limit_w - self.idle_w) * min(1.0, share))

    def request(
        self, batch: float, prompt_tokens: float, output_tokens: float, cached_tokens: float = 0.0
    ) -> RequestCost:
        """One request among ``batch`` alike, in steady state."""
        context = prompt_tokens + 0.5 * output_tokens
        step = self.step(batch, context)
        step_s = step.step_s
        fresh = max(prompt_tokens - cached_tokens, 0.0)
        prefill_s = self.prefill_s(fresh)
        decode_s = output_tokens * step_s / batch
        decode_w = self.power_w(
            min(1.0, (step.weights_s + step.cache_s) / step_s), min(1.0, step.compute_s / step_s)
        )
        prefill_w = self.power_w(0.3, 1.0)
        return RequestCost(
            time_s=decode_s + prefill_s,
            energy_j=decode_s * decode_w + prefill_s * prefill_w,
            step_s=step_s,
            prefill_s=prefill_s,
        )

    def physics(self) -> StepPhysics:
        """The coefficients of a straight line through this roofline at a usual load."""
        one = self.step(1.0, _NOMINAL_CONTEXT)
        many = self.step(_NOMINAL_BATCH, _NOMINAL_CONTEXT)
        # A sequence's state (Mamba) is read whatever its length: it belongs to the token.
        grown_s = one.cache_s - self.step(1.0, 0.0).cache_s
        context_s = grown_s / _NOMINAL_CONTEXT
        token_s = max(0.0, (many.step_s - one.step_s) / (_NOMINAL_BATCH - 1.0) - grown_s)
        step_s = max(0.0, one.step_s - token_s - grown_s)
        prefill_s = self.prefill_s(_NOMINAL_CONTEXT) / _NOMINAL_CONTEXT
        idle = self.num_gpus * self.idle_w
        span = self.power_w(1.0, 0.0) - idle
        compute_j = 2.0 * self.shape.active / (self.flops * COMPUTE_EFFICIENCY)
        compute_j *= COMPUTE_SHARE * (self.limit_w - self.idle_w)
        return StepPhysics(
            idle_power_w=idle,
            step_j=step_s * span,
            token_j=token_s * span + compute_j,
            context_j=context_s * span,
            prefill_j=prefill_s * (self.power_w(0.3, 1.0) - idle),
            step_s=step_s,
            token_s=token_s,
            context_s=context_s,
            prefill_s=prefill_s,
        )


def roofline_of(backend: Backend) -> Roofline | None:
    """The roofline of a backend; None where its model or GPU is not known."""
    if backend.model is None or backend.gpu is None:
        return None
    precision = precision_named(backend.precision)
    gpu = backend.gpu
    return Roofline(
        shape=shape_of(backend.model),
        weight_bytes=WEIGHT_BYTES[precision],
        bandwidth=gpu.mem_bandwidth_gbs * 1e9,
        flops=compute_flops(gpu, precision),
        num_gpus=float(max(1, backend.num_gpus)),
        link=link_bandwidth_gbs(gpu) * 1e9 / 2.0,  # both ways together -> one way
        idle_w=idle_power_w(gpu),
        limit_w=gpu.tdp_w,
    )


def compute_flops(gpu: GpuFacts, precision: str) -> float:
    """FLOP/s at the precision products are calculated in: weight-only kinds calculate in fp16."""
    fp16 = gpu.fp16_tflops
    tflops = {
        "fp8": gpu.fp8_tflops,
        "int8": gpu.int8_tflops,
        "nvfp4": gpu.fp4_tflops or gpu.fp8_tflops,
        "fp32": fp16 / 2.0,
    }.get(precision) or fp16
    return max(tflops, 1e-3) * 1e12
