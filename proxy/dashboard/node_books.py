"""The rows of the line that reconciles: each node's metered energy and where it went. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import msgspec

from meters.types import Evidence
from proxy.dashboard.account import allotted, hours_of
from proxy.dashboard.accounting import PLATFORM, part_of
from proxy.dashboard.queries import Raw
from proxy.dashboard.sites import Sites

OTHER_NODES = "(other nodes)"
TERMS = ("metered", "teams", "platform", "external", "residual", "pending")


class BookRow(msgspec.Struct, kw_only=True):
    """One node, day or hour in whole micro-joules; the terms sum to ``metered_uj``."""

    key: str
    metered_uj: int = 0
    teams_uj: int = 0  # caused by requests of all teams, and idle allotted to them
    mine_uj: int = 0  # the part of ``teams_uj`` that is the viewed team's
    platform_uj: int = 0
    external_uj: int = 0
    residual_uj: int = 0
    pending_uj: int = 0

    def term(self, name: str) -> int:
        """One of TERMS."""
        return int(getattr(self, f"{name}_uj"))


def node_books(
    raw: Raw,
    team: str,
    trailing: Mapping[int, Mapping[tuple[str, str], int]],
    sites: Sites,
    simulated: bool,
    pending: Mapping[tuple[str, int, bool], int],
    key: Callable[[str, int], str | None],
) -> list[BookRow]:
    """Sums by ``key`` of node and hour (None leaves the hour out), in the order of the keys.

    ``pending``: energy of requests not recorded yet, by node, hour and whether it is simulated.
    """
    found: dict[str, BookRow] = {}

    def row(node: str, hour_s: int) -> BookRow | None:
        name = key(node, hour_s)
        if name is None:
            return None
        if name not in found:
            found[name] = BookRow(key=name)
        return found[name]

    for hour in hours_of(raw, simulated):
        at = row(hour.node, hour.hour_s)
        if at is not None:
            at.metered_uj += hour.metered_uj
            at.teams_uj += hour.attributed_uj
            at.external_uj += hour.external_uj
            at.residual_uj += hour.unattributed_uj
    for hour, parts in allotted(raw, trailing, sites, simulated):
        at = row(hour.node, hour.hour_s)
        if at is not None:
            if PLATFORM in parts:
                at.platform_uj += hour.idle_uj
            else:
                at.teams_uj += hour.idle_uj
                at.mine_uj += part_of(hour.idle_uj, parts[team]) if team in parts else 0
    for (node, hour_s, made_up), uj in pending.items():
        at = row(node, hour_s) if made_up is simulated else None
        if at is not None:
            at.pending_uj += uj
            at.teams_uj -= uj
    for (node, hour_s), uj in drawn_of(raw, simulated).items():
        at = row(node, hour_s)
        if at is not None:
            at.mine_uj += uj
    return [found[name] for name in sorted(found)]


def drawn_of(raw: Raw, simulated: bool) -> dict[tuple[str, int], int]:
    """What the team's own requests caused, by node and hour."""
    made_up = [how == Evidence.SIMULATED.value for how in raw.drawn_evidence]
    found: dict[tuple[str, int], int] = defaultdict(int)
    for hour_s, dim, node, kind, uj in raw.drawn.tolist():
        # simulated if its record or its meter says so, as in the account
        if (made_up[kind] or raw.dims[dim].simulated) is simulated:
            found[raw.drawn_nodes[node], hour_s] += uj
    return dict(found)
