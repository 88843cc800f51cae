"""What to do next: the largest savings that a team's own traffic makes feasible. Pure.

Each is a range, not a promise: the low end is what is left when half of it works out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from estimators.types import Z_80
from proxy.dashboard.account import ACTIVE, IDLE, Account
from proxy.dashboard.lines import IDLE_LINE, Line
from proxy.dashboard.queries import ASKED

SMALLEST_UG = 1_000_000  # less than a gram is not worth a line
SCHEDULED_HOURS = 3  # a job whose energy lies in so few hours of the day runs to a schedule
SCHEDULED_SHARE = 0.8


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One change and which share of the active carbon it would save, 80 % range."""

    kind: str
    title: str
    why: str
    effort: str
    low: float
    high: float
    figures: tuple[float | str, ...] = ()  # what stands in ``why``


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay of a team's traffic found feasible; ``replayed`` of ``requests``."""

    replayed: int
    requests: int
    options: tuple[Option, ...]


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do, with what it would save in the period looked at."""

    kind: str  # shift | model | idle | region | cache | route | precision | output | prompt
    title: str
    why: str
    effort: str
    low_ug: float
    high_ug: float
    figures: tuple[float | str, ...] = ()  # what stands in ``why``, as Numbers.sentence takes it
    rows: str = "policies"  # the page with what it was worked out from
    only: tuple[tuple[str, str], ...] = ()  # and which of its rows


def advise(
    account: Account,
    models: Sequence[Line],
    local_hour: Callable[[int], int],
    intensity: Callable[[str, int], tuple[float, bool]],
    study: Study | None = None,
) -> tuple[Advice, ...]:
    """The three largest. ``local_hour`` gives the hour of the team's day of a UTC hour;
    ``intensity`` g/kWh of a zone and hour, and whether it knows the time of day. ``study`` is what
    a replay of the traffic found; without one, what models cost stands in for it."""
    found = [
        *_shift(account, local_hour, intensity),
        *(_model(models) if study is None else _replayed(account, study)),
        *_cache(account),
        *_idle(account),
        *_region(account),
    ]
    worth = [a for a in found if a.high_ug >= SMALLEST_UG]
    return tuple(sorted(worth, key=lambda a: -(a.low_ug + a.high_ug))[:3])


def _shift(
    account: Account,
    local_hour: Callable[[int], int],
    intensity: Callable[[str, int], tuple[float, bool]],
) -> list[Advice]:
    """Scheduled jobs, each by its tag, moved to the cleanest hour of the same grid."""
    c = account.cells
    by_tag: dict[str, list[int]] = defaultdict(list)
    for place, dim in enumerate(account.dims):
        if dim.tags and "," not in dim.tags:
            by_tag[dim.tags].append(place)
    hours, at = np.unique(c.hour_s, return_inverse=True)
    local = np.array([local_hour(h) for h in hours.tolist()], dtype=np.int64)
    of_cell = local[at] if len(hours) else at
    found = []
    means: dict[str, dict[int, float]] | None = None
    for tag, places in by_tag.items():
        mine = np.isin(c.dim, places) & (c.component == ACTIVE)
        ug = np.zeros(24, dtype=np.int64)
        np.add.at(ug, of_cell[mine], c.operational_ug[mine])
        top = np.argsort(-ug)[:SCHEDULED_HOURS]
        if not ug.sum() or ug[top].sum() < SCHEDULED_SHARE * ug.sum():
            continue
        if means is None:
            means = _zone_means(account, local_hour, intensity)
        saved, best_hours = 0.0, np.zeros(24)
        for place in np.unique(c.zone[mine]).tolist():
            by_hour = means.get(account.zones[place])
            if by_hour is None:
                continue
            here = mine & (c.zone == place)
            best = min(by_hour, key=by_hour.__getitem__)
            for hour in np.unique(of_cell[here]).tolist():
                grams = int(c.operational_ug[here & (of_cell == hour)].sum())
                if by_hour[hour] > 0:
                    saved += grams * max(0.0, 1.0 - by_hour[best] / by_hour[hour])
                best_hours[best] += grams
        if not best_hours.any():
            continue
        found.append(
            Advice(
                kind="shift",
                title=f"Move {tag} from {int(top.min()):02d}:00 to "
                f"{int(best_hours.argmax()):02d}:00",
                why="Its energy lies in few hours of the day; another hour of the same grid was "
                "cleaner in this period. Forecasts reach about half to all of the difference.",
                effort="change a schedule",
                low_ug=saved * 0.5,
                high_ug=saved,
                rows="requests",
                only=(("tag", tag),),
            )
        )
    return found


def _zone_means(
    account: Account,
    local_hour: Callable[[int], int],
    intensity: Callable[[str, int], tuple[float, bool]],
) -> dict[str, dict[int, float]]:
    """Zone -> local hour -> mean g/kWh over the hours of the period, where that is known."""
    c = account.cells
    hours = np.unique(c.hour_s).tolist()
    found: dict[str, dict[int, float]] = {}
    for place in np.unique(c.zone).tolist():
        name = account.zones[place]
        sums: dict[int, list[float]] = defaultdict(list)
        for hour_s in hours:
            g, knows_the_hour = intensity(name, hour_s)
            if knows_the_hour:
                sums[local_hour(hour_s)].append(g)
        if len(sums) == 24:
            found[name] = {hour: sum(v) / len(v) for hour, v in sums.items()}
    return found


def _replayed(account: Account, study: Study) -> list[Advice]:
    """A study's options in grams of the period's active carbon."""
    active_ug = int(account.cells.operational_ug[account.cells.dim >= 0].sum())
    return [
        Advice(
            kind=option.kind,
            title=option.title,
            why=option.why,
            figures=option.figures,
            effort=option.effort,
            low_ug=active_ug * option.low,
            high_ug=active_ug * option.high,
            rows="policies" if option.kind == "route" else "requests",
            only=() if option.kind == "route" else (("by", "model"),),
        )
        for option in study.options
    ]


def _cache(account: Account) -> list[Advice]:
    """Requests that could not use the cache, at the rate at which the others found an answer."""
    asked = account.asked
    if not len(asked):
        return []
    kinds = np.array([d.cache for d in account.dims])[asked[:, 1]]
    count = asked[:, ASKED["requests"]]
    hits, misses = int(count[kinds == "hit"].sum()), int(count[kinds == "miss"].sum())
    off = np.array([d.cache == "off" and bool(d.backend) for d in account.dims])
    c = account.cells
    left_ug = int(c.operational_ug[(c.dim >= 0) & off[np.maximum(c.dim, 0)]].sum())
    if not hits or not left_ug:
        return []
    rate = hits / (hits + misses)
    spread = Z_80 * math.sqrt(rate * (1 - rate) / (hits + misses))
    return [
        Advice(
            kind="cache",
            title="Let the other requests use the cache",
            why="{:%} of the requests that may be answered from the cache were; the others "
            "did not ask it. Half to all of that rate.",
            figures=(rate,),
            effort="send temperature 0, or allow sampled answers",
            low_ug=left_ug * max(0.0, rate - spread) * 0.5,
            high_ug=left_ug * min(1.0, rate + spread),
            rows="requests",
            only=(("cache", "off"),),
        )
    ]


def _model(models: Sequence[Line]) -> list[Advice]:
    """The heaviest model's work on the thriftiest that the team uses already."""
    used = [m for m in models if m.key != IDLE_LINE and m.output_tokens and m.active_uj]
    if len(used) < 2:
        return []
    heavy = max(used, key=lambda m: m.operational_ug)
    thrifty = min(used, key=_ug_per_token)
    if thrifty.key == heavy.key:
        return []
    saved = heavy.operational_ug * (1.0 - _ug_per_token(thrifty) / _ug_per_token(heavy))
    return [
        Advice(
            kind="model",
            title=f"{heavy.key} → {thrifty.key} where it is good enough",
            why="If 25 to 75 % of its requests pass your quality gate on the smaller one, at what "
            "each model's tokens have cost you in this period.",
            effort="set a policy, check quality",
            low_ug=saved * 0.25,
            high_ug=saved * 0.75,
            rows="requests",
            only=(("model", heavy.key),),
        )
    ]


