"""What each page shows: from a snapshot to the values its template writes. No web framework."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec
from markupsafe import Markup

from estimators.lately import Judgement, lately
from meters.intensity import IntensityBook, Tier
from meters.intensity.hours import iso
from meters.judged_estimates import judged_estimates
from meters.receipts import Receipt
from policies.explanation import explained
from policies.records import decision_from_json
from proxy.dashboard import charts, planning
from proxy.dashboard.account import SET
from proxy.dashboard.accounting import EVIDENCE_WEIGHT, GRADES, METHOD, TIER_WEIGHT
from proxy.dashboard.advice import advise
from proxy.dashboard.decomposition import by_model
from proxy.dashboard.holdout import HELD_OUT, TREATED
from proxy.dashboard.lines import IDLE_LINE, Line, add, by_dim, group_by_dims
from proxy.dashboard.links import View
from proxy.dashboard.node_books import OTHER_NODES, TERMS
from proxy.dashboard.numbers import Numbers
from proxy.dashboard.periods import Period, local_day, parse
from proxy.dashboard.queries import PAGE_ROWS, RequestFilter, request_rows
from proxy.dashboard.receipt import shown
from proxy.dashboard.sites import Sites
from proxy.dashboard.snapshot import SERIES, Snapshot, claimed, models_of, range_rows
from proxy.dashboard.user_groups import LEAST_USERS, shown_for
from proxy.dashboard.user_groups import RULES as USER_RULES
from proxy.dashboard.viewers import Viewer
from proxy.dashboard.where import TIER_WORDS, where
from proxy.own_energy import own_meter

if TYPE_CHECKING:
    from proxy.dashboard.pages import Dashboard

Values = dict[str, Any]
Page = Callable[["Dashboard", View, Snapshot, Numbers, Mapping[str, str], Viewer], Values]

EVIDENCE_WORDS = {
    "metered": "metered",
    "calibrated": "calibrated",
    "benchmark": "from benchmarks",
    "modelled": "modelled",
    "simulated": "SIMULATED",
    "unknown": "unknown",
}
JUDGED = 1000  # latest requests whose estimates are judged on the method page
FILTERS = (
    "model",
    "backend",
    "key",
    "tag",
    "project",
    "task",
    "policy",
    "zone",
    "evidence",
    "outcome",
    "cache",
    "node",
    "figure",
    "saving",
    "arm",
    "hour",
)
SIDES = ("model", "tag", "key")  # what both sides of a change are shown by


class PolicyOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy would have done with a period's traffic."""

    policy: str
    energy_j: float
    carbon_g: float
    low_g: float
    high_g: float
    quality: float | None = None
    ttft_p95_s: float | None = None
    money_usd: float | None = None
    refused: int = 0
    replayed: int = 0  # of ``requests``, the latest
    requests: int = 0
    note: str = ""


def overview(
    dashboard: Dashboard, view: View, s: Snapshot, n: Numbers, query: Mapping[str, str], who: Viewer
) -> Values:
    """The first screen."""
    days = s.lines["day"]
    budget_day = None
    if s.budget_ug is not None:
        budget_day = s.budget_ug / len(days) / 1e9
    daily = charts.stacked_days(
        [line.key for line in days],
        [
            ("active", "active", [_active_ug(x) / 1e9 for x in days]),
            ("idle", "idle share", [_idle_ug(x) / 1e9 for x in days]),
            ("embodied", "embodied", [x.embodied_ug / 1e9 for x in days]),
        ],
        lambda kg: n.mass(kg * 1e9),
        "CO2e by day",
        budget_day,
        lambda day: view.link("overview", period=day),
    )
    return {
        "daily": daily if s.total.operational_ug or s.total.embodied_ug else None,
        "why_chart": _why_chart(view, s, n),
        "evidence_bar": _evidence_bar(view, s, n),
        "evidence_words": EVIDENCE_WORDS,
        **_advice(dashboard, view, s),
        "drivers": _drivers(s, who),
        "driven": _driven(dashboard, view, s),
        "before": {} if s.previous is None else {"total": s.previous},
        "claimed": claimed(s.savings),
        "budget_chart": _budget_chart(s, n),
        "ongoing": s.start_s <= dashboard.clock() < s.end_s,
        "idle_line": IDLE_LINE,
    }


def _active_ug(line: Line) -> int:
    """The part of a line's grams that is not idle: in proportion to energy, hosts with both."""
    device = line.device_uj
    return line.operational_ug if not device else line.operational_ug * line.active_uj // device


def _idle_ug(line: Line) -> int:
    return line.operational_ug - _active_ug(line)


