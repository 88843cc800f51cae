"""Fitting the grey box: its constants, and a Gaussian process on what they leave over.

Everything that is chosen (constants, kernel lengths) is chosen inside the rows given; who wants
to know how good it is must hold rows back before calling ``fit``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.energy_rows import Row
from estimators.greybox import (
    MIDDLES,
    SPREADS,
    Array,
    Cases,
    Physics,
    cases,
    features,
    physics,
    static_row,
)
from estimators.prior import Kernel, Target, lengths_of, loaded_step_s

_UNKNOWN_NOISE = 1e3
_NOISE = 0.1  # of a logarithm; what one constant's spread is weighed against
_REACH = 3.0  # how many spreads a constant may lie from its middle
_TIME_WEIGHT = 0.7  # energy is what is asked for; time steadies it
_STEP_WEIGHT = 0.35
_FIRST_WEIGHT = 0.5
# Where the search for the kernel starts, in units of greybox.FEATURES: the middle of what eight
# folds by architecture chose on their inner rows. Searching again moved no held-out figure.
START: Array = np.log(
    np.array([2.2, 1.5, 0.8, 1.6, 3.0, 1.3, 1.3, 0.45, 1.35, 1.8, 0.16, 0.05, 0.08])
)


@dataclass(frozen=True)
class Fitted:
    """Constants and the two corrections, with the rows' features they were fitted on."""

    constants: Array
    energy: Target
    time: Target
    step: Target


@dataclass(frozen=True)
class Predicted:
    """Logarithms of joules and seconds, and how unsure the process is of each."""

    energy: Array
    energy_spread: Array
    time: Array
    time_spread: Array
    step: Array
    step_spread: Array
    physics_energy: Array
    physics_time: Array
    first: Array  # to the first token


def to_cases(rows: Sequence[Row], fitting: bool = False) -> Cases:
    """The rows as the arrays the physics takes."""
    statics = [static_row(row.backend) for row in rows]
    assert all(static is not None for static in statics)
    return cases(
        [static for static in statics if static is not None],
        np.array(
            [
                row.steady_batch if fitting and np.isfinite(row.steady_batch) else row.batch
                for row in rows
            ]
        ),
        np.array([row.prompt for row in rows]),
        np.array([row.output for row in rows]),
    )


def fit(
    rows: Sequence[Row], start: Array | None = None, evaluations: int = 25, tunings: int = 39
) -> Fitted:
    """Constants first, then a process on the residual of energy and on that of time."""
    given = to_cases(rows, fitting=True)
    energy = np.log([row.energy_j for row in rows])
    time = np.log([row.time_s for row in rows])
    constants = _fit_constants(rows, given, energy, time, start, evaluations)
    found = physics(constants, given)
    at = features(given, found)
    groups = np.array([_group(row) for row in rows])
    noise = np.array([2.0 if row.source == "v1" else 1.0 for row in rows])
    weights = np.array([0.2 if row.source == "v1" else 1.0 for row in rows])
    step = np.log([row.step_s for row in rows])
    loaded = np.log(loaded_step_s(given, found))
    targets = []
    for measured, predicted in ((energy, found.log_energy), (time, found.log_time), (step, loaded)):
        left = measured - predicted
        # All targets share one table of points; where a figure was not published, its noise is
        # so large that the point says nothing.
        known = np.isfinite(left)
        targets.append(
            _fit_target(
                at,
                np.where(known, left, 0.0),
                groups,
                np.where(known, noise, _UNKNOWN_NOISE),
                np.where(known, weights, 0.0),
                tunings,
            )
        )
    return Fitted(constants, *targets)


def predict(fitted: Fitted, rows: Sequence[Row]) -> Predicted:
    """What a fit says of rows it has not seen."""
    given = to_cases(rows)
    found = physics(fitted.constants, given)
    at = features(given, found)
    energy, energy_spread = fitted.energy.at(at)
    time, time_spread = fitted.time.at(at)
    step, step_spread = fitted.step.at(at)
    return Predicted(
        found.log_energy + energy,
        energy_spread,
        found.log_time + time,
        time_spread,
        np.log(loaded_step_s(given, found)) + step,
        step_spread,
        found.log_energy,
        found.log_time,
        np.log(found.first_s),
    )


