"""Figures of one request on one backend at one load, from the prior: energy, time, their bands.

The prior is asked on a fixed grid of prompt and output lengths, made never to fall along either,
and read between the nodes along straight lines: a longer prompt or a longer answer can then never
cost less, however the correction bends, and the physics, nearly linear in both, loses nothing.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from estimators.greybox import Array, Cases, cases, physics, smaller, static_row
from estimators.prior import Prior
from estimators.types import Backend, Band

PROMPTS: Array = np.array([0.0, *(4.0 * 2.0**power for power in range(19))])
OUTPUTS: Array = np.array([2.0**power for power in range(20)])
# Engines whose published measurements were fitted; others get the widest band.
_MEASURED_ENGINES = frozenset({"vllm", "transformers", "tensorrt-llm"})
# Not knowing the load: between a lonely request and a crowd. Median joules per token fall
# 6.4-fold from batch 8 to the best batch of a model (ml-energy/leaderboard).
UNKNOWN_BATCHES = (1.0, 8.0, 64.0)
USUAL_PROMPT, USUAL_OUTPUT = 500.0, 300.0
_BETWEEN_SIZES = 0.004  # of a logarithm: a dip between two sizes that are looked at
# Of the rate from a load a little below to one a little above: less is an engine near its limit.
_SATURATED = 0.1
_LEAST_MARGINAL = 0.02  # of the attributed energy: adding work is never free


class Figures(NamedTuple):
    """Bands of 80 % of one request."""

    energy_j: Band
    marginal_energy_j: Band
    ttft_s: Band
    latency_s: Band
    tier: str  # what of this case was measured: seen, new_model, new_gpu, both_new


class Subject(NamedTuple):
    """A backend as the prior sees it."""

    static: tuple[float, ...]
    tier: str
    idle_w: float  # all GPUs
    limit_w: float  # all GPUs


def subject_of(prior: Prior, backend: Backend, idle_w: float) -> Subject | None:
    """None where model or GPU is not known. Raises UnknownPrecision."""
    static = static_row(backend)
    if static is None or backend.gpu is None:
        return None
    one = cases([static], np.ones(1), np.ones(1), np.ones(1))
    tier = prior.tier(backend.gpu.name, one)
    if backend.engine.lower() not in _MEASURED_ENGINES:
        tier = "both_new"
    return Subject(static, tier, idle_w, backend.gpu.tdp_w * max(1, backend.num_gpus))


def figures(
    prior: Prior, subject: Subject, batch: float | None, prompt: float, output: float
) -> Figures:
    """One request among ``batch`` running ones (itself included); None: the load is not known."""
    if batch is None:
        alone, usual, crowded = (
            figures(prior, subject, some, prompt, output) for some in UNKNOWN_BATCHES
        )
        return Figures(
            energy_j=_spanning(usual.energy_j, alone.energy_j, crowded.energy_j),
            marginal_energy_j=_spanning(
                usual.marginal_energy_j, alone.marginal_energy_j, crowded.marginal_energy_j
            ),
            ttft_s=_spanning(usual.ttft_s, alone.ttft_s, crowded.ttft_s),
            latency_s=_spanning(usual.latency_s, alone.latency_s, crowded.latency_s),
            tier=usual.tier,
        )
    batch, output = max(1.0, batch), max(1.0, output)
    prompts = PROMPTS[: np.searchsorted(PROMPTS, prompt) + 1]
    outputs = OUTPUTS[: np.searchsorted(OUTPUTS, output) + 1]
    energies_j, decodes_s = _grids(prior, subject, batch, len(prompts), len(outputs))
    more_j, more_s, added = _at_load(prior, subject, batch)
    energy_j = more_j * between(energies_j, prompts, outputs, prompt, output)
    decode_s = more_s * between(decodes_s, prompts, outputs, prompt, output)
    # So many joules take so long: a GPU draws its limit at most.
    decode_s = max(decode_s, energy_j * batch / subject.limit_w)
    given = _every(subject, np.array([batch]), prompts, np.array([output]))
    first_s = np.maximum.accumulate(physics(prior.constants, given).first_s)
    i, u = _place(prompts, prompt)
    ttft_s = float(first_s[i] * (1.0 - u) + first_s[min(i + 1, len(prompts) - 1)] * u)
    # No less than any other token's, so that what is in the batch is rate × latency.
    ttft_s = max(ttft_s, decode_s / output)
    given = _every(subject, np.array([batch]), np.array([prompt]), np.array([output]))
    exact = prior.answer(given, [subject.tier])
    low, high = exact.energy_low[0] - exact.energy[0], exact.energy_high[0] - exact.energy[0]
    slow, shigh = exact.step_low[0] - exact.step[0], exact.step_high[0] - exact.step[0]
    energy = around(energy_j, low, high)
    soon, late = prior.ttft_factors
    ttft = Band(ttft_s * soon, ttft_s, ttft_s * late)
    decode = around(decode_s * (output - 1.0) / output, slow, shigh)
    marginal = around(energy_j * added, 1.5 * low, 1.5 * high)
    return Figures(
        energy_j=energy,
        marginal_energy_j=Band(marginal.low, marginal.mid, min(marginal.high, energy.high)),
        ttft_s=ttft,
        latency_s=Band(*(a + b for a, b in zip(ttft, decode, strict=True))),
        tier=subject.tier,
    )


@lru_cache(maxsize=1024)
def _grids(
    prior: Prior, subject: Subject, batch: float, prompts: int, outputs: int
) -> tuple[Array, Array]:
    """(joules, seconds of decoding) at so many of the first PROMPTS and OUTPUTS."""
    output = OUTPUTS[:outputs]
    given = _every(subject, np.array([batch]), PROMPTS[:prompts], output)
    log_energy, log_step, _ = prior.middles(given)
    shape = (prompts, outputs)
    steps_s = np.exp(log_step).reshape(shape)
    return rising(np.exp(log_energy).reshape(shape)), rising(steps_s * output[None, :])


@lru_cache(maxsize=4096)
def _at_load(prior: Prior, subject: Subject, batch: float) -> tuple[float, float, float]:
    """(factor on joules, factor on seconds a step, marginal share), whatever the lengths."""
    more_j, more_s = (float(factor[0]) for factor in raised(prior, subject, np.array([batch])))
    return more_j, more_s, _marginal_share(prior, subject, batch)


def raised(prior: Prior, subject: Subject, batches: Array) -> tuple[Array, Array]:
    """Factors on (joules, seconds a step) at each load, 1 or a little more: what is said of a
    model is never less than what is said of smaller ones of its kind.

    Looked at for usual lengths only, so that a factor changes nothing along prompt and output.
    """
    statics = [subject.static, *smaller(subject.static)]
    count = len(batches)
    given = cases(
        [static for static in statics for _ in range(count)],
        np.tile(batches, len(statics)),
        np.full(count * len(statics), USUAL_PROMPT),
        np.full(count * len(statics), USUAL_OUTPUT),
    )
    energy, step, _ = prior.middles(given)
    return _over_own(energy.reshape(-1, count)), _over_own(step.reshape(-1, count))


def _over_own(logarithms: Array) -> Array:
    most = logarithms[1:].max(axis=0) + _BETWEEN_SIZES
    return np.asarray(np.exp(np.maximum(most - logarithms[0], 0.0)))


def marginal_shares(prior: Prior, subject: Subject, batches: Array) -> Array:
    """Joules that serving one more adds, as a share of the attributed joules at each load.

    Looked at for usual lengths only, as ``raised``.
    """
    near = np.concatenate([[load, max(1.0, load / 1.6), 1.6 * load] for load in batches])
    given = _every(subject, near, np.array([USUAL_PROMPT]), np.array([USUAL_OUTPUT]))
    energies_j, times_s = (np.exp(each).reshape(-1, 3) for each in prior.energy_and_time(given))
    rows = zip(batches, energies_j, times_s, strict=True)
    return np.array([_added(*row, subject.idle_w) for row in rows])


def _added(batch: float, energy_j: Array, time_s: Array, idle_w: float) -> float:
    """That share, from figures at a load, a little below and a little above it.

    Requests come on their own, so one more raises the rate of requests, and with it the power:
    d power / d rate, along the load curve. On an idle engine it is everything above idle; on a
    saturated one, where the rate cannot rise, everything.
    """
    if batch <= 1.0:
        return float(max(0.05, 1.0 - idle_w * time_s[0] / energy_j[0]))
    power_w, rate = energy_j / time_s, 1.0 / time_s
    faster = (rate[2] - rate[1]) / rate[0]
    if faster <= 0.0:
        return 1.0
    share = min(1.0, max(_LEAST_MARGINAL, (power_w[2] - power_w[1]) / power_w[0] / faster))
    told = min(1.0, faster / _SATURATED)  # a quotient of two small differences tells little
    return float(told * share + 1.0 - told)


def _marginal_share(prior: Prior, subject: Subject, batch: float) -> float:
    """At any load; towards an idle engine straight in 1 / batch, as tables read it."""
    if not 1.0 < batch < 2.0:
        return float(marginal_shares(prior, subject, np.array([batch]))[0])
    alone, two = marginal_shares(prior, subject, np.array([1.0, 2.0]))
    company = 2.0 * (batch - 1.0) / batch
    return float((1.0 - company) * alone + company * two)


def rising(grid: Array) -> Array:
    """The grid made never to fall along its two last axes."""
    flat = np.maximum.accumulate(grid, axis=-1)
    return np.asarray(np.maximum.accumulate(flat, axis=-2))


def between(grid: Array, prompts: Array, outputs: Array, prompt: float, output: float) -> float:
    """The value at (prompt, output), straight between nodes; beyond them: in proportion."""
    i, u = _place(prompts, prompt)
    j, v = _place(outputs, output)
    top = grid[i, j] * (1.0 - v) + grid[i, min(j + 1, len(outputs) - 1)] * v
    k = min(i + 1, len(prompts) - 1)
    bottom = grid[k, j] * (1.0 - v) + grid[k, min(j + 1, len(outputs) - 1)] * v
    value = top * (1.0 - u) + bottom * u
    beyond = max(1.0, output / outputs[-1]) * max(1.0, prompt / max(prompts[-1], 1.0))
    return float(value * beyond)


def around(middle: float, low: float, high: float) -> Band:
    """A band from a middle and two logarithms around it."""
    return Band(middle * math.exp(min(low, 0.0)), middle, middle * math.exp(max(high, 0.0)))


def _place(nodes: Array, value: float) -> tuple[int, float]:
    """(index of the node below, how far towards the next one)."""
    below = int(np.searchsorted(nodes, value, side="right")) - 1
    below = max(0, min(below, len(nodes) - 1))
    if below == len(nodes) - 1:
        return below, 0.0
    return below, float((value - nodes[below]) / (nodes[below + 1] - nodes[below]))


def _spanning(middle: Band, *others: Band) -> Band:
    """The middle, with ends that hold what all say."""
    every = (middle, *others)
    return Band(min(b.low for b in every), middle.mid, max(b.high for b in every))


def _every(subject: Subject, batches: Array, prompts: Array, outputs: Array) -> Cases:
    """Every combination, output fastest."""
    batch, prompt, output = (
        axis.ravel() for axis in np.meshgrid(batches, prompts, outputs, indexing="ij")
    )
    return cases([subject.static] * len(batch), batch, prompt, output)
