"""Learns one engine's step physics from its own windows, one window at a time. Pure.

Two linear models with non-negative coefficients share one shape:

    energy above idle = step_j·steps + token_j·generated + context_j·context + prefill_j·prefilled
    busy time         = step_s·steps + token_s·generated + context_s·context + prefill_s·prefilled

Idle power is learnt from idle time only, or taken from the window where its meter knows it: on a
busy engine energy goes with time whatever its parts are, and idle power would take it all.

The prior is a set of pseudo-observations that are never forgotten; windows are, with a half-life,
so that drift is followed. What recent windows cannot tell apart (a steadily saturated engine)
therefore returns to the prior's proportions, and its uncertainty grows back to the prior's. A
window that fits badly counts less (Huber); when window after window is off to the same side the
engine has changed, and what was learnt of it is dropped at once.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from meters.attribution import Regressors
from meters.fitting import (
    CONTEXT_PER_STEP,
    PREFILL_PER_STEP,
    TOKEN_PER_STEP,
    Spans,
    non_negative,
    regress,
)
from meters.types import StepPhysics, Window

Floats = npt.NDArray[np.float64]

HALF_LIFE_S = 900.0
PRIOR_DEVIATION = 0.5  # relative: what a prior from published figures is usually off by
FIRST_NOISE = 0.05  # relative deviation of a window from the model, before any was seen
LEAST_NOISE = 0.005  # no meter and no reconstruction is better
HUBER = 2.0  # deviations beyond which a window counts less
LOOK_BACK = 25.0  # windows over which deviations to one side are averaged
MOST_MEMORY = 0.9
CHANGED = 1.5  # deviations to one side, on that average, that say the engine has changed
KEPT_AFTER_CHANGE = 0.02  # of what was learnt
LEAST_CHANGE = 0.04  # relative; heat drifts by a few per cent, and no engine is another one for it
SETTLED_WINDOWS = 30.0  # before which nothing is called a change
MEMORY = 2400  # windows of which the work is kept, to look at all of them together
TOGETHER_S = 60.0  # how often that is done, at most,
NEWS = 25  # and only after so many-th of them are new
ENERGY = ("step_j", "token_j", "context_j", "prefill_j")
TIME = ("step_s", "token_s", "context_s", "prefill_s")
NAMES = ("idle_power_w", *ENERGY, *TIME)
IDLE_KEPT = 0.96  # of what is known of idle power, for each further second of idle time
USUAL_IDLE_W = 50.0  # where a prior has none; the first idle window corrects it


class _Line:
    """One of the two models, in units of its prior."""

    def __init__(self, prior: Floats) -> None:
        self.prior = prior
        n = len(prior)
        self.information = np.zeros((n, n))
        self.sums = np.zeros(n)
        self.noise = FIRST_NOISE  # relative deviation, without what it shares with the last
        self.spread = FIRST_NOISE  # relative deviation, all of it
        self.memory = 0.0  # part of a deviation that is still there in the next window
        self.lean = 0.0  # average deviation to one side, in deviations
        self._before: tuple[Floats, float] | None = None
        self.weight = 0.0  # windows, as far as they are remembered
        self.relative = np.ones(n)
        self.changes = 0  # how often the engine was found to be another one

    def observe(
        self,
        row: Floats,
        value: float,
        weight: float,
        keep: float,
        *,
        next_: bool,
        better: Floats | None = None,
    ) -> None:
        """Take in ``value = row·coefficients``; ``next_``: right after the last one.

        Deviations are relative. What a deviation shares with the one before it (heat, clocks) is
        taken out first, so that slow drift is not mistaken for an effect of what rose with it.
        ``better``: coefficients known better than here, in units of the prior; by them it is
        judged whether the engine has changed, since those found one window at a time may be off
        where a mix of work is rare, and then windows of that mix all lean to one side.
        """
        self.information *= keep
        self.sums *= keep
        self.weight *= keep
        units = row * self.prior
        scale = max(value, float(units @ self.relative), 1e-6)
        units, value = units / scale, value / scale
        off = value - float(units @ self.relative)
        settled = self.weight >= SETTLED_WINDOWS
        judged = off if better is None else value - float(units @ better)
        self.lean += (float(np.clip(judged / self.spread, -5, 5)) - self.lean) / LOOK_BACK
        if settled and abs(self.lean) > max(CHANGED, LEAST_CHANGE / self.spread):
            self.information *= KEPT_AFTER_CHANGE
            self.sums *= KEPT_AFTER_CHANGE
            self.weight *= KEPT_AFTER_CHANGE
            self.noise = self.spread = FIRST_NOISE
            self.lean = self.memory = 0.0
            self.changes += 1
        before = self._before if next_ else None
        self._before = (units, value)
        fresh = off
        if before is not None:
            last_off = before[1] - float(before[0] @ self.relative)
            bound = 3 * self.spread
            pair = float(np.clip(off, -bound, bound)) * float(np.clip(last_off, -bound, bound))
            self.memory += (pair / self.spread**2 - self.memory) / 100
            memory = float(np.clip(self.memory, 0.0, MOST_MEMORY)) if settled else 0.0
            rest = math.sqrt(1 - memory**2)
            units = (units - memory * before[0]) / rest
            value = (value - memory * before[1]) / rest
            fresh = (off - memory * last_off) / rest
        part = weight * min(1.0, HUBER * self.noise / max(abs(fresh), 1e-12)) / self.noise**2
        self.information += part * np.outer(units, units)
        self.sums += part * units * value
        self.weight += weight
        rate = 0.3 if settled else 1.0
        self.noise = _followed(self.noise, fresh, rate)
        self.spread = _followed(self.spread, off, rate)
        self._solve()

    def _solve(self) -> None:
        held = self._held()
        self.relative = non_negative(self.information + np.diag(held), self.sums + held)

    def _held(self) -> Floats:
        """The prior's hold, with heavy tails: far from it, it hardly resists."""
        return np.asarray(1 / (PRIOR_DEVIATION**2 + (self.relative - 1) ** 2), dtype=np.float64)

    def _normal(self) -> Floats:
        return np.asarray(self.information + np.diag(self._held()), dtype=np.float64)

    @property
    def coefficients(self) -> Floats:
        return np.asarray(self.relative * self.prior, dtype=np.float64)

    @property
    def errors(self) -> Floats:
        """Standard errors of the coefficients."""
        return np.asarray(
            np.sqrt(np.diag(np.linalg.inv(self._normal()))) * self.prior, dtype=np.float64
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "prior": self.prior.tolist(),
            "information": self.information.tolist(),
            "sums": self.sums.tolist(),
            "noise": self.noise,
            "spread": self.spread,
            "memory": self.memory,
            "lean": self.lean,
            "relative": self.relative.tolist(),
            "before": None if self._before is None else [self._before[0].tolist(), self._before[1]],
            "weight": self.weight,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> _Line:
        line = cls(np.array(saved["prior"], dtype=np.float64))
        line.information = np.array(saved["information"], dtype=np.float64)
        line.sums = np.array(saved["sums"], dtype=np.float64)
        line.noise, line.spread = float(saved["noise"]), float(saved["spread"])
        line.memory, line.lean = float(saved["memory"]), float(saved["lean"])
        line.weight = float(saved["weight"])
        line.relative = np.array(saved["relative"], dtype=np.float64)
        before = saved["before"]
        if before is not None:
            line._before = (np.array(before[0], dtype=np.float64), float(before[1]))
        return line


def _followed(deviation: float, off: float, rate: float) -> float:
    """The usual size of deviations, moved by small steps towards their median."""
    up = 1.05 if abs(off) > 0.6745 * deviation else 1 / 1.05
    return float(np.clip(deviation * up**rate, LEAST_NOISE, 1.0))


class _Memory:
    """The latest windows of an engine, looked at together once a minute.

    One window at a time cannot tell drift and what edges do from what a token costs; many
    windows in a row can (``meters.deviations``).
    """

    def __init__(self, prior: Floats, half_life_s: float) -> None:
        self.prior = prior
        self.half_life_s = half_life_s
        self.rows: deque[list[float]] = deque(maxlen=MEMORY)  # start, end, doubt, joules, work
        self.relative: Floats | None = None
        self.errors: Floats | None = None
        self._solved_s = -math.inf
        self._fresh = 0  # windows since then

    def keep(self, window: Window, above_j: float, did: Floats, doubt: float) -> None:
        """Add a window; ``doubt`` in half-lives, for one that says less than others."""
        self.rows.append([window.start_s, window.end_s, doubt, above_j, *did.tolist()])
        self._fresh += 1
        if len(self.rows) < SETTLED_WINDOWS or self._fresh < len(self.rows) / NEWS:
            return
        if window.end_s - self._solved_s >= TOGETHER_S:
            self._solved_s, self._fresh = window.end_s, 0
            self._solve()

    def forget(self) -> None:
        """The engine is another one since the last few windows."""
        for _ in range(len(self.rows) - round(LOOK_BACK / 2)):
            self.rows.popleft()
        self.relative = self.errors = None
        self._solved_s = -math.inf

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": list(self.rows),
            "solved_s": self._solved_s if math.isfinite(self._solved_s) else None,
            "relative": None if self.relative is None else self.relative.tolist(),
            "errors": None if self.errors is None else self.errors.tolist(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what ``as_dict`` saved."""
        n = len(self.prior)
        self.rows.extend([float(value) for value in row] for row in saved["rows"])
        if any(len(row) != 4 + n for row in self.rows):
            raise ValueError("rows of another length")
        if saved["relative"] is not None and saved["errors"] is not None:
            self.relative = np.array(saved["relative"], dtype=np.float64)
            self.errors = np.array(saved["errors"], dtype=np.float64)
        if saved["solved_s"] is not None:
            self._solved_s = float(saved["solved_s"])

    def _solve(self) -> None:
        table = np.array(self.rows)
        starts, ends, doubt, above, did = *table[:, :4].T, table[:, 4:]
        age = (ends[-1] - ends) / self.half_life_s + doubt
        loose = np.full(len(self.prior), PRIOR_DEVIATION)
        found = regress(did, above, self.prior, loose, Spans(starts, ends, did[:, 0]), age)
        self.relative, self.errors = found.relative, found.errors


class StepLearner:
    """One engine's physics: the prior at first, then what its windows teach."""

    def __init__(self, prior: StepPhysics, *, half_life_s: float = HALF_LIFE_S) -> None:
        self.prior = prior
        self.half_life_s = half_life_s
        self.engine: str | None = None
        self._restart()

    def _restart(self) -> None:
        self._idle = _Line(np.array([self.prior.idle_power_w or USUAL_IDLE_W]))
        self._energy = _Line(_usable(self.prior, ENERGY))
        self._time = _Line(_usable(self.prior, TIME))
        self._memory = _Memory(self._energy.prior, self.half_life_s)
        self._last_s: float | None = None

    def serves(self, engine: str) -> bool:
        """Say which engine this is (version and model); a change starts anew from the prior.

        Whether that happened.
        """
        changed = self.engine is not None and engine != self.engine
        self.engine = engine
        if changed:
            self._restart()
        return changed

    def observe(self, window: Window, work: Regressors) -> None:
        """Learn from a window. One that makes no sense, or is older than the last, is passed by."""
        numbers = (window.energy_j, *work)
        if not all(math.isfinite(n) and n >= 0 for n in numbers) or work.seconds <= 0:
            return
        if self._last_s is not None and window.end_s <= self._last_s:
            return
        passed_s = 0.0 if self._last_s is None else window.end_s - self._last_s
        self._last_s = window.end_s
        keep = 0.5 ** (passed_s / self.half_life_s)
        did = np.array([work.steps, work.generated, work.context_steps, work.prefilled])
        # Of others' requests the contexts are a guess, and longer windows tell more.
        weight = work.seconds * (1 - min(work.external, 0.9)) ** 2
        next_ = 0 < passed_s <= 1.01 * work.seconds
        if work.busy_s == 0 and not did.any():
            seconds = np.array([work.seconds])
            recent = min(keep, IDLE_KEPT**work.seconds)
            self._idle.observe(seconds, window.energy_j, weight, recent, next_=False)
            return
        idle_w = window.idle_power_w
        if idle_w is None:
            idle_w = float(self._idle.coefficients[0])
        above_j = window.energy_j - idle_w * work.seconds
        if above_j <= 0 or not did.any():
            return
        changes = self._energy.changes
        better = self._memory.relative
        self._energy.observe(did, above_j, weight, keep, next_=next_, better=better)
        if self._energy.changes != changes:
            self._memory.forget()
        self._memory.keep(window, above_j, did, -2 * math.log2(1 - min(work.external, 0.9)))
        if work.external == 0 and work.busy_s > 0.1 * work.seconds and work.steps > 0:
            self._time.observe(did, work.busy_s, weight, keep, next_=next_)

    @property
    def windows(self) -> float:
        """Seconds of windows that what is known now rests on; forgotten ones count less."""
        return self._energy.weight

    @property
    def trained(self) -> bool:
        """Whether windows, rather than the prior, decide what a step and a token cost."""
        share = self._errors() / self._energy.prior
        return bool(self.windows >= SETTLED_WINDOWS and share[:2].min() < PRIOR_DEVIATION / 2)

    def physics(self) -> StepPhysics:
        """The coefficients as known now; all finite and >= 0."""
        together = self._memory.relative
        energy = self._energy.coefficients if together is None else together * self._energy.prior
        return _physics([self._idle.coefficients, energy, self._time.coefficients])

    def _errors(self) -> Floats:
        together = self._memory.errors
        return self._energy.errors if together is None else together * self._energy.prior

    @property
    def last_s(self) -> float | None:
        """Where the last window ended that taught it, Unix seconds; None before the first."""
        return self._last_s

    def knows_more_than(self, other: StepLearner | None) -> bool:
        """Whether it learnt from more windows of the same engine, or later ones of another."""
        if other is None or other.last_s is None:
            return self._last_s is not None
        if self._last_s is None:
            return False
        if self.engine == other.engine:
            return self.windows > other.windows
        return self._last_s > other.last_s

    def as_dict(self) -> dict[str, Any]:
        """All of it, for a file; ``from_dict`` is the way back."""
        return {
            "prior": {name: getattr(self.prior, name) for name in NAMES},
            "half_life_s": self.half_life_s,
            "engine": self.engine,
            "last_s": self._last_s,
            "idle": self._idle.as_dict(),
            "energy": self._energy.as_dict(),
            "time": self._time.as_dict(),
            "together": self._memory.as_dict(),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> StepLearner:
        """What ``as_dict`` saved. Raises KeyError, TypeError or ValueError for anything else."""
        learner = cls(StepPhysics(**saved["prior"]), half_life_s=float(saved["half_life_s"]))
        learner.engine = saved["engine"]
        learner._last_s = saved["last_s"]
        learner._idle = _Line.from_dict(saved["idle"])
        learner._energy = _Line.from_dict(saved["energy"])
        learner._time = _Line.from_dict(saved["time"])
        if "together" in saved:  # not in files of earlier versions
            learner._memory.restore(saved["together"])
        return learner


def _usable(prior: StepPhysics, names: tuple[str, ...]) -> Floats:
    """The prior's coefficients; for zeros, which no unit can be made of, the usual proportions."""
    per_step = {"step": 1.0, "token": TOKEN_PER_STEP, "context": CONTEXT_PER_STEP}
    unit = "j" if "step_j" in names else "s"
    step = getattr(prior, f"step_{unit}") or (1.0 if unit == "j" else 0.01)
    values = []
    for name in names:
        usual = step * per_step.get(name.split("_")[0], PREFILL_PER_STEP)
        values.append(getattr(prior, name) or usual)
    return np.array(values, dtype=np.float64)


def _physics(parts: list[Floats]) -> StepPhysics:
    values = [value for part in parts for value in part.tolist()]
    return StepPhysics(**dict(zip(NAMES, values, strict=True)))