def _why_chart(view: View, s: Snapshot, n: Numbers) -> Markup | None:
    if s.bars is None:
        return None
    bars = [(name, float(ug)) for name, ug in s.bars.named()]
    write = n.same_mass([ug for _, ug in bars], signed=True)
    return charts.diverging(
        bars, write, "Why the total changed", lambda cause: view.link("why", cause=cause)
    )


def _evidence_bar(view: View, s: Snapshot, n: Numbers) -> Markup | None:
    if not s.evidence:
        return None
    total = sum(ug for _, ug in s.evidence)
    text = ", ".join(f"{n.percent(ug / total)} {EVIDENCE_WORDS[e]}" for e, ug in s.evidence)
    return charts.evidence_bar(
        [(e, float(ug)) for e, ug in s.evidence],
        "Evidence of the figure",
        text,
        lambda name: view.link("requests", by="evidence", evidence=name),
    )


def _budget_chart(s: Snapshot, n: Numbers) -> Markup | None:
    if s.budget_ug is None:
        return None
    low, high = (s.forecast.low_ug, s.forecast.high_ug) if s.forecast else (0.0, 0.0)
    text = f"{n.mass(s.total.operational_ug)} of {n.mass(s.budget_ug)}"
    return charts.meter(s.total.operational_ug, low, high, s.budget_ug, "Budget", text)


def _advice(dashboard: Dashboard, view: View, s: Snapshot) -> Values:
    account = dashboard.snapshots.account(view.team, view.period, s.simulated)
    zone = ZoneInfo(s.time_zone)
    book = dashboard.snapshots.book
    studies = dashboard.studies
    study = (
        studies.of(view.team, float(s.start_s), float(s.end_s))
        if studies is not None and s.total.requests
        else None
    )

    def intensity(name: str, hour_s: int) -> tuple[float, bool]:
        answer = book.at(name or None, hour_s)
        return answer.g_per_kwh, answer.tier.is_hourly or answer.tier is Tier.CLIMATOLOGY

    found = advise(
        account,
        s.lines["model"],
        lambda hour_s: datetime.fromtimestamp(hour_s, zone).hour,
        intensity,
        study,
    )
    return {"advice": found, "study": study, "can_study": studies is not None}


def _drivers(s: Snapshot, who: Viewer) -> list[tuple[str, str, tuple[Line, ...]]]:
    """(heading, filter, lines): models, keys where the viewer may see them, tags."""
    shown = [("Models", "model", s.lines["model"][:5])]
    if who.sees_keys:
        shown.append(("Keys", "key", s.lines["key"][:4]))
    shown.append(("Tags", "tag", s.lines["tag"][:4]))
    return shown


def _driven(dashboard: Dashboard, view: View, s: Snapshot) -> Mapping[str, Mapping[str, Line]]:
    """The period before by the groupings of the drivers, each line by its key."""
    if s.previous is None:
        return {"model": {}, "key": {}, "tag": {}}
    before = parse(s.previous_period, s.time_zone)
    account = dashboard.snapshots.account(view.team, before, s.simulated)
    per_dim = by_dim(account)
    return {
        name: {line.key: line for line in group_by_dims(account, per_dim, name)}
        for name in ("model", "key", "tag")
    }


def why(
    dashboard: Dashboard, view: View, s: Snapshot, n: Numbers, query: Mapping[str, str], who: Viewer
) -> Values:
    """The change, bar by bar, what each model adds to each, and both sides of it."""
    compared = parse(s.previous_period, s.time_zone)
    before = dashboard.snapshots.of(view.team, compared, s.simulated)
    sides = [name for name in SIDES if name != "key" or who.sees_keys]
    by = query["by"] if query.get("by") in sides else "model"
    old = {line.key: line for line in before.lines[by]}
    new = {line.key: line for line in s.lines[by]}
    names = [*new, *(name for name in old if name not in new)]
    causes = {} if s.bars is None else dict(s.bars.named())
    return {
        "why_chart": _why_chart(view, s, n),
        "before": before,
        "by": by,
        "sides": sides,
        "both": [(name, old.get(name), new.get(name)) for name in names],
        "added": _added(dashboard, view, s, compared),
        "cause": query.get("cause") if query.get("cause") in causes else None,
        "idle_line": IDLE_LINE,
    }


def _added(
    dashboard: Dashboard, view: View, s: Snapshot, compared: Period
) -> Mapping[str, tuple[int, int, int, int]]:
    """What each model adds to each bar but that of idle, in micro-grams."""
    if s.bars is None:
        return {}
    old, new = (
        models_of(dashboard.snapshots.account(view.team, period, s.simulated))
        for period in (compared, view.period)
    )
    return by_model(old, new, s.bars)


def savings(
    dashboard: Dashboard, view: View, s: Snapshot, n: Numbers, query: Mapping[str, str], who: Viewer
) -> Values:
    """What was avoided, apart from the footprint."""
    return {
        "claimed": claimed(s.savings),
        "held_out": HELD_OUT,
        "treated": TREATED,
        **_advice(dashboard, view, s),
    }


