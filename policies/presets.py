"""Policies that are there without any configuration, by the name a client or a team may use.

The shares of quality they keep to separate the precisions as published measurements do: fp8
variants reach 95-101 % of their bf16 model's Arena-Hard score, int4 ones 84-94 % (D. Wetzel,
master's thesis, TU Berlin 2024, table 10).
"""

from __future__ import annotations

from policies.best_quality import BestQuality
from policies.cheapest import Cheapest
from policies.configured import Configured
from policies.fastest import Fastest
from policies.least_carbon import LeastCarbon
from policies.least_energy import LeastEnergy
from policies.pinned import Pinned
from policies.ranking import Ranked
from policies.types import Limits, Policy
from policies.weighted import Weighted

# One file a strategy; this dict names those that need no argument.
STRATEGIES: dict[str, type[Ranked]] = {
    "least_energy": LeastEnergy,
    "least_carbon": LeastCarbon,
    "cheapest": Cheapest,
    "fastest": Fastest,
    "best_quality": BestQuality,
    "pinned": Pinned,
}

VERSION = "1"  # of the presets below; goes up when one of them changes what it chooses


def presets() -> dict[str, Policy]:
    """The built-in policies by name. None goes beyond the model that was asked for."""
    asked = True

    def preset(name: str, strategy: Policy, share: float | None = None) -> Configured:
        limits = Limits(min_relative_quality=share)
        otherwise = None if share is None else Pinned()
        return Configured(name, strategy, limits, otherwise, f"preset-{VERSION}")

    balanced = Weighted({"energy": 1.0, "latency": 0.5, "quality": 4.0}, asked)
    every = (
        preset("thrifty", LeastEnergy(asked), 0.90),
        preset("balanced", balanced, 0.95),
        preset("quality-first", BestQuality(asked)),
        preset("low-carbon", LeastCarbon(asked), 0.90),
        preset("cheapest", Cheapest(asked)),
        preset("fastest", Fastest(asked)),
        preset("pinned", Pinned()),
    )
    return {policy.name: policy for policy in every}
