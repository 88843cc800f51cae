"""Savings found by replaying a team's own traffic, for "what to do next". Off the request path.

The team's latest requests are run as they were asked, and again with one thing changed: the policy
left to choose, a lighter precision, shorter answers, shorter prompts. What would refuse more, or
give a quality clearly below today's, is no saving. A study takes some seconds, is made by a thread
when a page first wants it, and is kept.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from estimators.types import Backend
from policies.replay import Arrival, Replayed
from proxy.dashboard.advice import Option, Study
from proxy.dashboard.replays import PINNED, TeamReplay

log = logging.getLogger("joulegate.dashboard")

KEPT_S = 1800.0
REMEMBERED = 64
REST_S = 0.05  # between two replays, so that serving has the interpreter
QUALITY_SLACK = 0.02  # of 0..1: what a mean may fall by and still be called as good
SHORTER = 0.8
# The model errs alike on both sides of these; how far they can be carried is what is not known.
HALVED = ("output", "prompt", "precision")
MOST_POLICIES = 5
LIGHTER = {"bf16": "fp8", "fp16": "fp8"}


class Studies:
    """Studies by team and period. ``of`` never waits: None while one is being made."""

    def __init__(self, replays: TeamReplay) -> None:
        self._replays = replays
        self._kept: dict[tuple[str, float, float], tuple[float, Study]] = {}
        self._running: dict[tuple[str, float, float], threading.Thread] = {}
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()

    def of(self, team: str, start_s: float, end_s: float) -> Study | None:
        """The study of a team's period if it is there; else it is begun. An old one stands while
        the next is made."""
        key = team, start_s, end_s
        with self._lock:
            kept = self._kept.get(key)
            old = kept is None or time.monotonic() - kept[0] > KEPT_S
            if old and key not in self._running:
                thread = threading.Thread(
                    target=self._make, args=(key,), name="replay", daemon=True
                )
                self._running[key] = thread
                thread.start()
        return kept[1] if kept else None

    def wait(self, within_s: float) -> None:
        """Until no study is being made."""
        until_s = time.monotonic() + within_s
        for thread in list(self._running.values()):
            thread.join(max(0.0, until_s - time.monotonic()))

    def _make(self, key: tuple[str, float, float]) -> None:
        try:
            with self._one_at_a_time:
                study = self._study(*key)
            with self._lock:
                if len(self._kept) >= REMEMBERED:
                    self._kept.clear()
                self._kept[key] = time.monotonic(), study
        except SQLAlchemyError as error:
            log.warning("traffic could not be replayed: %s", type(error).__name__)
        except Exception:
            log.exception("traffic could not be replayed")
        finally:
            with self._lock:
                self._running.pop(key, None)

    def _study(self, team: str, start_s: float, end_s: float) -> Study:
        replays = self._replays
        trace, count = replays.trace(team, start_s, end_s)
        known = replays.names()
        if not trace or PINNED not in known:
            return Study(replayed=len(trace), requests=count, options=())
        base = replays.run(trace, team, PINNED)
        found: list[Option] = []
        routes: list[Option] = []
        for name in [n for n in known if n != PINNED][:MOST_POLICIES]:
            time.sleep(REST_S)
            routes += _route(name, base, replays.run(trace, team, name), len(trace))
        # one policy can be chosen, so only the best is a proposal
        found += sorted(routes, key=lambda option: -(option.low + option.high))[:1]
        for kind, title, effort, changed in _lengths(trace):
            time.sleep(REST_S)
            found += _option(
                kind,
                title,
                "Your latest requests replayed with that one change; half to all of it.",
                effort,
                base,
                replays.run(changed, team, PINNED),
                len(trace),
            )
        found += self._precision(trace, team)
        return Study(replayed=len(trace), requests=count, options=tuple(found))

    def _precision(self, trace: Sequence[Arrival], team: str) -> list[Option]:
        """All 16-bit engines a step lighter. Both sides by the prior: nothing has been learnt of
        an engine that does not exist."""
        now = self._replays.backends()
        heavy = [b for b in now if b.precision in LIGHTER and b.engine != "api"]
        if not heavy:
            return []
        time.sleep(REST_S)
        base = self._replays.run(trace, team, PINNED, [_unlearnt(b, b.precision) for b in now])
        time.sleep(REST_S)
        lighter = [_unlearnt(b, LIGHTER.get(b.precision, b.precision)) for b in now]
        names = ", ".join(sorted({b.group for b in heavy}))
        return _option(
            "precision",
            f"Serve {names} in fp8",
            "Your latest requests replayed on the same engines in fp8, by the prior; half to all.",
            "another build of the model, check quality",
            base,
            self._replays.run(trace, team, PINNED, lighter),
            len(trace),
        )


def _unlearnt(backend: Backend, precision: str) -> Backend:
    name = f"{backend.name}~{precision}"
    return msgspec.structs.replace(backend, name=name, precision=precision)


def _lengths(trace: Sequence[Arrival]) -> list[tuple[str, str, str, list[Arrival]]]:
    return [
        (
            "output",
            "Shorten answers by a fifth",
            "ask for brevity, set max_tokens",
            [a._replace(output_tokens=max(1, round(a.output_tokens * SHORTER))) for a in trace],
        ),
        (
            "prompt",
            "Trim prompts by a fifth",
            "shorter instructions, less context",
            [a._replace(prompt_tokens=max(1, round(a.prompt_tokens * SHORTER))) for a in trace],
        ),
    ]


def _route(name: str, base: Replayed, other: Replayed, replayed: int) -> list[Option]:
    why = "Your latest requests replayed as if each had asked for auto"
    figures: list[float | str] = []
    if other.quality:
        why, figures = f"{why}; quality {{:2}}", [*figures, other.quality.mid]
        if base.quality:
            why, figures = f"{why} instead of {{:2}}", [*figures, base.quality.mid]
    if other.ttft_s and base.ttft_s:
        why += "; 95 % of first tokens within {:2} s instead of {:2} s"
        figures += [other.ttft_s.p95, base.ttft_s.p95]
    return _option(
        "route",
        f"Let {name} choose the backend",
        f"{why}.",
        "ask for auto",
        base,
        other,
        replayed,
        tuple(figures),
    )


def _option(
    kind: str,
    title: str,
    why: str,
    effort: str,
    base: Replayed,
    other: Replayed,
    replayed: int,
    figures: tuple[float | str, ...] = (),
) -> list[Option]:
    """The change as an option, or nothing where it is not feasible or saves nothing."""
    if base.active_carbon_g is None or other.active_carbon_g is None or base.active_carbon_g <= 0:
        return []
    if other.refused > base.refused:
        return []
    if base.quality is None or other.quality is None:
        return []
    if other.quality.mid < base.quality.mid - QUALITY_SLACK:
        return []
    part = other.active_carbon_g / base.active_carbon_g
    error = math.hypot(_error(other), 1.0 / math.sqrt(replayed))
    low, high = 1.0 - part * (1.0 + error), 1.0 - part * max(0.0, 1.0 - error)
    if kind in HALVED:
        low, high = 0.5 * (1.0 - part), 1.0 - part
    if low <= 0.0:
        return []
    return [
        Option(
            kind=kind,
            title=title,
            why=why,
            effort=effort,
            low=low,
            high=high,
            figures=figures,
        )
    ]


def _error(result: Replayed) -> float:
    """The relative half-width of the estimates that the replay rests on."""
    per = result.energy_per_request_j
    return (per.high - per.low) / 2 / per.mid if per and per.mid > 0 else 0.5
