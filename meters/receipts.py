"""One request's receipt: what was estimated, what was metered, and whether more is to come."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from sqlalchemy import Connection, case, func, select

from meters.bulk import rows_where
from meters.exact import from_micro
from meters.rows import record_of
from meters.schema import requests, shares, window_totals, windows
from meters.types import Evidence, UsageRecord

# Windows are closed by another process's clock: gaps below this are its jitter, not missing time.
JITTER_S = 0.1


class WindowShare(msgspec.Struct, frozen=True, kw_only=True):
    """One window's part in a request, beside what the window held."""

    window_id: str
    node: str
    start_s: float
    end_s: float
    energy_j: float  # this request's share
    metered_j: float  # the window, all of it
    idle_j: float
    external_j: float
    unattributed_j: float
    evidence: Evidence
    meter: str
    host_energy_j: float | None = None  # of CPU and memory in the window, where they were read


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A request with its shares. ``energy_j`` is the best figure there is."""

    record: UsageRecord
    shares: tuple[WindowShare, ...]
    attributed_j: float | None  # sum of the shares; None while there is none
    energy_j: float | None  # attributed once every window is in, else the estimate; with APIs' part
    evidence: Evidence
    state: str  # estimated | partial | metered | none
    settled: bool  # every window of its node up to its end is in
    covered: float  # part of its time that windows cover, 0..1


def receipt(connection: Connection, request_id: str) -> Receipt | None:
    """The receipt of a recorded request; None when the ledger does not have it (yet)."""
    row = (
        connection.execute(select(requests).where(requests.c.request_id == request_id))
        .mappings()
        .first()
    )
    if row is None:
        return None
    record = record_of(dict(row))
    parts = _shares(connection, request_id)
    covered, last_s = _coverage(connection, record)
    if record.hosted_j is not None:
        ends = metered_until(connection, {share.node for _, share in parts})
        last_s = min(ends.values(), default=None)
    settled = last_s is not None and last_s >= record.end_s - JITTER_S
    attributed_uj = sum(energy_uj for energy_uj, _ in parts) if parts else None
    attributed_j = from_micro(attributed_uj)
    metered = settled and attributed_j is not None
    if metered and attributed_j is not None and record.hosted_j is not None:
        return Receipt(
            record=record,
            shares=tuple(share for _, share in parts),
            attributed_j=attributed_j,
            energy_j=attributed_j + record.hosted_j,
            evidence=record.evidence,
            state="partial",
            settled=True,
            covered=covered,
        )
    return Receipt(
        record=record,
        shares=tuple(share for _, share in parts),
        attributed_j=attributed_j,
        energy_j=attributed_j if metered else record.energy_j,
        evidence=_metered_evidence(parts) if metered else record.evidence,
        state="metered"
        if metered
        else "partial"
        if attributed_j is not None
        else "none"
        if record.energy_j is None
        else "estimated",
        settled=settled,
        covered=covered,
    )


def metered_until(connection: Connection, nodes: Collection[str]) -> dict[str, float]:
    """Where the last divided window of each node ends; see ``Ledger.metered_until``."""
    w = window_totals.c
    found: dict[str, float] = {}
    for node in nodes:
        last_s = connection.scalar(select(func.max(w.end_s)).where(w.node == node))
        if last_s is not None:
            found[node] = last_s
    return found


def metered(connection: Connection, request_ids: Collection[str]) -> dict[tuple[str, str], float]:
    """The sums of requests' shares by node, in J; see ``Ledger.metered``."""
    w = window_totals.c
    query = select(shares.c.request_id, w.node, shares.c.energy_uj).join(
        window_totals, w.window_id == shares.c.window_id
    )
    found: dict[tuple[str, str], int] = {}
    for row in rows_where(connection, query, shares.c.request_id, request_ids):
        key = row["request_id"], row["node"]
        found[key] = found.get(key, 0) + row["energy_uj"]
    return {key: energy_uj / 1e6 for key, energy_uj in found.items()}


def _shares(connection: Connection, request_id: str) -> list[tuple[int, WindowShare]]:
    w = window_totals.c
    # of a folded hour only where each of its windows had it
    host = case((windows.c.host_windows >= w.windows, windows.c.host_energy_uj))
    rows = connection.execute(
        select(shares.c.energy_uj, window_totals, host.label("host_energy_uj"))
        .join(window_totals, w.window_id == shares.c.window_id)
        .outerjoin(windows, windows.c.window_id == w.window_id)
        .where(shares.c.request_id == request_id)
        .order_by(w.start_s)
    ).mappings()
    return [
        (
            row["energy_uj"],
            WindowShare(
                window_id=row["window_id"],
                node=row["node"],
                start_s=row["start_s"],
                end_s=row["end_s"],
                energy_j=row["energy_uj"] / 1e6,
                metered_j=row["metered_uj"] / 1e6,
                idle_j=row["idle_uj"] / 1e6,
                external_j=row["external_uj"] / 1e6,
                unattributed_j=row["unattributed_uj"] / 1e6,
                evidence=Evidence(row["evidence"]),
                meter=row["meter"],
                host_energy_j=from_micro(row["host_energy_uj"]),
            ),
        )
        for row in rows
    ]


def _metered_evidence(parts: list[tuple[int, WindowShare]]) -> Evidence:
    kinds = {share.evidence for _, share in parts}
    return Evidence.SIMULATED if Evidence.SIMULATED in kinds else parts[0][1].evidence


def _coverage(connection: Connection, record: UsageRecord) -> tuple[float, float | None]:
    """Which part of the request's time its node's windows cover, and where the last one ends."""
    if record.node is None:
        return 0.0, None
    start_s = record.start_s if record.sent_s is None else record.sent_s
    w = window_totals.c
    last_s = connection.scalar(select(func.max(w.end_s)).where(w.node == record.node))
    rows = connection.execute(
        select(w.start_s, w.end_s)
        .where(w.node == record.node, w.end_s > start_s, w.start_s < record.end_s)
        .order_by(w.start_s)
    ).all()
    at_s, covered_s = start_s, 0.0
    for begin_s, end_s in rows:
        begin_s, end_s = max(begin_s, at_s), min(end_s, record.end_s)
        if end_s > begin_s:
            covered_s += end_s - begin_s
            at_s = end_s
    length_s = record.end_s - start_s
    if length_s <= 0:
        return (1.0 if rows else 0.0), last_s
    return min(1.0, covered_s / length_s), last_s
