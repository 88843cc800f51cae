"""Divides each window's energy above idle among the requests that caused it.

``attribute`` models what every request's work cost by the step physics (``meters.work`` says what
that work was), and scales the model to the joules measured: the meter is always right about the
sum, the model only about the proportions. What the engine did for others is external; what nobody
can be charged for stays unattributed. Pure.

The books balance to the last bit: every share, idle and external amount is a whole number of
``QUANTUM_J``, a power of two, so their sums are exact in floating point in any order; what is left
of a window, less than one quantum when everything was charged, is unattributed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from meters.fitting import Fit, columns, fit
from meters.foreign import Foreign
from meters.others_part import Level, split
from meters.phases import Floats
from meters.shared import Bill, added_up, engines_of, fit_together, of_engine, part_of
from meters.types import Activity, Around, Attribution, Share, StepPhysics, Window
from meters.windows import MAX_POWER_W
from meters.work import Work, moved, rebuild

QUANTUM_J = 2.0**-20  # just below a micro-joule; sums stay exact up to 8.5 GJ (2.4 MWh)
# A window with far more energy than its requests can have used holds something else as well.
MOST_TIMES_MODELLED = 2.0
REFINEMENTS = 25
SETTLED = 0.002  # of all prompt tokens; when fewer are moved, they are where they stay
MOST_TIMES_PRIOR = 10.0  # where the physics come from elsewhere, and may be off by factors
UNLIMITED = 1e15  # times modelled: everything goes to whom the model names
NOTHING_AROUND = Around()
# Relative standard deviations of what others' requests take in a window: of their tokens, where
# the engine does not count the bytes it reads or does, and of their prompts.
CONTEXT_GUESSED = 0.15
CONTEXT_COUNTED = 0.05
CONTEXT_VARIES = 0.2  # from one window to the next
PROMPT_PLACED = 0.5
OVERLAP_TOLERATED = 0.02  # of the shorter window: clocks jitter


class Books(NamedTuple):
    """Many windows, divided."""

    attributions: list[Attribution]  # in order of node and time
    refused: Counter[str]  # windows not used, by reason
    repaired: Counter[str]  # windows used after a repair, by reason
    fits: dict[str, Fit]  # by node, where the coefficients were learnt here

    @property
    def metered_j(self) -> float:
        return math.fsum(a.metered_j for a in self.attributions)

    @property
    def attributed_j(self) -> float:
        return math.fsum(s.energy_j for a in self.attributions for s in a.shares)

    @property
    def idle_j(self) -> float:
        return math.fsum(a.idle_j for a in self.attributions)

    @property
    def unattributed_j(self) -> float:
        """External traffic's energy included; the rest of the sum, so that it is exact."""
        return self.metered_j - self.idle_j - self.attributed_j

    def request_j(self, request_ids: Iterable[str]) -> dict[str, float]:
        """Each request's energy in all windows; 0 for one that no window saw."""
        total = dict.fromkeys(request_ids, 0.0)
        for attribution in self.attributions:
            for share in attribution.shares:
                total[share.request_id] = total.get(share.request_id, 0.0) + share.energy_j
        return total


def attribute(window: Window, activities: Sequence[Activity], physics: StepPhysics) -> Attribution:
    """One window, divided among ``activities`` of its node.

    Activities may end after the window or be still in flight (``end_s`` None, ``output_tokens``
    so far). Raises ValueError for a window that cannot be used (see ``clean``).
    """
    books = attribute_all([window], activities, {window.node: physics})
    if not books.attributions:
        raise ValueError(f"window {window.window_id} is {next(iter(books.refused))}")
    return books.attributions[0]


