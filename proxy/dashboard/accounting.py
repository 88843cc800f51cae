"""The rules of the account: ranges, grade, idle, scopes, savings. Pure.

Every rule that a figure depends on is a function here, and its words are in METHOD, which every
page and export prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from estimators.types import Z_80
from meters.intensity import Tier
from meters.types import Evidence

METHOD_VERSION = "2"

METHOD: tuple[tuple[str, str], ...] = (
    (
        "Boundary",
        "Energy of GPUs that served requests, the idle energy allotted to the team, and the host "
        "(CPU and memory), each times PUE; figures of hosted APIs hold their building's overhead. "
        "Embodied hardware and water are stated apart. Not included: networks, client devices, "
        "training, and hardware of hosted APIs.",
    ),
    (
        "Operational, location-based",
        "Energy by hour and zone x PUE x average grid intensity of that hour and zone.",
    ),
    (
        "Operational, market-based",
        "The same energy with the intensities of contractual instruments where this organisation "
        "has stated some; elsewhere the location-based figure stands in.",
    ),
    (
        "Evidence",
        "metered: a hardware counter, attributed. calibrated: our estimator, taught by this "
        "engine's own windows. benchmark: our estimator, from published measurements. modelled: "
        "parametric. Unknown is counted as unknown and never as 0, in means neither. Simulated "
        "figures are kept in a book of their own and are never added to others.",
    ),
    (
        "Idle",
        "Idle power x time, also while an engine is busy. A dedicated engine's idle energy goes "
        "to its owner. A shared engine's goes to its entitled teams in proportion to the energy "
        "their requests caused on it in the 28 days before; when none of them used it in the 7 "
        "days before, it is the platform's.",
    ),
    (
        "Host",
        "Metered where the node reads it. Elsewhere modelled as 0.43 x GPU energy (0.25/0.58, "
        "Google, August 2025).",
    ),
    (
        "Embodied",
        "Grams per installed GPU-hour x GPUs x metered time, divided as the node's energy is; it "
        "accrues while idle.",
    ),
    (
        "Range",
        "Errors of one backend add linearly, since a model is wrong in the same direction each "
        "time; different backends, the grid factors and the host model combine in quadrature.",
    ),
    (
        "Savings",
        "Against the model asked for (or the organisation's declared default for auto), frozen "
        "when the request was decided, with the same estimator on both sides and corrected by "
        "measured/predicted of what was served. An answer that nobody got avoids nothing. Claimed "
        "only where the range excludes zero; never subtracted from the footprint. A randomised "
        "hold-out, where one ran, is stated beside it.",
    ),
    (
        "References",
        "GHG Protocol Scope 2 (2015); ISO/IEC 21031:2024 (SCI); ITU-T L.1801 / ETSI ES 204 135; "
        "ESRS E1-6.",
    ),
)

# Half-widths, relative. Metered: data sheets give NVML +/-5 %. Host: our judgement, since
# published shares of hosts differ that much. Grid: providers differ by about 10 % for the same
# hour on most grids; an annual mean misses office hours by up to 29 % (California).
METERED_ERROR = 0.05
HOST_MODEL_ERROR = 0.5
TIER_ERROR: Mapping[Tier, float] = {
    Tier.HOURLY: 0.10,
    Tier.ESTIMATED: 0.12,
    Tier.LIVE: 0.15,
    Tier.LAST_VALUE: 0.18,
    Tier.CLIMATOLOGY: 0.25,
    Tier.ANNUAL_ZONE: 0.30,
    Tier.ANNUAL_COUNTRY: 0.35,
    Tier.WORLD: 0.60,
}
TIER_WEIGHT: Mapping[Tier, float] = {
    Tier.HOURLY: 1.0,
    Tier.ESTIMATED: 0.97,
    Tier.LIVE: 0.94,
    Tier.LAST_VALUE: 0.90,
    Tier.CLIMATOLOGY: 0.80,
    Tier.ANNUAL_ZONE: 0.65,
    Tier.ANNUAL_COUNTRY: 0.55,
    Tier.WORLD: 0.35,
}
EVIDENCE_WEIGHT: Mapping[Evidence, float] = {
    Evidence.METERED: 1.0,
    Evidence.CALIBRATED: 0.85,
    Evidence.BENCHMARK: 0.6,
    Evidence.MODELLED: 0.45,
    Evidence.SIMULATED: 0.0,
    Evidence.UNKNOWN: 0.0,
}
GRADES = (("A", 0.80), ("B", 0.65), ("C", 0.45), ("D", 0.20))


class Part(msgspec.Struct, frozen=True):
    """One backend's carbon with its own range, in micro-grams."""

    low_ug: float
    mid_ug: float
    high_ug: float


