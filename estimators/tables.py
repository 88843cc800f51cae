"""The prior, worked out beforehand: so that the request path only reads between the lines.

One table a backend over batch, prompt and output. Values never fall along prompt or output, and
are read along straight lines between nodes, so neither do answers. It is read with plain floats:
for the handful of figures that a request needs, an array library's calls take longer.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from estimators.greybox import NAMES, Array, cases
from estimators.points import (
    USUAL_OUTPUT,
    USUAL_PROMPT,
    Subject,
    marginal_shares,
    raised,
    rising,
)
from estimators.prior import Prior
from meters.types import StepPhysics

BATCHES: Array = np.array([2.0**power for power in range(11)])
# What a long prompt or answer costs grows with its square: nodes are closer there, to 1 M, 128 k.
PROMPTS: Array = np.array(
    [0.0, *(16.0 * 4.0**power for power in range(5)), *(2.0**power for power in range(13, 21))]
)
OUTPUTS: Array = np.array(
    [*(4.0**power for power in range(5)), *(2.0**power for power in range(9, 18))]
)
_SHAPE = (len(BATCHES), len(PROMPTS), len(OUTPUTS))
ENERGY, MARGINAL, DECODE, TTFT = range(4)


_BATCH_LIST, _PROMPT_LIST, _OUTPUT_LIST = BATCHES.tolist(), PROMPTS.tolist(), OUTPUTS.tolist()

# Energy, marginal energy and the whole answer's steps, in joules and seconds; and the time to the
# first token.
Figures = tuple[float, float, float, float]


_MOST_PLANES = 64  # of one table that are kept, 24 KB each


class _Plane(NamedTuple):
    """The figures at one batch, by prompt and output; those of a prompt once they are asked for."""

    row: int  # of the batch below
    t: float  # how far towards the next, 0..1
    lines: list[list[Figures] | None]
    band: list[float]


class Table:
    """One backend's figures over the grid."""

    def __init__(
        self,
        values: Array,
        bands: Array,
        ttft_band: tuple[float, float],
        idle_w: float,
        stretch: float = 1.0,
    ) -> None:
        self.values = values  # (batch, prompt, output, ENERGY..TTFT), joules and seconds
        self.bands = bands  # (batch, 4): logarithms of energy low, high, step low, high
        self.ttft_band = ttft_band  # factors
        self.idle_w = idle_w
        self._stretch = stretch  # of a prompt's calculation, by the others' steps
        # The same as plain numbers: by batch, prompt and output.
        self._rows: list[list[list[Figures]]] = [
            [[tuple(node) for node in line] for line in plane] for plane in values.tolist()
        ]
        self._bands: list[list[float]] = bands.tolist()
        # Between the batches of the grid, by batch and prompt; engines run at few at a time.
        self._planes: dict[float, _Plane] = {}

    def at(
        self, batch: float, prompt: float, outputs: Sequence[float]
    ) -> tuple[list[Figures], list[float]]:
        """(the figures at each output length, ascending or not; the batch's row of ``bands``).

        Beyond the grid's ends the figures of its ends are given.
        """
        plane = self._planes.get(batch)
        if plane is None:
            plane = self._plane(batch)
        p, u = _place(_PROMPT_LIST, prompt)
        lines = plane.lines
        near, far = lines[p] or self._line(plane, p), lines[p + 1] or self._line(plane, p + 1)
        t = 1.0 - u
        found: list[Figures] = []
        for output in outputs:
            o, v = _place(_OUTPUT_LIST, output)
            w = 1.0 - v
            wa, wb, wc, wd = t * w, t * v, u * w, u * v
            a0, a1, a2, a3 = near[o]
            b0, b1, b2, b3 = near[o + 1]
            c0, c1, c2, c3 = far[o]
            d0, d1, d2, d3 = far[o + 1]
            found.append(
                (
                    wa * a0 + wb * b0 + wc * c0 + wd * d0,
                    wa * a1 + wb * b1 + wc * c1 + wd * d1,
                    wa * a2 + wb * b2 + wc * c2 + wd * d2,
                    wa * a3 + wb * b3 + wc * c3 + wd * d3,
                )
            )
        return found, plane.band

    def _plane(self, batch: float) -> _Plane:
        load = min(max(batch, 1.0), _BATCH_LIST[-1])
        row, t = _place(_BATCH_LIST, load)
        if t > 0.0:  # joules per token are a + b / batch: straight in 1 / batch
            t *= _BATCH_LIST[row + 1] / load
        if len(self._planes) >= _MOST_PLANES:
            self._planes.clear()
        found = self._planes[batch] = _Plane(row, t, [None] * len(_PROMPT_LIST), self._bands[row])
        return found

    def _line(self, plane: _Plane, p: int) -> list[Figures]:
        row, t = plane.row, plane.t
        w = 1.0 - t
        found = plane.lines[p] = [
            (
                w * below[0] + t * above[0],
                w * below[1] + t * above[1],
                w * below[2] + t * above[2],
                w * below[3] + t * above[3],
            )
            for below, above in zip(self._rows[row][p], self._rows[row + 1][p], strict=True)
        ]
        return found

    def physics(self) -> StepPhysics:
        """The straight line through this table that step physics asks for, energy above idle.

        Solved between a small and a usual batch at usual lengths; where the table bends, at
        both ends of it the line is off by the bend.
        """
        small, usual = 1, 5  # batch 2 and 32
        prompt, longer = 3, 5  # 256 and 4096 tokens
        out = 4  # 256 tokens
        tokens = OUTPUTS[out]

        def at(batch: int, prompt: int, kind: int) -> float:
            return float(self.values[batch, prompt, out, kind])

        # seconds: DECODE is the whole answer's steps at that batch
        step_small = at(small, prompt, DECODE) / tokens
        step_usual = at(usual, prompt, DECODE) / tokens
        more = PROMPTS[longer] - PROMPTS[prompt]
        prefill_s = max(1e-12, (at(0, longer, TTFT) - at(0, prompt, TTFT)) / more / self._stretch)
        # A longer prompt is read in every step; newcomers' like prompts also stall the steps.
        context_s = (at(small, longer, DECODE) - at(small, prompt, DECODE)) / BATCHES[small] / more
        context_s = max(0.0, (context_s - prefill_s) / tokens)
        slope = (step_usual - step_small) / (BATCHES[usual] - BATCHES[small])
        context = PROMPTS[prompt] + 0.5 * tokens
        token_s = max(0.0, slope - context_s * context)
        step_s = max(1e-9, step_small - (token_s + context_s * context) * BATCHES[small])
        # joules of one request above idle: tokens * (step_j / batch + token_j + context_j * c)
        # + prompt * prefill_j
        busy = self._above_idle_j
        longer_j = busy(small, longer, out) - busy(small, prompt, out)
        context_j = 0.0
        prefill_j = max(1e-9, longer_j / more)
        if context_s > 0.0:
            # The extra joules of a longer prompt: its prefill, and its cache read in every step;
            # shared out by the seconds each takes.
            read_s = context_s * tokens
            share = read_s / (read_s + prefill_s)
            context_j = max(0.0, longer_j / more * share / tokens)
            prefill_j = max(1e-9, longer_j / more * (1.0 - share))
        base = PROMPTS[prompt] * prefill_j + tokens * context_j * context
        low_j = max(1e-9, busy(small, prompt, out) - base) / tokens
        usual_j = max(1e-9, busy(usual, prompt, out) - base) / tokens
        fewer = 1.0 / BATCHES[small] - 1.0 / BATCHES[usual]
        step_j = max(1e-9, (low_j - usual_j) / fewer)
        token_j = max(0.0, usual_j - step_j / BATCHES[usual])
        return StepPhysics(
            idle_power_w=float(self.idle_w),
            step_j=float(step_j),
            token_j=float(token_j),
            context_j=float(context_j),
            prefill_j=float(prefill_j),
            step_s=float(step_s),
            token_s=float(token_s),
            context_s=float(context_s),
            prefill_s=float(prefill_s),
        )

    def _above_idle_j(self, batch: int, prompt: int, output: int) -> float:
        value = self.values[batch, prompt, output]
        seconds = (value[DECODE] + value[TTFT]) / BATCHES[batch]
        return float(max(0.05 * value[ENERGY], value[ENERGY] - self.idle_w * seconds))


