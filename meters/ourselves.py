"""Joulegate's own energy in the ledger, by process and hour: beside the books, and in no sum.

What a process writes for an hour is all that it used in it so far, in place of what it wrote
before: writing it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from meters.schema import own_hours


class OwnSums(NamedTuple):
    """Whole micro-joules."""

    energy_uj: int = 0
    metered_uj: int = 0  # of that: a share of the host's counter; the rest is modelled


def keep(connection: Connection, process: str, hours: Mapping[int, OwnSums]) -> None:
    """Write what a process used in these hours (their starts, Unix time)."""
    if not hours:
        return
    c = own_hours.c
    connection.execute(own_hours.delete().where(c.process == process, c.hour_s.in_(hours)))
    connection.execute(
        own_hours.insert(),
        [{"process": process, "hour_s": h, **sums._asdict()} for h, sums in hours.items()],
    )


def used(connection: Connection, from_s: float, to_s: float) -> OwnSums:
    """By all processes, in the hours that start in [from_s, to_s)."""
    c = own_hours.c
    query = select(func.sum(c.energy_uj), func.sum(c.metered_uj)).where(
        c.hour_s >= from_s, c.hour_s < to_s
    )
    energy_uj, metered_uj = connection.execute(query).one()
    return OwnSums(int(energy_uj or 0), int(metered_uj or 0))
