"""Estimates beside what meters told later: the latest requests of every backend, from the ledger.

Only requests whose figures can be compared: answered at the first try by one backend, estimated,
and metered for all of their time. Of a request whose windows are not all in, or have gaps, the
metered figure would be too small, and every estimate would look too high.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, exists, func, select

from meters.bulk import Row, rows_where
from meters.exact import MICRO
from meters.receipts import JITTER_S
from meters.schema import requests, shares, window_totals
from meters.types import CACHE_HITS

COVERED = 0.98  # part of a request's time that windows have to cover
_HOUR_S = 3600.0  # a window is no longer than that, folded ones neither


class JudgedEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """One request: what was said of it when it was sent, and what was metered. In J."""

    backend: str
    simulated: bool
    start_s: float  # Unix time
    version: str  # of the estimator
    evidence: str  # of the estimate
    energy_j: float
    low_j: float | None  # an 80 % band; None where none was said
    high_j: float | None
    metered_j: float


def judged_estimates(
    connection: Connection,
    from_s: float,
    to_s: float,
    *,
    most: int,
    team: str | None = None,
    among: int | None = None,
) -> list[JudgedEstimate]:
    """The latest ``most`` comparable requests of each backend that arrived between two Unix
    times, oldest first; simulated and other ones count apart. ``among``: look at no more than the
    latest so many requests, for a reader who waits."""
    r = requests.c
    latest = (
        func.row_number()
        .over(partition_by=(r.backend, r.simulated), order_by=r.start_s.desc())
        .label("place")
    )
    comparable = [
        r.start_s >= from_s,
        r.start_s < to_s,
        r.outcome == "ok",
        r.attempts == 1,
        r.cache.not_in(CACHE_HITS),
        r.energy_uj > 0,
        r.node.is_not(None),
        exists().where(shares.c.request_id == r.request_id),
    ]
    if team is not None:
        comparable.append(r.team == team)
    names = (
        r.request_id,
        r.backend,
        r.simulated,
        r.node,
        func.coalesce(r.sent_s, r.start_s).label("begin_s"),
        r.start_s,
        r.end_s,
        r.estimator_version,
        r.evidence,
        r.energy_uj,
        r.energy_low_uj,
        r.energy_high_uj,
    )
    if among is not None:
        bounds = [r.start_s >= from_s, r.start_s < to_s, *([r.team == team] if team else [])]
        these = select(r.request_id).where(*bounds).order_by(r.start_s.desc()).limit(among)
        comparable.append(r.request_id.in_(these))
    each = select(*names, latest).where(*comparable).subquery()
    found = [
        dict(row)
        for row in connection.execute(
            select(each).where(each.c.place <= most).order_by(each.c.start_s, each.c.request_id)
        ).mappings()
    ]
    whole = covered(connection, found)
    kept = [row for row, is_whole in zip(found, whole, strict=True) if is_whole]
    metered = _metered(connection, kept)
    return [
        JudgedEstimate(
            backend=row["backend"],
            simulated=bool(row["simulated"]),
            start_s=row["start_s"],
            version=row["estimator_version"],
            evidence=row["evidence"],
            energy_j=row["energy_uj"] / MICRO,
            low_j=None if row["energy_low_uj"] is None else row["energy_low_uj"] / MICRO,
            high_j=None if row["energy_high_uj"] is None else row["energy_high_uj"] / MICRO,
            metered_j=metered[row["request_id"]] / MICRO,
        )
        for row in kept
        if metered[row["request_id"]] > 0
    ]


def _metered(connection: Connection, rows: Sequence[Row]) -> dict[str, int]:
    """Micro-joules by request."""
    query = select(shares.c.request_id, shares.c.energy_uj)
    found: dict[str, int] = defaultdict(int)
    wanted = [row["request_id"] for row in rows]
    for share in rows_where(connection, query, shares.c.request_id, wanted):
        found[share["request_id"]] += int(share["energy_uj"])
    return found


def covered(connection: Connection, rows: Sequence[Row]) -> list[bool]:
    """Whether the windows of its ``node`` cover each row's time, ``begin_s`` to ``end_s``."""
    by_node: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_node[row["node"]].append(place)
    whole = [False] * len(rows)
    for node, places in by_node.items():
        begin = np.array([rows[place]["begin_s"] for place in places])
        end = np.array([rows[place]["end_s"] for place in places])
        starts, ends = _windows(connection, node, float(begin.min()), float(end.max()))
        if not len(ends):
            continue
        length = np.maximum(end - begin, 1e-6)
        part = (_until(end, starts, ends) - _until(begin, starts, ends)) / length
        settled = ends[-1] >= end - JITTER_S
        for place, is_whole in zip(places, (part >= COVERED) & settled, strict=True):
            whole[place] = bool(is_whole)
    return whole


def _windows(
    connection: Connection, node: str, from_s: float, to_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    w = window_totals.c
    found = connection.execute(
        select(w.start_s, w.end_s)
        .where(w.node == node, w.end_s > from_s, w.end_s < to_s + _HOUR_S)
        .where(w.start_s < to_s + JITTER_S)
        .order_by(w.end_s)
    ).all()
    table = np.array([(row[0], row[1]) for row in found], dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _until(
    at: NDArray[np.float64], starts: NDArray[np.float64], ends: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Seconds that windows cover before each time. A node's windows follow one another."""
    begins = starts.copy()
    begins[1:] = np.maximum(begins[1:], ends[:-1])
    # A gap that is only the jitter of two clocks is none.
    near = np.flatnonzero(begins[1:] - ends[:-1] <= JITTER_S) + 1
    begins[near] = ends[near - 1]
    lengths = np.maximum(ends - begins, 0.0)
    before = np.concatenate([[0.0], np.cumsum(lengths)])
    place = np.searchsorted(ends, at, side="left")
    inside = np.clip(at - begins[np.minimum(place, len(ends) - 1)], 0.0, None)
    inside = np.where(
        place < len(ends), np.minimum(inside, lengths[np.minimum(place, len(ends) - 1)]), 0.0
    )
    return np.asarray(before[place] + inside, dtype=np.float64)
