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

from meters.deviations import Deviations
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
PRIOR_DEVIATION = 0.4  # relative; its tails are heavy, since engines do differ by factors
ROUNDS = 4
LEAST_STEPS = 30.0  # that are looked at together: edges are then a hundredth of their work
ENOUGH_TO_SIZE = 50  # of those, before they tell how far they stray; fewer seem surer than they are
HUBER = 3.0  # deviations beyond which a window counts less
ENOUGH_WINDOWS = 20
OTHERS_OFF = 0.3  # relative, of what others' contexts and prompts are taken to be in a window
WINDOW_OFF = 0.02  # of a window's energy without others
USUAL_IDLE = 0.2  # of busy power
QUIET_ENOUGH = 0.6  # of the usual power, in the quietest window, to tell idle power from it
IDLE_KNOWN = 0.25  # relative uncertainty up to which a learnt idle power is believed


class Fit(NamedTuple):
    """Learnt coefficients; ``physics`` has no times (0), since windows here do not teach them."""

    physics: StepPhysics
    trusted: bool  # enough windows, and they fit
    idle_known: bool  # idle power was given or could be learnt
    deviation: float  # relative, of windows from the model


class Spans(NamedTuple):
    """When windows were, and the steps in them."""

    starts: Floats
    ends: Floats
    steps: Floats


def fit(windows: Sequence[Window], work: Work) -> Fit:
    """Coefficients from these windows of one node."""
    length = np.array([w.end_s - w.start_s for w in windows])
    energy = np.array([w.energy_j for w in windows])
    idle_w = np.array([np.nan if w.idle_power_w is None else w.idle_power_w for w in windows])
    used = columns(work)
    ends = np.array([w.end_s for w in windows], dtype=np.float64)
    when = Spans(ends - length, ends, work.steps)
    proportions = as_time_goes(used, work, when)
    told = ~np.isnan(idle_w)
    idle_known = bool(told.all())
    default_w = float(np.median(idle_w[told])) if told.any() else 0.0
    if not told.any():
        quiet = (used.sum(axis=1) == 0) & (length > 0)
        if quiet.any():
            default_w = float(np.median(energy[quiet] / length[quiet]))
            idle_known = True
        else:
            learnt, sure = _idle_power(used, energy, length, proportions, when)
            idle_known = sure
            default_w = learnt if sure else _guess(learnt, energy / length)
    else:
        idle_known = True
    above = np.maximum(energy - np.where(told, idle_w, default_w) * length, 0.0)
    coefficients, deviation, _ = _solve(
        used, above, energy, proportions, when, age=_doubts(work, used @ proportions, proportions)
    )
    step_j, token_j, context_j, prefill_j = (float(c) for c in coefficients)
    busy = int((used.sum(axis=1) > 0).sum())
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


def columns(work: Work) -> Floats:
    """Steps, generated, context and prefilled tokens of each window, external ones included."""
    ours = work.by_window(work.tokens)
    generated = ours + work.external_tokens
    context = work.by_window(work.context) + work.external_context
    prefilled = work.by_window(work.prefilled) + work.external_prefilled
    steps = work.by_window(work.shares) + work.external_shares
    return np.stack([steps, generated, context, prefilled], axis=1)


def _doubts(work: Work, shape: Floats, proportions: Floats) -> Floats | None:
    """How many times a window's weight is halved, since nobody knows what others did in it."""
    if not work.external_tokens.any() and not work.external_prefilled.any():
        return None
    context = np.where(work.context_counted, 0.0, work.external_context)
    soon = np.maximum(work.external_prefilled, np.append(work.external_prefilled[1:], 0.0))
    off = OTHERS_OFF * np.hypot(proportions[2] * context, proportions[3] * soon)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(shape > 0, off / shape, 0.0)
    return np.asarray(np.log2(1 + (relative / WINDOW_OFF) ** 2), dtype=np.float64)


def as_time_goes(columns: Floats, work: Work, when: Spans) -> Floats:
    """Proportions of the coefficients from how the engine's time goes.

    A busy GPU draws a similar power whatever it does, so what takes time takes energy; and time
    is measured without noise. Only a prior: memory reads and arithmetic do differ in power.
    """
    general = np.array([1.0, TOKEN_PER_STEP, CONTEXT_PER_STEP, PREFILL_PER_STEP])
    busy = (work.busy_s > 0) & (work.external_tokens == 0)
    if busy.sum() < ENOUGH_WINDOWS:
        return general
    when = Spans(when.starts[busy], when.ends[busy], when.steps[busy])
    seconds, _, _ = _solve(columns[busy], work.busy_s[busy], work.busy_s[busy], general, when)
    if seconds[0] <= 0:
        return general
    found = seconds / seconds[0]
    return np.asarray(np.clip(found, general / 30, general * 30), dtype=np.float64)


