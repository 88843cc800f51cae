"""What each policy would have done with a team's own traffic, for the policies page.

The team's latest requests of the period are run through each policy on simulated engines with the
estimator's step physics, as ``joulegate replay`` does it, and the result is scaled to all of its
requests. Other teams' load is not part of it. Takes a second or so and is kept for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from sqlalchemy import func, select

from estimators.types import Backend
from meters.ledger import Ledger
from meters.schema import requests
from policies.replay import Arrival, Estimating, Replayed, replay
from policies.types import Limits, Policy
from proxy.dashboard.views import PolicyOutcome

MOST_REQUESTS = 250
MOST_POLICIES = 6
KEPT_S = 600.0
PINNED = "pinned"


class TeamReplay:
    """Call it with a team and a period's start and end, in Unix seconds."""

    def __init__(
        self,
        ledger: Ledger,
        backends: Callable[[], Sequence[Backend]],
        policies: Callable[[], Mapping[str, Policy]],
        first: Callable[[], str],
        estimator: Estimating,
        limits: Callable[[str], Limits],
        zone: Callable[[str], str] = lambda team: "UTC",
    ) -> None:
        self._ledger = ledger
        self._backends = backends
        self._policies = policies
        self._first = first
        self._estimator = estimator
        self._limits = limits
        self._zone = zone
        self._kept: dict[tuple[str, float, float], tuple[float, list[PolicyOutcome]]] = {}
        self._one_at_a_time = threading.Lock()

    def __call__(self, team: str, start_s: float, end_s: float) -> list[PolicyOutcome]:
        key = team, start_s, end_s
        with self._one_at_a_time:
            kept = self._kept.get(key)
            if kept and time.monotonic() - kept[0] < KEPT_S:
                return kept[1]
            trace, count = self.trace(team, start_s, end_s)
            known = self._policies()
            found = [
                outcome(name, self.run(trace, team, name), len(trace), count, name != PINNED)
                for name in (self.names()[:MOST_POLICIES] if trace else ())
                if name in known
            ]
            if len(self._kept) >= 32:
                self._kept.clear()
            self._kept[key] = time.monotonic(), found
            return found

    def names(self) -> list[str]:
        """The policies there are: what requests asked for first, then the team's usual one."""
        known = self._policies()
        return [n for n in dict.fromkeys((PINNED, self._first(), *known)) if n in known]

    def backends(self) -> Sequence[Backend]:
        """What could serve now."""
        return self._backends()

    def run(
        self,
        trace: Sequence[Arrival],
        team: str,
        policy: str,
        backends: Sequence[Backend] | None = None,
    ) -> Replayed:
        """The trace through one policy. A request that names a model gets it under every policy;
        what a policy could choose shows when requests leave the choice open, so they do here."""
        result, _ = replay(
            trace if policy == PINNED else [each._replace(asked="auto") for each in trace],
            self._backends() if backends is None else backends,
            self._policies()[policy],
            self._estimator,
            limits=self._limits(team),
        )
        return result

    def trace(self, team: str, start_s: float, end_s: float) -> tuple[list[Arrival], int]:
        """The latest requests with both token counts, oldest first, and how many there were."""
        c = requests.c
        rules = (
            c.team == team,
            c.start_s >= start_s,
            c.start_s < end_s,
            c.prompt_tokens.is_not(None),
            c.output_tokens.is_not(None),
        )
        columns = c.start_s, c.prompt_tokens, c.output_tokens, c.task, c.model_asked, c.tags
        zone = ZoneInfo(self._zone(team))
        with self._ledger.database.read() as connection:
            count = int(connection.scalar(select(func.count()).where(*rules)) or 0)
            latest = select(*columns).where(*rules).order_by(c.start_s.desc()).limit(MOST_REQUESTS)
            rows = connection.execute(latest).all()[::-1]
        return [
            Arrival(
                at_s=at_s - rows[0][0],
                prompt_tokens=int(prompt),
                output_tokens=int(output),
                team=team,
                task=task,
                asked=asked or "auto",
                hour=datetime.fromtimestamp(at_s, zone).hour,
                tags=tuple(tags.split(",")) if tags else (),
            )
            for at_s, prompt, output, task, asked, tags in rows
        ], count


def outcome(name: str, result: Replayed, replayed: int, count: int, open_: bool) -> PolicyOutcome:
    """A replay's result, scaled to ``count`` requests: energy above idle, with its range."""
    served = result.requests - result.refused
    scale = count / replayed if replayed else 0.0
    per = result.energy_per_request_j
    middle_j = per.mid * served * scale if per else 0.0
    active_j = result.active_energy_j or 0.0
    g_per_j = (result.active_carbon_g or 0.0) / active_j if active_j > 0 else 0.0
    return PolicyOutcome(
        policy=name,
        energy_j=middle_j,
        carbon_g=middle_j * g_per_j,
        low_g=(per.low if per else 0.0) * served * scale * g_per_j,
        high_g=(per.high if per else 0.0) * served * scale * g_per_j,
        quality=result.quality.mid if result.quality else None,
        ttft_p95_s=result.ttft_s.p95 if result.ttft_s else None,
        money_usd=None if result.money_usd is None else result.money_usd * scale,
        refused=round(result.refused * scale),
        replayed=replayed,
        requests=count,
        note="as if each had asked for auto" if open_ else "as they asked",
    )
