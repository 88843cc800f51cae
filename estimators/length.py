"""How many tokens an answer will have: unknown beforehand, and what drives its energy.

All in logarithms. The start is a learnt model (learn-quality) that knows the backend, else what is
usual for the kind of task. What answers since have shown moves it step by step: all answers to
this kind of task, this backend, this backend on this kind, this team, and requests that begin
alike (one application's); each step is shrunk and takes what those before it left over. The width
of the bands follows the misses: as soon as more or fewer than one answer in five falls outside,
bands widen or narrow, for this kind of task, this backend and everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import erf, exp, expm1, log, log1p, pi, sqrt
from pathlib import Path
from typing import NamedTuple

from estimators.prompt_reader import PromptReader
from estimators.types import Z_80, Backend, Features, Lengths

FORMAT = 1
# Median and standard deviation of log(1 + tokens) by coarse task, over the models and prompts of
# Arena-Hard (danielwetzel/arena-hard-auto @90fa399, Apache-2.0: chat, code, writing, extraction),
# MMLU-Pro (TIGER-AI-Lab/MMLU-Pro @f418b11, Apache-2.0: choice) and ZeroEval's GSM8K and MATH
# (WildEval/ZeroEval @8c1485e, Apache-2.0: math, question). benchmarks/routing.py --priors prints
# them. A prior for want of anything better: the first answers outweigh it.
_USUAL: dict[str, tuple[float, float]] = {
    "chat": (624.0, 0.9),
    "code": (555.0, 0.9),
    "writing": (634.0, 0.9),
    "extraction": (567.0, 0.9),
    "question": (300.0, 1.1),
    "math": (186.0, 0.9),
    "choice": (78.0, 1.1),
}
_UNUSUAL = (300.0, 1.2)
_MEMORY = 400.0  # answers that a step remembers
_WEIGHTS = (8.0, 6.0, 6.0, 15.0, 6.0)  # answers until a step counts half
_MOST_KEYS = 4096  # of a step; beyond that the oldest are forgotten
_TARGET = 0.2  # share of answers outside an 80 % interval
_RATES = (0.02, 0.04, 0.04)  # how fast widths follow misses: everywhere, per task, per backend
_SPREAD_WEIGHT = 12.0
_ROOT_TWO_PI = sqrt(2 * pi)
# Another kind of traffic: the last dozen answers lie this many standard deviations to one side, of
# which their mean's own is 0.2. What was learnt before then counts a tenth.
_LEAN_MEMORY = 12.0
_LEAN = 1.0
_KEPT_AFTER_CHANGE = 0.1
_LONGEST = 12.0  # exp(12) = 160,000 tokens
_STALE_ANSWERS = 16  # for how many answers a view that no prompt changes is kept
_WIDEST = 2.0  # in logarithms: no more than about seven times as wide or as narrow

Key = tuple[str, ...]


class _Fading:
    """Means by key that remember the last few hundred values and no more than so many keys."""

    def __init__(self) -> None:
        self.cells: dict[Key, list[float]] = {}  # key -> [sum, number]

    def mean(self, key: Key, weight: float, prior: float = 0.0) -> float:
        cell = self.cells.get(key)
        if cell is None:
            return prior
        return (cell[0] + weight * prior) / (cell[1] + weight)

    def add(self, key: Key, value: float) -> None:
        cell = self.cells.get(key, (0.0, 0.0))
        keep = 1.0 - 1.0 / _MEMORY
        self.put(key, [cell[0] * keep + value, cell[1] * keep + 1.0])

    def put(self, key: Key, cell: list[float]) -> None:
        if self.cells.pop(key, None) is None and len(self.cells) >= _MOST_KEYS:
            del self.cells[next(iter(self.cells))]
        self.cells[key] = cell  # newest last


class _View(NamedTuple):
    """Logarithms of 1 + tokens: the middle, and how far the bands reach down and up."""

    middle: float
    down: float
    up: float
    mean_ratio: float  # mean length over exp(middle)


class LengthEstimator:
    """Implements estimators.types.LengthPredictor; learns from finished answers.

    Not for several threads. Tokens are those of one answer, reasoning included.
    """

    version = "length-1"

    def __init__(self, reader: PromptReader | None = None) -> None:
        self._reader = reader or PromptReader()
        self._steps = [_Fading() for _ in _WEIGHTS]
        self._spread = _Fading()  # |error| over the start's spread, by backend and by task
        self._ratio = _Fading()  # length over the predicted middle, by backend
        self._width: list[dict[Key, float]] = [{} for _ in _RATES]  # log factors
        self._lean = _Fading()  # by backend, team and task: to which side answers fell of late
        self._answers = 0
        self._kept_at = 0
        # What no prompt changes (without a learnt model): by backend, task and team.
        self._views: dict[tuple[str, str, str], _View] = {}
        self._lengths: dict[tuple[str, str, str, int | None], Lengths] = {}

    def predict(self, features: Features, backends: Sequence[Backend]) -> list[Lengths]:
        """One answer per backend, in order, capped by ``max_tokens``; never raises."""
        task = self._reader.task(features)
        keys = self._shared_keys(features, task)
        if self._reader.model is not None:
            views = [self._view(features, task, backend, keys) for backend in backends]
            return [_capped(view, features.max_tokens) for view in views]
        if self._answers - self._kept_at >= _STALE_ANSWERS or len(self._lengths) > _MOST_KEYS:
            self._kept_at = self._answers
            self._views.clear()
            self._lengths.clear()
        # An application's own prompts begin alike; only for those known does that say more.
        known = keys[2] in self._steps[-1].cells
        return [self._kept(features, task, backend, keys, known) for backend in backends]

    def _kept(
        self,
        features: Features,
        task: str,
        backend: Backend,
        keys: tuple[Key, Key, Key],
        known: bool,
    ) -> Lengths:
        place = (backend.name, task, features.team)
        capped = (*place, features.max_tokens)
        found = None if known else self._lengths.get(capped)
        if found is not None:
            return found
        view = self._views.get(place)
        if view is None:
            view = self._views[place] = self._view(features, task, backend, (*keys[:2], ("",)))
        if known:
            middle = view.middle + self._steps[-1].mean(keys[2], _WEIGHTS[-1])
            return _capped(
                view._replace(middle=min(max(middle, 0.0), _LONGEST)), features.max_tokens
            )
        found = self._lengths[capped] = _capped(view, features.max_tokens)
        return found

    def learn(self, backend: Backend, features: Features, output_tokens: float) -> None:
        """Take one finished request in: ``output_tokens`` of its ``n`` answers together.

        An answer that ran into ``max_tokens`` only says that it is no shorter: it is taken for what
        such answers are expected to be. To leave it out, or to take it as it came, would teach
        that answers are as short as those that were not cut.
        """
        if output_tokens < 0:
            return
        self._answers += 1
        tokens = output_tokens / max(features.n, 1)
        task = self._reader.task(features)
        shared = self._shared_keys(features, task)
        view = self._view(features, task, backend, shared)
        start, spread, _ = self._start(features, task, backend)
        cut = features.max_tokens is not None and tokens >= features.max_tokens
        seen = _cut(view, tokens) if cut else _seen(view, tokens)
        if self._leans(features.team, task, backend, view, seen):
            keys = self._keys(shared, task, backend)[1:]
            self._fade(zip(self._steps[1:], keys, strict=True))
            self._fade([(self._ratio, (backend.name,))])
            view = self._view(features, task, backend, shared)
            seen = _cut(view, tokens) if cut else _seen(view, tokens)
        left = seen.came - start
        for step, weight, key in zip(
            self._steps, _WEIGHTS, self._keys(shared, task, backend), strict=True
        ):
            before = step.mean(key, weight)
            # What is only expected must not teach that it was right to expect it.
            step.add(key, before + seen.came - view.middle if cut else left)
            left -= before
        for key in ((backend.name,), ("", task)):
            self._spread.add(key, seen.miss / spread)
        self._ratio.add((backend.name,), min(seen.ratio, 50.0))
        push = seen.outside - _TARGET
        for rate, widths, key in zip(_RATES, self._width, _width_keys(task, backend), strict=True):
            moved = widths.get(key, 0.0) + rate * push
            widths[key] = min(max(moved, -_WIDEST), _WIDEST)

    def _leans(self, team: str, task: str, backend: Backend, view: _View, seen: _Seen) -> bool:
        """Whether answers of late are of another kind than those learnt from."""
        key = (backend.name, team, task)
        sigma = max((view.down + view.up) / (2 * Z_80), 0.02)
        off = min(max((seen.came - view.middle) / sigma, -3.0), 3.0)
        lean, answers = self._lean.cells.get(key, (0.0, 0.0))
        lean += (off - lean) / _LEAN_MEMORY
        leans = abs(lean) > _LEAN and answers >= _LEAN_MEMORY
        self._lean.put(key, [0.0, 0.0] if leans else [lean, answers + 1.0])
        return leans

    def _fade(self, cells: Iterable[tuple[_Fading, Key]]) -> None:
        """Let what so many answers taught count as a tenth of them."""
        self._answers += _STALE_ANSWERS
        for table, key in cells:
            cell = table.cells.get(key)
            if cell is not None:
                cell[0] *= _KEPT_AFTER_CHANGE
                cell[1] *= _KEPT_AFTER_CHANGE

    def changed(self, backend: str) -> None:
        """Another model or engine answers behind this name: forget most of what is its own."""
        self._answers += _STALE_ANSWERS
        for step in (*self._steps[1:3], self._ratio, self._spread):
            for key, cell in step.cells.items():
                if key[0] == backend:
                    cell[0] *= 0.2
                    cell[1] *= 0.2

    def save(self, path: str | Path) -> None:
        """Write what was learnt, as JSON; no text is in it."""
        tables = [*self._steps, self._spread, self._ratio]
        state = {
            "format": FORMAT,
            "tables": [[[list(k), *cell] for k, cell in table.cells.items()] for table in tables],
            "widths": [[[list(k), value] for k, value in w.items()] for w in self._width],
        }
        Path(path).write_text(json.dumps(state), encoding="utf-8")

    def load(self, path: str | Path) -> None:
        """Read what save wrote. Raises ValueError if it is something else, or OSError."""
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{path} is no state of this version of the length estimator")
        for table, cells in zip(
            [*self._steps, self._spread, self._ratio], state["tables"], strict=True
        ):
            table.cells = {tuple(key): [total, number] for key, total, number in cells}
        self._width = [{tuple(key): value for key, value in cells} for cells in state["widths"]]
        self._answers += _STALE_ANSWERS

    def _shared_keys(self, features: Features, task: str) -> tuple[Key, Key, Key]:
        template = f"{self._reader.template(features):x}"
        return (task,), (features.team, task), (features.team, template)

    def _keys(self, shared: tuple[Key, Key, Key], task: str, backend: Backend) -> tuple[Key, ...]:
        return shared[0], (backend.name,), (backend.name, task), shared[1], shared[2]

    def _start(
        self, features: Features, task: str, backend: Backend
    ) -> tuple[float, float, tuple[float, float, float]]:
        """The middle and spread before any answer, and (down, up, mean ratio) in spreads."""
        row = self._reader.row(backend)
        if row is not None:
            said = self._reader.prediction(features)
            if said is not None and said.lengths is not None:
                q10, q50, q90, mean = said.lengths[row].tolist()
                middle, low, high = log1p(q50), log1p(q10), log1p(q90)
                spread = max((high - low) / (2 * Z_80), 0.02)
                ratio = (mean + 1.0) * exp(-middle)
                return middle, spread, ((middle - low) / spread, (high - middle) / spread, ratio)
        usual, spread = _USUAL.get(task, _UNUSUAL)
        return log(usual), spread, (Z_80, Z_80, exp(spread * spread / 2))

    def _view(
        self, features: Features, task: str, backend: Backend, shared: tuple[Key, Key, Key]
    ) -> _View:
        middle, spread, (down, up, ratio) = self._start(features, task, backend)
        for step, weight, key in zip(
            self._steps, _WEIGHTS, self._keys(shared, task, backend), strict=True
        ):
            middle += step.mean(key, weight)
        middle = min(max(middle, 0.0), _LONGEST)
        # E|error| of a normal distribution is 0.798 of its standard deviation
        of_task = self._spread.mean(("", task), _SPREAD_WEIGHT, 0.798)
        scale = spread / 0.798 * self._spread.mean((backend.name,), _SPREAD_WEIGHT, of_task)
        factor = sum(
            widths.get(key, 0.0)
            for widths, key in zip(self._width, _width_keys(task, backend), strict=True)
        )
        scale *= exp(min(max(factor, -_WIDEST), _WIDEST))
        ratio = self._ratio.mean((backend.name,), 20.0, ratio)
        return _View(middle, down * scale, up * scale, ratio)


class _Seen(NamedTuple):
    """What one answer says: its length, or what is expected of one that was cut."""

    came: float  # log(1 + tokens)
    miss: float  # how far from the middle
    ratio: float  # of its length to the middle's
    outside: float  # 1: it was not within the band; chances are between


def _seen(view: _View, tokens: float) -> _Seen:
    error = log1p(tokens) - view.middle
    inside = -view.down <= error <= view.up
    ratio = (tokens + 1.0) * exp(-view.middle)
    return _Seen(view.middle + error, abs(error), ratio, 0.0 if inside else 1.0)


def _cut(view: _View, tokens: float) -> _Seen:
    """What a normal distribution as wide as the band expects beyond ``tokens``."""
    sigma = max((view.down + view.up) / (2 * Z_80), 0.02)
    at = (log1p(tokens) - view.middle) / sigma
    beyond = 1.0 - _normal(at)
    if beyond < 0.001:
        return _seen(view, tokens)  # nothing was expected there
    density = exp(-at * at / 2) / _ROOT_TWO_PI
    far = (2.0 / _ROOT_TWO_PI - density if at < 0.0 else density) / beyond
    ratio = exp(sigma * sigma / 2) * (1.0 - _normal(at - sigma)) / beyond
    low, high = -view.down / sigma, view.up / sigma
    outside = 1.0 - _normal(max(high, at)) + max(0.0, _normal(low) - _normal(at))
    return _Seen(view.middle + sigma * density / beyond, sigma * far, ratio, outside / beyond)


def _width_keys(task: str, backend: Backend) -> tuple[Key, Key, Key]:
    return (), (task,), (backend.name,)


def _capped(view: _View, cap: int | None) -> Lengths:
    low = max(expm1(view.middle - view.down), 0.0)
    mid = expm1(view.middle)
    high = expm1(min(view.middle + view.up, _LONGEST))
    mean = max(exp(view.middle) * view.mean_ratio - 1.0, 0.0)
    if cap is not None:
        # of a log-normal length with this median and mean, the mean of what the cap lets through
        sigma = sqrt(2 * log(max(view.mean_ratio, 1.0005)))
        far = (log1p(cap) - view.middle) / sigma
        below = exp(view.middle + sigma * sigma / 2) * _normal(far - sigma)
        cut = below + (cap + 1.0) * (1.0 - _normal(far)) - 1.0
        low, mid, high = min(low, cap), min(mid, cap), min(high, cap)
        mean = min(mean, max(cut, 0.0), float(cap))
    return Lengths(low, mid, high, mean)


def _normal(z: float) -> float:
    return 0.5 * (1.0 + erf(z / sqrt(2.0)))