def requests(
    dashboard: Dashboard, view: View, s: Snapshot, n: Numbers, query: Mapping[str, str], who: Viewer
) -> Values:
    """A page of requests, newest first, filtered as the link says."""
    active = {name: query[name] for name in FILTERS if query.get(name) is not None}
    groups = {name: s.lines[name] for name in s.lines if name not in SERIES}
    by = query.get("by", "")
    if by == "day":
        groups["day"] = s.lines["day"]
    hours = view.period.hours_of_day(active["hour"]) if "hour" in active else None
    in_hours = set(map(iso, hours or ()))
    by_hour = [line for line in s.lines["hour"] if line.key in in_hours]
    rows: list[dict[str, Any]] = []
    following: str | None = None
    if who.sees_keys:
        blank = {"(no key)", "(no project)", "(no task)", "(no policy)", "(untagged)"}
        words = {k: "" if v in blank or v == "(nothing sent)" else v for k, v in active.items()}
        words.pop("hour", None)
        if "zone" in words:
            words["zone"] = grid_zone(words["zone"])
        wanted = RequestFilter(
            team=view.team,
            start_s=float(s.start_s),
            end_s=float(s.end_s),
            simulated=s.simulated,
            hours_s=hours,
            **words,
        )
        rows = request_rows(dashboard.snapshots.ledger, wanted, _before(query.get("before")))
        if len(rows) == PAGE_ROWS:
            last = rows[-1]
            following = f"{last['start_s']!r}|{last['request_id']}"
    return {
        "rows": rows,
        "filters": active,
        "filter_names": FILTERS,
        "groups": groups,
        "by_hour": by_hour if set(active) == {"hour"} else [],
        "hours_total": add("total", by_hour),
        "by": by,
        "kept": active | ({"by": by} if by in groups else {}),
        "next": following,
        "idle_line": IDLE_LINE,
    }


def grid_zone(shown: str) -> str:
    """The grid zone of requests that the account has in this one; '' where they have none."""
    if shown.endswith(SET):
        shown = shown.removesuffix(SET).partition(" ")[0]
    return "" if shown in ("world", "own") else shown


def books(
    dashboard: Dashboard, view: View, s: Snapshot, n: Numbers, query: Mapping[str, str], who: Viewer
) -> Values:
    """The rows of the line that reconciles: by node, and a node's days or hours.

    Whose node it is can be told from its name, so others than admins see those that their team
    drew from, and the rest as one. A node's days and hours say when other teams were busy on it:
    they are for leads of a team on it.
    """
    account = dashboard.snapshots.account(view.team, view.period, s.simulated)
    mine = set(account.nodes)
    node = query.get("node") or ""
    shown = who.role == "admin" or (who.sees_keys and node in mine)
    hours_shown = len(view.period.days) == 1

    def by_node(name: str, hour_s: int) -> str:
        return name if who.role == "admin" or name in mine else OTHER_NODES

    def by_time(name: str, hour_s: int) -> str | None:
        if name != node:
            return None
        return iso(hour_s) if hours_shown else local_day(hour_s, s.time_zone).isoformat()

    make = dashboard.snapshots.node_books
    return {
        "nodes": make(view.team, view.period, s.simulated, by_node),
        "times": make(view.team, view.period, s.simulated, by_time) if node and shown else [],
        "node": node if shown else "",
        "hours_shown": hours_shown,
        "term": query.get("term") if query.get("term") in TERMS else None,
        "other_nodes": OTHER_NODES,
        "hour_of": lambda key: str(
            datetime.fromisoformat(key.replace("Z", "+00:00"))
            .astimezone(ZoneInfo(s.time_zone))
            .hour
        ),
        "sum_of": lambda rows, name: sum(row.term(name) for row in rows),
    }


def users(
    dashboard: Dashboard, view: View, s: Snapshot, n: Numbers, query: Mapping[str, str], who: Viewer
) -> Values:
    """Sums of groups of users, where the team wants them and they are large enough."""
    on = dashboard.user_groups(view.team)
    may = on and who.sees_keys
    lines = dashboard.snapshots.user_groups(view.team, view.period, s.simulated) if may else None
    return {
        "on": on,
        "may": may,
        "over": shown_for(view.period, dashboard.clock()),
        "lines": lines,
        "rules": USER_RULES,
        "least": LEAST_USERS,
    }


def _before(text: str | None) -> tuple[float, str] | None:
    at, _, request_id = (text or "").partition("|")
    try:
        return (float(at), request_id) if request_id else None
    except ValueError:
        return None


