"""What a backend's own metered requests say of its prior: an offset, and a slope in its load.

Two numbers a backend, on the logarithm of joules, learnt by Bayesian regression: the prior's band
says how far they may lie from nothing, so that one outcome moves them little and many fix them.
How far single outcomes fall from them is learnt too, and what was learnt is let go as soon as they
lie to one side: another card or engine answers then.
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
# How far single requests fall from what is known, before they say it, and what that is worth.
_USUAL_SCATTER = 0.1
_USUAL_WEIGHT = 8.0
_LEAST_SCATTER = 0.02
_SCATTER_MEMORY = 50.0
_OF_ABSOLUTE = 1.2533  # standard deviation over mean absolute deviation, of a normal distribution
_FAULT = 2.0  # ln: more than a factor of seven off is a fault of the measurement ...
_FAULTS = 5  # ... unless so many in a row say so
_HUBER = 3.0  # standard deviations beyond which an outcome counts less
# Another card or engine: the last dozen or so lie this many standard deviations to one side (their
# mean's own is 0.2), and that is more than so much.
_LEAN_MEMORY = 12.0
_LEAN = 1.0
_LEAST_CHANGE = 0.1


class Correction:
    """Offset and slope in ln(batch) of ln(measured / predicted); plain arithmetic."""

    __slots__ = (
        "_a",
        "_b",
        "_c",
        "_d",
        "_e",
        "_errors",
        "_faults",
        "_lean",
        "_since",
        "offset",
        "outcomes",
        "scatter",
        "slope",
    )

    def __init__(self) -> None:
        # precision matrix [[a, b], [b, c]] and right-hand side (d, e)
        self._a, self._b, self._c = _OFFSET_SPREAD**-2, 0.0, _SLOPE_SPREAD**-2
        self._d = self._e = 0.0
        self._errors = 0.0  # mean absolute relative error of late, before learning from each
        self._faults = 0  # outcomes left out since the last that was not
        self._lean = 0.0  # to which side the last dozen fell, in standard deviations
        self._since = 0  # outcomes since the backend was another one
        self.scatter = _USUAL_SCATTER  # standard deviation of single outcomes, ln
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

        What is more than a factor of seven off is a fault of the measurement and left out, unless
        five in a row are.
        """
        if not math.isfinite(missed):
            return
        off = missed - self.at(batch)
        if abs(off) > _FAULT and self._faults + 1 < _FAULTS:
            self._faults += 1
            return
        self._faults = self._faults if abs(off) > _FAULT else 0
        error = abs(math.expm1(-off))
        rate = max(0.02, 1.0 / (self.outcomes + 1.0))
        self._errors += rate * (error - self._errors)
        self.outcomes += 1
        likely = math.hypot(self.spread(batch), self.scatter)
        if self._changed(off / likely, likely):
            self._let_go()
            likely = math.hypot(self.spread(batch), self.scatter)
        self._follow_scatter(abs(off) * self.scatter / likely)
        keep = 0.5 ** (1.0 / _HALF_LIFE)
        x = math.log(max(batch, 1.0)) - _CENTRE
        weight = _OUTCOME_SPREAD**-2
        weight *= min(1.0, _HUBER * math.hypot(likely, _OUTCOME_SPREAD) / max(abs(off), 1e-9))
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

    def _changed(self, deviations: float, likely: float) -> bool:
        """Whether the latest outcomes say that it is another backend than was learnt from."""
        self._since += 1
        bounded = min(max(deviations, -_HUBER), _HUBER)
        self._lean += (bounded - self._lean) / _LEAN_MEMORY
        far = abs(self._lean) > _LEAN and abs(self._lean) * likely > _LEAST_CHANGE
        return far and self._since > _LEAN_MEMORY

    def _let_go(self) -> None:
        """Keep no more of what was learnt than one outcome says."""
        learnt = self._a - _OFFSET_SPREAD**-2
        share = min(1.0, _OUTCOME_SPREAD**-2 / learnt) if learnt > 0.0 else 1.0
        self._a = _OFFSET_SPREAD**-2 + share * learnt
        self._b *= share
        self._c = _SLOPE_SPREAD**-2 + share * max(0.0, self._c - _SLOPE_SPREAD**-2)
        self._d *= share
        self._e *= share
        self._lean, self._since = 0.0, 0

    def _follow_scatter(self, off: float) -> None:
        """``off``: what of an outcome's distance is its own, and not what was yet to be learnt."""
        rate = 1.0 / (_USUAL_WEIGHT + min(self._since, _SCATTER_MEMORY))
        moved = self.scatter + rate * (_OF_ABSOLUTE * off - self.scatter)
        self.scatter = max(moved, _LEAST_SCATTER)

    def as_list(self) -> list[float]:
        """All of it, for a file; ``from_list`` is the way back."""
        return [float(getattr(self, name)) for name in self.__slots__]

    @classmethod
    def from_list(cls, values: list[float]) -> Correction:
        """What ``as_list`` gave. Raises TypeError or ValueError for anything else."""
        found = cls()
        for name, value in zip(cls.__slots__, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
            setattr(found, name, type(getattr(found, name))(value))
        if min(found._a, found._c, found.scatter) <= 0.0:
            raise ValueError("a precision or scatter that is not above 0")
        return found

    @property
    def recent_error(self) -> float | None:
        """Mean relative error of late, each before it was learnt from; None before any."""
        return self._errors if self.outcomes else None
