"""Conditions: when a rule of a policy applies. All that are given must hold."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from policies.types import Candidate, Request
from policies.wording import Hours, Path, PolicyError, Range, hours, mapping, span, words

KEYS = ("team", "tag", "task", "model", "prompt_tokens", "hour", "intensity", "budget_left")


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """What must be true of a request; None asks for nothing.

    An unknown hour, task, intensity or budget fulfils no condition on it.
    """

    team: tuple[str, ...] | None = None  # one of them
    tag: tuple[str, ...] | None = None  # one of them among the request's tags
    task: tuple[str, ...] | None = None
    model: tuple[str, ...] | None = None  # the name the client asked for
    prompt_tokens: Range | None = None
    hour: Hours | None = None  # of the team's day
    intensity: Range | None = None  # g/kWh
    budget_left: Range | None = None  # 0..1

    def holds(self, request: Request, candidates: Sequence[Candidate]) -> bool:
        """Whether the rule applies to this request."""
        features = request.features
        if self.team is not None and request.team not in self.team:
            return False
        if self.tag is not None and not any(tag in self.tag for tag in request.tags):
            return False
        if self.task is not None and features.task not in self.task:
            return False
        if self.model is not None and request.asked not in self.model:
            return False
        if self.prompt_tokens is not None and not self.prompt_tokens.holds(features.prompt_tokens):
            return False
        if self.hour is not None and (request.hour is None or not self.hour.holds(request.hour)):
            return False
        if self.budget_left is not None and (
            request.budget_left is None or not self.budget_left.holds(request.budget_left)
        ):
            return False
        if self.intensity is None:
            return True
        intensity = intensity_g_per_kwh(request, candidates)
        return intensity is not None and self.intensity.holds(intensity)


def intensity_g_per_kwh(request: Request, candidates: Sequence[Candidate]) -> float | None:
    """The grid's intensity now: the team's own, else the cleanest of the candidates' grids."""
    if request.intensity_g_per_kwh is not None:
        return request.intensity_g_per_kwh
    known = [
        c.backend.intensity_g_per_kwh
        for c in candidates
        if c.backend.intensity_g_per_kwh is not None
    ]
    return min(known, default=None)


def condition(value: object, path: Path) -> Condition:
    """Reads a ``when:``. Raises PolicyError."""
    asked = mapping(value, KEYS, path)
    if not asked:
        raise PolicyError(path, "asks for nothing, so the rule would always apply")

    def names(key: str) -> tuple[str, ...] | None:
        return words(asked[key], (*path, key)) if key in asked else None

    def numbers(key: str, share: bool = False) -> Range | None:
        return span(asked[key], (*path, key), share) if key in asked else None

    left = numbers("budget_left", True)
    if left is not None and max(left.low or 0.0, left.high or 0.0) > 1.0:
        message = f"is a share of the budget: write {str(asked['budget_left']).strip()} %"
        raise PolicyError((*path, "budget_left"), message)

    return Condition(
        team=names("team"),
        tag=names("tag"),
        task=names("task"),
        model=names("model"),
        prompt_tokens=numbers("prompt_tokens"),
        hour=hours(asked["hour"], (*path, "hour")) if "hour" in asked else None,
        intensity=numbers("intensity"),
        budget_left=left,
    )