def combine(parts: Iterable[Part], relative: Iterable[tuple[float, float]] = ()) -> Part:
    """Parts whose errors are independent: middles add, half-widths combine in quadrature.

    ``relative`` are further independent errors, each as (micro-grams it applies to, half-width as
    a share). Inside one part errors must have been added linearly already.
    """
    below = above = middle = 0.0
    for part in parts:
        middle += part.mid_ug
        below += (part.mid_ug - part.low_ug) ** 2
        above += (part.high_ug - part.mid_ug) ** 2
    for amount_ug, share in relative:
        below += (amount_ug * share) ** 2
        above += (amount_ug * share) ** 2
    return Part(max(0.0, middle - math.sqrt(below)), middle, middle + math.sqrt(above))


def score(
    by_evidence: Mapping[Evidence, int], by_tier: Mapping[Tier, int], requests: int, unknown: int
) -> float:
    """0 to 1: the weighted means of evidence and of tier by micro-grams, times the share of
    requests with a figure. Every step down the ladder of intensities lowers it."""
    total = sum(by_evidence.values())
    if total <= 0:
        return 0.0
    known = 1.0 - unknown / requests if requests else 1.0
    evidence = sum(EVIDENCE_WEIGHT[e] * ug for e, ug in by_evidence.items()) / total
    tiers = sum(by_tier.values()) or 1
    place = sum(TIER_WEIGHT[t] * ug for t, ug in by_tier.items()) / tiers
    return evidence * place * known


def grade(
    by_evidence: Mapping[Evidence, int], by_tier: Mapping[Tier, int], requests: int, unknown: int
) -> str:
    """A to E, from micro-grams by evidence and by tier, and how many requests have no figure.

    A needs at least 80 % metered and at least 80 % hourly; else the score decides. "E" when there
    is no figure.
    """
    total = sum(by_evidence.values())
    if total <= 0:
        return "E"
    tiers = sum(by_tier.values()) or 1
    metered = by_evidence.get(Evidence.METERED, 0) / total
    hourly = sum(ug for t, ug in by_tier.items() if t.is_hourly) / tiers
    points = score(by_evidence, by_tier, requests, unknown)
    for name, least in GRADES:
        if points >= least and (name != "A" or (metered >= 0.8 and hourly >= 0.8)):
            return name
    return "E"


PLATFORM = ""


def idle_spans(
    owner: str | None,
    trailing_uj: Mapping[str, int],
    used_lately: bool,
    entitled: Sequence[str] | None = None,
) -> dict[str, tuple[float, float]]:
    """Which span of [0, 1] of a node's idle energy is whose; the spans meet and fill it.

    ``trailing_uj``: energy each team's requests caused on the node in the 28 days before;
    ``used_lately``: whether an entitled team used it in the last 7; ``entitled`` None: all teams.
    """
    if owner is not None:
        return {owner: (0.0, 1.0)}
    weights = {
        team: uj
        for team, uj in sorted(trailing_uj.items())
        if uj > 0 and team and (entitled is None or team in entitled)
    }
    total = sum(weights.values())
    if not used_lately or total == 0:
        return {PLATFORM: (0.0, 1.0)}
    spans: dict[str, tuple[float, float]] = {}
    before = 0
    for team, uj in weights.items():
        spans[team] = (before / total, (before + uj) / total)
        before += uj
    return spans


def part_of(whole: int, span: tuple[float, float]) -> int:
    """A span's part of a whole number. Parts of spans that fill [0, 1] sum to it exactly."""
    low, high = span
    return math.floor(whole * high) - math.floor(whole * low)


