"""From a request's features to a decision: candidates, their estimates, the policy's choice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec

from estimators.types import Backend, Band, Estimate, Estimator, Features, unknown
from policies.answer_budget import AnswerBudget, expected, variant
from policies.budget_effects import BudgetEffects
from policies.guarantee import first_debt
from policies.language import Book, Needs, RollOut
from policies.limits import NO_IMAGES, TOO_LONG, is_open, serves, tighten
from policies.types import Candidate, Decision, Limits, NoBackendWithinLimits, Policy, Request
from proxy.auth import Caller
from proxy.backends import Engine, Pool, upstream_model
from proxy.canaries import Canaries
from proxy.conversations import Conversations, Turn
from proxy.errors import (
    ApiError,
    forbidden,
    invalid_header,
    model_not_found,
    no_backend_within_limits,
)
from proxy.passing import Passing
from proxy.promises import Promises
from proxy.wishes import Wishes

NO_NEEDS = Needs()
NO_ARMS: dict[str, str] = {}
MOST_MODELS = 256  # of providers that serve any: clients name them


class Routed(msgspec.Struct, frozen=True):
    """A decision with all that it was made from."""

    decision: Decision
    candidates: tuple[Candidate, ...]
    engines: tuple[Engine, ...]  # in the order in which to try them
    request: Request
    limits: Limits
    policy: Policy
    needs: Needs
    names: tuple[str, ...]  # of the candidates that the engines are tried as
    budgets: tuple[AnswerBudget | None, ...] = ()  # likewise; empty where there are none

    def estimate(self, name: str) -> Estimate:
        """The estimate of one candidate. Raises KeyError for what was none."""
        for candidate in self.candidates:
            if candidate.backend.name == name:
                return candidate.estimate
        raise KeyError(name)


class Router:
    """Chooses backends. Holds no request's state but where sessions went."""

    def __init__(
        self,
        pool: Pool,
        estimator: Estimator,
        book: Book,
        default_policy: str,
        default_counterfactual: str | None = None,
    ) -> None:
        """``default_counterfactual``: the backend or group that a request for ``auto`` would have
        gone to without Joulegate, as the organisation declared it."""
        self.pool = pool
        self.estimator = estimator
        self.take(book, default_policy, default_counterfactual)
        self.conversations = Conversations()
        self.promises = Promises()
        self.canaries: Canaries | None = None
        self.passing = Passing()
        self.effects = BudgetEffects()
        # (team, key) -> 0..1 and the Unix time at which a period of theirs ends
        self.budgets_left: dict[tuple[str, str | None], tuple[float, float]] = {}
        # (team, task, policy) -> backend of the last request of that kind, against flapping
        self.previous: dict[tuple[str, str | None, str], str] = {}
        self.previous_by_arm: dict[tuple[str, str | None, str], dict[str, str]] = {}  # of a split
        self.intensity_g_per_kwh: float | None = None  # of the common zone, now
        self._random = random.Random()
        self._models: dict[tuple[str, str], tuple[Backend, Backend]] = {}
        self._hours: dict[str, tuple[int, int]] = {}  # zone -> (hour since 1970, hour of its day)

    def take(self, book: Book, default_policy: str, default_counterfactual: str | None) -> None:
        """Decide by these from now on."""
        self.book = book
        self.policies = book.policies
        self.default_policy = default_policy
        self.default_counterfactual = default_counterfactual
        # Policies that want to be told more than most; built-in ones do not.
        needs = {name: book.needs(name) for name in book.specs}
        self.needs = {name: need for name, need in needs.items() if need != NO_NEEDS}

    def roll_outs(self) -> dict[str, RollOut]:
        """The canaries, by policy."""
        return {name: n.canary for name, n in self.needs.items() if n.canary is not None}

    def policy_for(self, caller: Caller, asked: str, wishes: Wishes) -> Policy:
        """The policy of a request: the header's, the model name's, the team's, the default."""
        name = wishes.policy
        where = "x-joulegate-policy"
        if name is None and asked.startswith("auto:"):
            name, where = asked.removeprefix("auto:"), "model"
        if (
            name is not None
            and caller.policies is not None
            and name not in caller.policies
            and not wishes.ours
        ):
            allowed = ", ".join(caller.policies) or "none"
            raise forbidden(f"Your team may not choose the policy {name!r}. Allowed: {allowed}.")
        name = name or caller.policy or self.default_policy
        policy = self.policies.get(name)
        if policy is None:
            known = ", ".join(sorted(self.policies))
            raise invalid_header(where, f"there is no policy {name!r}. Known: {known}.")
        return policy

    def candidates_for(self, asked: str, now_s: float) -> list[Engine]:
        """The engines that could serve a model name. Raises ApiError 404 when there are none."""
        engines = self.pool.serving(asked)
        if not engines:
            raise model_not_found(asked, self.pool.names())
        available = [engine for engine in engines if engine.available(now_s)]
        if not available:
            available = [e for e in self.pool.fallback_for(asked) if e.available(now_s)]
        # Everything is cooling down: trying is better than refusing.
        return available or engines

    def _meant(self, asked: str, engines: Sequence[Engine]) -> str:
        """The model name as policies understand it: of the fallback's group when that serves,
        of the wildcard's group when one matched."""
        first = engines[0]
        if asked in self.pool.groups or asked in self.pool.by_name:
            return asked if first in self.pool.serving(asked) else first.group
        return first.group if first.wildcard else asked

    def decide(
        self,
        features: Features,
        caller: Caller,
        asked: str,
        wishes: Wishes,
        *,
        now_s: float,
        unix_s: float,
        draw: float | None = None,
        estimated: bool = True,
        turn: Turn | None = None,
        session: str | None = None,
        stream: bool = False,
        checkable: bool = True,
        budget_left: float | None = None,
        served: bool = True,
        among: Sequence[Engine] | None = None,
    ) -> Routed:
        """The decision. Raises ApiError 404 or 400, and NoBackendWithinLimits.

        ``now_s`` is monotonic, for cooldowns; ``unix_s`` gives the hour of the team's day;
        ``draw`` is all the randomness there is. ``turn`` is the conversation's turn before, and
        ``session`` what it is called. ``budget_left`` is known better than from the last request.
        ``served`` is false where somebody only wants to know: that moves nothing later.
        ``among`` are the only engines to choose among, where others have failed.
        ``estimated`` is false for what estimators know nothing of, such as sound: then every
        figure is unknown.
        """
        policy = self.policy_for(caller, asked, wishes)
        engines = self.candidates_for(asked, now_s) if among is None else list(among)
        need = self.needs.get(policy.name, NO_NEEDS)
        if need.beyond and among is None:
            known = {engine.name for engine in engines}
            engines = engines + [
                e for e in self.pool.everything if e.name not in known and e.available(now_s)
            ]
        every = self.pool.everything if need.beyond else self.pool.serving(asked)
        down: list[Engine] = []
        if len(every) > len(engines) and among is None:
            down = _measures(every, engines, need.measured_by, asked)
        if wishes.task is not None:
            features = msgspec.structs.replace(features, task=wishes.task)
        flow = (caller.team, features.task, policy.name)
        candidates = self.candidates(features, engines, now_s, estimated, asked=asked)
        away = self.candidates(features, down, now_s, estimated, asked=asked) if down else ()
        if wishes.qualities:
            candidates = stated(candidates, wishes.qualities, caller.limits)
            away = stated(away, wishes.qualities, caller.limits)
        shorter: dict[str, AnswerBudget] = {}
        if need.answer_budgets and caller.answer_budgets and checkable:
            candidates += self.shorter(need.answer_budgets, candidates, features, shorter)
        limits = caller.limits if wishes.limits is None else tighten(caller.limits, wishes.limits)
        if budget_left is None and self.budgets_left:
            left, until_s = self.budgets_left.get((caller.team, caller.key_id), (None, 0.0))
            budget_left = left if unix_s < until_s else None
        debt = 0.0
        if need.promised is not None:
            debt = self._debt(caller.team, policy.name, need.promised, candidates, served)
        request = Request(
            features=features,
            asked=self._meant(asked, engines),
            team=caller.team,
            tags=wishes.tags,
            session=session,
            session_backend=None if turn is None else turn.backend,
            stream=stream,
            checkable=checkable,
            budget_left=budget_left,
            hour=self._hour(caller.timezone, unix_s),
            previous_backend=self.previous.get(flow),
            previous_by_arm=self.previous_by_arm.get(flow, NO_ARMS),
            intensity_g_per_kwh=self.intensity_g_per_kwh,
            without_us=self.default_counterfactual,
            references=away,
            draw=self._random.random() if draw is None else draw,
            quality_debt=debt,
            canary_share=(
                None
                if need.canary is None or self.canaries is None
                else self.canaries.share(policy.name)
            ),
            pass_rate=(
                None
                if need.cascade is None
                else self.passing.rate(policy.name, need.cascade.pass_rate)
            ),
        )
        try:
            try:
                decision = policy.choose(request, candidates, limits)
            except NoBackendWithinLimits:
                if not down:
                    raise
                # Trying what is cooling down is better than refusing, here too.
                engines, candidates = [*engines, *down], (*candidates, *away)
                request = msgspec.structs.replace(request, references=())
                decision = policy.choose(request, candidates, limits)
        except NoBackendWithinLimits as nothing:
            nothing.candidates = candidates
            candidates, why = given_the_doubt(request, candidates, nothing)
            try:
                decision = policy.choose(request, candidates, limits)
            except NoBackendWithinLimits as still:
                still.candidates = candidates
                raise
            decision = msgspec.structs.replace(decision, reason=f"{why}: {decision.reason}")
        if served and not decision.explored:  # what a draw said is no example for others
            last = self.previous[flow] = decision.escalate_to or decision.chosen
            if need.split and decision.arm is not None:
                others = self.previous_by_arm.get(flow, NO_ARMS)
                self.previous_by_arm[flow] = {**others, decision.arm: last}  # requests keep theirs
        by_name = {engine.name: engine for engine in engines}
        for name, budget in shorter.items():
            by_name[name] = by_name[name[: -len(budget.name) - 1]]
        names = tuple(name for name in decision.order if name in by_name)
        return Routed(
            decision=decision,
            candidates=candidates,
            engines=tuple(by_name[name] for name in names),
            request=request,
            limits=limits,
            policy=policy,
            needs=need,
            names=names,
            budgets=tuple(shorter.get(name) for name in names) if shorter else (),
        )

    def _debt(
        self,
        team: str,
        policy: str,
        promised: float,
        candidates: Sequence[Candidate],
        served: bool,
    ) -> float:
        """What a promise owes; the first request that is served begins it."""
        owed = self.promises.debts.get((team, policy))
        if owed is None:
            owed = first_debt(promised, candidates)
            if served:
                self.promises.begin(team, policy, owed)
        return owed

    def shorter(
        self,
        budgets: Sequence[AnswerBudget],
        candidates: Sequence[Candidate],
        features: Features,
        found: dict[str, AnswerBudget],
    ) -> tuple[Candidate, ...]:
        """Every candidate once more for each answer budget, as it is expected to do under it;
        ``found`` gets their budgets by name."""
        more = []
        for candidate in candidates:
            backend = candidate.backend
            for budget in budgets:
                known = self.effects.learnt(backend.name, budget, features.task)
                estimate = expected(candidate.estimate, known, features.prompt_tokens)
                more.append(Candidate(variant(backend, known), estimate, candidate.load))
                found[estimate.backend] = budget
        return tuple(more)

    def candidates(
        self,
        features: Features,
        engines: Sequence[Engine],
        now_s: float,
        estimated: bool = True,
        *,
        asked: str = "",
    ) -> tuple[Candidate, ...]:
        """Every engine with its estimate and load, in one call to the estimator. ``asked`` says
        which of its models one is meant that serves many."""
        facts = [e.facts if not e.wildcard else self._of_model(e, asked) for e in engines]
        loads = [engine.load(now_s) for engine in engines]
        if not estimated:
            return tuple(map(Candidate, facts, [unknown(each.name) for each in facts], loads))
        estimates = self.estimator.estimate(features, facts, loads)
        return tuple(map(Candidate, facts, estimates, loads))

    def _of_model(self, engine: Engine, asked: str) -> Backend:
        """What is known of one model of a provider that serves any."""
        facts = engine.facts
        if facts.provider is None or not asked:
            return facts
        model = upstream_model(engine, asked)
        known = self._models.get((engine.name, model))
        if known is not None and known[0] is facts:
            return known[1]
        if known is None and len(self._models) >= MOST_MODELS:
            return facts
        found = msgspec.structs.replace(facts, provider_model=model)
        self._models[engine.name, model] = (facts, found)
        return found

    def _hour(self, zone: str, unix_s: float) -> int:
        since_1970 = int(unix_s // 900)  # zones differ by quarters of an hour
        known = self._hours.get(zone)
        if known is None or known[0] != since_1970:
            local = datetime.fromtimestamp(unix_s, UTC).astimezone(ZoneInfo(zone))
            known = self._hours[zone] = (since_1970, local.hour)
        return known[1]


def _measures(
    every: Sequence[Engine], engines: Sequence[Engine], named: Sequence[str], asked: str
) -> list[Engine]:
    """Those that cannot be chosen now, and that a share of quality is meant of all the same: a
    limit is no lower while they are away."""
    names = named if is_open(asked) else (*named, asked)
    return [
        engine
        for engine in every
        if engine not in engines and any(serves(engine.facts, name) for name in names)
    ]


def stated(
    candidates: Sequence[Candidate], qualities: Sequence[tuple[str, float]], team: Limits
) -> tuple[Candidate, ...]:
    """The candidates with the qualities that a caller states in place of those predicted. Where the
    caller's team has a limit on quality, what is stated can only be worse: nobody talks their way
    past it."""
    bound = team.min_quality is not None or team.min_relative_quality is not None
    found = []
    for candidate in candidates:
        backend, estimate = candidate.backend, candidate.estimate
        for name, quality in qualities:
            if serves(backend, name):
                old = estimate.quality
                band: Band | None = Band(quality, quality, quality)
                if bound:
                    band = None if old is None else Band(*(min(quality, end) for end in old))
                estimate = msgspec.structs.replace(estimate, quality=band)
        found.append(msgspec.structs.replace(candidate, estimate=estimate))
    return tuple(found)


def given_the_doubt(
    request: Request, candidates: Sequence[Candidate], nothing: NoBackendWithinLimits
) -> tuple[tuple[Candidate, ...], str]:
    """The candidates with what is not known for sure taken to be well, and what that is. Raises
    ``nothing`` where no doubt was what was wrong.

    Tokens are counted with one encoding for all models, or guessed, and some engines shorten what
    is too long; who reads images is seldom told. The engine itself knows, and says what is wrong
    as its clients know it. Of those too short for the request those with most room are meant.
    """
    asked = {
        c.backend.name: c.backend
        for c in candidates
        if is_open(request.asked) or serves(c.backend, request.asked)
    }
    codes = {r.backend: r.code for r in nothing.rejections if r.backend in asked}
    blind = {
        name
        for name, code in codes.items()
        if code == NO_IMAGES and asked[name].supports_images is None
    }
    if blind:
        return _changed(candidates, blind, supports_images=True), "none is known to read images"
    cramped = [name for name, code in codes.items() if code == TOO_LONG]
    if not cramped:
        raise nothing
    most = max(asked[name].context_tokens or 0 for name in cramped)
    roomy = {name for name in cramped if asked[name].context_tokens == most}
    why = "none has room for the tokens that we count, and this one has most"
    return _changed(candidates, roomy, context_tokens=None), why


def _changed(
    candidates: Sequence[Candidate], names: set[str], **facts: object
) -> tuple[Candidate, ...]:
    return tuple(
        msgspec.structs.replace(c, backend=msgspec.structs.replace(c.backend, **facts))
        if c.backend.name in names
        else c
        for c in candidates
    )


def refusal(error: NoBackendWithinLimits) -> ApiError:
    """The 422 of a request that no backend may serve."""
    return no_backend_within_limits(str(error), error.rejections)
