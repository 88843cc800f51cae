"""What came of requests, as the ledger knows it, whichever replicas served them: what answers took
once all their windows are in, and what they were scored. Estimators of all replicas learn from it.
"""

from __future__ import annotations

import math

import msgspec
from sqlalchemy import Connection, select

from meters.bulk import rows_where
from meters.exact import MICRO
from meters.judged_estimates import covered
from meters.schema import feedback, requests, shares, window_totals
from meters.types import CACHE_HITS, Evidence

# Of each node no more than so many answers of so many seconds are looked at: enough to learn from,
# and whoever asks, and when, gets the same.
SLOT_S = 5.0
MOST = 32


class MeteredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer whose whole time windows cover."""

    backend: str
    prompt_tokens: int
    cached_prompt_tokens: int
    output_tokens: int
    running: float  # sequences in its engine's batch when it was sent
    energy_j: float
    evidence: Evidence  # of the windows


class ScoredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody said that an answer was worth, 0..1."""

    request_id: str
    source: str
    at_s: float  # Unix time
    score: float
    backend: str
    task: str | None
    team: str
    prompt_tokens: int
    answer_budget: str | None


class _Extra(msgspec.Struct):
    """Of a request's fields without a column."""

    running: float | None = None
    likely_cached_tokens: int | None = None
    answer_budget: str | None = None
    earlier: str | None = None


class _Earlier(msgspec.Struct):
    node: str


_extra = msgspec.json.Decoder(_Extra)
_earlier = msgspec.json.Decoder(list[_Earlier])


def metered_answers(
    connection: Connection, node: str, from_s: float, until_s: float
) -> tuple[list[MeteredAnswer], float]:
    """The first slot of a node's answers that ended in a period, in order, and where the next
    begins. ``until_s``: a slot's border up to which all windows are divided."""
    r = requests.c
    found = [
        dict(row)
        for row in connection.execute(
            select(
                r.request_id,
                r.backend,
                r.node,
                (r.sent_s).label("begin_s"),
                r.end_s,
                r.prompt_tokens,
                r.cached_prompt_tokens,
                r.output_tokens,
                r.extra,
            )
            .where(r.node == node, r.end_s >= from_s, r.end_s < until_s)
            .where(r.outcome == "ok", r.cache.not_in(CACHE_HITS), r.sent_s.is_not(None))
            .where(r.prompt_tokens.is_not(None), r.output_tokens > 0)
            .order_by(r.end_s, r.request_id)
            .limit(MOST)
        ).mappings()
    ]
    if not found:
        return [], until_s
    next_s = (math.floor(found[0]["end_s"] / SLOT_S) + 1) * SLOT_S
    rows = [row for row in found if row["end_s"] < next_s]
    whole = covered(connection, rows)
    rows = [row for row, is_whole in zip(rows, whole, strict=True) if is_whole]
    metered = _metered(connection, node, [row["request_id"] for row in rows])
    answers = []
    for row in rows:
        told = _extra.decode(row["extra"] or "{}")
        took = metered.get(row["request_id"])
        tried = _earlier.decode(told.earlier) if told.earlier else ()
        # An answer before it on the same node has its part in the joules.
        if took is None or told.running is None or any(one.node == node for one in tried):
            continue
        cached = row["cached_prompt_tokens"]
        answers.append(
            MeteredAnswer(
                backend=row["backend"],
                prompt_tokens=row["prompt_tokens"],
                cached_prompt_tokens=(told.likely_cached_tokens or 0) if cached is None else cached,
                output_tokens=row["output_tokens"],
                running=told.running,
                energy_j=took[0] / MICRO,
                evidence=took[1],
            )
        )
    return answers, next_s


def latest_from(connection: Connection, node: str, most: int) -> float:
    """When the earliest of the ``most`` latest requests of a node ended, Unix time; 0 where there
    are fewer."""
    r = requests.c
    query = select(r.end_s).where(r.node == node).order_by(r.end_s.desc())
    found: float | None = connection.scalar(query.offset(most - 1).limit(1))
    return 0.0 if found is None else found


def scores(connection: Connection, after_s: float, most: int) -> list[ScoredAnswer]:
    """The latest scores that were given after a Unix time, in order."""
    r, f = requests.c, feedback.c
    query = (
        select(
            f.request_id,
            f.source,
            f.at_s,
            f.score,
            r.backend,
            r.task,
            r.team,
            r.prompt_tokens,
            r.extra,
        )
        .join(requests, r.request_id == f.request_id)
        .where(f.at_s > after_s, r.backend.is_not(None))
        .order_by(f.at_s.desc(), f.request_id)
        .limit(most)
    )
    return [
        ScoredAnswer(
            request_id=row["request_id"],
            source=row["source"],
            at_s=row["at_s"],
            score=row["score"],
            backend=row["backend"],
            task=row["task"],
            team=row["team"],
            prompt_tokens=row["prompt_tokens"] or 0,
            answer_budget=_extra.decode(row["extra"] or "{}").answer_budget,
        )
        for row in reversed(connection.execute(query).mappings().all())
    ]


def _metered(
    connection: Connection, node: str, request_ids: list[str]
) -> dict[str, tuple[int, Evidence]]:
    """Micro-joules that windows of a node gave to requests, and what those stand on."""
    w = window_totals.c
    query = (
        select(shares.c.request_id, shares.c.energy_uj, w.evidence)
        .join(window_totals, w.window_id == shares.c.window_id)
        .where(w.node == node)
    )
    found: dict[str, tuple[int, Evidence]] = {}
    for row in rows_where(connection, query, shares.c.request_id, request_ids):
        before, evidence = found.get(row["request_id"], (0, Evidence(row["evidence"])))
        if row["evidence"] == Evidence.SIMULATED:
            evidence = Evidence.SIMULATED
        found[row["request_id"]] = before + row["energy_uj"], evidence
    return found