class Divider:
    """Divides windows one after another, as they come in, and says what was done in each.

    What a request did in a window shows best beside its neighbours: when its prompt was computed,
    how steps went, and whether what the engine counted beyond our requests is foreign traffic or
    comes back in the next one. So a window is looked at among those ``around`` it, where they are
    given; it alone is divided. Where they are not, what was foreign is remembered for each node.
    """

    def __init__(self) -> None:
        self._foreign: dict[str, Foreign] = {}
        self._levels: dict[str, Level] = {}

    def divide(
        self,
        window: Window,
        activities: Sequence[Activity],
        physics: StepPhysics | None,
        around: Around = NOTHING_AROUND,
    ) -> tuple[Attribution, Regressors]:
        """One window, divided by ``physics`` (None: by usual proportions), and the work in it.

        ``activities`` are those of all these windows. Windows of a node should come in order.
        Raises ValueError for one that cannot be used.
        """
        windows, here = _among(window, around)
        activities = [a for a in activities if math.isfinite(a.start_s)]
        with np.errstate(all="ignore"):
            work = rebuild(windows, activities, self._seen(window.node, windows), here)
            self._note(window.node, work, here, window)
            most = MOST_TIMES_PRIOR
            known_s = _prompts_known_s(activities)
            if physics is not None:
                if len(windows) > 1:
                    work = _refined(windows, work, physics, known_s)
            else:
                found, work = _learnt(windows, work, known_s)
                physics, most = found.physics, UNLIMITED
            bill = self._split(windows, _bill(work, physics), physics, here)
            divided = _divide([window], activities, bill, physics, most)[0]
            return divided, _regressors(window, work, here)

    def divide_shared(
        self,
        window: Window,
        activities: Sequence[Activity],
        physics: Mapping[str, StepPhysics],
        around: Around = NOTHING_AROUND,
    ) -> tuple[Attribution, dict[str, Regressors]]:
        """Likewise for devices that several engines share; the work is by engine.

        ``physics`` by engine; where it lacks one of them, all go by usual proportions. Raises
        ValueError.
        """
        windows, here = _among(window, around)
        activities = [a for a in activities if math.isfinite(a.start_s)]
        names = sorted({*engines_of(windows, activities), *physics})
        with np.errstate(all="ignore"):
            groups = [[a for a in activities if a.engine == name] for name in names]
            works = [
                rebuild(
                    [of_engine(each, name) for each in windows],
                    group,
                    self._seen(f"{window.node}\n{name}", windows),
                    here,
                )
                for name, group in zip(names, groups, strict=True)
            ]
            for name, work in zip(names, works, strict=True):
                self._note(f"{window.node}\n{name}", work, here, window)
            known, most = physics, MOST_TIMES_PRIOR
            if any(name not in physics for name in names):
                fits = fit_together(windows, works)
                known = {name: fit.physics for name, fit in zip(names, fits, strict=True)}
                most = UNLIMITED
            bill, idle = _added_up(names, groups, works, known)
            everybody = [a for group in groups for a in group]
            bill = self._split(windows, bill, idle, here)
            divided = _divide([window], everybody, bill, idle, most)[0]
            return divided, {
                name: _regressors(window, work, here)
                for name, work in zip(names, works, strict=True)
            }

    def _split(self, windows: Sequence[Window], bill: Bill, idle: StepPhysics, here: int) -> Bill:
        """The bill of one of the windows, others' part as the energy says."""
        node, above, middles = windows[here].node, _above_j(windows, idle), _middles(windows)
        level = self._levels.get(node, Level())
        found = split(bill, above, middles, level, here)
        self._levels[node] = found.levels[here]
        return found.bill.of_window(here)

    def _seen(self, whose: str, windows: Sequence[Window]) -> Foreign:
        """What an engine counts beyond our requests: looked at anew among neighbours."""
        known = self._foreign.setdefault(whose, Foreign())
        return known if len(windows) == 1 else known.anew(windows[0].start_s)

    def _note(self, whose: str, work: Work, here: int, window: Window) -> None:
        tokens, prompts = work.external_tokens[here], work.external_prefilled[here]
        self._foreign[whose].note(float(tokens), float(prompts), window.end_s)


def _among(window: Window, around: Around) -> tuple[list[Window], int]:
    """The window among those of its neighbours that can be used beside it, and its place there.

    Raises ValueError where it cannot be used itself.
    """
    refused = clean([window])[1]
    if refused:
        raise ValueError(f"window {window.window_id} is {next(iter(refused))}")
    found = [window]
    for each in reversed(around.before):
        if each.end_s <= found[0].start_s and not clean([each])[1]:
            found.insert(0, each)
    here = len(found) - 1
    for each in around.after:
        if each.start_s >= found[-1].end_s and not clean([each])[1]:
            found.append(each)
    return found, here


def attribute_all(
    windows: Iterable[Window],
    activities: Iterable[Activity],
    physics: Mapping[str, StepPhysics] | None = None,
) -> Books:
    """Many windows of any nodes, divided; for nodes not in ``physics`` it is learnt from them.

    Where several engines share a node's devices, ``physics`` has "node/engine" for each of them.
    """
    # Absurd figures overflow; what comes of it is dropped, and never an exception.
    with np.errstate(all="ignore"):
        return _attribute_all(windows, activities, physics or {})


