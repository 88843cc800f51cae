"""What published measurements taught: the grey box's constants and a correction on top.

The correction is a Gaussian process over dimensionless features: near what was measured it says
how the physics missed; far away it fades to nothing by itself, which leaves the fitted physics,
and its own spread widens the band. Fitted by ``benchmarks.fit_energy_prior``; served with numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from estimators.greybox import (
    FEATURES,
    NAMES,
    Array,
    Cases,
    Physics,
    features,
    physics,
)

# Features whose importance is chosen together, in the order of a kernel's lengths.
GROUPS: dict[str, tuple[str, ...]] = {
    "batch": ("log_batch",),
    "size": ("log_active", "log_gpus"),
    "mixture": ("log_sparsity", "experts", "moe"),
    "precision": ("log_weight_bytes",),
    "parts": ("held", "memory", "compute", "cache", "exchange", "prefill"),
    "context": ("log_context",),
    "cache": ("log_kv",),
    "engine": ("old", "plain", "consumer"),
    "hybrid": ("hybrid",),
    "limit": ("log_limit",),
}
_ORDER = list(FEATURES)
_COLUMNS = [[_ORDER.index(name) for name in names] for names in GROUPS.values()]
_GROUP_OF = np.empty(len(_ORDER), dtype=np.intp)
for _group, _columns in enumerate(_COLUMNS):
    _GROUP_OF[_columns] = _group
# The second kernel recognises an architecture that was measured, and only that.
_OWN = [
    _ORDER.index(name)
    for name in ("log_active", "log_sparsity", "log_weight_bytes", "log_kv", "hybrid", "experts")
]
_OWN_LENGTH = 0.15


class Kernel(NamedTuple):
    """How alike two cases are."""

    lengths: Array  # one a group, in units of greybox.FEATURES
    amplitude: float
    own_amplitude: float  # what is peculiar to one architecture
    noise: float

    @staticmethod
    def of(values: Array) -> Kernel:
        """From lengths, then amplitude, own amplitude and noise."""
        return Kernel(values[:-3], float(values[-3]), float(values[-2]), float(values[-1]))

    @staticmethod
    def distances(left: Array, right: Array) -> Array:
        """Squared distances by group, and last those between architectures."""
        parts = []
        for columns in [*_COLUMNS, _OWN]:
            a, b = left[:, columns], right[:, columns]
            squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2.0 * a @ b.T
            parts.append(np.maximum(squared, 0.0))
        return np.stack(parts)

    def of_distances(self, distances: Array) -> Array:
        """A rational quadratic over everything, and a sharp Gaussian over the architecture."""
        all_parts = np.tensordot(self.lengths**-2.0, distances[:-1], axes=1)
        own = np.exp(-0.5 * distances[-1] / _OWN_LENGTH**2)
        alike: Array = self.amplitude**2 * (1.0 + all_parts / 4.0) ** -2.0
        return np.asarray(alike + self.own_amplitude**2 * own)

    def between(self, left: Array, right: Array) -> Array:
        """As ``of_distances``, computed in one product; for serving."""
        scale = 1.0 / self.lengths[_GROUP_OF]
        a, b = left * scale, right * scale
        squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2.0 * a @ b.T
        tail = 1.0 + 0.25 * np.maximum(squared, 0.0)
        alike = self.amplitude**2 / (tail * tail)
        a, b = left[:, _OWN], right[:, _OWN]
        squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2.0 * a @ b.T
        own: Array = np.exp(-0.5 * np.maximum(squared, 0.0) / _OWN_LENGTH**2)
        return np.asarray(alike + self.own_amplitude**2 * own)


def lengths_of(logarithms: Array) -> Array:
    """Kernel values from the logarithms that are searched over."""
    values: Array = np.exp(logarithms)
    return values


@dataclass(frozen=True)
class Target:
    """One correction: of the logarithm of joules, of seconds, or of seconds a step."""

    kernel: Kernel
    points: Array
    weights: Array
    noise: Array  # per point, relative to the kernel's

    @staticmethod
    def fitted(kernel: Kernel, points: Array, left: Array, noise: Array) -> Target:
        """The process that explains what the physics left over at these points."""
        matrix = kernel.between(points, points) + np.diag((kernel.noise * noise) ** 2)
        return Target(kernel, points, np.asarray(np.linalg.solve(matrix, left)), noise)

    def at(self, features: Array) -> tuple[Array, Array]:
        """(correction, spread), both of a logarithm."""
        kernel = self.kernel
        alike = kernel.between(features, self.points)
        explained = self._whiten @ alike.T
        most = kernel.amplitude**2 + kernel.own_amplitude**2
        variance = np.maximum(most - (explained**2).sum(0), 0.0) + kernel.noise**2
        return alike @ self.weights, np.sqrt(variance)

    def correction(self, features: Array) -> Array:
        """Only the middle; cheaper."""
        return self.kernel.between(features, self.points) @ self.weights

    @cached_property
    def _whiten(self) -> Array:
        kernel = self.kernel
        matrix = kernel.between(self.points, self.points)
        matrix += np.diag((kernel.noise * self.noise) ** 2)
        return np.asarray(np.linalg.inv(np.linalg.cholesky(matrix)))

    def dump(self) -> dict[str, Any]:
        """As plain values, rounded to what matters."""
        return {
            "lengths": [round(float(v), 4) for v in self.kernel.lengths],
            "amplitude": round(self.kernel.amplitude, 5),
            "own_amplitude": round(self.kernel.own_amplitude, 5),
            "noise": round(self.kernel.noise, 5),
            "point_noise": [round(float(v), 3) for v in self.noise],
            "weights": [round(float(v), 4) for v in self.weights],
        }

    @staticmethod
    def load(values: Mapping[str, Any], points: Array) -> Target:
        """The reverse of ``dump``; the points are shared by all targets."""
        kernel = Kernel(
            np.array(values["lengths"]),
            values["amplitude"],
            values["own_amplitude"],
            values["noise"],
        )
        return Target(kernel, points, np.array(values["weights"]), np.array(values["point_noise"]))


class Tier(NamedTuple):
    """How held-out rows of one kind fell, in spreads of the process."""

    energy: tuple[float, float]  # 10 % and 90 % of (ln measured - ln predicted) / spread
    step: tuple[float, float]
    rows: int


class Answer(NamedTuple):
    """Logarithms per case; ``low`` and ``high`` hold 80 % of outcomes."""

    energy: Array
    energy_low: Array
    energy_high: Array
    time: Array  # engine time of the request: 1 / requests a second
    step: Array  # seconds between two tokens of a sequence
    step_low: Array
    step_high: Array
    physics: Physics


class Prior:
    """The fitted artefact, ready to answer."""

    def __init__(
        self,
        constants: Array,
        energy: Target,
        time: Target,
        step: Target,
        tiers: Mapping[str, Tier],
        known_gpus: Sequence[str],
        known_models: Sequence[tuple[float, float, float, float]],
        ttft: tuple[float, float],
        about: Mapping[str, Any],
    ) -> None:
        self.constants = constants
        self.energy, self.time, self.step = energy, time, step
        self.tiers = dict(tiers)
        self.known_gpus = frozenset(known_gpus)
        self.known_models = tuple(known_models)
        # An 80 % band around Physics.first_s, as factors.
        self.ttft_factors = ttft
        self.about = dict(about)
        self.version = str(about.get("version", "prior"))

    def tier(self, gpu: str, case: Cases) -> str:
        """What of a case was measured: "seen", "new_model", "new_gpu" or "both_new"."""
        own = (
            math.log(case.params[0]),
            math.log(case.active[0]),
            math.log(case.weight_bytes[0]),
            float(case.old[0] - case.plain[0]),
        )
        known_model = any(
            all(abs(a - b) < 0.05 for a, b in zip(own, known, strict=True))
            for known in self.known_models
        )
        if gpu in self.known_gpus:
            return "seen" if known_model else "new_model"
        return "new_gpu" if known_model else "both_new"

    def answer(self, given: Cases, tiers: Sequence[str]) -> Answer:
        """Energy, engine time and step time of every case, with bands by its tier."""
        found = physics(self.constants, given)
        at = features(given, found)
        energy, energy_spread = self.energy.at(at)
        step, step_spread = self.step.at(at)
        energy = energy + found.log_energy
        step = step + np.log(loaded_step_s(given, found))
        bands = np.array([[*self.tiers[tier].energy, *self.tiers[tier].step] for tier in tiers])
        return Answer(
            energy=energy,
            energy_low=energy + bands[:, 0] * energy_spread,
            energy_high=energy + bands[:, 1] * energy_spread,
            time=found.log_time + self.time.correction(at),
            step=step,
            step_low=step + bands[:, 2] * step_spread,
            step_high=step + bands[:, 3] * step_spread,
            physics=found,
        )

    def middles(self, given: Cases) -> tuple[Array, Array, Physics]:
        """(ln joules, ln seconds a step, physics) of every case; much cheaper than ``answer``."""
        found = physics(self.constants, given)
        at = features(given, found)
        energy = found.log_energy + self.energy.correction(at)
        return energy, np.log(loaded_step_s(given, found)) + self.step.correction(at), found

    def energy_and_time(self, given: Cases) -> tuple[Array, Array]:
        """(ln joules, ln seconds of engine time) of every case, as in ``answer``, without bands."""
        found = physics(self.constants, given)
        at = features(given, found)
        return (
            self.energy.correction(at) + found.log_energy,
            found.log_time + self.time.correction(at),
        )

    def dump(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "about": self.about,
            "constants": {
                name: round(float(value), 5)
                for name, value in zip(NAMES, self.constants, strict=True)
            },
            "features": list(FEATURES),
            "points": [[round(float(v), 4) for v in point] for point in self.energy.points],
            "energy": self.energy.dump(),
            "time": self.time.dump(),
            "step": self.step.dump(),
            "tiers": {name: tier._asdict() for name, tier in self.tiers.items()},
            "known_gpus": sorted(self.known_gpus),
            "known_models": [[round(v, 4) for v in model] for model in self.known_models],
            "ttft": [round(v, 4) for v in self.ttft_factors],
        }

    @staticmethod
    def load(values: Mapping[str, Any]) -> Prior:
        """The reverse of ``dump``. Raises KeyError or ValueError for another layout."""
        if list(values["features"]) != list(FEATURES):
            raise ValueError("the prior was fitted for other features; fit it again")
        points = np.array(values["points"])
        return Prior(
            constants=np.array([values["constants"][name] for name in NAMES]),
            energy=Target.load(values["energy"], points),
            time=Target.load(values["time"], points),
            step=Target.load(values["step"], points),
            tiers={
                name: Tier(tuple(tier["energy"]), tuple(tier["step"]), tier["rows"])
                for name, tier in values["tiers"].items()
            },
            known_gpus=values["known_gpus"],
            known_models=[tuple(model) for model in values["known_models"]],
            ttft=tuple(values["ttft"]),
            about=values["about"],
        )


def loaded_step_s(given: Cases, found: Physics) -> Array:
    """A step's time with the prompts of newcomers that are calculated between steps."""
    stalls: Array = given.batch / given.output * found.prefill_s
    return found.step_s + stalls
