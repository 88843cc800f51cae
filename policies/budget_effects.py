"""What answer budgets do to length and quality, learnt from answers like a backend's own.

The effect is a factor on what the same backend gives without the budget. It starts at what the
config expects, moves with every answer that was given under the budget and every score of one,
and is kept for each backend and, shrunk towards that, for each kind of task.
"""

from __future__ import annotations

import msgspec

from policies.answer_budget import AnswerBudget

WEIGHTS = (10.0, 6.0)  # answers that the config's figure weighs, and the backend's for a task
MEMORY = 400.0  # answers that a factor remembers
MOST_TASKS = 4096

Key = tuple[str, str]  # backend and budget, task or ""


class Factor(msgspec.Struct, frozen=True):
    """A running sum of ratios, of length or of quality, with and without the budget."""

    total: float = 0.0
    answers: float = 0.0

    def of(self, prior: float, weight: float) -> float:
        return (self.total + weight * prior) / (self.answers + weight)

    def after(self, ratio: float) -> Factor:
        keep = 1.0 - 1.0 / MEMORY
        return Factor(self.total * keep + ratio, self.answers * keep + 1.0)


NOTHING = Factor()


class BudgetEffects:
    """The effects of all budgets on all backends. Not for several threads."""

    def __init__(self) -> None:
        self.lengths: dict[Key, Factor] = {}
        self.qualities: dict[Key, Factor] = {}

    def learnt(self, backend: str, budget: AnswerBudget, task: str | None) -> AnswerBudget:
        """The budget with the factors that are known by now; the same where none are."""
        name = f"{backend}+{budget.name}"
        return msgspec.structs.replace(
            budget,
            output_factor=_factor(self.lengths, name, task, budget.output_factor),
            quality_factor=_factor(self.qualities, name, task, budget.quality_factor),
        )

    def answered(self, variant: str, task: str | None, tokens: float, without: float) -> None:
        """An answer of so many tokens where one ``without`` the budget is expected to have more."""
        if without > 0.0:
            _add(self.lengths, variant, task, tokens / without)

    def scored(self, variant: str, task: str | None, score: float, without: float) -> None:
        """An answer of that score, 0 to 1, where ``without`` is expected without the budget."""
        if without > 0.0:
            _add(self.qualities, variant, task, score / without)

    def to_json(self) -> bytes:
        rows = [
            [[*key, factor.total, factor.answers] for key, factor in kept.items()]
            for kept in (self.lengths, self.qualities)
        ]
        return msgspec.json.encode(rows)

    def take_json(self, text: bytes) -> None:
        """Raises msgspec.MsgspecError for what this did not write."""
        kept = msgspec.json.decode(text, type=list[list[tuple[str, str, float, float]]])
        for mine, rows in zip((self.lengths, self.qualities), kept, strict=False):
            mine.update({(name, task): Factor(total, n) for name, task, total, n in rows})


def _factor(kept: dict[Key, Factor], name: str, task: str | None, prior: float) -> float:
    everywhere = kept.get((name, ""))
    if everywhere is None:
        return prior
    factor = everywhere.of(prior, WEIGHTS[0])
    own = kept.get((name, task or ""), NOTHING) if task else NOTHING
    return own.of(factor, WEIGHTS[1])


def _add(kept: dict[Key, Factor], name: str, task: str | None, ratio: float) -> None:
    for key in {(name, ""), (name, task or "")}:
        if key in kept or len(kept) < MOST_TASKS:
            kept[key] = kept.get(key, NOTHING).after(ratio)