def _attribute_all(
    windows: Iterable[Window],
    activities: Iterable[Activity],
    physics: Mapping[str, StepPhysics],
) -> Books:
    kept, refused, repaired = clean(windows)
    by_node: dict[str, list[Activity]] = {node: [] for node in kept}
    for activity in activities:
        if activity.node in by_node and math.isfinite(activity.start_s):
            by_node[activity.node].append(activity)
    for found in by_node.values():  # whatever order they come in, sums round alike
        found.sort(key=lambda one: (one.start_s, one.request_id))
    attributions: list[Attribution] = []
    fits: dict[str, Fit] = {}
    for node, node_windows in kept.items():
        names = engines_of(node_windows, by_node[node])
        if len(names) > 1:
            divided, learnt = _shared(node_windows, by_node[node], names, physics)
            attributions += divided
            fits |= learnt
            continue
        work = rebuild(node_windows, by_node[node])
        known = physics.get(node)
        most = MOST_TIMES_PRIOR
        if known is None:
            fits[node], work = _learnt(node_windows, work)
            known = fits[node].physics
            most = MOST_TIMES_MODELLED if fits[node].trusted else UNLIMITED
        elif len(node_windows) > 1:
            work = _refined(node_windows, work, known)
        bill = _split(node_windows, _bill(work, known), known)
        attributions += _divide(node_windows, by_node[node], bill, known, most)
    return Books(attributions, refused, repaired, fits)


def _shared(
    windows: Sequence[Window],
    activities: Sequence[Activity],
    names: Sequence[str],
    physics: Mapping[str, StepPhysics],
) -> tuple[list[Attribution], dict[str, Fit]]:
    """Windows of one node with several engines, divided; and what was learnt, by node/engine."""
    groups = [[a for a in activities if a.engine == name] for name in names]
    works = [
        rebuild([of_engine(window, name) for window in windows], group)
        for name, group in zip(names, groups, strict=True)
    ]
    keys = [f"{windows[0].node}/{name}" for name in names]
    if all(key in physics for key in keys):
        known = {name: physics[key] for name, key in zip(names, keys, strict=True)}
        return _divide_among(windows, names, groups, works, known, MOST_TIMES_PRIOR), {}
    fits = fit_together(windows, works)
    known = {name: fit.physics for name, fit in zip(names, fits, strict=True)}
    most = MOST_TIMES_MODELLED if all(fit.trusted for fit in fits) else UNLIMITED
    divided = _divide_among(windows, names, groups, works, known, most)
    return divided, dict(zip(keys, fits, strict=True))


def _divide_among(
    windows: Sequence[Window],
    names: Sequence[str],
    groups: Sequence[Sequence[Activity]],
    works: Sequence[Work],
    physics: Mapping[str, StepPhysics],
    most: float,
) -> list[Attribution]:
    bill, idle = _added_up(names, groups, works, physics)
    bill = _split(windows, bill, idle)
    return _divide(windows, [a for group in groups for a in group], bill, idle, most)


def _added_up(
    names: Sequence[str],
    groups: Sequence[Sequence[Activity]],
    works: Sequence[Work],
    physics: Mapping[str, StepPhysics],
) -> tuple[Bill, StepPhysics]:
    """All engines' bills as one, and whose physics tells the idle power."""
    bills = [_bill(work, physics[name]) for name, work in zip(names, works, strict=True)]
    # Idle power is the devices': each engine's knowledge of it is knowledge of the same thing.
    quietest = min((physics[name] for name in names), key=lambda p: p.idle_power_w)
    return added_up(bills, [len(group) for group in groups]), quietest


def _prompts_known_s(activities: Sequence[Activity]) -> float:
    """Until when it is known which prompts were computed: where some are still waiting for their
    first tokens, until that of another came last."""
    waiting = any(a.first_token_s is None and a.end_s is None for a in activities)
    came = [a.first_token_s for a in activities if a.first_token_s is not None]
    return max(came, default=math.inf) if waiting else math.inf


def _learnt(windows: Sequence[Window], work: Work, known_s: float = math.inf) -> tuple[Fit, Work]:
    """Coefficients from the windows themselves, and the work as they refine it."""
    learnt = fit(windows, work)
    for _ in range(2):
        if learnt.trusted:
            work = _refined(windows, work, learnt.physics, known_s)
            learnt = fit(windows, work)
    return learnt, work


def _refined(
    windows: Sequence[Window], work: Work, physics: StepPhysics, known_s: float = math.inf
) -> Work:
    """``work`` with prompts where the energy says they were computed.

    After ``known_s`` nobody knows yet all prompts that were: energy that seems to be lacking work
    there is theirs, and draws none from the windows before.
    """
    above, middles = _above_j(windows, physics), _middles(windows)
    most = np.array([1.0 if w.end_s > known_s else math.inf for w in windows])
    for _ in range(REFINEMENTS):
        bill = split(_bill(work, physics), above, middles).bill
        modelled = bill.by_window() + bill.external
        with np.errstate(invalid="ignore", divide="ignore"):
            wanted = np.where((modelled > 0) & (above > 0), above / modelled, 1.0)
        before, work = work.prefilled, moved(work, np.minimum(wanted, most))
        if not np.abs(work.prefilled - before).sum() > SETTLED * before.sum():
            break
    return work


