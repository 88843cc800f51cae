"""What a backend's own metered requests say of its prior: an offset, and a slope in its load.

Two numbers a backend, on the logarithm of joules, learnt by Bayesian regression: the prior's band
says how far they may lie from nothing, so that one outcome moves them little and many fix them.
"""

from __future__ import annotations

import math

# Held-out load curves differ from the prior by an offset of about its spread and a slope of some
# percent per e-fold of batch (benchmarks.estimators, feedback).
_OFFSET_SPREAD = 0.35
_SLOPE_SPREAD = 0.12
# One request against a model of the mean: lengths differ, neighbours come and go.
_OUTCOME_SPREAD = 0.15
_CENTRE = math.log(16.0)
# Engines are reconfigured: an outcome counts half as much after this many others.
_HALF_LIFE = 2000.0


class Correction:
    """Offset and slope in ln(batch) of ln(measured / predicted); plain arithmetic."""

    __slots__ = ("_a", "_b", "_c", "_d", "_e", "_errors", "offset", "outcomes", "slope")

    def __init__(self) -> None:
        # precision matrix [[a, b], [b, c]] and right-hand side (d, e)
        self._a, self._b, self._c = _OFFSET_SPREAD**-2, 0.0, _SLOPE_SPREAD**-2
        self._d = self._e = 0.0
        self._errors = 0.0  # mean absolute relative error of late, before learning from each
        self.offset = self.slope = 0.0
        self.outcomes = 0

    def at(self, batch: float) -> float:
        """What to add to the logarithm of the prior's figure."""
        return self.offset + self.slope * (math.log(max(batch, 1.0)) - _CENTRE)

    def spread(self, batch: float) -> float:
        """How unsure that is (one standard deviation), an outcome's own scatter not included."""
        x = math.log(max(batch, 1.0)) - _CENTRE
        det = self._a * self._c - self._b * self._b
        return math.sqrt(max(0.0, (self._c - 2.0 * self._b * x + self._a * x * x) / det))

    def observe(self, batch: float, missed: float) -> None:
        """Take in ``missed = ln(measured / prior)`` of one request at that load.

        What is more than a factor of seven off is a fault of the measurement and left out.
        """
        if not math.isfinite(missed) or abs(missed) > 2.0:
            return
        error = abs(math.expm1(self.at(batch) - missed))
        rate = max(0.02, 1.0 / (self.outcomes + 1.0))
        self._errors += rate * (error - self._errors)
        keep = 0.5 ** (1.0 / _HALF_LIFE)
        x = math.log(max(batch, 1.0)) - _CENTRE
        weight = _OUTCOME_SPREAD**-2
        # forgetting never falls below the prior's own precision
        self._a = max(self._a * keep, _OFFSET_SPREAD**-2) + weight
        self._b = self._b * keep + weight * x
        self._c = max(self._c * keep, _SLOPE_SPREAD**-2) + weight * x * x
        self._d = self._d * keep + weight * missed
        self._e = self._e * keep + weight * missed * x
        det = self._a * self._c - self._b * self._b
        if det > 0.0:
            self.offset = (self._c * self._d - self._b * self._e) / det
            self.slope = (self._a * self._e - self._b * self._d) / det
        self.outcomes += 1

    @property
    def recent_error(self) -> float | None:
        """Mean relative error of late, each before it was learnt from; None before any."""
        return self._errors if self.outcomes else None
