"""How windows' energy strays from a model of it, and the weights that follow. Pure.

Three things part a window's energy from what its work explains, and each leaves another trace in
neighbouring windows:

- drift: heat and clocks move slowly, so windows near each other are off alike;
- noise: each window's own;
- edges: nobody sees how much of a step was done at a window's edge. What one window is given too
  much there the next one lacks.

Ordinary regression takes all of it for noise of one window. It then mistakes drift for an effect
of whatever rose at the same time, and edges for noise, of which they make most. Here the three
sizes are found by maximum likelihood, and rows are whitened with the covariance they make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meters.phases import SHORTEST_S, Booleans, Floats

BLOCK = 100  # windows whose deviations are looked at together; the cost grows with its square
ROUNDS = 2
STEP = 1.7  # factor by which sizes are tried larger and smaller
LEAST = 1e-4


class Sizes(NamedTuple):
    """Standard deviations: drift and noise relative to a window's energy, edges in steps."""

    drift: float = 0.01
    drift_s: float = 60.0  # after which drift is another one
    noise: float = 0.01
    edge: float = 0.3


BOUNDS = Sizes(0.03, 300.0, 0.3, 10.0)
FLOORS = Sizes(1e-3, 20.0, 2e-3, LEAST)


class Deviations:
    """The covariance of windows' relative deviations from a model."""

    def __init__(self, starts: Floats, ends: Floats, step: Floats) -> None:
        """``step``: one step's energy beside each window's own, which edges are off by."""
        n = len(starts)
        self.sizes = Sizes()
        self.extra = np.zeros(n)  # variance added to windows that fit badly
        self._blocks = [slice(i, min(i + BLOCK, n)) for i in range(0, n, BLOCK)]
        middle = (starts + ends) / 2
        self._apart = [np.abs(np.subtract.outer(middle[b], middle[b])) for b in self._blocks]
        next_: Booleans = np.zeros(n, dtype=np.bool_)
        next_[1:] = starts[1:] <= ends[:-1] + SHORTEST_S
        self._edges = [_edges(step[b], next_[b]) for b in self._blocks]

    def fit(self, off: Floats) -> None:
        """Find the sizes that make these deviations most likely."""
        best = self._likelihood(self.sizes, off)
        for _ in range(ROUNDS):
            before = best
            for i in range(len(self.sizes)):
                for factor in (STEP, 1 / STEP):
                    while True:
                        values = list(self.sizes)
                        values[i] = min(max(values[i] * factor, FLOORS[i]), BOUNDS[i])
                        tried = Sizes(*values)
                        if tried == self.sizes:
                            break
                        likelihood = self._likelihood(tried, off)
                        if likelihood <= best + 1e-3:
                            break
                        best, self.sizes = likelihood, tried
            if best < before + 0.1:
                break

    def doubt(self, off: Floats, huber: float) -> None:
        """Add variance to windows that are further off than all of this explains (Huber)."""
        usual = np.sqrt(self._variances())
        too_far = np.maximum(np.abs(off) / (huber * usual), 1.0)
        self.extra = usual**2 * (too_far - 1.0)

    def whitened(self, *columns: Floats) -> list[Floats]:
        """Columns such that rows' deviations are independent and of size one."""
        parts: list[list[Floats]] = [[] for _ in columns]
        for i, block in enumerate(self._blocks):
            lower = np.linalg.cholesky(self._covariance(i, self.sizes))
            for part, column in zip(parts, columns, strict=True):
                part.append(np.linalg.solve(lower, column[block]))
        return [np.concatenate(part) for part in parts]

    def _likelihood(self, sizes: Sizes, off: Floats) -> float:
        found = 0.0
        for i, block in enumerate(self._blocks):
            lower = np.linalg.cholesky(self._covariance(i, sizes))
            white = np.linalg.solve(lower, off[block])
            found -= 0.5 * float(white @ white) + float(np.log(np.diag(lower)).sum())
        return found

    def _covariance(self, i: int, sizes: Sizes) -> Floats:
        own = sizes.noise**2 + self.extra[self._blocks[i]]
        drift = sizes.drift**2 * np.exp(-self._apart[i] / sizes.drift_s)
        return np.asarray(drift + sizes.edge**2 * self._edges[i] + np.diag(own), dtype=np.float64)

    def _variances(self) -> Floats:
        edges = [np.diag(edge) for edge in self._edges]
        whole = np.concatenate(edges) if edges else np.zeros(0)
        sizes = self.sizes
        return np.asarray(sizes.drift**2 + sizes.noise**2 + sizes.edge**2 * whole)


def _edges(step: Floats, next_: Sequence[bool] | Booleans) -> Floats:
    """The covariance of what edges do to neighbours, for an edge that is off by one step."""
    n = len(step)
    covariance = np.zeros((n, n))
    # An edge is off by a step's part: as many joules in the window before as in the one after.
    np.fill_diagonal(covariance, 2 * step**2)
    for i in range(1, n):
        if next_[i]:
            covariance[i, i - 1] = covariance[i - 1, i] = -step[i] * step[i - 1]
    return covariance
