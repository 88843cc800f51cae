"""What every strategy that ranks has in common: fit, drop the dominated, order, explain.

A strategy says with one number how good a candidate is (``score``, less is better). Here the
candidates that fit are put in that order, ties broken by all their other figures and at last by
name, so that the order in which candidates arrive never matters. Because a candidate's score
depends on itself alone, taking others away never changes the order of those left: that is why a
tighter limit can only lower what it limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from policies.limits import fitting, is_open, names_variant, only_asked, serves
from policies.types import (
    Candidate,
    Decision,
    Limits,
    NoBackendWithinLimits,
    Rejection,
    Request,
)

INF = math.inf

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


class Words(NamedTuple):
    """How a strategy talks about its figure: "the least **marginal energy**", "40.3 **J**"."""

    best: str  # "least marginal energy"
    verb: str  # "would add"
    unit: str  # "J"


def figures(candidate: Candidate) -> Figures:
    """The middle figures of one candidate; waking a sleeping engine is part of its energy."""
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
    better = False
    for x, y in zip(a, b, strict=True):
        if x > y or (y == INF and x != INF):
            return False
        better = better or x < y
    return better


class Ranked:
    """Base of the strategies that order candidates by one score."""

    name = "ranked"
    version = ""
    words = Words("lowest score", "scores", "")
    asked_only = False  # True: never another model than the client's name means

    def __init__(self, asked_only: bool = False) -> None:
        self.asked_only = asked_only or type(self).asked_only

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
        ranked = []
        for candidate in fits:
            of = figures(candidate)
            ranked.append((score(request, of), of, candidate.backend.name))
        ranked.sort()
        best, best_of, chosen = ranked[0]
        front = [(best_of, chosen)]
        for value, of, name in ranked[1:]:
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
        return Decision(
            chosen=chosen,
            order=tuple(name for _, _, name in ranked),
            policy=self.name,
            version=self.version,
            reason=self._reason(chosen, best, len(ranked)),
            rejections=tuple(rejections),
            counterfactual=counterfactual(request, candidates),
        )

    def _reason(self, chosen: str, best: float, fitted: int) -> str:
        if best == INF:
            return f"{chosen} fits the limits; no candidate's figures say which is better"
        words = self.words
        among = f"of the {fitted} that fit" if fitted > 1 else "and the only one that fits"
        return f"{chosen} {words.verb} {abs(best):.3g}{words.unit}, the {words.best} {among}"

    def _not_chosen(self, name: str, value: float, chosen: str, best: float) -> Rejection:
        words = self.words
        if value == INF:
            return Rejection(name, "figure_unknown", "its figure is unknown, so it ranks last")
        return Rejection(
            name,
            "not_chosen",
            f"{words.verb} {abs(value):.3g}{words.unit}; "
            f"{chosen} {words.verb} {abs(best):.3g}{words.unit}",
        )


def counterfactual(request: Request, candidates: Sequence[Candidate]) -> str | None:
    """What would have served without us: the best variant of what was asked for.

    Where the model was left open, the best candidate of all. Limits do not apply to it. None when
    nothing asked for is among the candidates.
    """
    asked = None if is_open(request.asked) else request.asked
    found: tuple[float, str] | None = None
    for candidate in candidates:
        backend = candidate.backend
        if asked is None or serves(backend, asked):
            if backend.name == asked:
                return asked
            quality = candidate.estimate.quality
            key = (0.0 if quality is None else -quality.mid, backend.name)
            if found is None or key < found:
                found = key
    return None if found is None else found[1]


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