def _idle_power(
    columns: Floats, energy: Floats, length: Floats, proportions: Floats, when: Spans
) -> tuple[float, bool]:
    """Idle power where no window was idle: the part of energy that only time explains."""
    wide = np.concatenate([length[:, None], columns], axis=1)
    coefficients, _, spread = _solve(wide, energy, energy, proportions, when, timed=True)
    power = energy / length
    # No window can have drawn less than idle power. And on an engine that is always busy, energy
    # goes with time whatever its parts are: then nothing can be told.
    idle_w = min(float(coefficients[0]), float(power.min()))
    told = power.min() <= QUIET_ENOUGH * np.median(power)
    return idle_w, bool(told and idle_w > 0 and spread[0] <= IDLE_KNOWN * idle_w)


def _guess(learnt_w: float, power_w: Floats) -> float:
    """Idle power where windows hardly show it: 0 for a few, else no more than GPUs usually idle at.

    An H100 idles at 60-130 W of the 500-700 W it draws when busy.
    """
    if len(power_w) < ENOUGH_WINDOWS:
        return 0.0
    return max(0.0, min(learnt_w, USUAL_IDLE * float(np.median(power_w))))


def _solve(
    columns: Floats,
    target: Floats,
    energy: Floats,
    proportions: Floats,
    when: Spans,
    *,
    timed: bool = False,
    age: Floats | None = None,
) -> tuple[Floats, float, Floats]:
    """Coefficients, relative deviation, and each coefficient's standard error."""
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
    loose = np.full(names, PRIOR_DEVIATION)
    if timed:
        loose[0] = 2.0
    if not timed:
        columns, target, energy = columns[busy], target[busy], energy[busy]
        age = None if age is None else age[busy]
        when = Spans(when.starts[busy], when.ends[busy], when.steps[busy])
    found = regress(columns, target, prior, loose, when, age)
    return found.relative * prior, found.deviation, found.errors * prior


class Regression(NamedTuple):
    """Coefficients in units of their prior."""

    relative: Floats
    errors: Floats  # standard errors
    deviation: float  # relative, of windows from the model


def regress(
    columns: Floats,
    target: Floats,
    prior: Floats,
    loose: Floats,
    when: Spans,
    age: Floats | None = None,
) -> Regression:
    """``target`` by ``columns``, with coefficients >= 0.

    ``prior``: what they are taken to be, with relative deviations ``loose``. ``age``: by window,
    in half-lives; the older one is the less it counts.
    """
    columns, target, when, age = _together(columns, target, when, age)
    floor = 1e-3 * float(target.max())
    relative = np.ones(len(prior))
    deviations = Deviations(when.starts, when.ends, 1.0 / np.maximum(when.steps, 1.0), age)
    enough = len(target) >= ENOUGH_TO_SIZE
    for _ in range(ROUNDS):
        # Relative to what the model expects: beside the energy itself all windows would be one.
        scale = np.maximum(columns @ (prior * relative), floor)
        rows, goal = columns * prior / scale[:, None], target / scale
        fresh_rows, fresh_goal = deviations.whitened(rows, goal)
        # Heavy tails: near the prior it helps, and far from it it hardly resists.
        held = 1.0 / (loose**2 + (relative - 1.0) ** 2)
        normal = fresh_rows.T @ fresh_rows + np.diag(held)
        relative = non_negative(normal, fresh_rows.T @ fresh_goal + held)
        off = goal - rows @ relative
        if enough:
            deviations.fit(off)
        if len(target) >= ENOUGH_WINDOWS:
            deviations.doubt(off, HUBER)
    errors = np.sqrt(np.diag(np.linalg.inv(normal)))
    return Regression(relative, errors, float(1.48 * np.median(np.abs(off))))


def _together(
    columns: Floats, target: Floats, when: Spans, age: Floats | None
) -> tuple[Floats, Floats, Spans, Floats | None]:
    """Windows in a row added up, as many as have ``LEAST_STEPS`` steps.

    What a window is given too much at its edges its neighbours lack. With a few long steps in
    each that is a large part of their work; regression would take such errors of what was done
    for changes in it that cost nothing, and all else for dearer.
    """
    group = np.floor((np.cumsum(when.steps) - when.steps / 2) / LEAST_STEPS)
    firsts = np.flatnonzero(np.diff(group, prepend=-1.0))
    if len(firsts) == len(group):
        return columns, target, when, age
    lasts = np.append(firsts[1:], len(group)) - 1
    sizes = (lasts - firsts + 1).astype(np.float64)
    spans = Spans(when.starts[firsts], when.ends[lasts], np.add.reduceat(when.steps, firsts))
    columns, target = np.add.reduceat(columns, firsts, axis=0), np.add.reduceat(target, firsts)
    return columns, target, spans, None if age is None else np.add.reduceat(age, firsts) / sizes


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