def _split(windows: Sequence[Window], bill: Bill, idle: StepPhysics) -> Bill:
    return split(bill, _above_j(windows, idle), _middles(windows)).bill


def _middles(windows: Sequence[Window]) -> Floats:
    return np.array([(w.start_s + w.end_s) / 2 for w in windows])


def _above_j(windows: Sequence[Window], physics: StepPhysics) -> Floats:
    return np.array([w.energy_j for w in windows]) - _idle_j(windows, physics)


def _idle_j(windows: Sequence[Window], physics: StepPhysics) -> Floats:
    return np.array(
        [
            max(0.0, physics.idle_power_w if w.idle_power_w is None else w.idle_power_w)
            * (w.end_s - w.start_s)
            for w in windows
        ]
    )


def _modelled(work: Work, physics: StepPhysics) -> Floats:
    modelled = (
        physics.step_j * work.shares
        + physics.token_j * work.tokens
        + physics.context_j * work.context
        + physics.prefill_j * work.prefilled
    )
    return np.where(np.isfinite(modelled), modelled, 0.0)


def _bill(work: Work, physics: StepPhysics) -> Bill:
    return Bill(work.window, work.request, _modelled(work, physics), *_external(work, physics))


class Regressors(NamedTuple):
    """What an engine did in one window, others' traffic included: what its energy grows with."""

    seconds: float
    busy_s: float
    steps: float
    generated: float  # tokens
    context_steps: float  # cached tokens read, over all steps
    prefilled: float  # prompt tokens computed
    external: float  # part of the generated tokens that are others'


def regressors(window: Window, activities: Sequence[Activity]) -> Regressors:
    """The work in one window, as ``estimators.steps`` learns from it."""
    with np.errstate(all="ignore"):
        return _regressors(window, rebuild([window], activities))


def regressors_among(windows: Sequence[Window], activities: Sequence[Activity]) -> list[Regressors]:
    """The work in each of many windows of one node, in order, looked at together: what was done
    in each shows best beside its neighbours."""
    with np.errstate(all="ignore"):
        work = rebuild(windows, activities)
        return [_regressors(window, work, here) for here, window in enumerate(windows)]


def _regressors(window: Window, work: Work, here: int = 0) -> Regressors:
    steps, generated, context, prefilled = columns(work)[here]
    others = float(work.external_tokens[here])
    return Regressors(
        window.end_s - window.start_s,
        float(work.busy_s[here]),
        float(steps),
        float(generated),
        float(context),
        float(prefilled),
        others / float(generated) if generated > 0 else 0.0,
    )


def clean(
    windows: Iterable[Window],
) -> tuple[dict[str, list[Window]], Counter[str], Counter[str]]:
    """Windows by node in order of time, what was refused and what was repaired, by reason.

    Refused: ``negative`` (energy below zero), ``unreadable`` (not a number, or it ends before it
    starts), ``implausible`` (above MAX_POWER_W), ``duplicated`` (the node and time of one already
    there, or its id), ``overlapping`` (more than half of it is covered by an earlier one).
    Repaired: ``out_of_order`` (sorted), ``trimmed`` (what overlaps an earlier window is cut off,
    energy and counts in proportion).
    A refused window's energy is in no sum.
    """
    refused: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    by_node: dict[str, list[Window]] = {}
    seen: set[object] = set()
    latest: dict[str, float] = {}
    for window in windows:
        numbers = (window.start_s, window.end_s, window.energy_j)
        if not all(math.isfinite(n) for n in numbers) or window.end_s <= window.start_s:
            refused["unreadable"] += 1
        elif window.energy_j < 0:
            refused["negative"] += 1
        elif window.energy_j > MAX_POWER_W * (window.end_s - window.start_s):
            refused["implausible"] += 1
        elif window.window_id in seen or (window.node, *numbers[:2]) in seen:
            refused["duplicated"] += 1
        else:
            seen.add(window.window_id)
            seen.add((window.node, *numbers[:2]))
            if window.start_s < latest.get(window.node, -math.inf):
                repaired["out_of_order"] += 1
            latest[window.node] = max(window.start_s, latest.get(window.node, -math.inf))
            by_node.setdefault(window.node, []).append(window)
    for node, node_windows in by_node.items():
        by_node[node] = _apart(
            sorted(node_windows, key=lambda w: (w.start_s, w.end_s)), refused, repaired
        )
    return {node: kept for node, kept in sorted(by_node.items()) if kept}, refused, repaired


