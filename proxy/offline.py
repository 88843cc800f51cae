"""Deciding without serving: what `joulegate explain` does, and what replays start from."""

from __future__ import annotations

import time
from pathlib import Path

from estimators.text import coarse_task
from estimators.types import Features
from policies.types import NoBackendWithinLimits
from proxy import backends, books, explanation, features, policy_book, serving
from proxy.auth import ANYONE, Caller, limits_of
from proxy.commands import CommandError
from proxy.grid import Grid
from proxy.predicting import Predictors
from proxy.routing import Router
from proxy.tokens import TokenCounter, Uncountable, guess
from proxy.wishes import Wishes


class Explainer:
    """The routing part of a proxy, with nothing behind it."""

    def __init__(
        self, config: str | None, *, team: str | None = None, policy: str | None = None
    ) -> None:
        self.prepared = serving.prepare(config)
        settings = self.prepared.settings
        self.counter = TokenCounter()
        pool = backends.of_settings(settings, self.prepared.facts)
        Grid(settings, pool).refresh(time.time())
        estimator = Predictors(
            model=settings.quality_model,
            folder=Path(settings.state_dir),
            estimator=settings.estimator,
        )
        estimator.know(engine.facts for engine in pool.engines)
        self.router = Router(
            pool,
            estimator,
            policy_book.book_of(settings),
            settings.default_policy,
            settings.carbon.default_counterfactual,
        )
        self.router.effects = estimator.effects
        self.wishes = Wishes(policy=policy)
        self.caller = ANYONE
        if team is not None:
            teams = books.teams_of(settings, [team])
            known = teams.get(team)
            if known is None:
                raise CommandError(
                    f"There is no team {team!r}. Known: {', '.join(sorted(teams)) or 'none'}."
                )
            self.caller = Caller(
                team=team,
                policy=known.policy,
                limits=limits_of(known.limits),
                timezone=known.timezone,
                answer_budgets=known.answer_budgets,
            )

    def close(self) -> None:
        self.prepared.close()

    def explain(self, body: bytes) -> dict[str, object]:
        """The decision on a chat request's body. Raises ApiError for what no client could send."""
        request = features.peek(body)
        if not request.model:
            raise features.missing("model")
        features.require_prompt(request)
        told = self.features_of(request)
        try:
            routed = self.router.decide(
                told,
                self.caller,
                request.model,
                self.wishes,
                now_s=time.monotonic(),
                unix_s=time.time(),
                draw=0.5,
                served=False,
            )
        except NoBackendWithinLimits as error:
            return explanation.refused(told, error)
        return explanation.routed(routed)

    def features_of(self, request: features.Peek) -> Features:
        prompt = features.prompt_of(request)
        counted = self.counter.exact
        try:
            tokens = self.counter.count(prompt.texts)
        except Uncountable:  # as the proxy does it
            counted, tokens = False, guess(len(prompt.text.encode("utf-8", "replace")))
        return features.features_from(
            request,
            prompt,
            tokens=tokens + prompt.overhead_tokens,
            counted=counted,
            task=coarse_task(prompt.last),
            text=prompt.last,
            team=self.caller.team,
        )
