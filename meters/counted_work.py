"""What an engine's own count of bytes says of others' contexts. Pure.

vLLM and SGLang (``--enable-mfu-metrics``) estimate analytically, step by step, how much they read
from memory: all weights once a step, and the cached tokens of every sequence in it.

    bytes = weights·steps + cached·(cached tokens read)

Both coefficients are learnt from windows in which the engine worked for us alone. In others the
count then says how many cached tokens others' requests had read, which nothing else tells: one
with a long context costs far more a token. Steps and bytes are counted at the same moment, so the
edges of windows do not disturb this; the count is per GPU, and only proportions are used.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from meters.phases import Floats

ENOUGH = 20  # windows before the count means anything
KEEP = 0.998  # of what is known, for each further window: engines are restarted with other settings
TOLERATED = 0.1  # relative deviation beyond which the count is not what it is taken for


class CountedWork:
    """One engine's bytes a step and a cached token, remembered between windows."""

    def __init__(self) -> None:
        self._normal = np.zeros((2, 2))
        self._right = np.zeros(2)
        self._weight = self._off = 0.0

    def others_context(
        self,
        read_bytes: Floats,
        steps: Floats,
        context: Floats,
        alone: npt.NDArray[np.bool_],
        new: int | None = None,
    ) -> Floats:
        """Cached tokens that others' requests read in each window; NaN where it is unknown.

        ``context``: those that ours did; ``alone``: where the engine worked for us alone. What an
        engine does not count is NaN. ``new``: the only one of the windows that is learnt from.
        """
        counted = (read_bytes > 0) & (steps > 0)
        taught = alone & counted & (context > 0)
        if new is not None:
            taught &= np.arange(len(taught)) == new
        for i in np.flatnonzero(taught).tolist():
            self._learn(np.array([steps[i], context[i]]) / read_bytes[i])
        known = self._known()
        if known is None:
            return np.full(len(read_bytes), np.nan)
        others = np.maximum((read_bytes - known[0] * steps) / known[1] - context, 0.0)
        return np.where(counted & ~alone, others, np.nan)

    def _learn(self, row: Floats) -> None:
        known = self._known()
        if known is not None:
            self._off += (abs(float(row @ known) - 1.0) - self._off) / ENOUGH
        self._normal = KEEP * self._normal + np.outer(row, row)
        self._right = KEEP * self._right + row
        self._weight = KEEP * self._weight + 1.0

    def _known(self) -> Floats | None:
        """Bytes of the weights and of a cached token; None before windows told them apart."""
        if self._weight < ENOUGH or self._off > TOLERATED:
            return None
        sizes = np.sqrt(np.diagonal(self._normal))
        if np.linalg.cond(self._normal / np.outer(sizes, sizes)) > 1e6:
            return None
        found = np.linalg.solve(self._normal, self._right)
        return np.asarray(found, dtype=np.float64) if (found > 0).all() else None