def split_by_tags(amount: int, tags: Sequence[str]) -> list[tuple[str, int]]:
    """An amount divided equally among its tags, exactly; without tags it stays "" (untagged)."""
    if not tags:
        return [("", amount)]
    whole, rest = divmod(amount, len(tags))
    return [(tag, whole + (1 if i < rest else 0)) for i, tag in enumerate(sorted(tags))]


class Saving(msgspec.Struct, frozen=True, kw_only=True):
    """What one lever avoided, in grams; ``claimed`` only when the range excludes zero."""

    lever: str  # route | cache
    requests: int
    low_g: float
    mid_g: float
    high_g: float

    @property
    def claimed(self) -> bool:
        return self.low_g > 0.0

    @property
    def refuted(self) -> bool:
        """Whether all of the range is below zero: what was served took more."""
        return self.high_g < 0.0


class CacheUse(msgspec.Struct, frozen=True, kw_only=True):
    """What the cache answered, and what the requests that it spared would have used."""

    hits: int
    cacheable: int  # hits and misses; requests that may not be cached are neither
    avoided_uj: int  # by the estimates of the backends that would have served them
    without_figure: int  # hits with no estimate: they avoid nothing that is counted

    @property
    def rate(self) -> float | None:
        """Hits by cacheable requests, 0..1; None without any."""
        return self.hits / self.cacheable if self.cacheable else None


def saving(
    lever: str,
    requests: int,
    counterfactual_g: float,
    served_g: float,
    correction: float,
    error: float,
) -> Saving:
    """Counterfactual minus served, both corrected by measured/predicted of what was served.

    ``error`` is the relative half-width of the estimator's band. The two sides are taken as
    independent, which is the wider reading: the same estimator's errors partly cancel.
    """
    counterfactual, served = counterfactual_g * correction, served_g * correction
    middle = counterfactual - served
    half = math.hypot(counterfactual * error, served * error)
    return Saving(
        lever=lever, requests=requests, low_g=middle - half, mid_g=middle, high_g=middle + half
    )


class ScopeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a GHG Protocol inventory, in micro-grams; None: not supplied, never 0."""

    scope: str
    what: str
    location_ug: int | None
    market_ug: int | None


def scope_rows(
    own_ug: int | None,
    hosted_ug: int | None,
    embodied_ug: int | None,
    own_market_ug: int | None,
    hosted_market_ug: int | None,
) -> tuple[ScopeRow, ...]:
    """Own GPUs are scope 2; hosted APIs scope 3 category 1; bought hardware category 2."""
    return (
        ScopeRow(
            scope="Scope 2",
            what="Electricity of own GPUs and hosts, facility included",
            location_ug=own_ug,
            market_ug=own_market_ug,
        ),
        ScopeRow(
            scope="Scope 3, category 1",
            what="Hosted APIs (purchased services)",
            location_ug=hosted_ug,
            market_ug=hosted_market_ug,
        ),
        ScopeRow(
            scope="Scope 3, category 2",
            what="Bought hardware, embodied, over its life",
            location_ug=embodied_ug,
            market_ug=embodied_ug,
        ),
        ScopeRow(
            scope="Scope 3, category 3",
            what="Upstream of electricity (fuel supply, grid losses)",
            location_ug=None,
            market_ug=None,
        ),
    )


class Forecast(msgspec.Struct, frozen=True):
    """The whole period's micro-grams, from what there is of it."""

    low_ug: float
    mid_ug: float
    high_ug: float


def forecast(daily_ug: Sequence[int], days_left: float) -> Forecast | None:
    """So far, plus the trailing week's mean for each day left; None without one whole day.

    ``daily_ug`` are whole days only. The range is 80 %, from how much days differ.
    """
    if not daily_ug:
        return None
    recent = daily_ug[-7:]
    mean = sum(recent) / len(recent)
    spread = math.sqrt(sum((d - mean) ** 2 for d in recent) / max(1, len(recent) - 1))
    if len(recent) == 1:
        spread = mean  # one day says nothing of how days differ
    # the mean of few days is itself uncertain, and that error is the same for every day left
    half = Z_80 * spread * math.sqrt(days_left + days_left**2 / len(recent))
    so_far = float(sum(daily_ug))
    middle = so_far + mean * days_left
    return Forecast(max(so_far, middle - half), middle, middle + half)
