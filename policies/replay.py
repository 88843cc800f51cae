"""Traffic that was, through policies that were not: what would it have used?

Each request of a trace is estimated and decided as the proxy does it, against the load that the
requests before it made, and then served by a fluid engine (fleet.py) with the estimator's step
physics. So energy depends on how a policy packs requests, not only on which model it likes.
Backends without physics (closed APIs) answer as estimated. Everything printed is a simulation.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from estimators.types import Backend, Estimate, Features, Load
from meters.carbon import operational_g
from meters.types import StepPhysics
from policies.answer_budget import AnswerBudget, expected, variant
from policies.cascade import Cascade
from policies.fleet import FluidEngine, Served, Sleep
from policies.guarantee import Guarantee, first_debt
from policies.limits import is_open, serves
from policies.types import Candidate, Limits, NoBackendWithinLimits, Policy, Request

PROGRESS_EVERY = 2000
DEFAULT_SEQS = 256  # vLLM's own default batch limit on most GPUs
MOST_MOVES = 12  # kinds of moves that are told


class Arrival(NamedTuple):
    """One request of a trace: ``at_s`` counts from its beginning, ``hour`` is of the day."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    team: str = ""
    task: str | None = None
    asked: str = "auto"
    hour: int | None = None
    tags: tuple[str, ...] = ()


# The answer budgets, as they are known, that a request may have on a backend of that name.
Shorter = Callable[[Arrival, str], Sequence[AnswerBudget]]


class Brief(NamedTuple):
    """An answer budget on a backend."""

    backend: str
    budget: AnswerBudget


class Estimating(Protocol):
    """What replay needs of an estimator."""

    def estimate(
        self, features: Features, backends: Sequence[Backend], loads: Sequence[Load]
    ) -> list[Estimate]: ...

    def physics(self, backend: Backend) -> StepPhysics | None: ...


class Span(msgspec.Struct, frozen=True):
    """A mean with its 80 % interval."""

    low: float
    mid: float
    high: float


class Quantiles(msgspec.Struct, frozen=True):
    """How long requests took, in seconds."""

    p50: float
    p95: float
    p99: float


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy would have done with a trace. Unknown is None."""

    policy: str
    version: str
    requests: int
    refused: int
    energy_j: float | None  # of the whole fleet, idle included
    active_energy_j: float | None  # above idle
    energy_per_request_j: Span | None  # above idle, with the estimates' own uncertainty
    carbon_g: float | None  # of the whole fleet's energy, PUE included
    active_carbon_g: float | None  # of the energy above idle, likewise
    money_usd: float | None
    quality: Span | None
    ttft_s: Quantiles | None
    latency_s: Quantiles | None
    backends: dict[str, int]  # requests that each answered
    moved: int = 0  # requests that another backend answered than under the first policy
    moves: dict[str, int] = {}  # "from -> to", the most frequent first
    refusals: dict[str, int] = {}  # code -> rejections of refused requests


class Choices(msgspec.Struct, frozen=True):
    """Which backend each request went to, in the trace's order; -1 was refused."""

    names: tuple[str, ...]
    chosen: array[int]

    def __iter__(self) -> Iterator[str | None]:
        return (None if index < 0 else self.names[index] for index in self.chosen)


