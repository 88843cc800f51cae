"""Shadow judging: some answers are compared with another backend's, to learn which answers better.

A sampled chat, of a team that allows it, is sent to a second backend once its own answer has gone
out; a judge compares the two in both orders; the games go into the book (judged.py) and what they
say, by Bradley-Terry, into the quality estimator. One at a time, behind the request path, dropped
rather than queued without end. Every call is on the books: as the team ``judging``, with the judged
team as its project, so that no team pays for it and everybody can see it. Prompts and answers are
held in memory until they are judged and never written anywhere.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from estimators.quality import kind_of
from estimators.types import Estimate, Features
from policies.limits import fitting
from policies.types import Candidate, Limits, Request
from proxy import verdicts
from proxy.auth import Caller
from proxy.backends import Engine, upstream_model
from proxy.background import ended
from proxy.flight import Flight, Sample
from proxy.judged import JudgedBook
from proxy.predicting import Predictors
from proxy.routing import Routed, Router
from proxy.settings import OVERHEAD, Settings
from proxy.sse import usage_in
from proxy.tallies import Tally
from proxy.upstream import MAX_HELD_BYTES, Upstream, beginning, request_headers

log = logging.getLogger("joulegate.judging")

SAVED_EVERY_S = 60.0
MAX_ANSWER_BYTES = 1_048_576
CHARS_PER_TOKEN = 4  # of a judge's prompt, for its estimate
PATH = "/chat/completions"


class NotJudged(Exception):
    """Why a sampled request was not judged, as a label of the metric."""


class Judging:
    """Implements steps.Judging. Used from the event loop only."""

    def __init__(
        self,
        *,
        settings: Settings,
        router: Router,
        estimator: Predictors,
        client: Upstream,
        live: dict[str, Flight],
        finished: Callable[[Flight], object],
        counted: Tally,
        compared: Callable[[Flight, str, float], None],
    ) -> None:
        self.settings = settings
        self.router = router
        self.estimator = estimator
        self.client = client
        self.live = live
        self.finished = finished
        self.counted = counted
        self.compared = compared
        self.path = Path(settings.state_dir) / "judging.json"
        self.book = self._loaded()
        self._random = random.Random()
        self._waiting: asyncio.Queue[Flight] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._saved_s = 0.0

    # -- on the request path -------------------------------------------------------------------

    def sample(self, caller: Caller, body: bytes) -> Sample | None:
        """What to note of this chat, when it is one of those to be judged."""
        if (
            self.settings.judging.judge is None
            or len(body) > MAX_ANSWER_BYTES
            or self._random.random() >= caller.judged_share
        ):
            return None
        return Sample(body, [], MAX_ANSWER_BYTES)

    def take(self, flight: Flight) -> None:
        """A sampled chat has been answered."""
        sample = flight.sample
        if sample is None or flight.outcome != "ok" or flight.status != 200 or sample.room < 0:
            return
        if self._waiting.qsize() >= self.settings.judging.waiting:
            self.counted.add(("dropped",))
            return
        self._waiting.put_nowait(flight)

    # -- behind it -----------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End, and forget what waits."""
        await ended(self._task)
        if self.book.prompts:
            await asyncio.to_thread(self._save)

    def left_j(self) -> float:
        """What may still be spent on judging today, by this process."""
        share = self.settings.judging.max_energy_j_per_day / self.settings.server.workers
        return self.book.left_j(share, time.time())

    async def _run(self) -> None:
        while True:
            flight = await self._waiting.get()
            try:
                await self._judge(flight)
                self.counted.add(("judged",))
            except NotJudged as why:
                self.counted.add((str(why),))
            except Exception as error:  # its text could hold some of the prompt
                log.warning("a request could not be judged: %s", type(error).__name__)
                self.counted.add(("failed",))
            finally:
                flight.sample = None

    async def _judge(self, flight: Flight) -> None:
        sample, caller, first = flight.sample, flight.caller, flight.engine
        features, routed = flight.features, flight.routed
        if sample is None or caller is None or first is None or features is None or routed is None:
            raise NotJudged("failed")
        read = await asyncio.to_thread(_read, sample)
        if read is None:
            raise NotJudged("unsuitable")
        body, prompt, own = read
        judge, second = self._pair(caller, features, routed, first)
        body["stream"] = False
        body.pop("stream_options", None)
        asks = Features(
            prompt_tokens=(len(prompt) + 2 * len(own)) // CHARS_PER_TOKEN,
            max_tokens=verdicts.JUDGE_TOKENS,
            task=OVERHEAD,
            team=OVERHEAD,
        )
        estimates = [self._estimate(e, f) for e, f in ((second, features), (judge, asks))]
        expected_j = self._expected_j(estimates)
        if expected_j > self.left_j():
            raise NotJudged("over_budget")
        other = await self._ask(second, body, caller, features)
        if other is None:
            raise NotJudged("failed")
        forward = await self._verdict(judge, caller, asks, prompt, own, other)
        backward = await self._verdict(judge, caller, asks, prompt, other, own)
        if forward is None or backward is None:
            raise NotJudged("unreadable")
        self.compared(flight, second.name, verdicts.points_of(forward, backward))
        await self._learn(features, first, second, forward, backward)

    def _pair(
        self, caller: Caller, features: Features, routed: Routed, first: Engine
    ) -> tuple[Engine, Engine]:
        """The judge and the second backend: both where this prompt may go, neither the first.
        While a canary is tried, it is compared with what answers beside it."""
        pool, limits, now_s = self.router.pool, routed.limits, time.monotonic()
        allowed = Limits(
            regions=limits.regions,
            providers=limits.providers,
            backends=limits.backends,
            backends_too=limits.backends_too,
        )
        engines = [
            e
            for e in pool.everything
            if e is not first
            and (e.name in caller.judged_by or e.group in caller.judged_by)
            and e.available(now_s)
        ]
        candidates = self.router.candidates(features, engines, now_s)
        # What the team's region and provider rules keep a prompt from, judging does too.
        fits, _ = fitting(Request(features=features, asked="auto"), candidates, allowed)
        names = {candidate.backend.name for candidate in fits}
        judge = pool.by_name.get(self.settings.judging.judge or "")
        if judge is None or judge.name not in names:
            raise NotJudged("no_judge")
        others = [e for e in engines if e is not judge and e.name in names]
        if not others:
            raise NotJudged("no_second")
        canary = routed.needs.canary
        if canary is not None and first.name != canary.backend:
            others = [e for e in others if e.name == canary.backend] or others
        elif canary is not None:
            order = routed.decision.order
            others = [e for e in others if e.name in order[:2]] or others
        return judge, self._random.choice(others)

    def _estimate(self, engine: Engine, features: Features) -> Candidate:
        return self.router.candidates(features, [engine], time.monotonic())[0]

    def _expected_j(self, calls: Sequence[Candidate]) -> float:
        """The cautious end of what a second answer and two verdicts will use; a backend whose
        energy nobody knows could break any budget, and is not asked."""
        second, judge = (call.estimate.energy_j for call in calls)
        if second is None or judge is None:
            raise NotJudged("unknown_energy")
        return second.high + 2 * judge.high

    async def _verdict(
        self, judge: Engine, caller: Caller, asks: Features, prompt: str, a: str, b: str
    ) -> tuple[float, float] | None:
        body = {
            "messages": verdicts.comparison(prompt, a, b),
            "temperature": 0,
            "max_tokens": verdicts.JUDGE_TOKENS,
        }
        said = await self._ask(judge, body, caller, asks)
        return None if said is None else verdicts.verdict_in(said)

    async def _ask(
        self, engine: Engine, body: dict[str, Any], caller: Caller, features: Features
    ) -> str | None:
        """One call on the books; the answer's text, None where it has none or failed."""
        flight = Flight("chat.completions")
        flight.caller = Caller(team=OVERHEAD, project=caller.team)
        flight.tags = (OVERHEAD,)
        flight.asked = engine.name
        flight.policy = OVERHEAD
        flight.features = features
        candidate = self._estimate(engine, features)
        flight.candidates = (candidate,)
        estimate: Estimate = candidate.estimate
        flight.estimate = estimate
        flight.engine = engine
        flight.attempts = 1
        body = {**body, "model": upstream_model(engine, engine.name)}
        headers = request_headers({}, engine, flight.request_id)
        self.live[flight.request_id] = flight
        engine.started(features.prompt_tokens)
        flight.sent_s = time.monotonic()
        said: str | None = None
        try:
            async with asyncio.timeout(self.settings.time.total_s):
                answer = await self.client.post(engine, PATH, orjson.dumps(body), headers)
                flight.status = answer.status
                raw, _ = await beginning(answer, MAX_HELD_BYTES)
                answer.close()  # nothing that is larger is a verdict or an answer to judge
            if answer.status == 200:
                flight.usage = usage_in(raw)
                said = verdicts.answer_in(raw)
            else:
                flight.outcome = "failed"
        except Exception as error:
            flight.outcome = "failed"
            log.info("judging: %s failed: %s", engine.name, type(error).__name__)
        except asyncio.CancelledError:
            flight.outcome = "cancelled"
            raise
        finally:
            flight.end_s = time.monotonic()
            flight.wait_s = flight.end_s - flight.sent_s
            engine.ended(features.prompt_tokens)
            self.live.pop(flight.request_id, None)
            if estimate.energy_j is not None:
                self.book.spent_j += estimate.energy_j.high  # the cap is kept on the cautious end
            self.finished(flight)
        return said

    async def _learn(
        self,
        features: Features,
        first: Engine,
        second: Engine,
        forward: tuple[float, float],
        backward: tuple[float, float],
    ) -> None:
        task, book = features.task or "", self.book
        for engine in (first, second):
            book.notice(engine.name, kind_of(engine.facts))
            known = self.estimator.quality.unjudged(features, engine.facts)
            if known is not None:
                book.expect(task, engine.name, known)
        book.enter(task, verdicts.games_of((first.name, second.name), forward, backward, 0))
        for each in await asyncio.to_thread(book.standing, task):
            judged = self.router.pool.by_name.get(each.name)
            if judged is not None:
                expected = book.expected[task].get(each.name, 0.5)
                self.estimator.quality.judge(judged.facts, task, expected, each.mid, each.weight)
        if time.monotonic() - self._saved_s > SAVED_EVERY_S:
            self._saved_s = time.monotonic()
            await asyncio.to_thread(self._save)

    # -- what is shown and kept ----------------------------------------------------------------

    def shown(self) -> dict[str, Any]:
        """The standings by kind of task, with 95 % intervals, and the day's budget."""
        return {
            "object": "joulegate.judging",
            "judge": self.settings.judging.judge,
            "prompts": self.book.prompts,
            "energy_left_j_today": max(self.left_j(), 0.0),
            "tasks": {
                task or "unknown": [each._asdict() for each in self.book.standing(task)]
                for task in list(self.book.games)
            },
        }

    def _save(self) -> None:
        try:
            self.book.save(self.path)
        except OSError as error:
            log.warning("what was judged cannot be kept in %s: %s", self.path, error)

    def _loaded(self) -> JudgedBook:
        if not self.path.exists():
            return JudgedBook()
        try:
            return JudgedBook.load(self.path)
        except (OSError, ValueError) as error:
            log.warning("%s is not used (%s); judging starts anew", self.path, error)
            return JudgedBook()


def _read(sample: Sample) -> tuple[dict[str, Any], str, str] | None:
    """The body, its prompt and its answer; None where they are nothing for a judge."""
    prompt = verdicts.prompt_in(sample.body)
    answer = verdicts.answer_in(b"".join(sample.parts))
    if prompt is None or answer is None:
        return None
    return orjson.loads(sample.body), prompt, answer