def _apart(
    windows: Sequence[Window], refused: Counter[str], repaired: Counter[str]
) -> list[Window]:
    kept: list[Window] = []
    for window in windows:
        until_s = kept[-1].end_s if kept else -math.inf
        length_s = window.end_s - window.start_s
        over = (until_s - window.start_s) / length_s
        if over <= 0:
            kept.append(window)
        elif over <= OVERLAP_TOLERATED:
            # Jitter: both counters ran on, only the edge was noted twice.
            kept.append(msgspec.structs.replace(window, start_s=until_s))
        elif over <= 0.5:
            repaired["trimmed"] += 1
            cut = msgspec.structs.replace(window, start_s=until_s)
            kept.append(part_of(cut, 1 - over))
        else:
            refused["overlapping"] += 1
    return kept


def _divide(
    windows: Sequence[Window],
    activities: Sequence[Activity],
    bill: Bill,
    physics: StepPhysics,
    most: float,
) -> list[Attribution]:
    """``physics``: for idle power, where a window's meter does not know it."""
    modelled, external = bill.modelled, bill.external
    ours = bill.by_window()
    energy = np.array([w.energy_j for w in windows])
    # Whole quanta from here on.
    idle = np.floor(np.minimum(_idle_j(windows, physics), energy) / QUANTUM_J)
    above = np.floor(energy / QUANTUM_J) - idle
    charged = np.floor(np.minimum(above, most * (ours + external) / QUANTUM_J))
    with np.errstate(invalid="ignore", divide="ignore"):
        to_us = np.where(ours > 0, charged * ours / (ours + external), 0.0)
        scale = np.where(ours > 0, to_us / ours, 0.0)
    to_us = np.floor(to_us)
    to_others = np.where(external > 0, charged - to_us, 0.0)

    # Rounding the running sum, not the terms, keeps each within one quantum and the sum exact.
    order = np.lexsort((bill.request, bill.window))
    window_of, request_of = bill.window[order], bill.request[order]
    running = np.cumsum(modelled[order])
    first = np.searchsorted(window_of, np.arange(len(windows)))
    last = np.searchsorted(window_of, np.arange(len(windows)), side="right")
    attributions = []
    for i, window in enumerate(windows):
        low, high = int(first[i]), int(last[i])
        shares: tuple[Share, ...] = ()
        if high > low and to_us[i] > 0:
            base = running[low - 1] if low else 0.0
            upto = np.minimum(np.floor((running[low:high] - base) * scale[i]), to_us[i])
            upto[-1] = to_us[i]
            quanta = np.diff(upto, prepend=0.0)
            shares = tuple(
                Share(window.window_id, activities[request].request_id, float(count) * QUANTUM_J)
                for request, count in zip(request_of[low:high], quanta, strict=True)
                if count > 0
            )
        idle_j = float(idle[i]) * QUANTUM_J
        external_j = float(to_others[i]) * QUANTUM_J
        shared_j = float(to_us[i]) * QUANTUM_J if shares else 0.0
        attributions.append(
            Attribution(
                window_id=window.window_id,
                node=window.node,
                start_s=window.start_s,
                end_s=window.end_s,
                metered_j=window.energy_j,
                idle_j=idle_j,
                external_j=external_j,
                unattributed_j=window.energy_j - idle_j - external_j - shared_j,
                shares=shares,
                evidence=window.evidence,
                meter=window.meter,
            )
        )
    return attributions


def _external(work: Work, physics: StepPhysics) -> tuple[Floats, Floats, Floats]:
    """What the engine's other traffic cost, by window, and how far that may be off: in each for
    itself, and for as long as the same others are there.

    Its contexts are like ours where the engine does not count the bytes it reads; its prompts may
    have been computed in the window before the one that counts them.
    """
    guessed = ~work.context_counted
    busy = (work.external_tokens > 0) | (work.external_prefilled > 0)
    generating = np.where(
        busy,
        physics.step_j * work.external_shares
        + physics.token_j * work.external_tokens
        + physics.context_j * work.external_context,
        0.0,
    )
    computing = physics.prefill_j * work.external_prefilled
    soon = np.maximum(computing, np.append(computing[1:], 0.0))
    doubt = np.hypot(CONTEXT_VARIES * generating, PROMPT_PLACED * soon)
    lasting = np.where(guessed, CONTEXT_GUESSED, CONTEXT_COUNTED) * generating
    return generating + computing, doubt, lasting