@lru_cache(maxsize=256)
def build(prior: Prior, subject: Subject) -> Table:
    """Work the prior out over the grid: a tenth of a second, off the request path. Tables are
    never changed, so alike backends share one, and a config that is read again finds it."""
    batch, prompt, output = (
        axis.ravel() for axis in np.meshgrid(BATCHES, PROMPTS, OUTPUTS, indexing="ij")
    )
    given = cases([subject.static] * len(batch), batch, prompt, output)
    log_energy, log_step, found = prior.middles(given)
    step_s = np.exp(log_step)
    usual = cases(
        [subject.static] * len(BATCHES),
        BATCHES,
        np.full(len(BATCHES), USUAL_PROMPT),
        np.full(len(BATCHES), USUAL_OUTPUT),
    )
    exact = prior.answer(usual, [subject.tier] * len(BATCHES))
    bands = np.stack(
        [
            np.minimum(exact.energy_low - exact.energy, 0.0),
            np.maximum(exact.energy_high - exact.energy, 0.0),
            np.minimum(exact.step_low - exact.step, 0.0),
            np.maximum(exact.step_high - exact.step, 0.0),
        ],
        axis=1,
    )
    shares = marginal_shares(prior, subject, BATCHES)
    more_j, more_s = raised(prior, subject, BATCHES)
    energy = rising(np.exp(log_energy).reshape(_SHAPE)) * more_j[:, None, None]
    decode = rising((step_s * output).reshape(_SHAPE)) * more_s[:, None, None]
    low, high = prior.ttft_factors
    stretch = math.exp(prior.constants[NAMES.index("first_own")])
    first = found.first_s.reshape(_SHAPE)
    first = np.maximum.accumulate(first[:, :, 4:5].repeat(len(OUTPUTS), axis=2), axis=1)
    values = np.stack([energy, energy * shares[:, None, None], decode, first], axis=-1)
    return Table(values, bands, (low, high), subject.idle_w, stretch)


