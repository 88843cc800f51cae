"""R-ICE as an estimator that can be chosen: no batching, no cards but the A100, nothing learnt.

Its times come from a fitted file (``benchmarks.fit_rice``), a forest read at the values it was
fitted at, straight lines between them. What it says is ``modelled``. On an engine that batches it
is an upper bound: the band's low end shares everything among those that are running.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from estimators.energy import EnergyEstimator
from estimators.greybox import Array
from estimators.models import UnknownPrecision, precision_named
from estimators.points import Figures, around
from estimators.rice import DEVICE_LIMIT_W, devices
from estimators.tables import BATCHES, OUTPUTS, PROMPTS, Table
from estimators.types import Backend, Band, Estimate, Features, Load, Outcome
from meters.carbon import R_ICE_PUE, R_ICE_UTILISATION
from meters.types import Evidence, StepPhysics

BUILT_IN = Path(__file__).with_name("rice.json")
# Its own errors, energy 15 % and latency 23 % on average, as logarithms of an 80 % interval:
# 1.6 mean absolute deviations each way, as for a normal error.
_ENERGY_REACH, _TIME_REACH = 0.24, 0.37


class RiceTimes(msgspec.Struct, frozen=True):
    """Prefill seconds on a grid, and the polynomial of a token's seconds."""

    params_b: list[float]
    prompt_tokens: list[float]
    prefill_s: list[list[float]]  # by parameters, then prompt
    token_coefficients: tuple[float, float, float]  # of 1, P, P**2
    about: dict[str, Any]

    def prefill(self, params_b: float, prompts: Array) -> Array:
        """Seconds for each prompt; beyond the longest one in proportion."""
        tokens = np.array(self.prompt_tokens)
        by_size = [np.interp(prompts, tokens, row) for row in self.prefill_s]
        column = np.array(by_size).T
        seconds = np.array([np.interp(params_b, self.params_b, row) for row in column])
        return np.asarray(seconds * np.maximum(1.0, prompts / tokens[-1]))

    def token_s(self, params_b: float) -> float:
        """Seconds of one token; beyond the largest model as for that one."""
        a, b, c = self.token_coefficients
        size = min(params_b, self.params_b[-1])
        return max(1e-4, a + b * size + c * size * size)


@lru_cache(maxsize=1)
def built_in() -> RiceTimes:
    """The times that come with us."""
    return msgspec.convert(json.loads(BUILT_IN.read_text()), RiceTimes)


class RiceEstimator(EnergyEstimator):
    """Implements estimators.types.Estimator; called as EnergyEstimator is."""

    evidence = Evidence.MODELLED

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._housed: dict[str, tuple[Backend, Backend]] = {}
        self.version = f"r-ice-{built_in().about['data_sha256'][:8]}"

    def learn(self, outcome: Outcome) -> None:
        """Nothing: as published it has no way to learn."""

    def estimate(
        self, features: Features, backends: Sequence[Backend], loads: Sequence[Load]
    ) -> list[Estimate]:
        """One estimate per backend; grams with its own PUE where none is configured."""
        return super().estimate(features, [self._with_pue(one) for one in backends], loads)

    def at_lengths(
        self, features: Features, backend: Backend, load: Load, output_tokens: int
    ) -> Estimate:
        """The same of a request whose tokens have been counted."""
        return super().at_lengths(features, self._with_pue(backend), load, output_tokens)

    def _with_pue(self, backend: Backend) -> Backend:
        if backend.pue is not None:
            return backend
        held = self._housed.get(backend.name)
        if held is None or held[0] is not backend:
            held = (backend, msgspec.structs.replace(backend, pue=R_ICE_PUE))
            self._housed[backend.name] = held
        return held[1]

    def _table(self, backend: Backend) -> tuple[Table, str] | None:
        if backend.model is None or backend.gpu is None:
            return None
        try:
            precision_named(backend.precision)
        except UnknownPrecision:
            return None
        return rice_table(built_in(), backend.model.params_b), "r-ice (A100, alone)"

    def _windows(self, backend: Backend) -> StepPhysics | None:
        return None


def rice_table(times: RiceTimes, params_b: float) -> Table:
    """What R-ICE says over the grid: the same at every load, with a band that knows better."""
    power_w = devices(params_b) * DEVICE_LIMIT_W * R_ICE_UTILISATION
    prefill = times.prefill(params_b, PROMPTS)[:, None]
    decode = OUTPUTS[None, :] * times.token_s(params_b)
    energy = power_w * (prefill + decode)
    one = np.stack([energy, energy, decode + 0.0 * prefill, prefill + 0.0 * decode], axis=-1)
    values = np.repeat(one[None], len(BATCHES), axis=0)
    bands = np.array(
        [
            [-_ENERGY_REACH - np.log(batch), _ENERGY_REACH, -_TIME_REACH, _TIME_REACH]
            for batch in BATCHES
        ]
    )
    reach = float(np.exp(_TIME_REACH))
    return Table(values, bands, (1.0 / reach, reach), 0.0)


def rice_figures(
    times: RiceTimes, params_b: float, batch: float | None, prompt: float, output: float
) -> Figures:
    """One request, as figures of the fitted prior are given; an unknown load may be any."""
    (found,), band = rice_table(times, params_b).at(batch or float(BATCHES[-1]), prompt, [output])
    energy_j, _, decode_s, first_s = found
    energy = around(energy_j, band[0], band[1])
    first = around(first_s, -_TIME_REACH, _TIME_REACH)
    decode = around(decode_s, -_TIME_REACH, _TIME_REACH)
    latency = Band(*(a + b for a, b in zip(first, decode, strict=True)))
    return Figures(energy, energy, first, latency, "r-ice")
