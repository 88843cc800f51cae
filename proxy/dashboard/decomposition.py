"""Why a total changed: additive log-mean Divisia decomposition. Pure.

A group's carbon is ``requests x share x energy per request x grams per joule``; the four factors
give the bars *volume*, *model mix*, *efficiency* and *grid*, and the change of idle energy's
carbon is a bar of its own. The bars are whole micro-grams and their sum is the change, exactly.

Method: B. W. Ang, "The LMDI approach to decomposition analysis: a practical guide", Energy Policy
33 (2005). A group that appears or disappears has a share of zero on one side; in the limit all of
its carbon is a change of mix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec


class Group(msgspec.Struct, frozen=True):
    """One model's part in a period."""

    requests: int
    energy_uj: int  # at the devices and hosts
    carbon_ug: int


class Bars(msgspec.Struct, frozen=True, kw_only=True):
    """What each cause added (+) or took away (-), in micro-grams CO2e."""

    volume_ug: int
    mix_ug: int
    efficiency_ug: int
    grid_ug: int
    idle_ug: int

    @property
    def total_ug(self) -> int:
        """The change; equal to the difference of the two totals."""
        return self.volume_ug + self.mix_ug + self.efficiency_ug + self.grid_ug + self.idle_ug

    def named(self) -> list[tuple[str, int]]:
        """The bars in the order in which they are shown."""
        return [
            ("volume", self.volume_ug),
            ("model mix", self.mix_ug),
            ("efficiency", self.efficiency_ug),
            ("grid", self.grid_ug),
            ("idle", self.idle_ug),
        ]


def decompose(
    before: Mapping[str, Group],
    after: Mapping[str, Group],
    idle_before_ug: int = 0,
    idle_after_ug: int = 0,
) -> Bars:
    """The causes of the change from ``before`` to ``after``, both by model."""
    n0 = sum(g.requests for g in before.values())
    n1 = sum(g.requests for g in after.values())
    effects = [0.0, 0.0, 0.0, 0.0]  # volume, mix, efficiency, grid
    nothing = Group(0, 0, 0)
    for name in sorted({*before, *after}):
        g0, g1 = before.get(name, nothing), after.get(name, nothing)
        for place, effect in enumerate(_effects(g0, g1, n0, n1)):
            effects[place] += effect
    change = sum(g.carbon_ug for g in after.values()) - sum(g.carbon_ug for g in before.values())
    volume, mix, efficiency, grid = _whole(effects, change)
    return Bars(
        volume_ug=volume,
        mix_ug=mix,
        efficiency_ug=efficiency,
        grid_ug=grid,
        idle_ug=idle_after_ug - idle_before_ug,
    )


def by_model(
    before: Mapping[str, Group], after: Mapping[str, Group], bars: Bars
) -> dict[str, tuple[int, int, int, int]]:
    """What each model adds to the first four bars, in micro-grams; the models sum to each bar
    exactly. Bars that the idle share makes are not a model's."""
    n0 = sum(g.requests for g in before.values())
    n1 = sum(g.requests for g in after.values())
    nothing = Group(0, 0, 0)
    names = sorted({*before, *after})
    parts = [
        _effects(before.get(name, nothing), after.get(name, nothing), n0, n1) for name in names
    ]
    whole = (bars.volume_ug, bars.mix_ug, bars.efficiency_ug, bars.grid_ug)
    columns = [
        _whole([part[place] for part in parts], total) if parts else []
        for place, total in enumerate(whole)
    ]
    return {
        name: (row[0], row[1], row[2], row[3])
        for name, row in zip(names, zip(*columns, strict=True), strict=True)
    }


def _effects(g0: Group, g1: Group, n0: int, n1: int) -> tuple[float, float, float, float]:
    change = float(g1.carbon_ug - g0.carbon_ug)
    if n0 == 0 or n1 == 0:
        return change, 0.0, 0.0, 0.0  # one of the periods had no requests at all
    if g0.requests == 0 or g1.requests == 0:
        return 0.0, change, 0.0, 0.0
    if g0.energy_uj <= 0 or g1.energy_uj <= 0:
        return 0.0, 0.0, change, 0.0
    if g0.carbon_ug <= 0 or g1.carbon_ug <= 0:
        return 0.0, 0.0, 0.0, change
    weight = _log_mean(float(g1.carbon_ug), float(g0.carbon_ug))
    share = (g1.requests / n1) / (g0.requests / n0)
    energy = (g1.energy_uj / g1.requests) / (g0.energy_uj / g0.requests)
    grams = (g1.carbon_ug / g1.energy_uj) / (g0.carbon_ug / g0.energy_uj)
    return (
        weight * math.log(n1 / n0),
        weight * math.log(share),
        weight * math.log(energy),
        weight * math.log(grams),
    )


def _log_mean(a: float, b: float) -> float:
    """(a - b) / ln(a / b), and its limit ``a`` when both are (nearly) the same."""
    ratio = a / b
    if abs(ratio - 1.0) < 1e-9:
        return (a + b) / 2
    return (a - b) / math.log(ratio)


def _whole(effects: list[float], total: int) -> list[int]:
    """The effects as whole numbers; what rounding leaves goes to the largest of them."""
    whole = [round(effect) for effect in effects]
    largest = max(range(len(whole)), key=lambda i: abs(effects[i]))
    whole[largest] += total - sum(whole)
    return whole