def receipt(found: Receipt, book: IntensityBook, sites: Sites) -> Values:
    """One request: everything that was known and measured of it."""
    return {
        "r": found.record,
        "receipt": found,
        "shown": shown(found, book, sites),
        "tier_words": TIER_WORDS,
        "why": sentences(found.record.decision),
        "earlier": json.loads(found.record.earlier) if found.record.earlier else [],
    }


def sentences(recorded: str | None) -> list[str]:
    """Why this backend and, for each other, why not; empty where there was nothing to decide."""
    decision = None if recorded is None else decision_from_json(recorded).decision
    return [] if decision is None else explained(decision)


def plan(
    dashboard: Dashboard, view: View, s: Snapshot, n: Numbers, query: Mapping[str, str], who: Viewer
) -> Values:
    """What if: another model, precision, engine, length, region or hardware."""
    gpus = sorted(dashboard.gpus)
    own = planning.own_backends(dashboard.backends(), s.lines["backend"], gpus, s.simulated)
    usual = planning.usual(s.total)
    begun = planning.of_backend(usual, own[0]) if own else usual
    asked = planning.parse(query, gpus, begun)
    results = (
        planning.compare(
            asked,
            dashboard.estimator,
            dashboard.gpus,
            dashboard.snapshots.book,
            dashboard.clock(),
            own,
        )
        if dashboard.estimator is not None and dashboard.gpus
        else []
    )
    return {
        "plan": asked,
        "own": [(each.name, planning.written(planning.of_backend(usual, each))) for each in own],
        "results": results,
        "can_plan": dashboard.estimator is not None and bool(dashboard.gpus),
        "gpu_names": gpus,
        "zones": sorted(
            {r.zone for r in dashboard.snapshots.book.table.regions.values()} | {asked.zone}
        ),
        "engines": planning.ENGINES,
        "precisions": planning.PRECISIONS,
        "own_lengths": bool(s.total.requests),
    }


def policies(
    dashboard: Dashboard, view: View, s: Snapshot, n: Numbers, query: Mapping[str, str], who: Viewer
) -> Values:
    """What each policy would have done with this traffic."""
    outcomes = (
        list(dashboard.replay(view.team, float(s.start_s), float(s.end_s)))
        if dashboard.replay is not None
        else []
    )
    return {"outcomes": outcomes, "can_replay": dashboard.replay is not None}


def report(s: Snapshot) -> Values:
    """The printed report: no control, everything stated."""
    return {
        "method_words": METHOD,
        "tier_words": TIER_WORDS,
        "evidence_words": EVIDENCE_WORDS,
        "claimed": claimed(s.savings),
        "idle_line": IDLE_LINE,
    }


def _report(
    dashboard: Dashboard, view: View, s: Snapshot, n: Numbers, query: Mapping[str, str], who: Viewer
) -> Values:
    return report(s) | {"frozen": None, "differs": False, "now": None}


def method(
    dashboard: Dashboard, view: View, s: Snapshot, n: Numbers, query: Mapping[str, str], who: Viewer
) -> Values:
    """Rules, sources, their health, restatements, and whether the books balance."""
    book, own = dashboard.snapshots.book, own_meter().look()
    mine = {f.zone for f in s.factors}
    return {
        "method_words": METHOD,
        "weights": [
            *((EVIDENCE_WORDS[each.value], weight) for each, weight in EVIDENCE_WEIGHT.items()),
            *((TIER_WORDS[each.value], weight) for each, weight in TIER_WEIGHT.items()),
        ],
        "grades": GRADES,
        "ranges": range_rows(dashboard.snapshots.account(view.team, view.period, s.simulated)),
        "tier_words": TIER_WORDS,
        "estimates": lately(_judged(dashboard, view, s)),
        "own": own,
        "own_since_s": dashboard.clock() - own.seconds,
        "health": list(dashboard.health()),
        "restatements": [r for r in book.restatements if r.zone in mine][-50:],
        "sites": dashboard.snapshots.sites,
        "table": book.table,
        "region_map": sorted(book.table.regions.values(), key=lambda r: r.name),
        "edited": [r for r in book.table.regions.values() if r.edited],
    }


def _judged(dashboard: Dashboard, view: View, s: Snapshot) -> list[Judgement]:
    """The estimates of the team's latest requests in the period, beside what was metered."""
    with dashboard.snapshots.ledger.database.read() as connection:
        found = judged_estimates(
            connection, s.start_s, s.end_s, most=JUDGED, team=view.team, among=JUDGED
        )
    return [Judgement.of(one) for one in found if one.simulated == s.simulated]


PAGES: Mapping[str, Page] = {
    "overview": overview,
    "why": why,
    "where": where,
    "savings": savings,
    "requests": requests,
    "plan": plan,
    "policies": policies,
    "report": _report,
    "users": users,
    "books": books,
    "method": method,
}
