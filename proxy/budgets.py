"""How much may be used in a period: which counters a request touches, and what to say. Pure.

A request reserves its estimate in every counter at admission and settles with what it really took,
so requests in flight together cannot all be admitted on the same remainder. Beside the estimate it
holds a margin, up to the most that it may take, which leaves less room for others but not for
itself: together they overspend at most by what one of them takes beyond its estimate. Amounts are
whole numbers: requests, tokens, micro-joules, micro-grams, nano-dollars.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from math import isfinite
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from meters.exact import MICRO, NANO
from proxy.errors import ApiError, over_budget, rate_limited
from proxy.settings import Budget

Per = Literal["minute", "day", "month"]
Metric = Literal["requests", "tokens", "energy_j", "carbon_g", "money_usd"]

METRICS: tuple[Metric, ...] = ("requests", "tokens", "energy_j", "carbon_g", "money_usd")
_PER_UNIT: dict[Metric, int] = {
    "requests": 1,
    "tokens": 1,
    "energy_j": MICRO,
    "carbon_g": MICRO,
    "money_usd": NANO,
}
_SHOWN: dict[Metric, str] = {
    "requests": "requests",
    "tokens": "tokens",
    "energy_j": "J",
    "carbon_g": "g CO2e",
    "money_usd": "USD",
}


class Amounts(msgspec.Struct, frozen=True, kw_only=True):
    """What one request takes, or is expected to; None where that is not known."""

    requests: int = 1
    tokens: int | None = None  # in and out
    energy_j: float | None = None
    carbon_g: float | None = None
    money_usd: float | None = None


NOTHING = Amounts(requests=0)
# Of one amount or limit: 320 GWh, or a thousand million USD. A counter holds some of them.
MOST = 2**60
IN_FLIGHT_S = 5.0  # after which to try again what only waits for others to end


def together(one: Amounts, other: Amounts) -> Amounts:
    """The sum; what only one of them knows counts as that one says."""

    def add(name: str) -> float | None:
        known = [v for v in (getattr(one, name), getattr(other, name)) if v is not None]
        return sum(known) if known else None

    tokens = add("tokens")
    return Amounts(
        requests=one.requests + other.requests,
        tokens=None if tokens is None else int(tokens),
        energy_j=add("energy_j"),
        carbon_g=add("carbon_g"),
        money_usd=add("money_usd"),
    )


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of one holder in one kind of period."""

    scope: str  # "team:search", "key:3fa9...", "organisation:acme"
    metric: Metric
    per: Per
    limit: float  # in the metric's unit
    soft: float = 0.8  # share after which to warn
    timezone: str = "UTC"
    fallback_policy: str | None = None  # serve with this policy instead of refusing
    reserve_most: bool = False  # hold the most that a request may take, beside what is expected
    number: int = 0  # among those of one scope, metric and period: each has a counter of its own


class Period(NamedTuple):
    """From ``start_s`` to before ``end_s``, Unix time; ``name`` is the same on every replica."""

    start_s: float
    end_s: float
    name: str


class Charge(NamedTuple):
    """One counter that a request touches."""

    rule: Rule
    counter: str  # names rule and period
    limit: int
    amount: int  # what to reserve
    period: Period
    margin: int = 0  # how much more it may take: no room for others while it is in flight


class Spent(NamedTuple):
    """How full one counter is, the request's own reservation included unless it was refused."""

    charge: Charge
    used: int
    margins: int = 0  # what others in flight may take beyond what they reserved

    @property
    def share(self) -> float:
        """Of the limit, 0 and up."""
        return self.used / self.charge.limit if self.charge.limit else 1.0

    @property
    def passing(self) -> bool:
        """Whether a request that was refused would have had room, were it not for the margins of
        others in flight, which end with them."""
        used, charge = self.used, self.charge
        return used < charge.limit and used + charge.amount <= charge.limit


def rules(scope: str, budgets: Iterable[Budget], timezone: str = "UTC") -> list[Rule]:
    """The rules that a holder's configured budgets stand for."""
    found: list[Rule] = []
    for budget in budgets:
        for metric in METRICS:
            limit = getattr(budget, metric)
            if limit is not None:
                alike = sum(r.metric == metric and r.per == budget.per for r in found)
                found.append(
                    Rule(
                        scope=scope,
                        metric=metric,
                        per=budget.per,
                        limit=float(limit),
                        soft=budget.soft,
                        timezone=timezone,
                        fallback_policy=budget.fallback_policy,
                        reserve_most=budget.reserve == "most",
                        number=alike,
                    )
                )
    return found


_Charged = tuple[Rule, str, int, float, float, Period]  # rule, counter, limit, start, end, period
MOST_RULES = 10_000  # whose periods are kept
_charged: dict[int, _Charged] = {}  # by the rule's address: the same few for every request


def charges(
    rules_: Iterable[Rule], amounts: Amounts, now_s: float, most: Amounts | None = None
) -> list[Charge]:
    """The counters a request touches at ``now_s``, with what to reserve in each: what is expected,
    and a margin up to ``most`` where a rule wants that.

    An amount that is not known reserves nothing; it is settled when it is known.
    """
    found = []
    for rule in rules_:
        known = _charged.get(id(rule))
        if known is None or known[0] is not rule or not known[3] <= now_s < known[4]:
            known = _charge_now(rule, now_s)
        _, counter, limit, _, _, at = known
        metric = rule.metric
        if metric == "requests":
            found.append(Charge(rule, counter, limit, amounts.requests, at))
            continue
        amount = whole(metric, getattr(amounts, metric))
        margin = 0
        if most is not None and rule.reserve_most:
            # As much as the limit leaves nothing for others; more of many could not be added up.
            margin = min(limit, max(0, whole(metric, getattr(most, metric)) - amount))
        found.append(Charge(rule, counter, limit, amount, at, margin))
    return found


