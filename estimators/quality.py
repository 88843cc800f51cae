"""How good an answer will be, from what is known beforehand and what feedback said since.

The start is the best of: a learnt model (learn-quality) that knows the backend, the figures in
the config, published scores. Feedback moves it in two steps, for the backend as a whole and for
the backend on this kind of task, each shrunk by what the step above it is worth. Pairwise
judgements (pairwise.py) move the backend on their kind of task, by what they are worth. Memory
fades, and fades at once when a backend changes (another engine, precision or model behind the same
name).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import hypot, sqrt
from pathlib import Path

from estimators.prompt_reader import PromptReader
from estimators.quality_priors import Prior, published_prior
from estimators.types import Z_80, Backend, Band, Features

FORMAT = 1
_MEMORY = 500.0  # answers of one backend and task that are remembered
_AFTER_CHANGE = 0.2  # share of the memory that is kept when a backend changes
_CONFIG_WEIGHT = 30.0  # answers that a figure in the config is worth
_CONFIG_ERROR = 0.01  # how exactly it is meant: it tells variants apart until scores contradict
_MODEL_WEIGHT = 100.0  # at most, of a learnt model: its scores were on other traffic
_GUESS = Prior(0.5, 2.0, "nothing known but feedback")
_BACKEND_WEIGHT = 10.0  # answers until feedback on other tasks counts half
_OTHER_TASKS = 10.0  # answers that all other tasks together are worth at most
_JUDGED_WEIGHT = 200.0  # scores that pairwise judgements are worth at most: judges err alike


class _Memory:
    """Fading sum of how much better answers were than expected, and their number."""

    __slots__ = ("excess", "number")

    def __init__(self, excess: float = 0.0, number: float = 0.0) -> None:
        self.excess = excess
        self.number = number

    def add(self, excess: float) -> None:
        keep = 1.0 - 1.0 / _MEMORY
        self.excess = self.excess * keep + excess
        self.number = self.number * keep + 1.0

    def fade(self, share: float) -> None:
        self.excess *= share
        self.number *= share


class QualityEstimator:
    """Implements estimators.types.QualityPredictor; learns from feedback. Not for several threads.

    Bands are 80 % intervals of the mean score on such requests, 0..1.
    """

    version = "quality-1"

    def __init__(self, reader: PromptReader | None = None) -> None:
        self._reader = reader or PromptReader()
        self._overall: dict[str, _Memory] = {}
        self._by_task: dict[tuple[str, str], _Memory] = {}
        self._judged: dict[tuple[str, str], _Memory] = {}  # excess by backend and task
        self._kind: dict[str, str] = {}  # what each backend was when it was last seen
        self._priors: dict[tuple[str, str, str], Prior | None] = {}
        self._seen: dict[str, Backend] = {}
        # Bands that no prompt changes (without a learnt model), until the next score.
        self._bands: dict[tuple[str, str], Band | None] = {}
        self.scored_until_s = 0.0  # Unix time of the last score; whoever teaches sets it

    def predict(self, features: Features, backends: Sequence[Backend]) -> list[Band | None]:
        """One band per backend, in order; None where nothing at all is known of it."""
        task = self._reader.task(features)
        if self._reader.model is not None:
            return [self._band(features, task, backend) for backend in backends]
        found: list[Band | None] = []
        for backend in backends:
            key = (backend.name, task)
            if self._seen.get(backend.name) is not backend or key not in self._bands:
                self._bands[key] = self._band(features, task, backend)
            found.append(self._bands[key])
        return found

    def learn(self, backend: Backend, features: Features, score: float) -> None:
        """Take one score, 0..1, of one answer in. Raises ValueError outside of that."""
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"a score is 0 to 1, not {score}")
        self._notice(backend)
        task = self._reader.task(features)
        prior = self._prior(features, task, backend) or _GUESS
        overall = self._overall.setdefault(backend.name, _Memory())
        own = self._by_task.setdefault((backend.name, task), _Memory())
        overall.add(score - prior.mean)
        own.add(score - prior.mean)
        self._bands.clear()

    def judge(
        self, backend: Backend, task: str, expected: float, mean: float, weight: float
    ) -> None:
        """Take over what pairwise judgements say: ``mean`` where ``expected`` was predicted, both
        0..1, worth ``weight`` scores. Replaces what earlier judgements said of this task."""
        self._notice(backend)
        number = min(weight, _JUDGED_WEIGHT)
        self._judged[backend.name, task] = _Memory((mean - expected) * number, number)
        self._bands.clear()

    def unjudged(self, features: Features, backend: Backend) -> float | None:
        """The predicted quality without pairwise judgements; None where nothing is known."""
        band = self._band(features, self._reader.task(features), backend, judged=False)
        return None if band is None else band.mid

    def changed(self, backend: str) -> None:
        """Another model or engine answers behind this name: keep a fifth of what was learnt."""
        self._bands.clear()
        if backend in self._overall:
            self._overall[backend].fade(_AFTER_CHANGE)
        for memories in (self._by_task, self._judged):
            for (name, _), memory in memories.items():
                if name == backend:
                    memory.fade(_AFTER_CHANGE)

    def source(self, features: Features, backend: Backend) -> str:
        """In a few words, where the figure comes from."""
        task = self._reader.task(features)
        prior = self._prior(features, task, backend)
        memory = self._by_task.get((backend.name, task)) or self._overall.get(backend.name)
        told = f"{memory.number:.0f} scores" if memory and memory.number >= 1 else ""
        judged = "judged pairs" if (backend.name, task) in self._judged else ""
        parts = [part for part in ("" if prior is None else prior.source, told, judged) if part]
        return " and ".join(parts) or "unknown"

    def save(self, path: str | Path) -> None:
        """Write what feedback taught, as JSON."""
        state = {
            "format": FORMAT,
            "kind": self._kind,
            "scored_until_s": self.scored_until_s,
            "overall": [[name, m.excess, m.number] for name, m in self._overall.items()],
            "by_task": [[*key, m.excess, m.number] for key, m in self._by_task.items()],
            "judged": [[*key, m.excess, m.number] for key, m in self._judged.items()],
        }
        Path(path).write_text(json.dumps(state), encoding="utf-8")

    def load(self, path: str | Path) -> None:
        """Read what save wrote. Raises ValueError if it is something else, or OSError."""
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{path} is no state of this version of the quality estimator")
        self._kind = dict(state["kind"])
        self.scored_until_s = float(state.get("scored_until_s", 0.0))
        self._overall = {name: _Memory(e, n) for name, e, n in state["overall"]}
        self._by_task = {(name, task): _Memory(e, n) for name, task, e, n in state["by_task"]}
        judged = state.get("judged", ())
        self._judged = {(name, task): _Memory(e, n) for name, task, e, n in judged}
        self._bands.clear()

    def _band(
        self, features: Features, task: str, backend: Backend, judged: bool = True
    ) -> Band | None:
        self._notice(backend)
        prior = self._prior(features, task, backend)
        overall = self._overall.get(backend.name)
        pairs = self._judged.get((backend.name, task)) if judged else None
        if prior is None:
            if (overall is None or overall.number < 0.5) and pairs is None:
                return None
            prior = _GUESS
        mean, weight = prior.mean, prior.weight
        if overall is not None:
            own = self._by_task.get((backend.name, task))
            excess, number = (0.0, 0.0) if own is None else (own.excess, own.number)
            # What other tasks say is worth a few answers; what this task says, each answer one.
            general = overall.excess / (overall.number + _BACKEND_WEIGHT)
            others = min(max(overall.number - number, 0.0), _OTHER_TASKS)
            mean += general + (excess - number * general) / (number + weight + others)
            weight += number + others
        if pairs is not None:
            mean += pairs.excess / (weight + pairs.number)
            weight += pairs.number
        mid = min(max(mean, 0.0), 1.0)
        spread = max(mid * (1.0 - mid), 0.02)
        reach = Z_80 * sqrt(spread / (weight + 1.0))
        if prior.error is not None:
            # As sure as it was published, while what was learnt here agrees with it.
            reach = min(reach, hypot(Z_80 * prior.error, mid - prior.mean))
        return Band(max(mid - reach, 0.0), mid, min(mid + reach, 1.0))

    def _prior(self, features: Features, task: str, backend: Backend) -> Prior | None:
        row = self._reader.row(backend)
        if row is not None:
            said = self._reader.prediction(features)
            if said is not None and said.quality is not None:
                low, mid, high = said.quality[row].tolist()
                error = max((high - low) / (2 * Z_80), 1e-3)
                worth = min(max(mid * (1.0 - mid), 0.02) / error**2, _MODEL_WEIGHT)
                return Prior(mid, worth, "scored outcomes")
        stated = backend.quality_by_task.get(task, backend.quality)
        if stated is not None:
            known = task if task in backend.quality_by_task else ""
            error = backend.quality_error.get(known)
            source = "the config" if error is None else "a prompt set"
            return Prior(stated, _CONFIG_WEIGHT, source, error or _CONFIG_ERROR)
        key = backend.name, backend.precision, task
        if key not in self._priors:
            model = backend.provider_model or backend.group
            self._priors[key] = published_prior(model, backend.precision, task)
        return self._priors[key]

    def _notice(self, backend: Backend) -> None:
        if self._seen.get(backend.name) is backend:
            return
        self._seen[backend.name] = backend
        self._bands.clear()
        kind = kind_of(backend)
        before = self._kind.get(backend.name)
        if before != kind:
            self._kind[backend.name] = kind
            if before is not None:
                self.changed(backend.name)


def kind_of(backend: Backend) -> str:
    """What answers behind a backend's name: when it changes, what was learnt fades."""
    return f"{backend.group} {backend.precision} {backend.engine} {backend.provider_model}"