def _ug_per_token(line: Line) -> float:
    return line.operational_ug / (line.prompt_tokens + line.output_tokens)


def _idle(account: Account) -> list[Advice]:
    """Nodes that idled for the team in hours in which it sent them nothing."""
    c = account.cells
    slots = (c.node << 40) + c.hour_s
    busy = np.unique(slots[c.component == ACTIVE])
    lone = (c.component == IDLE) & ~np.isin(slots, busy)
    unused = {
        account.nodes[place]: int(c.operational_ug[lone & (c.node == place)].sum())
        for place in np.unique(c.node[lone]).tolist()
    }
    return [
        Advice(
            kind="idle",
            title=f"Scale {node} to zero when unused",
            why="Its idle energy in hours without a request of yours. It falls away only when the "
            "other teams on it do not need it either.",
            effort="operations",
            low_ug=ug * 0.3,
            high_ug=ug * 0.9,
            rows="books",
            only=(("node", node),),
        )
        for node, ug in unused.items()
    ]


def _region(account: Account) -> list[Advice]:
    """The largest zone's work in the cleanest zone that the team uses already."""
    energy: dict[str, int] = defaultdict(int)
    grams: dict[str, int] = defaultdict(int)
    c = account.cells
    own = c.node >= 0
    for place in np.unique(c.zone[own]).tolist():
        mine = own & (c.zone == place) & (c.component == ACTIVE)
        name = account.zones[place]
        energy[name] += int((c.energy_uj + c.overhead_uj)[mine].sum())
        grams[name] += int(c.operational_ug[mine].sum())
    rates: Mapping[str, float] = {z: grams[z] / energy[z] for z in energy if energy[z]}
    if len(rates) < 2:
        return []
    largest = max(rates, key=lambda z: grams[z])
    cleanest = min(rates, key=lambda z: rates[z])
    if largest == cleanest:
        return []
    saved = grams[largest] * (1.0 - rates[cleanest] / rates[largest])
    return [
        Advice(
            kind="region",
            title=f"Serve from {cleanest or 'world'} instead of {largest or 'world'}",
            why="The same energy at the other grid's intensity, where data rules and capacity "
            "allow it for half to all of the work.",
            effort="capacity, data rules",
            low_ug=saved * 0.5,
            high_ug=saved,
            rows="requests",
            only=(("zone", largest or "world"),),
        )
    ]
