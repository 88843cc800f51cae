"""Scores and joules of a prompt set on several backends: means with intervals, and who is on the
front. Pure.

Intervals are 95 % and by resampling prompts. A backend is on the front when no other one answers at
least as well for less energy, or better for as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

ROUNDS = 1_000


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt on one backend; unknown is None."""

    item: str
    backend: str
    task: str = ""
    request_id: str | None = None
    score: float | None = None  # 0..1
    energy_j: float | None = None
    evidence: str = "unknown"
    output_tokens: int | None = None
    latency_s: float | None = None
    answer: str | None = None  # only where a judge compares it
    error: str | None = None


class Mean(msgspec.Struct, frozen=True):
    """A mean with its 95 % interval."""

    low: float
    mid: float
    high: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One backend of the table."""

    backend: str
    answered: int
    failed: int
    quality: Mean | None
    energy_j: Mean | None  # of one answer
    evidence: str  # of the energy; several where they differ
    output_tokens: float | None
    latency_s: float | None
    on_front: bool = False


def table(answers: Sequence[Answered]) -> list[Row]:
    """A row for each backend, the thriftiest first; those of unknown energy last."""
    rows = []
    for name in dict.fromkeys(answer.backend for answer in answers):
        own = [answer for answer in answers if answer.backend == name]
        good = [answer for answer in own if answer.error is None]
        known = sorted({a.evidence for a in good if a.energy_j is not None})
        rows.append(
            Row(
                backend=name,
                answered=len(good),
                failed=len(own) - len(good),
                quality=mean([a.score for a in good if a.score is not None]),
                energy_j=mean([a.energy_j for a in good if a.energy_j is not None]),
                evidence=", ".join(known) or "unknown",
                output_tokens=_middle([a.output_tokens for a in good]),
                latency_s=_middle([a.latency_s for a in good]),
            )
        )
    rows = [msgspec.structs.replace(row, on_front=_on_front(row, rows)) for row in rows]
    return sorted(rows, key=lambda row: row.energy_j.mid if row.energy_j else float("inf"))


def by_task(answers: Sequence[Answered], least: int) -> Mapping[str, Mapping[str, Mean]]:
    """The quality of each backend by kind of task, and of all together under ``""``; only where
    at least that many answers were scored."""
    found: dict[str, dict[str, Mean]] = {}
    for name in dict.fromkeys(answer.backend for answer in answers):
        scored = [a for a in answers if a.backend == name and a.score is not None]
        for task in ("", *sorted({a.task for a in scored if a.task})):
            scores = [a.score for a in scored if a.score is not None and task in ("", a.task)]
            spread = mean(scores) if len(scores) >= least else None
            if spread is not None:
                found.setdefault(name, {})[task] = spread
    return found


def mean(values: Sequence[float]) -> Mean | None:
    """The mean with its interval; None of nothing. Scores that are all alike have one too: as if
    one more answer had been half good."""
    if not values:
        return None
    given = np.asarray(values, dtype=float)
    picks = np.random.default_rng(0).integers(0, len(given), (ROUNDS, len(given)))
    low, high = np.quantile(given[picks].mean(axis=1), [0.025, 0.975])
    mid = float(given.mean())
    if float(given.min()) == float(given.max()) and mid in (0.0, 1.0):
        edge = (mid * len(given) + 0.5) / (len(given) + 1)
        low, high = min(mid, edge), max(mid, edge)
    return Mean(min(float(low), mid), mid, max(float(high), mid))


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _on_front(row: Row, rows: Sequence[Row]) -> bool:
    if row.quality is None or row.energy_j is None:
        return False
    for other in rows:
        if other is row or other.quality is None or other.energy_j is None:
            continue
        better = other.quality.mid - row.quality.mid
        less = row.energy_j.mid - other.energy_j.mid
        if better >= 0 and less >= 0 and (better > 0 or less > 0):
            return False
    return True