def _charge_now(rule: Rule, now_s: float) -> _Charged:
    at = period(rule.per, now_s, rule.timezone)
    counter = f"{rule.scope}:{rule.metric}:{rule.per}:{at.name}"
    if rule.number:
        counter = f"{counter}#{rule.number}"
    if len(_charged) >= MOST_RULES:
        _charged.clear()
    limit = whole(rule.metric, rule.limit)
    known = _charged[id(rule)] = (rule, counter, limit, at.start_s, at.end_s, at)
    return known


def whole(metric: Metric, amount: float | None) -> int:
    """``amount`` as the counter holds it, ``MOST`` at most; what is not known, or not finite,
    counts nothing."""
    if amount is None or not isfinite(amount) or amount <= 0:
        return 0
    return round(min(amount * _PER_UNIT[metric], MOST))


def period(per: Per, now_s: float, timezone: str = "UTC") -> Period:
    """The period that holds ``now_s``. Days and months are the time zone's own, whatever their
    length: 23 and 25 hours where clocks change."""
    if per == "minute":
        start = now_s // 60 * 60
        return Period(start, start + 60, str(int(start)))
    known = _current.get((per, timezone))
    if known is not None and known.start_s <= now_s < known.end_s:
        return known
    found = _current[per, timezone] = _calendar_period(per, now_s, timezone)
    return found


_current: dict[tuple[Per, str], Period] = {}  # the one asked for last, nearly always wanted again


def _calendar_period(per: Per, now_s: float, timezone: str) -> Period:
    day = datetime.fromtimestamp(now_s, _zone(timezone)).date()
    if per == "day":
        return _days(day, day + timedelta(days=1), timezone, day.isoformat())
    first = day.replace(day=1)
    following = (first + timedelta(days=32)).replace(day=1)
    return _days(first, following, timezone, first.strftime("%Y-%m"))


@lru_cache(maxsize=1024)
def _days(first: date, after: date, timezone: str, name: str) -> Period:
    return Period(_midnight(first, timezone), _midnight(after, timezone), name)


def _midnight(day: date, timezone: str) -> float:
    """When that day begins. Where clocks jump over midnight, that is the first moment after."""
    return datetime(day.year, day.month, day.day, tzinfo=_zone(timezone)).timestamp()


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def exceeded(spent: Sequence[Spent]) -> Spent | None:
    """The fullest counter that is over its limit, margins of others included; None when all have
    room."""
    over = [s for s in spent if s.used + s.margins > s.charge.limit]
    return max(over, key=lambda s: s.share, default=None)


def warnings(spent: Sequence[Spent]) -> list[Spent]:
    """The counters that are past their soft threshold, fullest first."""
    past = [s for s in spent if s.share >= s.charge.rule.soft]
    return sorted(past, key=lambda s: -s.share)


def left(spent: Sequence[Spent]) -> float | None:
    """What is left of the tightest budget, 0..1; None without budgets."""
    return min((max(0.0, 1.0 - s.share) for s in spent), default=None)


def refusal(denied: Spent, now_s: float) -> ApiError:
    """The 429 for a request that one counter has no room for: what, how much, until when.

    Where it only has to wait for others to end, it is one to try again soon."""
    charge = denied.charge
    rule = charge.rule
    unit = _PER_UNIT[rule.metric]
    resets = datetime.fromtimestamp(charge.period.end_s, _zone(rule.timezone))
    wait_s = max(1.0, charge.period.end_s - now_s)
    kind, _, name = rule.scope.partition(":")
    passing = denied.passing
    message = (
        f"The {kind} {name!r} has used {_figure(denied.used / unit)} of its "
        f"{_figure(rule.limit)} {_SHOWN[rule.metric]} of this {rule.per}, and this request would "
        f"take about {_figure(charge.amount / unit)}. "
    )
    if passing:
        message += (
            f"Requests in flight may take {_figure(denied.margins / unit)} more than expected: "
            "try again when they have ended."
        )
        wait_s = min(wait_s, IN_FLIGHT_S)
    else:
        message += f"It resets at {resets.isoformat()}."
    details: dict[str, object] = {
        "scope": rule.scope,
        "metric": rule.metric,
        "per": rule.per,
        "limit": rule.limit,
        "used": denied.used / unit,
        "needed": charge.amount / unit,
        "in_flight": denied.margins / unit,
        "resets_at": resets.astimezone(UTC).isoformat(),
    }
    if passing or rule.per == "minute":  # worth trying again, by itself and soon
        return rate_limited(message, wait_s, details)
    return over_budget(message, code="budget_exceeded", retry_after_s=wait_s, details=details)


def warning(spent: Spent) -> str:
    """One counter past its threshold, as a header's value: ``energy_j per month 83% of 5000``."""
    rule = spent.charge.rule
    return f"{rule.scope} {rule.metric} per {rule.per} {spent.share:.0%} of {_figure(rule.limit)}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"
