"""The estimators of one proxy: energy with the lengths and qualities it needs, what is learnt of
each, and where that is kept between runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from estimators.choices import UnknownEstimator, estimator_named
from estimators.energy import EnergyEstimator
from estimators.length import LengthEstimator
from estimators.prompt_reader import PromptReader
from estimators.quality import QualityEstimator
from estimators.quality_model import QualityModel, UnreadableModel
from estimators.types import Backend, Estimate, Features, Load, Outcome
from meters.types import StepPhysics
from meters.unreadable import UNREADABLE
from meters.whole_file import write_whole
from policies.budget_effects import BudgetEffects
from proxy.config_file import ConfigError, Document, Problem
from proxy.settings import Settings

log = logging.getLogger("joulegate.predicting")

BUDGETS = "answer_budgets.json"
LearntPhysics = Callable[[str], StepPhysics | None]


class Learnt(Protocol):
    """What can be kept in a file."""

    def save(self, path: str | Path) -> None: ...

    def load(self, path: str | Path) -> None: ...


class Predictors:
    """Implements estimators.types.Estimator with everything behind it.

    ``folder`` keeps what was learnt; None keeps nothing. ``model`` is a file of learn-quality,
    ``estimator`` a name of estimators.choices or an import string.
    Used from the event loop only.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        learnt: LearntPhysics | None = None,
        folder: Path | None = None,
        estimator: str = "energy",
    ) -> None:
        reader = PromptReader(None if model is None else QualityModel.load(model))
        self.lengths = LengthEstimator(reader)
        self.quality = QualityEstimator(reader)
        self.effects = BudgetEffects()
        self.energy = estimator_named(estimator)(
            lengths=self.lengths, quality=self.quality, learnt=learnt
        )
        self.version = self.energy.version
        self.folder = folder
        self._facts: dict[str, Backend] = {}
        self._prior: EnergyEstimator | None = None
        self._taught_until_s: dict[str, float] = {}
        self._load()

    def know(self, backends: Iterable[Backend]) -> None:
        """Work out what does not depend on a request. Takes some time: not on the event loop."""
        known = list(backends)
        self._facts = {backend.name: backend for backend in known}
        self.prepare(known)

    def prepare(self, backends: Sequence[Backend]) -> None:
        """Work out what does not depend on a request, where the estimator does that."""
        if isinstance(self.energy, EnergyEstimator):
            self.energy.prepare(backends)

    def physics(self, backend: Backend) -> StepPhysics | None:
        """The prior's step physics of a backend, whatever estimates; windows are divided by it."""
        if not isinstance(self.energy, EnergyEstimator):
            self._prior = self._prior or EnergyEstimator()
            return self._prior.physics(backend)
        return self.energy.physics(backend)

    def estimate(
        self, features: Features, backends: Sequence[Backend], loads: Sequence[Load]
    ) -> list[Estimate]:
        return self.energy.estimate(features, backends, loads)

    def at_lengths(
        self, features: Features, backend: Backend, load: Load, output_tokens: int
    ) -> Estimate:
        """What a request takes whose tokens have been counted."""
        if isinstance(self.energy, EnergyEstimator):
            return self.energy.at_lengths(features, backend, load, output_tokens)
        capped = msgspec.structs.replace(features, max_tokens=output_tokens)
        [found] = self.energy.estimate(capped, [backend], [load])
        return found

    def learn(self, outcome: Outcome) -> None:
        """Teach each of them what the outcome has to say."""
        self.energy.learn(outcome)
        facts = self._facts.get(outcome.backend)
        if facts is None:
            return
        if outcome.answer_budget is not None:
            self._learn_budget(facts, outcome)
            return
        if outcome.output_tokens is not None:
            self.lengths.learn(facts, outcome.features, outcome.output_tokens)
        if outcome.score is not None:
            self.quality.learn(facts, outcome.features, outcome.score)

    def learn_energy(self, outcome: Outcome) -> None:
        """Teach what an answer took, whose length was learnt where it was served."""
        self.energy.learn(outcome)

    @property
    def taught_until_s(self) -> dict[str, float]:
        """By node until when, Unix time, answers were learnt from; kept with what they taught."""
        if isinstance(self.energy, EnergyEstimator):
            return self.energy.taught_until_s
        return self._taught_until_s

    def _learn_budget(self, facts: Backend, outcome: Outcome) -> None:
        """A shorter answer says what the budget does, not what the backend does without it."""
        told, name = outcome.features, f"{facts.name}+{outcome.answer_budget}"
        if outcome.output_tokens is not None:
            (lengths,) = self.lengths.predict(told, [facts])
            self.effects.answered(name, told.task, outcome.output_tokens / told.n, lengths.mean)
        if outcome.score is not None:
            (quality,) = self.quality.predict(told, [facts])
            if quality is not None:
                self.effects.scored(name, told.task, outcome.score, quality.mid)

    def save(self) -> None:
        """Keep what was learnt. A failure is logged, and costs only what was learnt since."""
        if self.folder is None:
            return
        self._save_budgets(self.folder / BUDGETS)
        for name, part in self._parts():
            fresh = self.folder / f"{name}.new"
            try:
                part.save(fresh)
                fresh.replace(self.folder / name)
            except OSError as error:
                log.warning("what was learnt cannot be kept in %s: %s", self.folder, error)

    def _parts(self) -> Iterator[tuple[str, Learnt]]:
        yield "lengths.json", self.lengths
        yield "quality.json", self.quality
        if isinstance(self.energy, EnergyEstimator):
            yield "energy.json", self.energy

    def _save_budgets(self, path: Path) -> None:
        try:
            write_whole(path, self.effects.to_json())
        except OSError as error:
            log.warning("what answer budgets do cannot be kept in %s: %s", path, error)

    def _load(self) -> None:
        if self.folder is None:
            return
        budgets = self.folder / BUDGETS
        try:
            if budgets.exists():
                self.effects.take_json(budgets.read_bytes())
        except (OSError, *UNREADABLE) as error:
            log.warning("%s is not used (%s); learning starts anew", budgets, error)
        for name, part in self._parts():
            path = self.folder / name
            if not path.exists():
                continue
            try:
                part.load(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s is not used (%s); learning starts anew", path, error)


def check_model(settings: Settings, document: Document | None) -> None:
    """Raises ConfigError where the estimator or the quality model that is named cannot be used."""
    try:
        estimator_named(settings.estimator)
    except UnknownEstimator as error:
        line = document.line(("estimator",)) if document else 0
        raise ConfigError(
            document.path if document else "config", [Problem(line, "estimator", str(error))]
        ) from None
    if settings.quality_model is None:
        return
    try:
        QualityModel.load(settings.quality_model)
    except (UnreadableModel, OSError) as error:
        line = document.line(("quality_model",)) if document else 0
        raise ConfigError(
            document.path if document else "config", [Problem(line, "quality_model", str(error))]
        ) from None
