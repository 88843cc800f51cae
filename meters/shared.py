"""Several engines on the same devices: each one's part of a window. Pure.

The meter sees the devices, not who used them. Each engine's work is rebuilt for itself, from its
own requests and, where the meter read each engine's page, its own counters; each has its own
coefficients; and the window's energy above idle is divided among the requests of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from meters.fitting import (
    ENOUGH_WINDOWS,
    PRIOR_DEVIATION,
    USUAL_IDLE,
    Fit,
    Spans,
    as_time_goes,
    columns,
    regress,
)
from meters.phases import Floats, Ints
from meters.types import Activity, EngineWork, StepPhysics, Window
from meters.work import Work

COUNTERS = (
    "prompt_tokens", "cached_prompt_tokens", "generated_tokens", "steps", "flops", "read_bytes",
)  # fmt: skip


class Bill(NamedTuple):
    """What the work in windows costs by a model, before it is scaled to what was metered."""

    window: Ints  # index of each pair's window
    request: Ints  # index of each pair's request
    modelled: Floats  # J of each pair
    external: Floats  # J by window, of nobody's requests
    # J by window, standard deviations of what others' take: in each window for itself, and for as
    # long as the same others are there
    doubt: Floats
    lasting: Floats

    def by_window(self) -> Floats:
        """J of all requests, for each window."""
        n = len(self.external)
        return np.bincount(self.window, self.modelled, minlength=n).astype(np.float64)

    def of_window(self, index: int) -> Bill:
        """That of one of the windows."""
        its = self.window == index
        nothing = np.zeros(int(its.sum()), dtype=self.window.dtype)
        return Bill(
            nothing,
            self.request[its],
            self.modelled[its],
            self.external[index : index + 1],
            self.doubt[index : index + 1],
            self.lasting[index : index + 1],
        )


def added_up(bills: Sequence[Bill], requests: Sequence[int]) -> Bill:
    """Several engines' bills as one; ``requests``: how many each engine has, in order."""
    before = np.cumsum([0, *requests[:-1]])
    return Bill(
        np.concatenate([bill.window for bill in bills]),
        np.concatenate([bill.request + n for bill, n in zip(bills, before, strict=True)]),
        np.concatenate([bill.modelled for bill in bills]),
        np.sum([bill.external for bill in bills], axis=0),
        np.sqrt(np.sum([bill.doubt**2 for bill in bills], axis=0)),
        np.sqrt(np.sum([bill.lasting**2 for bill in bills], axis=0)),
    )


def engines_of(windows: Iterable[Window], activities: Iterable[Activity]) -> list[str]:
    """The engines that are known to be on these windows' devices."""
    names = {did.engine for window in windows for did in window.engines}
    return sorted(names | {activity.engine for activity in activities})


def of_engine(window: Window, engine: str) -> Window:
    """The window with one engine's own counters; unknown where nobody read them."""
    did = next((did for did in window.engines if did.engine == engine), EngineWork(engine=engine))
    return msgspec.structs.replace(
        window, **{name: getattr(did, name) for name in COUNTERS}, engine_version=did.version
    )


def part_of(window: Window, part: float) -> Window:
    """The window with that part of its energy and of what was done in it; its times stay."""
    engines = tuple(
        msgspec.structs.replace(did, **_times(did, COUNTERS, part)) for did in window.engines
    )
    whole = ("energy_j", "host_energy_j", *COUNTERS)
    return msgspec.structs.replace(window, **_times(window, whole, part), engines=engines)


def _times(one: Window | EngineWork, names: Sequence[str], part: float) -> dict[str, float]:
    whole = {name: getattr(one, name) for name in names}
    return {name: value * part for name, value in whole.items() if value is not None}


def fit_together(windows: Sequence[Window], works: Sequence[Work]) -> list[Fit]:
    """Each engine's coefficients from windows that they share.

    Where windows cannot tell two engines apart, the one that was at work longer is taken to have
    used more: a busy device draws a similar power whatever it does.
    """
    length = np.array([w.end_s - w.start_s for w in windows])
    energy = np.array([w.energy_j for w in windows])
    used = [columns(work) for work in works]
    busy_s = np.sum([work.busy_s for work in works], axis=0)
    busy = np.sum([each.sum(axis=1) for each in used], axis=0) > 0
    idle_w, idle_known = _idle(windows, energy / length, ~busy)
    above = np.maximum(energy - idle_w * length, 0.0)
    ends = np.array([w.end_s for w in windows], dtype=np.float64)
    watts = float(above[busy].sum() / max(busy_s[busy].sum(), 1e-9)) or 1.0
    priors = []
    for each, work in zip(used, works, strict=True):
        proportions = as_time_goes(each, work, Spans(ends - length, ends, work.steps))
        shape = float((each @ proportions).sum())
        unit_s = float(work.busy_s.sum()) / shape if shape > 0 else 1e-3
        priors.append(proportions * watts * max(unit_s, 1e-12))
    prior, wide = np.concatenate(priors), np.concatenate(used, axis=1)
    found, deviation = prior, 1.0
    if busy.any() and above[busy].any():
        steps = np.sum([work.steps for work in works], axis=0)
        when = Spans((ends - length)[busy], ends[busy], steps[busy])
        loose = np.full(len(prior), PRIOR_DEVIATION)
        solved = regress(wide[busy], above[busy], prior, loose, when)
        found, deviation = solved.relative * prior, solved.deviation
    trusted = int(busy.sum()) >= ENOUGH_WINDOWS and deviation < 0.2
    return [
        Fit(_physics(idle_w, found[4 * i : 4 * i + 4]), trusted, idle_known, deviation)
        for i in range(len(works))
    ]


def _idle(windows: Sequence[Window], power_w: Floats, quiet: np.ndarray) -> tuple[float, bool]:
    """Idle power of the devices, and whether it is known: told, seen, else a cautious guess."""
    told = [w.idle_power_w for w in windows if w.idle_power_w is not None]
    if told:
        return float(np.median(told)), True
    if quiet.any():
        return float(np.median(power_w[quiet])), True
    if len(power_w) < ENOUGH_WINDOWS:
        return 0.0, False
    return min(USUAL_IDLE * float(np.median(power_w)), float(power_w.min())), False


def _physics(idle_w: float, found: Floats) -> StepPhysics:
    step_j, token_j, context_j, prefill_j = (float(c) for c in found)
    return StepPhysics(
        idle_power_w=idle_w, step_j=step_j, token_j=token_j, context_j=context_j,
        prefill_j=prefill_j, step_s=0.0, token_s=0.0, context_s=0.0, prefill_s=0.0,
    )  # fmt: skip
