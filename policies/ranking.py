"""What every strategy that ranks has in common: fit, drop the dominated, order, explain.

A strategy says with one number how good a candidate is (``score``, less is better). Here the
candidates that fit are put in that order, ties broken by all their other figures and at last by
name, so that the order in which candidates arrive never matters. Because a candidate's score
depends on itself alone, taking others away never changes the order of those left: that is why a
tighter limit can only lower what it limits. Hysteresis and sessions keep to that: they change the
score of one candidate, the one that is held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from policies.limits import fitting, is_open, names_variant, only_asked, serves
from policies.session import FREE, HOLD, STAYING, WEIGH, home, moving, turns_to_come
from policies.types import (
    Candidate,
    Decision,
    Limits,
    NoBackendWithinLimits,
    Rejection,
    Request,
)

INF = math.inf
HELD = 1e9  # what a held session's backend is ahead by: more than any score, and exact to 1e-7

# What bringing a sleeping engine back costs, per GPU: about 30 s at the 60 W that an A100 or H100
# idles at (59-62 W measured) while its weights are loaded and nobody is served.
WAKE_J_PER_GPU = 30.0 * 60.0


class Figures(NamedTuple):
    """What candidates are compared by; less is better throughout, infinity is unknown.

    Energy and carbon are marginal: what serving this request adds. Where an engine's marginal
    energy is unknown its attributed energy stands in, which is higher.
    """

    energy_j: float
    carbon_g: float
    money_usd: float
    latency_s: float
    ttft_s: float
    minus_quality: float


# Key to sort by, figures, name, score: the key is the score unless the backend is held.
Place = tuple[float, Figures, str, float]


class Words(NamedTuple):
    """How a strategy talks about its figure: "the least **marginal energy**", "40.3 **J**"."""

    best: str  # "least marginal energy"
    verb: str  # "would add"
    unit: str  # "J"
    signed: bool = False  # the score is no amount, and may lie below zero

    def of(self, score: float) -> str:
        """What a candidate does that has this score: "would add 40.3 J"."""
        if score == INF:
            return f"{self.verb} an unknown amount"
        return f"{self.verb} {score if self.signed else abs(score):.3g}{self.unit}"


def figures(candidate: Candidate) -> Figures:
    """The middle figures of one candidate; waking a sleeping engine is part of its energy."""
    # Read straight through: this runs for each candidate of each request.
    estimate = candidate.estimate
    attributed = estimate.energy_j
    marginal = estimate.marginal_energy_j or attributed
    carbon = estimate.carbon_g
    energy_j = INF if marginal is None else marginal.mid
    carbon_g = INF if carbon is None else carbon.mid
    if candidate.load.asleep:
        energy_j += WAKE_J_PER_GPU * candidate.backend.num_gpus
    if carbon is not None and attributed is not None and attributed.mid > 0.0:
        carbon_g = energy_j * (carbon.mid / attributed.mid)
    money, latency, ttft, quality = (
        estimate.money_usd,
        estimate.latency_s,
        estimate.ttft_s,
        estimate.quality,
    )
    return Figures(
        energy_j,
        carbon_g,
        INF if money is None else money.mid,
        INF if latency is None else latency.mid,
        INF if ttft is None else ttft.mid,
        INF if quality is None else -quality.mid,
    )


def dominates(a: Figures, b: Figures) -> bool:
    """Whether ``a`` is at least as good as ``b`` in every figure and better in one.

    A figure that only one of them has compares with nothing, so there is no domination; one that
    neither has is left out.
    """
    a0, a1, a2, a3, a4, a5 = a
    b0, b1, b2, b3, b4, b5 = b
    if not (a0 <= b0 and a1 <= b1 and a2 <= b2 and a3 <= b3 and a4 <= b4 and a5 <= b5):
        return False
    if INF in b and any(y == INF and x != INF for x, y in zip(a, b, strict=True)):
        return False
    return a != b


class Ranked:
    """Base of the strategies that order candidates by one score."""

    name = "ranked"
    version = ""
    words = Words("lowest score", "scores", "", signed=True)
    asked_only = False  # True: never another model than the client's name means

    def __init__(
        self, asked_only: bool = False, session: str = WEIGH, hysteresis: float = 0.0
    ) -> None:
        self.asked_only = asked_only or type(self).asked_only
        self.session = session  # HOLD, WEIGH or FREE of session.py
        self.hysteresis = hysteresis  # how much better another must be, as a share, to move there

    def handicap(self, score: float, share: float) -> float:
        """A score made better by a share of itself; what hysteresis gives the one that is held."""
        return score - share * abs(score)

    def score(self, request: Request, of: Figures) -> float:
        """How bad a candidate is for this request; infinity when its figure is unknown."""
        raise NotImplementedError

    def eligible(
        self, request: Request, candidates: Sequence[Candidate], limits: Limits
    ) -> tuple[Sequence[Candidate], list[Rejection]]:
        """The candidates that may be ranked, and why each other one may not.

        A variant that the client named is kept to by every strategy.
        """
        fits, rejections = fitting(request, candidates, limits)
        if self.asked_only or names_variant(request, candidates):
            return only_asked(request, fits, rejections)
        return fits, rejections

    def choose(self, request: Request, candidates: Sequence[Candidate], limits: Limits) -> Decision:
        """The candidate with the lowest score among those that fit."""
        fits, rejections = self.eligible(request, candidates, limits)
        if not fits:
            raise NoBackendWithinLimits(sorted(rejections, key=_by_backend))
        score = self.score
        session_at, last_at = request.session_backend, request.previous_backend
        weigh = session_at is not None and self.session != FREE
        ranked: list[Place] = []
        for candidate in fits:
            name = candidate.backend.name
            of = figures(candidate)
            if weigh:
                of = _moved(request, candidate, of)
            key = value = score(request, of)
            if session_at is not None and self.session == HOLD:
                # One that sleeps has let go of its cache.
                if home(candidate.backend) == session_at and not candidate.load.asleep:
                    key = -HELD if value == INF else value - HELD
            elif name == last_at and self.hysteresis and value != INF:
                key = self.handicap(value, self.hysteresis)
            ranked.append((key, of, name, value))
        ranked.sort()
        _, best_of, chosen, best = ranked[0]
        front = [(best_of, chosen)]
        for _, of, name, value in ranked[1:]:
            # A dominating candidate always comes earlier: it sorts first by score or by figures.
            for better, by in front:
                if (
                    better[0] <= of[0]
                    and better[5] <= of[5]
                    and better[3] <= of[3]
                    and dominates(better, of)
                ):
                    rejections.append(_dominated(name, of, by, better))
                    break
            else:
                front.append((of, name))
                rejections.append(self._not_chosen(name, value, chosen, best))
        rejections.sort(key=_by_backend)
        if weigh or self.hysteresis:
            return self._held(request, candidates, ranked, rejections)
        return Decision(
            chosen=chosen,
            order=tuple(name for _, _, name, _ in ranked),
            policy=self.name,
            version=self.version,
            reason=self._reason(chosen, best, len(ranked)),
            rejections=tuple(rejections),
            counterfactual=counterfactual(request, candidates),
        )

    def _held(
        self,
        request: Request,
        candidates: Sequence[Candidate],
        ranked: list[Place],
        rejections: list[Rejection],
    ) -> Decision:
        """The decision where a session or the last choice had a say, and what say it was."""
        chosen, value = ranked[0][2:]
        kept = reason = None
        if len(ranked) > 1:
            other, of, name = min((score, o, n) for _, o, n, score in ranked[1:])
            if (other, of, name) < (value, ranked[0][1], chosen):
                at_home = {c.backend.name: home(c.backend) for c in candidates}
                kept = "session" if at_home[chosen] == request.session_backend else "hysteresis"
                why = "the session's prefix is cached there"
                if kept == "hysteresis":
                    why = (
                        f"the last request went there and that is not {self.hysteresis:.0%} better"
                    )
                mine, others = self.words.of(value), self.words.of(other)
                reason = f"{chosen} {mine}; {name} {others}, but {why}"
        return Decision(
            chosen=chosen,
            order=tuple(name for _, _, name, _ in ranked),
            policy=self.name,
            version=self.version,
            reason=reason or self._reason(chosen, value, len(ranked)),
            rejections=tuple(rejections),
            counterfactual=counterfactual(request, candidates),
            moving_energy_j=_moving_energy_j(request, candidates, ranked),
            kept=kept,
        )

    def _reason(self, chosen: str, best: float, fitted: int) -> str:
        if best == INF:
            return f"{chosen} fits the limits; no candidate's figures say which is better"
        words = self.words
        among = f"of the {fitted} that fit" if fitted > 1 else "and the only one that fits"
        return f"{chosen} {words.of(best)}, the {words.best} {among}"

    def _not_chosen(self, name: str, value: float, chosen: str, best: float) -> Rejection:
        words = self.words
        if value == INF:
            return Rejection(name, "figure_unknown", "its figure is unknown, so it ranks last")
        return Rejection(name, "not_chosen", f"{words.of(value)}; {chosen} {words.of(best)}")


def counterfactual(request: Request, candidates: Sequence[Candidate]) -> str | None:
    """What would have served without us: the best variant of what was asked for.

    Where the model was left open, that of what was declared, else the best candidate of all.
    Limits do not apply to it. None when nothing of that is among the candidates.
    """
    asked = request.without_us if is_open(request.asked) else request.asked
    found: tuple[float, str] | None = None
    for candidate in candidates:
        backend = candidate.backend
        if backend.answer_budget is not None:
            continue  # nobody asked for a shorter answer
        if asked is None or serves(backend, asked):
            if backend.name == asked:
                return asked
            quality = candidate.estimate.quality
            key = (0.0 if quality is None else -quality.mid, backend.name)
            if found is None or key < found:
                found = key
    return None if found is None else found[1]


def _moved(request: Request, candidate: Candidate, of: Figures) -> Figures:
    """The figures with what moving the session there adds, spread over the turns to come."""
    cost = moving(request, candidate)
    if cost is None or cost is STAYING:
        return of
    energy_j = of.energy_j + cost.energy_j / turns_to_come(request)
    carbon_g = of.carbon_g
    if carbon_g != INF and 0.0 < of.energy_j < INF:
        carbon_g *= energy_j / of.energy_j
    return Figures(
        energy_j,
        carbon_g,
        of.money_usd,
        of.latency_s + cost.time_s,
        of.ttft_s + cost.time_s,
        of.minus_quality,
    )


def _moving_energy_j(
    request: Request, candidates: Sequence[Candidate], ranked: list[Place]
) -> float | None:
    """What the move adds, when there is one; else what one to the next in order would add."""
    if request.session_backend is None:
        return None
    homes = [c for c in candidates if home(c.backend) == request.session_backend]
    if any(c.load.asleep for c in homes):
        return None  # there is nothing to leave
    at_home = {c.backend.name for c in homes}
    names = [name for _, _, name, _ in ranked if name not in at_home]
    if not names:
        return None
    target = next(c for c in candidates if c.backend.name == names[0])
    cost = moving(request, target)
    return None if cost is None else cost.energy_j


_FIGURE_WORDS = (
    ("marginal energy", "J"),
    ("carbon", "g"),
    ("money", "USD"),
    ("latency", "s"),
    ("time to the first token", "s"),
    ("quality", ""),
)


def _dominated(name: str, of: Figures, by: str, better: Figures) -> Rejection:
    for index in range(6):
        if better[index] < of[index]:
            word, unit = _FIGURE_WORDS[index]
            ours, theirs = abs(of[index]), abs(better[index])
            return Rejection(
                name,
                "dominated",
                f"better in nothing than {by} and worse in {word}: "
                f"{ours:.3g} against {theirs:.3g} {unit}".rstrip(),
            )
    raise AssertionError("called for a candidate that is not dominated")


def _by_backend(rejection: Rejection) -> str:
    return rejection.backend
