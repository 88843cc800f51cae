"""Learns an engine's energy coefficients from a batch of windows. Pure.

``E = idle_power_w·t + step_j·steps + token_j·generated + context_j·context + prefill_j·prefilled``
with every coefficient >= 0 and a prior in the form of pseudo-observations: where windows cannot
tell two coefficients apart (a steadily saturated engine), the prior's proportions decide between
them, and the windows only their sum. Windows that fit badly are weighed down (Huber).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from meters.phases import Floats
from meters.types import StepPhysics, Window
from meters.work import Work

# What the others cost beside one step, for a dense model in bf16: a token's arithmetic is about
# an eightieth of reading the weights once on an H100 (989 TFLOP/s and 3.35 TB/s, data sheet, at
# about .6 and .8 of them), a prompt token less than half of that since prefill runs at a higher
# utilisation; a cached token is 131,072 bytes beside 16 GB for Llama-3.1-8B.
TOKEN_PER_STEP = 1 / 80
CONTEXT_PER_STEP = 6e-6
PREFILL_PER_STEP = 1 / 200
PRIOR_DEVIATION = 1.0  # relative: the proportions above are right within a factor of two or so
NOISE = 0.03  # relative deviation of a window's energy from the model, to begin with
ROUNDS = 6
HUBER = 2.0  # deviations beyond which a window counts less
ENOUGH_WINDOWS = 20
IDLE_KNOWN = 0.25  # relative uncertainty up to which a learnt idle power is believed


class Fit(NamedTuple):
    """Learnt coefficients; ``physics`` has no times (0), since windows here do not teach them."""

    physics: StepPhysics
    trusted: bool  # enough windows, and they fit
    idle_known: bool  # idle power was given or could be learnt
    deviation: float  # relative, of windows from the model


def fit(windows: Sequence[Window], work: Work) -> Fit:
    """Coefficients from these windows of one node."""
    length = np.array([w.end_s - w.start_s for w in windows])
    energy = np.array([w.energy_j for w in windows])
    idle_w = np.array([np.nan if w.idle_power_w is None else w.idle_power_w for w in windows])
    columns = _columns(windows, work)
    told = ~np.isnan(idle_w)
    idle_known = bool(told.all())
    default_w = float(np.median(idle_w[told])) if told.any() else 0.0
    if not told.any():
        quiet = (columns.sum(axis=1) == 0) & (length > 0)
        if quiet.any():
            default_w = float(np.median(energy[quiet] / length[quiet]))
            idle_known = True
        else:
            learnt, sure = _idle_power(columns, energy, length)
            idle_known = sure
            default_w = learnt if sure else 0.0
    else:
        idle_known = True
    above = np.maximum(energy - np.where(told, idle_w, default_w) * length, 0.0)
    coefficients, deviation, _ = _solve(columns, above, energy)
    step_j, token_j, context_j, prefill_j = (float(c) for c in coefficients)
    busy = int((columns.sum(axis=1) > 0).sum())
    return Fit(
        StepPhysics(
            idle_power_w=default_w,
            step_j=step_j,
            token_j=token_j,
            context_j=context_j,
            prefill_j=prefill_j,
            step_s=0.0,
            token_s=0.0,
            context_s=0.0,
            prefill_s=0.0,
        ),
        trusted=busy >= ENOUGH_WINDOWS and deviation < 0.2,
        idle_known=idle_known,
        deviation=deviation,
    )


def _columns(windows: Sequence[Window], work: Work) -> Floats:
    """Steps, generated, context and prefilled tokens of each window, external ones included."""
    ours = work.by_window(work.tokens)
    generated = ours + work.external_tokens
    context = work.by_window(work.context)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.where(ours > 0, context / ours, 0.0)
    context = context + each * work.external_tokens
    prefilled = work.by_window(work.prefilled) + work.external_prefilled
    steps = work.by_window(work.shares) + work.external_shares
    return np.stack([steps, generated, context, prefilled], axis=1)


def _idle_power(columns: Floats, energy: Floats, length: Floats) -> tuple[float, bool]:
    """Idle power where no window was idle: the part of energy that only time explains."""
    wide = np.concatenate([length[:, None], columns], axis=1)
    coefficients, _, spread = _solve(wide, energy, energy, timed=True)
    idle_w = float(coefficients[0])
    return idle_w, bool(idle_w > 0 and spread[0] <= IDLE_KNOWN * idle_w)


def _solve(
    columns: Floats, target: Floats, energy: Floats, *, timed: bool = False
) -> tuple[Floats, float, Floats]:
    """Coefficients, relative deviation, and each coefficient's standard error."""
    proportions = np.array([1.0, TOKEN_PER_STEP, CONTEXT_PER_STEP, PREFILL_PER_STEP])
    used = columns[:, 1:] if timed else columns
    shape = used @ proportions
    busy = shape > 0
    names = columns.shape[1]
    if not busy.any():
        return np.concatenate([np.zeros(names - 4), proportions]), 0.0, np.zeros(names)
    unit = float(target[busy].sum() / shape[busy].sum())
    if timed:
        unit *= 0.7  # some of it is idle
    if unit <= 0:
        return np.concatenate([np.zeros(names - 4), proportions]), 0.0, np.zeros(names)
    prior = proportions * unit
    if timed:
        # A loose guess: idle is some third of what the engine draws.
        prior = np.concatenate([[0.3 * float(energy.sum() / columns[:, 0].sum())], prior])
    noise = NOISE
    scale = np.maximum(energy, 1e-3 * float(energy.max()))
    weight = np.ones(len(target))
    coefficients = prior
    spread = prior
    for _ in range(ROUNDS):
        rows = columns * prior / (scale * noise)[:, None] * np.sqrt(weight)[:, None]
        goal = target / (scale * noise) * np.sqrt(weight)
        normal = rows.T @ rows + np.eye(names) / PRIOR_DEVIATION**2
        right = rows.T @ goal + 1.0 / PRIOR_DEVIATION**2
        relative = non_negative(normal, right)
        coefficients = relative * prior
        spread = np.sqrt(np.diag(np.linalg.inv(normal))) * prior
        off = (target - columns @ coefficients) / scale
        if not busy.any():
            break
        noise = float(np.clip(1.48 * np.median(np.abs(off[busy])), 2e-3, 0.5))
        weight = np.minimum(1.0, HUBER * noise / np.maximum(np.abs(off), 1e-12))
    return coefficients, noise, spread


def non_negative(normal: npt.NDArray[np.float64], right: Floats) -> Floats:
    """The x >= 0 that minimises ``x·normal·x / 2 - right·x``, for a positive definite ``normal``.

    Active sets: solve for the free ones, pin what turns negative, free what wants to rise.
    """
    n = len(right)
    free = np.ones(n, dtype=bool)
    x = np.zeros(n)
    for _ in range(10 * n):
        x = np.zeros(n)
        x[free] = np.linalg.solve(normal[np.ix_(free, free)], right[free])
        if (x < 0).any():
            free[int(np.argmin(x))] = False
            continue
        slope = right - normal @ x
        wanting = ~free & (slope > 1e-9 * (1.0 + np.abs(right)))
        if not wanting.any():
            break
        free[int(np.argmax(np.where(wanting, slope, -np.inf)))] = True
    return np.maximum(x, 0.0)
