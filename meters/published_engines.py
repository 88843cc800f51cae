"""Simulated engines that use what was published of real ones, at batch size 1.

Sources: M. Buis, "Walking the Tightrope", master's thesis, Utrecht University 2024, tables 5.29 and
5.40 (one L40S, 1,140 tasks of BigCodeBench, GPU energy above idle); D. Wetzel, "Green Tech or
Digital Polluter?", master's thesis, TU Berlin 2024, table 11 (8 NVIDIA L4, energy of 1,000 prompts
by CodeCarbon).

How the coefficients follow: at batch size 1 an engine does one step for each token, so all of a
request's energy is put into the step, as ``energy / tokens``, and its time as ``1 / throughput``.
Tokens are ``latency * throughput`` where both were published (Buis), and every answer is as long as
the mean one. Wetzel's table gives neither: there an answer has 256 tokens, and a step takes the
time of reading all weights once at the data sheet's 300 GB/s a GPU; only the energy of a request
is then the published one. The engines batch as all simulated ones do, but nobody measured what
these models use in a batch: with several requests at once their joules are not the theses'.
"""

from __future__ import annotations

from typing import NamedTuple

from meters.carbon import J_PER_KWH
from meters.simulated_physics import EngineConfig
from meters.types import StepPhysics

TASKS = 1140  # of BigCodeBench
PROMPTS = 1000  # of Wetzel's table 11
_WETZEL_TOKENS = 256.0
_L4_GBS = 300.0
_L40S_IDLE_W = 35.0  # near what nvidia-smi shows of one at rest
_L4_IDLE_W = 16.0


class Published(NamedTuple):
    """What one row comes to, for one request at batch size 1."""

    energy_j: float  # above idle
    output_tokens: float
    latency_s: float
    gpus: int
    idle_power_w: float  # of all its GPUs


def _buis(energy_kwh: float, latency_min: float, throughput_tok_s: float) -> Published:
    latency_s = latency_min * 60.0 / TASKS
    energy_j = energy_kwh * J_PER_KWH / TASKS
    return Published(energy_j, latency_s * throughput_tok_s, latency_s, 1, _L40S_IDLE_W)


def _wetzel(energy_wh: float, weights_gb: float, gpus: int) -> Published:
    step_s = weights_gb / (gpus * _L4_GBS)
    energy_j = energy_wh * 3600.0 / PROMPTS
    idle_w = gpus * _L4_IDLE_W
    return Published(energy_j, _WETZEL_TOKENS, _WETZEL_TOKENS * step_s, gpus, idle_w)


# backend name: the row of its table
PUBLISHED: dict[str, Published] = {
    "qwen2.5-14b-instruct@bf16": _buis(1.35, 290.87, 21.18),
    "qwen2.5-14b-instruct@int8": _buis(0.79, 168.13, 36.69),  # GPTQ
    "qwen2.5-14b-instruct@int4": _buis(0.46, 102.23, 58.47),  # GPTQ
    "qwen2.5-7b-instruct@bf16": _buis(0.82, 180.82, 38.95),
    "qwen2.5-7b-instruct@int8": _buis(0.49, 109.55, 63.99),  # GPTQ
    "qwen2.5-7b-instruct@int4": _buis(0.30, 72.62, 97.13),  # GPTQ
    "llama-3.1-70b-instruct@bf16": _wetzel(624.59, 141.1, 8),
    "llama-3.1-70b-instruct@fp8": _wetzel(318.25, 70.6, 8),
    "llama-3.1-70b-instruct@int4": _wetzel(232.03, 39.8, 8),  # AWQ
}


def published_engine(name: str, *, speed: float = 1.0, seed: int = 0) -> EngineConfig:
    """The engine of a row of ``PUBLISHED``, without noise. Raises KeyError for another name.

    ``speed`` is how many times faster than published it works; its joules above idle stay.
    """
    row = PUBLISHED[name]
    tokens = round(row.output_tokens)
    physics = StepPhysics(
        idle_power_w=row.idle_power_w,
        step_j=row.energy_j / tokens,
        token_j=0.0,
        context_j=0.0,
        prefill_j=0.0,
        step_s=row.latency_s / tokens / speed,
        token_s=0.0,
        context_s=0.0,
        prefill_s=0.0,
    )
    return EngineConfig(
        model=name.partition("@")[0],
        physics=physics,
        energy_noise=0.0,
        time_noise=0.0,
        energy_drift=0.0,
        mean_output_tokens=float(tokens),
        sigma_output_tokens=0.0,
        seed=seed,
    )