def replay(
    trace: Sequence[Arrival],
    backends: Sequence[Backend],
    policy: Policy,
    estimator: Estimating,
    *,
    limits: Limits | None = None,
    team_limits: Mapping[str, Limits] | None = None,
    sleep: Sleep | None = None,
    beyond: bool = True,
    shorter: Shorter | None = None,
    without_us: str | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[Replayed, Choices]:
    """Run a trace, in order of time and starting at 0 s, through one policy.

    ``beyond`` says whether the policy may choose models that were not asked for; where it may not,
    only those asked for are candidates, as in the proxy. ``shorter`` gives the answer budgets that
    are candidates too, and ``without_us`` is what open requests would have gone to. ``progress`` is
    told the number of requests done, now and then.
    """
    run = _Run(backends, policy, estimator, sleep, beyond, shorter, without_us, seed)
    everyone = limits or Limits()
    by_team = team_limits or {}
    for index, arrival in enumerate(trace):
        run.arrive(index, arrival, by_team.get(arrival.team, everyone))
        if progress is not None and index % PROGRESS_EVERY == 0:
            progress(index)
    return run.result()


class Moved(NamedTuple):
    """One request that another backend would have answered; None: it was refused."""

    place: int  # in the trace
    before: str | None
    after: str | None


def moved(first: Choices, other: Choices) -> Iterator[Moved]:
    """Every request that went elsewhere than under the first policy, in the trace's order."""
    for place, (before, after) in enumerate(zip(first, other, strict=True)):
        if before != after:
            yield Moved(place, before, after)


def compared(first: Choices, other: Choices, result: Replayed) -> Replayed:
    """The result with which requests moved, against the choices of another policy."""
    pairs = Counter(
        f"{a or 'refused'} -> {b or 'refused'}" for a, b in zip(first, other, strict=True) if a != b
    )
    return msgspec.structs.replace(
        result, moved=sum(pairs.values()), moves=dict(pairs.most_common(MOST_MOVES))
    )


class _Run:
    def __init__(
        self,
        backends: Sequence[Backend],
        policy: Policy,
        estimator: Estimating,
        sleep: Sleep | None,
        beyond: bool,
        shorter: Shorter | None,
        without_us: str | None,
        seed: int,
    ) -> None:
        self.backends = list(backends)
        self.names = [backend.name for backend in self.backends]  # then what answered under budgets
        self.beyond = beyond
        self.shorter = shorter
        self.without_us = without_us
        self.asked: dict[str, tuple[list[int], list[Backend]]] = {}
        self.index = {backend.name: i for i, backend in enumerate(self.backends)}
        self.policy = policy
        self.promise = _guarantee_in(policy)
        # Of quality, by team, as the proxy keeps it; begun by its first request's candidates.
        self.debts: dict[str, float] = {}
        self.pass_rate = _pass_rate_in(policy)
        self.second: dict[int, tuple[int, Arrival, Estimate]] = {}  # who answers again, by key
        self.began_s: dict[int, float] = {}  # when a request came that is answered again
        self.estimator = estimator
        self.random = random.Random(seed)
        self.engines = [_engine(estimator.physics(b), b, sleep) for b in self.backends]
        self.loads = [e.load if e else Load(known=False) for e in self.engines]
        self.chosen = array("h")
        self.previous: dict[tuple[str, str | None], str] = {}
        self.previous_by_arm: dict[tuple[str, str | None], dict[str, str]] = {}
        self.ttft_s = array("d")
        self.latency_s = array("d")
        self.quality: list[float] = [0.0, 0.0, 0.0]
        self.quality_known = 0
        self.energies = [0.0, 0.0, 0.0]  # estimates: low, mid, high
        self.outside_j: dict[int, float] = {}  # backends without physics: as estimated
        self.unknown_energy = False
        self.money_usd: float | None = 0.0
        self.refusals: Counter[str] = Counter()
        self.last_s = 0.0

    def arrive(self, key: int, arrival: Arrival, limits: Limits) -> None:
        at_s = arrival.at_s
        loads = self.loads
        for place, engine in enumerate(self.engines):
            if engine is None:
                continue
            if engine.next_event_s <= at_s:
                self.note(engine.advance(at_s))
                loads[place] = engine.load
            if engine.sleep is not None:
                asleep = engine.asleep_at(at_s)
                if asleep != loads[place].asleep:
                    loads[place] = Load(asleep=asleep, known=True)
        self.last_s = at_s
        kind = (arrival.team, arrival.task)
        features = Features(
            prompt_tokens=arrival.prompt_tokens,
            prompt_tokens_counted=True,
            task=arrival.task,
            team=arrival.team,
        )
        places, backends = self.asked.get(arrival.asked) or self.candidates(arrival.asked)
        known = [loads[place] for place in places]
        estimates = self.estimator.estimate(features, backends, known)
        candidates = list(map(Candidate, backends, estimates, known))
        if self.promise is not None and arrival.team not in self.debts:
            self.debts[arrival.team] = first_debt(self.promise.promised, candidates)
        budgets = self.brief(arrival, candidates) if self.shorter is not None else {}
        request = Request(
            features=features,
            asked=arrival.asked,
            team=arrival.team,
            tags=arrival.tags,
            hour=arrival.hour,
            without_us=self.without_us,
            previous_backend=self.previous.get(kind),
            previous_by_arm=self.previous_by_arm.get(kind, {}),
            quality_debt=self.debts.get(arrival.team, 0.0),
            pass_rate=self.pass_rate,
            draw=self.random.random(),
        )
        try:
            decision = self.policy.choose(request, candidates, limits)
        except NoBackendWithinLimits as refusal:
            self.chosen.append(-1)
            self.refusals.update(r.code for r in refusal.rejections)
            return
        known_as = {c.backend.name: c.estimate for c in candidates}
        if not decision.explored:  # as in the proxy: what a draw chose is no example
            last_at = self.previous[kind] = decision.escalate_to or decision.chosen
            if decision.arm is not None:
                self.previous_by_arm.setdefault(kind, {})[decision.arm] = last_at
        place, cut, estimate = self.meant(decision.chosen, arrival, budgets, known_as)
        second = decision.escalate_to
        if second is None or self.random.random() < (self.pass_rate or 0.0):
            self.chosen.append(self.named(decision.chosen))
            self.answer(estimate, arrival.team)
            self.serve(key, cut, place, estimate, arrival.at_s)
            return
        better, better_cut, last = self.meant(second, arrival, budgets, known_as)
        self.chosen.append(self.named(second))
        self.answer(last, arrival.team)
        self.second[key] = better, better_cut, last
        self.began_s[key] = arrival.at_s
        self.serve(key, cut, place, estimate, arrival.at_s)

    def brief(self, arrival: Arrival, candidates: list[Candidate]) -> dict[str, Brief]:
        """Puts every candidate's answer budgets beside it; gives them by the candidate's name."""
        found: dict[str, Brief] = {}
        assert self.shorter is not None
        for plain in tuple(candidates):
            backend = plain.backend
            for budget in self.shorter(arrival, backend.name):
                estimate = expected(plain.estimate, budget, arrival.prompt_tokens)
                candidates.append(Candidate(variant(backend, budget), estimate, plain.load))
                found[estimate.backend] = Brief(backend.name, budget)
        return found

    def meant(
        self,
        name: str,
        arrival: Arrival,
        budgets: Mapping[str, Brief],
        estimates: Mapping[str, Estimate],
    ) -> tuple[int, Arrival, Estimate]:
        """Who serves a candidate, with as many tokens as it then writes, and its estimate."""
        brief = budgets.get(name)
        if brief is None:
            return self.index[name], arrival, estimates[name]
        tokens = max(1, round(arrival.output_tokens * brief.budget.output_factor))
        cut = arrival._replace(output_tokens=min(tokens, brief.budget.max_tokens or tokens))
        return self.index[brief.backend], cut, estimates[name]

    def named(self, name: str) -> int:
        """The place of a candidate's name in the choices."""
        if name in self.index:
            return self.index[name]
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def candidates(self, asked: str) -> tuple[list[int], list[Backend]]:
        """The backends that a model name leaves open, with their places; all of them for a name
        that none serves, so that the refusal says so."""
        every = range(len(self.backends))
        places = [
            i for i in every if self.beyond or is_open(asked) or serves(self.backends[i], asked)
        ]
        places = places or list(every)
        self.asked[asked] = found = (places, [self.backends[i] for i in places])
        return found

    def serve(
        self, key: int, arrival: Arrival, place: int, estimate: Estimate, at_s: float
    ) -> None:
        """One answer, whether it is the client's or one that fails its checks."""
        backend, engine = self.backends[place], self.engines[place]
        if estimate.energy_j is not None:
            for end, energy_j in enumerate(estimate.energy_j):
                self.energies[end] += energy_j
        if self.money_usd is not None:
            price = _price(backend, arrival)
            self.money_usd = None if price is None else self.money_usd + price
        if engine is not None:
            self.note(engine.advance(at_s))
            engine.submit(key, arrival.prompt_tokens, arrival.output_tokens)
            self.loads[place] = engine.load
            return
        if estimate.energy_j is None:
            self.unknown_energy = True
        else:
            self.outside_j[place] = self.outside_j.get(place, 0.0) + estimate.energy_j.mid
        began_s = self.began_s.get(key, at_s)
        latency_s = 0.0 if estimate.latency_s is None else estimate.latency_s.mid
        if key in self.second:
            self.note([Served(key, at_s, at_s, at_s + latency_s)])
            return
        if estimate.latency_s is not None:
            self.latency_s.append(at_s - began_s + latency_s)
        if estimate.ttft_s is not None:
            self.ttft_s.append(at_s - began_s + estimate.ttft_s.mid)

    def answer(self, estimate: Estimate, team: str) -> None:
        """What the client gets in the end."""
        if estimate.quality is not None:
            self.quality_known += 1
            for end, quality in enumerate(estimate.quality):
                self.quality[end] += quality
            if self.promise is not None:
                self.debts[team] = self.promise.owe(self.debts[team], estimate.quality.mid)

    def note(self, served: Sequence[Served]) -> None:
        for one in served:
            again = self.second.pop(one.key, None)
            if again is not None:  # it fails its checks, and another answers now
                place, arrival, estimate = again
                engine = self.engines[place]
                at_s = one.end_s if engine is None else max(one.end_s, engine.now_s)
                self.serve(one.key, arrival, place, estimate, at_s)
                continue
            arrival_s = self.began_s.pop(one.key, one.arrival_s)
            self.ttft_s.append(one.first_token_s - arrival_s)
            self.latency_s.append(one.end_s - arrival_s)

    def result(self) -> tuple[Replayed, Choices]:
        working = [engine for engine in self.engines if engine is not None]
        while any(engine.next_event_s < float("inf") for engine in working):
            for engine in working:
                # To the end of what it serves, and no idle time beyond the others' ends.
                while engine.next_event_s < float("inf"):
                    self.last_s = max(self.last_s, engine.next_event_s)
                    self.note(engine.advance(engine.next_event_s + 1e-9))
        answered = sum(place >= 0 for place in self.chosen)
        whole = self._energies()
        active = None if self.unknown_energy else sum(self._active().values())
        result = Replayed(
            policy=self.policy.name,
            version=self.policy.version,
            requests=len(self.chosen),
            refused=len(self.chosen) - answered,
            energy_j=None if self.unknown_energy else sum(whole.values()),
            active_energy_j=active,
            energy_per_request_j=self._per_request(active, answered),
            carbon_g=None if self.unknown_energy else self._carbon_g(whole),
            active_carbon_g=None if self.unknown_energy else self._carbon_g(self._active()),
            money_usd=self.money_usd,
            quality=(
                Span(*(total / self.quality_known for total in self.quality))
                if self.quality_known
                else None
            ),
            ttft_s=_quantiles(self.ttft_s),
            latency_s=_quantiles(self.latency_s),
            backends={
                name: count for i, name in enumerate(self.names) if (count := self.chosen.count(i))
            },
            refusals=dict(self.refusals.most_common()),
        )
        return result, Choices(tuple(self.names), self.chosen)

    def _active(self) -> dict[int, float]:
        joules = dict(self.outside_j)
        for place, engine in enumerate(self.engines):
            if engine is not None:
                joules[place] = engine.active_j
        return joules

    def _energies(self) -> dict[int, float]:
        joules = dict(self.outside_j)
        for place, engine in enumerate(self.engines):
            if engine is not None:
                joules[place] = engine.energy_j(self.last_s)
        return joules

    def _carbon_g(self, joules: Mapping[int, float]) -> float | None:
        total = 0.0
        for place, energy_j in joules.items():
            backend = self.backends[place]
            if backend.intensity_g_per_kwh is None:
                return None
            pue = backend.pue or 1.0
            total += operational_g(energy_j, pue, backend.intensity_g_per_kwh)
        return total

    def _per_request(self, active_j: float | None, answered: int) -> Span | None:
        if active_j is None or not answered or self.energies[1] <= 0.0:
            return None
        mean_j = active_j / answered
        low, mid, high = self.energies
        return Span(mean_j * low / mid, mean_j, mean_j * high / mid)


def _engine(
    physics: StepPhysics | None, backend: Backend, sleep: Sleep | None
) -> FluidEngine | None:
    if physics is None:
        return None
    return FluidEngine(physics, backend.max_num_seqs or DEFAULT_SEQS, sleep)


def _price(backend: Backend, arrival: Arrival) -> float | None:
    if backend.input_usd_per_mtok is None or backend.output_usd_per_mtok is None:
        return None
    spent = arrival.prompt_tokens * backend.input_usd_per_mtok
    return (spent + arrival.output_tokens * backend.output_usd_per_mtok) / 1e6


def _quantiles(values: array[float]) -> Quantiles | None:
    if not values:
        return None
    ordered = sorted(values)
    last = len(ordered) - 1
    return Quantiles(*(ordered[round(q * last)] for q in (0.5, 0.95, 0.99)))


def _pass_rate_in(policy: object) -> float | None:
    """The share of first answers expected to pass, of the cascade that a policy rests on or hands
    over to; the proxy, too, knows one for each policy."""
    if isinstance(policy, Cascade):
        return policy.pass_rate
    parts = [getattr(policy, name, None) for name in ("policy", "strategy", "plain", "otherwise")]
    parts += [rule for _, rule in getattr(policy, "rules", ())]
    parts += [arm for arm, _ in getattr(policy, "arms", {}).values()]
    rates = (_pass_rate_in(part) for part in parts if part is not None)
    return next((rate for rate in rates if rate is not None), None)


def _guarantee_in(policy: object) -> Guarantee | None:
    """The guarantee that a policy rests on, if it does: its debt must be kept."""
    while policy is not None:
        if isinstance(policy, Guarantee):
            return policy
        inner = getattr(policy, "policy", None) or getattr(policy, "strategy", None)
        policy = inner or getattr(policy, "plain", None)
    return None
