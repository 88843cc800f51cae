"""What is said of a prompt for every backend at once, from the kind of prompt it is. Serving only.

A prompt's hashed words and counts (text.py) go through one sparse linear map. Of what comes out,
some columns are scores of kinds (labelled tasks and unsupervised clusters), the rest are the
prompt's own position on a few axes along which backends differ. A head (one for quality, one for
the logarithm of the answer's length) adds, for each backend:

    its mean  +  g_c(u) · what all backends have in common here (the prompt's difficulty)
              +  g_r(u) · what is particular to this backend here

``u`` is the chance that the prompt is of a kind that was learnt from (traffic.py), and the gates g
fall towards 0 where prompts of left-out kinds showed that nothing was gained: there every backend
gets its overall mean, and choosing by it is choosing on the hull of single models. Fitting is in
kinds_fit.py; this file is numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log1p
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from estimators.text import TextFeatures
from estimators.traffic import LOWEST_RANK, Traffic, known_odds

Array = NDArray[np.float32]
# At which shares of a kind's left-out prompts the judge's scores are kept.
RANKS = np.array([LOWEST_RANK, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0], np.float32)


class System(NamedTuple):
    """One way of sorting prompts into kinds: columns of the map, and how sharply they decide."""

    start: int
    stop: int
    sharpness: float
    names: tuple[str, ...]  # of the kinds; empty where they have none
    tells: bool = True  # whether its scores help to tell a strange prompt


class Gate(NamedTuple):
    """How far to trust something, by familiarity: piecewise linear between knots."""

    familiarity: Array  # ascending
    trust: Array  # 0..1

    def __call__(self, familiarity: float) -> float:
        return float(np.interp(familiarity, self.familiarity, self.trust))


class Head(NamedTuple):
    """One target for all backends. Shapes: M backends, A axes, K kinds of all systems together."""

    mean: Array  # (M,)
    mean_error: Array  # (M,) standard error of the mean
    axes_start: int
    axes_stop: int
    axes: Array  # (A, M) what is particular, along the axes
    common_axes: Array  # (A,)
    kinds: Array  # (K, M) what is particular to each kind
    common_kinds: Array  # (K,)
    kind_error: Array  # (K, M) standard error of a kind's mean
    spread: Array  # (M,) standard deviation between kinds of the backend's means
    gate: Gate
    common_gate: Gate


class Sight(NamedTuple):
    """A prompt as the map sees it."""

    columns: Array  # all columns
    kinds: Array  # (K,) probabilities, each system's adding to 1
    kind: int  # the likeliest of the first system
    rank: float  # 0..1, how familiar among the prompts of that kind
    familiarity: float  # how far to trust that it is of a kind learnt from, to choose by
    likely: float  # the chance that it is


class Judge(NamedTuple):
    """Tells prompts of seen kinds from those of left-out kinds; a logistic regression on signs."""

    mean: Array  # (S,)
    weights: Array  # (S,) already over the deviation
    levels: Array  # (K or 1, RANKS) scores of left-out prompts of each kind of the first system
    crowding: float  # how far ranks of left-out kinds crowd towards 0; 1 would be not at all
    usual: float  # share of new prompts that is expected before any came

    def rank(self, signs: Sequence[float], kind: int) -> float:
        """Which share of the prompts of this kind that were learnt from looked no more familiar."""
        score = float(self.weights @ (np.asarray(signs, np.float32) - self.mean))
        return float(np.interp(score, self.levels[kind], RANKS))


class Kinds(NamedTuple):
    """The map from text to columns, shared by all heads."""

    row_of: NDArray[np.int32]  # (BUCKETS,) row of the bucket, 0 where it was never seen
    idf: Array  # (R,) row 0: of a word never seen
    words: Array  # (R, C) columns, already times idf
    dense_mean: Array  # (D,)
    dense_scale: Array  # (D,)
    dense: Array  # (D, C)
    bias: Array  # (C,)
    systems: tuple[System, ...]
    judge: Judge

    def see(self, text: TextFeatures, traffic: Traffic | None = None) -> Sight:
        """Where the prompt stands, in this traffic. Takes tens of microseconds."""
        rows = self.row_of[text.buckets]
        idf = self.idf[rows]
        squares = idf * idf
        mass = float(squares.sum()) + 1e-9
        known = float(squares @ (rows > 0)) / mass
        counts = (text.dense - self.dense_mean) * self.dense_scale
        counts = np.minimum(np.maximum(counts, -4.0), 4.0)
        columns = np.add.reduce(self.words[rows], 0) / np.sqrt(mass)
        columns += counts @ self.dense + self.bias
        parts = []
        tops = []
        for start, stop, sharpness, _, tells in self.systems:
            scores = columns[start:stop]
            if tells:
                second, top = np.partition(scores, -2)[-2:]
                tops.append((float(top), float(second)))
            else:
                top = scores.max()
            odds = np.exp((scores - top) * sharpness)
            parts.append(odds / odds.sum())
        kinds = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        signs = signs_of(tops, known, float(counts @ counts))
        kind = int(parts[0].argmax()) if parts else 0
        rank = self.judge.rank(signs, kind)
        if traffic is None:
            likely = known = known_odds(rank, self.judge.usual, self.judge.crowding)
        else:
            likely, known = traffic.likely(kind, rank), traffic.known(kind, rank)
        return Sight(columns, kinds, kind, rank, known, likely)

    def traffic(self) -> Traffic:
        """A fresh account of how much of the traffic is new to this map."""
        return Traffic(self.judge.usual, self.judge.crowding)


def signs_of(tops: Sequence[tuple[float, float]], known: float, squares: float) -> list[float]:
    """What tells a strange prompt: each system's best and second score, the share of its words
    that were taught, and the logarithm of how far its counts lie outside.

    No score alone will do: a linear one calls the strangest prompt the surest.
    """
    return [*(score for pair in tops for score in pair), known, log1p(squares)]


def deviation(head: Head, sight: Sight) -> Array:
    """What to add to the head's mean for this prompt, (M,)."""
    axes = sight.columns[head.axes_start : head.axes_stop]
    particular = axes @ head.axes + sight.kinds @ head.kinds
    common = float(axes @ head.common_axes + sight.kinds @ head.common_kinds)
    trust = np.float32(head.gate(sight.familiarity))
    return np.asarray(trust * particular + np.float32(head.common_gate(sight.familiarity) * common))


def standard_error(head: Head, sight: Sight) -> Array:
    """How uncertain ``mean + deviation`` is, (M,): the mean's and the kind's own error, and the
    spread between kinds in so far as the kind is not trusted."""
    trust = head.gate(sight.familiarity)
    kind = sight.kinds @ (head.kind_error**2) if len(sight.kinds) else 0.0
    return np.asarray(
        np.sqrt(head.mean_error**2 + kind + (1.0 - trust) * head.spread**2), dtype=np.float32
    )
