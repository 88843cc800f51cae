"""What the arms of an experiment used, from the ledger: sums by arm, conversations taken together.

Requests of one conversation are in one arm and alike, so the conversation is what was drawn: sums
are of conversations (a request without one is its own), which is what an honest interval needs.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, select

from meters.exact import MICRO
from meters.schema import requests, shares

ARMS = ("hold_out", "treated")


class ArmSums(msgspec.Struct, frozen=True, kw_only=True):
    """One arm. n and e are a conversation's requests and joules, metered where there are shares,
    else estimated; the last three are sums over conversations of their products."""

    arm: str
    simulated: bool
    conversations: int
    requests: int
    energy_j: float
    metered: int  # requests whose energy was metered
    nn: float
    ee: float
    ne: float


def arm_sums(
    connection: Connection,
    from_s: float,
    to_s: float,
    *,
    team: str | None = None,
    policy: str | None = None,
) -> list[ArmSums]:
    """The arms' sums over the answered requests that arrived between two Unix times; simulated
    and other requests apart."""
    r = requests.c
    metered = (
        select(shares.c.request_id, func.sum(shares.c.energy_uj).label("uj"))
        .join(requests, r.request_id == shares.c.request_id)
        .where(r.arm.in_(ARMS), r.start_s >= from_s, r.start_s < to_s)
        .group_by(shares.c.request_id)
        .subquery()
    )
    energy = func.coalesce(metered.c.uj + func.coalesce(r.hosted_uj, 0), r.energy_uj)
    wanted = [
        r.arm.in_(ARMS),
        r.start_s >= from_s,
        r.start_s < to_s,
        r.outcome == "ok",
        r.backend.is_not(None),
        energy.is_not(None),
    ]
    if team is not None:
        wanted.append(r.team == team)
    if policy is not None:
        wanted.append(r.policy == policy)
    each = (
        select(
            r.arm,
            r.simulated,
            func.count().label("n"),
            (func.sum(energy) * 1.0 / MICRO).label("e"),
            func.count(metered.c.uj).label("metered"),
        )
        .select_from(requests.outerjoin(metered, metered.c.request_id == r.request_id))
        .where(*wanted)
        .group_by(r.arm, r.simulated, r.team, func.coalesce(r.session, r.request_id))
        .subquery()
    )
    c = each.c
    rows = connection.execute(
        select(
            c.arm,
            c.simulated,
            func.count(),
            func.sum(c.n),
            func.sum(c.e),
            func.sum(c.metered),
            func.sum(c.n * c.n),
            func.sum(c.e * c.e),
            func.sum(c.n * c.e),
        )
        .group_by(c.arm, c.simulated)
        .order_by(c.simulated, c.arm)
    )
    return [
        ArmSums(
            arm=row[0],
            simulated=bool(row[1]),
            conversations=int(row[2]),
            requests=int(row[3]),
            energy_j=float(row[4]),
            metered=int(row[5]),
            nn=float(row[6]),
            ee=float(row[7]),
            ne=float(row[8]),
        )
        for row in rows
    ]
