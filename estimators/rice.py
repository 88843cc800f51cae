"""R-ICE, whole: the published estimator of a request's energy at batch one on A100s.

Sikand et al., "Breaking the ICE", GREENS 2025: devices from the parameters, prefill time from a
random forest, time per output token from a polynomial, energy from devices, power limit and
utilisation, grams from PUE and intensity. It knows no batching; on engines that batch it is an
upper bound, off 10- to 24-fold. A selectable estimator and a row of ``benchmarks.estimators``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from meters.carbon import R_ICE_UTILISATION

DEVICE_MEMORY_GB = 80.0  # A100-80GB
DEVICE_LIMIT_W = 400.0
WEIGHT_BYTES = 2.0
# The weights, and as much again for cache and activations: the smallest round factor that gives
# all three device counts of its table II back (6 B and 17 B on one, 52 B on four).
ROOM = 2.0


class Sample(NamedTuple):
    """One published time: prompt and parameters to seconds."""

    params_b: float
    tokens: float
    seconds: float


class Regressor(Protocol):
    """What scikit-learn's estimators do."""

    def predict(self, x: Sequence[Sequence[float]]) -> Sequence[float]: ...


class Rice(msgspec.Struct, frozen=True):
    """The fitted parts: a forest for the prefill, a polynomial for a token."""

    forest: Regressor
    token_coefficients: tuple[float, float, float]  # of 1, P, P**2; seconds, P in billions

    def prefill_s(self, params_b: float, prompt_tokens: float) -> float:
        """Seconds to read the prompt; one scikit-learn prediction, far too slow per request."""
        return float(self.forest.predict([[params_b, prompt_tokens]])[0])

    def token_s(self, params_b: float) -> float:
        """Seconds for one token of the answer."""
        a, b, c = self.token_coefficients
        return max(1e-4, a + b * params_b + c * params_b * params_b)

    def energy_j(self, params_b: float, prompt_tokens: float, output_tokens: float) -> float:
        """Joules of all devices for a request on its own."""
        seconds = self.prefill_s(params_b, prompt_tokens) + output_tokens * self.token_s(params_b)
        return devices(params_b) * DEVICE_LIMIT_W * R_ICE_UTILISATION * seconds


def devices(params_b: float) -> int:
    """How many A100-80GB hold the weights, as a power of two."""
    needed = ROOM * params_b * WEIGHT_BYTES / DEVICE_MEMORY_GB
    return int(2 ** max(0, math.ceil(math.log2(max(needed, 1.0)))))


def fitted(prefill: Sequence[Sample], per_token: Sequence[tuple[float, float]]) -> Rice:
    """The estimator from HELM's prefill times and (parameters, seconds per output token).

    Imports scikit-learn (seconds, a hundred megabytes): for benchmarks and offline use.
    """
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor  # heavy; never in the serving process

    forest = RandomForestRegressor(n_estimators=100, random_state=0)
    forest.fit([[s.params_b, s.tokens] for s in prefill], [s.seconds for s in prefill])
    size, seconds = zip(*per_token, strict=True)
    c, b, a = np.polyfit(size, seconds, 2)
    return Rice(forest, (float(a), float(b), float(c)))
