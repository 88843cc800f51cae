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

from typing import NamedTuple

import numpy as np

from meters.phases import SHORTEST_S, Floats

BLOCK = 50  # windows whose deviations are looked at together; the cost grows with its square
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

    def __init__(
        self, starts: Floats, ends: Floats, step: Floats, age: Floats | None = None
    ) -> None:
        """``step``: one step's energy beside each window's own, which edges are off by.

        ``age``: by window, in half-lives; what a window says fades with it.
        """
        n = len(starts)
        self.sizes = Sizes()
        self.extra = np.zeros(n)  # variance added to windows that fit badly
        self._n, self._blocks = n, max(-(-n // BLOCK), 1)
        self._fading = np.ones(n) if age is None else np.exp2(age / 2)
        # The last block is filled up with windows that say nothing.
        real = self._stacked(np.ones(n))
        self._empty = 1.0 - real
        middle = self._stacked((starts + ends) / 2)
        both = real[:, :, None] * real[:, None, :]
        self._apart = np.where(both > 0, np.abs(middle[:, :, None] - middle[:, None, :]), np.inf)
        next_ = np.zeros(n)
        next_[1:] = starts[1:] <= ends[:-1] + SHORTEST_S
        steps, touching = self._stacked(step), self._stacked(next_)
        # An edge is off by a step's part: as many joules in the window before as in the one after.
        self._edges = np.zeros_like(both)
        at = np.arange(BLOCK)
        self._edges[:, at, at] = 2 * steps**2
        shared = -steps[:, 1:] * steps[:, :-1] * touching[:, 1:]
        self._edges[:, at[1:], at[:-1]] = self._edges[:, at[:-1], at[1:]] = shared

    def fit(self, off: Floats) -> None:
        """Find the sizes that make these deviations most likely."""
        stacked = self._stacked(off)
        best = self._likelihood(self.sizes, stacked)
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
                        likelihood = self._likelihood(tried, stacked)
                        if likelihood <= best + 1e-3:
                            break
                        best, self.sizes = likelihood, tried
            if best < before + 0.1:
                break

    def doubt(self, off: Floats, huber: float) -> None:
        """Add variance to windows that are further off than all of this explains (Huber)."""
        sizes = self.sizes
        edges = np.diagonal(self._edges, axis1=1, axis2=2).ravel()[: self._n]
        usual = np.sqrt(sizes.drift**2 + sizes.noise**2 + sizes.edge**2 * edges)
        too_far = np.maximum(np.abs(off) / (huber * usual), 1.0)
        self.extra = usual**2 * (too_far - 1.0)

    def whitened(self, rows: Floats, goal: Floats) -> tuple[Floats, Floats]:
        """Rows and what they add up to, such that deviations are independent and of size one."""
        both = np.concatenate([rows, goal[:, None]], axis=1)
        stacked = np.stack([self._stacked(column) for column in both.T], axis=-1)
        white = np.linalg.solve(np.linalg.cholesky(self.covariance(self.sizes)), stacked)
        flat = white.reshape(-1, both.shape[1])[: self._n] / self._fading[:, None]
        return flat[:, :-1], flat[:, -1]

    def covariance(self, sizes: Sizes) -> Floats:
        """By block of windows."""
        drift = sizes.drift**2 * np.exp(-self._apart / sizes.drift_s)
        found = np.asarray(drift + sizes.edge**2 * self._edges, dtype=np.float64)
        own = self._stacked(sizes.noise**2 + self.extra) + self._empty
        at = np.arange(BLOCK)
        found[:, at, at] += own
        return found

    def _likelihood(self, sizes: Sizes, off: Floats) -> float:
        lower = np.linalg.cholesky(self.covariance(sizes))
        white = np.linalg.solve(lower, off[:, :, None])
        spread = np.diagonal(lower, axis1=1, axis2=2)
        return -0.5 * float((white**2).sum()) - float(np.log(spread).sum())

    def _stacked(self, values: Floats) -> Floats:
        padded = np.zeros(self._blocks * BLOCK)
        padded[: self._n] = values
        return padded.reshape(self._blocks, BLOCK)
