"""Predictions for rows that the fit has not seen: by architecture, by GPU, by both.

Every fold fits everything again (constants, kernel, correction) on the rows it may see. Random
rows would leak: neighbours on one load curve make any model look good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.energy_rows import Row
from benchmarks.grey_fit import Fitted, Predicted, fit, predict
from estimators.greybox import Array

Progress = Callable[[str], None]


class Held(NamedTuple):
    """One row, and what a fit without its like said of it. All figures are logarithms."""

    row: Row
    energy_error: float  # ln measured - ln predicted; nan where nothing was published
    energy_spread: float
    step_error: float
    step_spread: float
    time_error: float
    physics_error: float  # energy, of the constants alone
    first_error: float  # time to the first token; nan where nothing was published
    latency_error: float  # time to the last token; likewise


class Fold(NamedTuple):
    tier: str
    name: str
    held: list[int]
    seen: list[int]


def folds(rows: Sequence[Row]) -> Iterator[Fold]:
    """Every way of holding back that the tiers of evidence are judged by."""
    everything = range(len(rows))
    architectures = sorted({row.architecture for row in rows if row.source != "v1"})
    for name in architectures:
        # The three models measured on consumer cards are the same as elsewhere; holding one back
        # everywhere would leave almost nothing of those cards.
        held = [i for i in everything if _of(rows[i], name) and rows[i].source != "consumer"]
        if held:
            yield Fold("new_model", name, held, [i for i in everything if i not in set(held)])
    old_models = sorted({row.architecture for row in rows if row.source == "v1"})
    for part in range(4):
        names = set(old_models[part::4])
        held = [i for i in everything if rows[i].architecture in names]
        yield Fold(
            "new_model", f"v1 part {part}", held, [i for i in everything if i not in set(held)]
        )
    gpus = sorted({row.gpu for row in rows})
    for gpu in gpus:
        # H100 rows are all there is of the new engine: there the old engine's are held back,
        # and the new engine's stay.
        held = [
            i
            for i in everything
            if rows[i].gpu == gpu and not (gpu == "H100-SXM" and rows[i].source == "v3")
        ]
        yield Fold("new_gpu", gpu, held, [i for i in everything if i not in set(held)])
        measured = sorted({rows[i].architecture for i in held})
        for part in range(4):
            both = set(measured[part::4])
            if not both:
                continue
            mine = [i for i in held if rows[i].architecture in both]
            hidden = {
                i for i in everything if rows[i].gpu == gpu or rows[i].architecture in both
            } - {
                i
                for i in everything
                if gpu == "H100-SXM" and rows[i].source == "v3" and rows[i].architecture not in both
            }
            if gpu.startswith("RTX"):  # three models in all: hold back the model on the card only
                hidden = {i for i in everything if rows[i].gpu == gpu}
            yield Fold(
                "both_new", f"{gpu} part {part}", mine, [i for i in everything if i not in hidden]
            )
    curves = sorted({row.curve for row in rows})
    for part in range(5):
        names = set(curves[part::5])
        held = [i for i in everything if rows[i].curve in names]
        yield Fold(
            "seen", f"curves part {part}", held, [i for i in everything if i not in set(held)]
        )


def hold_out(
    rows: Sequence[Row],
    start: Array,
    tiers: Sequence[str] = ("new_model", "new_gpu", "both_new", "seen"),
    tunings: int = 26,
    tell: Progress = lambda text: None,
) -> dict[str, list[Held]]:
    """Each tier's rows with the errors of fits that did not see them."""
    found: dict[str, list[Held]] = {tier: [] for tier in tiers}
    todo = [fold for fold in folds(rows) if fold.tier in tiers]
    for number, fold in enumerate(todo, 1):
        tell(f"hold-out {number} of {len(todo)}: {fold.tier}, {fold.name}")
        # Far enough to converge: ``start`` has seen all rows, and what stays near it has too.
        fitted = fit([rows[i] for i in fold.seen], start, 25, tunings)
        found[fold.tier] += errors([rows[i] for i in fold.held], fitted)
    return found


def errors(rows: Sequence[Row], fitted: Fitted) -> list[Held]:
    """What ``fitted`` gets wrong on ``rows``."""
    said: Predicted = predict(fitted, rows)
    return [
        Held(
            row,
            math.log(row.energy_j) - said.energy[i],
            said.energy_spread[i],
            math.log(row.step_s) - said.step[i],
            said.step_spread[i],
            math.log(row.time_s) - said.time[i],
            math.log(row.energy_j) - said.physics_energy[i],
            math.log(row.ttft_s) - said.first[i],
            math.log(row.latency_s)
            - math.log(math.exp(said.first[i]) + row.output * math.exp(said.step[i])),
        )
        for i, row in enumerate(rows)
    ]


def relative(errors: Array) -> Array:
    """|predicted - measured| / measured, from logarithms."""
    return np.abs(np.expm1(-errors[np.isfinite(errors)]))


def pairwise(held: Sequence[Held]) -> float:
    """Share of pairs, alike in what is asked and under alike load, whose order is right."""
    right = total = 0
    for i, one in enumerate(held):
        for other in held[i + 1 :]:
            if one.row.backend == other.row.backend or one.row.source != other.row.source:
                continue
            if not 0.5 < one.row.batch / other.row.batch < 2.0:
                continue
            a = math.log(one.row.energy_j / one.row.output)
            b = math.log(other.row.energy_j / other.row.output)
            if not (math.isfinite(a) and math.isfinite(b)):
                continue
            total += 1
            right += (a - b) * ((a - one.energy_error) - (b - other.energy_error)) > 0.0
    return right / total if total else math.nan


def _of(row: Row, architecture: str) -> bool:
    return row.architecture == architecture
