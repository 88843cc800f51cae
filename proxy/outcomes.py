"""What came of requests, taught to this replica's estimators, whichever replica served them, got
the windows or was told the score.

All of it comes from the ledger, where windows and requests of all replicas meet: what answers took
once their windows are divided, and scores as they are given. Each is learnt once, also over a
restart: until when was learnt is kept with what was learnt. Every replica takes the same answers in
the same order. A new one begins with the last hour, or more where that had few requests.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable

from estimators.types import Features, Load, Outcome
from meters.ledger import Ledger
from meters.outcomes import SLOT_S, ScoredAnswer
from meters.types import UsageRecord
from proxy.accounts import HOLD_S
from proxy.background import ended, looking
from proxy.predicting import Predictors

log = logging.getLogger("joulegate.outcomes")

EVERY_S = 5.0
# Another replica may divide an earlier window so much later, or write a request.
OTHERS_S = HOLD_S + 5.0
BACK_S = 3600.0  # how long ago answers may be at most that are learnt from ...
LEAST = 2_000  # ... but for a node's latest so many requests
MOST_SCORES = 5_000  # the latest that are learnt from at once
CALLER = "caller"  # who says what an answer was worth
LATE_S = 60.0  # how much later than it says a score may be in the ledger


class Outcomes:
    """Used from the event loop; asks the ledger from a thread."""

    def __init__(
        self,
        estimator: Predictors,
        ledger: Callable[[], Ledger | None],
        nodes: Callable[[], Iterable[str]],
        *,
        alone: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``alone``: no other replica writes to the ledger, so that windows come in order."""
        self._estimator = estimator
        self._ledger = ledger
        self._nodes = nodes
        self._patience_s = 0.0 if alone else OTHERS_S
        self._clock = clock
        self._scored_from_s = estimator.quality.scored_until_s
        self._seen: dict[tuple[str, str], float] = {}  # the last minutes' scores: when given
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        failed = "what came of requests could not be learnt from"
        self._task = asyncio.create_task(looking(self.look, EVERY_S, log, failed))

    async def stop(self) -> None:
        await ended(self._task)

    async def look(self) -> None:
        """Learn what the ledger has got since the last look. Raises what the ledger raises."""
        ledger = self._ledger()
        if ledger is None:
            return
        after_s = max(self._scored_from_s, self._estimator.quality.scored_until_s - LATE_S)
        for one in await asyncio.to_thread(ledger.scores, after_s, MOST_SCORES):
            self.scored(one, one.score, one.source, one.at_s)
        until_s = await asyncio.to_thread(ledger.metered_until, set(self._nodes()))
        for node, last_s in until_s.items():
            await self._learn_energy(ledger, node, last_s - self._patience_s)

    def scored(
        self, answer: ScoredAnswer | UsageRecord, score: float, source: str, at_s: float
    ) -> None:
        """Learn a score that the ledger has, unless it was learnt."""
        key, quality = (answer.request_id, source), self._estimator.quality
        if self._seen.get(key) == at_s:
            return
        self._estimator.learn(outcome_of(answer, score))
        quality.scored_until_s = max(quality.scored_until_s, at_s)
        self._seen[key] = at_s
        while self._seen and next(iter(self._seen.values())) < quality.scored_until_s - 2 * LATE_S:
            del self._seen[next(iter(self._seen))]

    async def _learn_energy(self, ledger: Ledger, node: str, settled_s: float) -> None:
        until_s = math.floor(settled_s / SLOT_S) * SLOT_S
        taught_s = self._estimator.taught_until_s
        from_s = taught_s.get(node, 0.0)
        oldest_s = self._clock() - BACK_S
        if from_s < oldest_s:
            latest_s = await asyncio.to_thread(ledger.latest_from, node, LEAST)
            from_s = max(from_s, min(oldest_s, latest_s))
        while from_s < until_s:
            answers, from_s = await asyncio.to_thread(ledger.metered_answers, node, from_s, until_s)
            for answer in answers:
                self._estimator.learn_energy(
                    Outcome(
                        backend=answer.backend,
                        features=Features(
                            prompt_tokens=answer.prompt_tokens,
                            cached_prompt_tokens=answer.cached_prompt_tokens,
                        ),
                        load=Load(running=answer.running, known=True),
                        energy_j=answer.energy_j,
                        evidence=answer.evidence,
                        output_tokens=answer.output_tokens,
                    )
                )
            taught_s[node] = from_s


def outcome_of(answer: ScoredAnswer | UsageRecord, score: float) -> Outcome:
    """What an answer's score teaches."""
    return Outcome(
        backend=answer.backend or "",
        features=Features(
            prompt_tokens=answer.prompt_tokens or 0, task=answer.task, team=answer.team
        ),
        load=Load(),
        score=score,
        answer_budget=answer.answer_budget,
    )