def _group(row: Row) -> str:
    """What the kernel's lengths must carry over to: another architecture, or another card."""
    return f"consumer {row.gpu}" if row.source == "consumer" else row.architecture


def _fit_constants(
    rows: Sequence[Row],
    given: Cases,
    energy: Array,
    time: Array,
    start: Array | None,
    evaluations: int,
) -> Array:
    crowd: dict[str, int] = {}
    for row in rows:
        crowd[row.curve] = crowd.get(row.curve, 0) + 1
    weights = np.array(
        [crowd[row.curve] ** -0.5 * (0.5 if row.source == "v1" else 1.0) for row in rows]
    )
    weights /= weights.mean()
    known = np.isfinite(energy)
    measured = np.where(known, energy, 0.0)
    # The first engine's own means do not agree with its throughput: time alone is taken there.
    step = np.log([math.nan if row.source == "v2" else row.step_s for row in rows])
    first = np.log([row.ttft_s for row in rows])
    # A median between two tokens (v3) has no newcomer's prompt in it; a mean has.
    median = np.array([row.source == "v3" for row in rows])

    def residuals(constants: Array) -> Array:
        found = physics(constants, given)
        return np.concatenate(
            [
                (found.log_time - time) * weights * _TIME_WEIGHT / _NOISE,
                np.where(known, found.log_energy - measured, 0.0) * weights / _NOISE,
                _missed(step_of(given, found, median), step) * weights * _STEP_WEIGHT / _NOISE,
                _missed(np.log(found.first_s), first) * weights * _FIRST_WEIGHT / _NOISE,
                (constants - MIDDLES) / SPREADS,
            ]
        )

    # A robust loss would let many rows drag a constant anywhere, a card's bandwidth above its data
    # sheet included, and what is wrong but fits one card misleads about the next.
    low, high = MIDDLES - _REACH * SPREADS, MIDDLES + _REACH * SPREADS
    inside = 0.01 * (high - low)
    begin = MIDDLES if start is None else np.clip(start, low + inside, high - inside)
    solved = least_squares(
        residuals,
        begin,
        bounds=(low, high),
        loss="soft_l1",
        f_scale=1.5,
        max_nfev=evaluations,
    )
    return np.asarray(solved.x, dtype=np.float64)


def step_of(given: Cases, found: Physics, median: NDArray[np.bool_]) -> Array:
    """Logarithm of the time between two tokens, as it was published: a median or a mean."""
    return np.asarray(np.log(np.where(median, found.step_s, loaded_step_s(given, found))))


def _missed(predicted: Array, measured: Array) -> Array:
    known = np.isfinite(measured)
    return np.where(known, predicted - np.where(known, measured, 0.0), 0.0)


def _fit_target(
    at: Array, left: Array, groups: Array, noise: Array, weights: Array, tunings: int
) -> Target:
    """Chooses the kernel by leave-group-out error inside these rows (closed form, Sundararajan
    and Keerthi 2001), coordinate by coordinate."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    distances = Kernel.distances(at, at)

    def score(tuned: Array) -> float:
        kernel = Kernel.of(lengths_of(tuned))
        matrix = kernel.of_distances(distances) + np.diag((kernel.noise * noise) ** 2)
        try:
            inverse = np.linalg.inv(matrix)
        except np.linalg.LinAlgError:
            return 9.0
        projected = inverse @ left
        errors = np.empty(len(left))
        for index in members:
            errors[index] = np.linalg.solve(inverse[np.ix_(index, index)], projected[index])
        missed = np.minimum(np.abs(np.expm1(-errors)), 1.0)
        held = float((weights * missed).sum() / weights.sum())
        return held + 0.002 * float(((tuned - START) ** 2).sum())

    tuned, best = START.copy(), score(START) if tunings else 0.0
    stride = np.full(len(tuned), 0.6)
    for turn in range(tunings):
        axis = turn % len(tuned)
        for sign in (1.0, -1.0):
            tried = tuned.copy()
            tried[axis] += sign * stride[axis]
            scored = score(tried)
            if scored < best - 1e-5:
                tuned, best = tried, scored
                break
        else:
            stride[axis] *= 0.5
    return Target.fitted(Kernel.of(lengths_of(tuned)), at, left, noise)