def linear(physics: StepPhysics, spread: float) -> Table:
    """The table of step physics that an engine's own windows taught."""
    batch = BATCHES[:, None, None]
    prompt, output = PROMPTS[None, :, None], OUTPUTS[None, None, :]
    context = prompt + 0.5 * output
    step_s = physics.step_s + batch * (physics.token_s + physics.context_s * context)
    decode = output * step_s
    prefill_s = physics.prefill_s * prompt + 0.0 * batch * output
    busy_s = decode / batch + prefill_s
    each = physics.token_j + physics.context_j * context
    added = output * each + physics.prefill_j * prompt + 0.0 * batch
    energy = physics.idle_power_w * busy_s + output * physics.step_j / batch + added
    alone = (batch <= 1.0) * output * physics.step_j
    marginal = np.minimum(added + alone, energy)
    first = prefill_s + step_s
    values = np.stack([energy, marginal, decode, first + 0.0 * output], axis=-1)
    bands = np.tile([-spread, spread, -spread, spread], (len(BATCHES), 1))
    return Table(values, bands, (1.0 / 1.5, 1.5), physics.idle_power_w)


def _place(nodes: Sequence[float], value: float) -> tuple[int, float]:
    """(index of the node below, how far towards the next one, 0..1)."""
    if value <= nodes[0]:
        return 0, 0.0
    if value >= nodes[-1]:
        return len(nodes) - 2, 1.0
    below = bisect.bisect_right(nodes, value) - 1
    return below, (value - nodes[below]) / (nodes[below + 1] - nodes[below])
