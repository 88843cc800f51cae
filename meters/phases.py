"""When each request computed its prompt, and when it generated. Pure.

The proxy sees a request sent, its first token and its end. Before the first token it may have
waited in a queue; how long computing its prompt really took follows from how engines do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from meters.types import Activity

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

SHORTEST_S = 1e-6
# What nobody told: an unhurried engine's step and one prompt token's time. Only used when there is
# no request with two tokens, or none with a prompt; then they cancel out of the shares.
DEFAULT_STEP_S = 0.02
DEFAULT_PREFILL_S = 5e-5
ONE_STEP = (0.75, 1.3)  # times what its prompts take, that a step with nothing else may last
FULL_STEP = 8000  # prompt tokens in one step from which on its budget may have cut a prompt in two
MOST_TOKENS = 1e9  # of one request; more is a mistake


class Phases(NamedTuple):
    """Requests as arrays, in the order they were given. Times in seconds, work in tokens."""

    start: Floats
    prefill: Floats  # when computing its prompt began
    middle: Floats  # until when it shared steps with prompts that were done before its own
    before: Floats  # part of its prompt computed until then
    first: Floats
    end: Floats
    computed: Floats  # prompt tokens not found in the cache
    together: Floats  # prompt tokens, its own included, that were done when its own were
    prompt: Floats
    decoded: Floats  # tokens after the first
    started: Booleans  # a first token came


def phases(activities: Sequence[Activity], until_s: float, cached: Floats | None = None) -> Phases:
    """The phases of requests; those still in flight are taken to last until ``until_s``.

    ``cached``: prompt tokens found in the cache, where better known than by the activities.
    """
    start = np.array([a.start_s for a in activities], dtype=np.float64)
    end = as_counted([a.end_s for a in activities])
    in_flight = np.isnan(end)
    # Of one in flight its tokens so far are known, as of the last look at it.
    looked = np.array([a.progress[-1][0] if a.progress else until_s for a in activities])
    end = np.maximum(np.where(in_flight, np.maximum(looked, until_s), end), start)
    first = as_counted([a.first_token_s for a in activities])
    prompt = np.array([_tokens(a.prompt_tokens) for a in activities], dtype=np.float64)
    if cached is None:
        cached = np.array([_tokens(a.cached_prompt_tokens) for a in activities], dtype=np.float64)
    output = np.array([_tokens(a.output_tokens) for a in activities], dtype=np.float64)
    decoded = np.maximum(output - 1, 0.0)
    computed = np.maximum(prompt - cached, np.minimum(prompt, 1.0))
    # An answer that was not streamed shows all its tokens at its end: then nobody saw the first.
    told = ~np.isnan(first)
    first = np.clip(np.where(told, first, end), start, end)
    shown = told & (decoded > 0) & (end - first > 0)
    each = (end - first)[shown] / decoded[shown]
    pace = median(each, DEFAULT_STEP_S)
    brisk = float(np.quantile(each, 0.1)) if len(each) else DEFAULT_STEP_S
    started = output > 0
    unseen = started & (decoded * pace * 0.2 > end - first)
    boundaries = np.unique(np.concatenate([first[told & started & ~unseen], end[~in_flight]]))
    prompts = _Prompts(start, first, computed, told & started & ~unseen, brisk, boundaries)
    room = end - start
    wanted = computed * prompts.token_s + pace
    guess = start + np.where(
        decoded > 0, room * wanted / np.maximum(wanted + decoded * pace, SHORTEST_S), room
    )
    first = np.where(unseen, guess, first)
    # Cancelled before its first token: it was in the queue, then perhaps in prefill.
    waited = median((first - start - wanted)[started & ~unseen], 0.0)
    time_for_prompt = np.maximum(room - max(waited, 0.0), 0.0)
    part = np.clip(time_for_prompt / np.maximum(computed * prompts.token_s, SHORTEST_S), 0.0, 1.0)
    # Still in flight without a first token, it is most likely waiting.
    part = np.where(in_flight, 0.0, part)
    computed = np.where(started, computed, computed * part)
    known = prompts.length_s > 0
    length = np.where(known, prompts.length_s, computed * prompts.token_s + brisk)
    middle = np.minimum(first - np.minimum(length, first - start), first - SHORTEST_S)
    prefill = np.maximum(middle - prompts.earlier_s, np.minimum(start, middle))
    before = np.where(middle - prefill > SHORTEST_S, prompts.before, 0.0)
    together = np.where(known, prompts.together, computed)
    return Phases(
        start, prefill, middle, before, first, end, computed, together, prompt, decoded, started
    )


def as_counted(values: Sequence[float | None]) -> Floats:
    """Numbers with NaN for what nobody counted."""
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _tokens(count: float) -> float:
    return count if 0.5 <= count < MOST_TOKENS else 0.0


def median(values: Floats, default: float) -> float:
    return float(np.median(values)) if len(values) else default


def _usual(took: Floats, work: Floats, known: Booleans) -> float | None:
    """Seconds of one token where so much work took so long, or longer for reasons of its own.

    Begins with the quickest of the large pieces, and then averages over all that are like them.
    """
    known = known & (took > 0) & np.isfinite(took)
    if known.sum() < 5:
        return None
    known &= work >= np.quantile(work[known], 0.5)
    each = float(np.quantile(took[known] / work[known], 0.2))
    for _ in range(4):
        alike = known & (took < 1.5 * each * work) & (took > 0.5 * each * work)
        if not alike.any():
            break
        each = float(took[alike].sum() / work[alike].sum())
    return each


def _lowest(at: Floats, group: Ints) -> Floats:
    """The first moment of each group; ``at`` is in order."""
    return at[np.searchsorted(group, np.arange(int(group[-1]) + 1))]


class _Prompts:
    """How long computing prompts took: ``token_s`` a token, ``length_s`` for each request.

    Engines compute prompts in the order of arrival, several in one step while its token budget
    lasts. Prompts whose first tokens come closer together than computing one of them takes were
    in the same step, and took the time of all of them.
    """

    def __init__(
        self,
        start: Floats,
        first: Floats,
        computed: Floats,
        known: Booleans,
        step_s: float,
        boundaries: Floats,
    ) -> None:
        """``boundaries``: moments at which a step ended, since a request got a token or left."""
        self.token_s = DEFAULT_PREFILL_S
        self.length_s = np.zeros(len(start))
        self.together = np.zeros(len(start))
        self.earlier_s = np.zeros(len(start))  # before that, in steps that others' prompts ended
        self.before = np.zeros(len(start))  # part of the prompt computed there
        order = np.flatnonzero(known & (computed > 0))
        order = order[np.argsort(first[order], kind="stable")]
        if not len(order):
            return
        at, tokens, waited = first[order], computed[order], (first - start)[order]
        large = tokens >= np.quantile(tokens, 0.75)
        # However long they waited, each took no longer than since the one before.
        took = np.minimum(waited, np.diff(at, prepend=-np.inf))
        large &= took > 1e-4
        if large.any():
            self.token_s = float(np.quantile(took[large] / tokens[large], 0.1))
        length_s = tokens * self.token_s
        group = np.arange(len(order))
        work = tokens
        for _ in range(4):
            apart = np.diff(at) >= np.maximum(0.5 * tokens[1:] * self.token_s, 1e-4)
            group = np.concatenate([[0], np.cumsum(apart)])
            work = np.bincount(group, tokens).astype(np.float64)
            last = np.full(len(work), -np.inf)
            np.maximum.at(last, group, at)
            longest = np.zeros(len(work))
            np.maximum.at(longest, group, waited)
            since = np.diff(last, prepend=-np.inf)
            # One of them waited since the one before was done: the engine worked on it all along,
            # unless it had no place for it, which shows in much time for few tokens.
            steady = (longest >= since) & (work * self.token_s >= 0.3 * since)
            self.token_s = _usual(since - step_s, work, longest >= since) or self.token_s
            length_s = work * self.token_s + step_s
            length_s = np.where(
                steady & (length_s >= 0.5 * since), np.maximum(length_s - step_s, since), length_s
            )
        # A step that ended in between, for a reason of its own, is where these prompts got their
        # place: before that the engine worked for others.
        before = boundaries[np.maximum(np.searchsorted(boundaries, _lowest(at, group)) - 1, 0)]
        span = last - before
        one = work * self.token_s + step_s
        own = (before > last - since + SHORTEST_S) & (longest >= span)
        own &= (work < FULL_STEP) & (span >= ONE_STEP[0] * one) & (span <= ONE_STEP[1] * one)
        length_s = np.where(own, span, length_s)
        steady &= ~own
        self.length_s[order] = length_s[group]
        self.together[order] = work[group]
        if steady.any():
            self._spill(order, group, steady, since, last, work, computed, start, step_s)

    def _spill(
        self,
        order: Ints,
        group: Ints,
        steady: Booleans,
        since: Floats,
        last: Floats,
        work: Floats,
        computed: Floats,
        start: Floats,
        step_s: float,
    ) -> None:
        """What is left of a step's budget begins the next prompt, if that is waiting already.

        A step of ``since`` seconds had room for so many tokens; those that were not of the
        prompts done in it were the beginning of the next one.
        """
        eldest: dict[int, int] = {}
        for i, g in zip(order.tolist(), group.tolist(), strict=True):
            if g not in eldest or start[i] < start[eldest[g]]:
                eldest[g] = i
        begun = 0.0
        for g in range(1, len(work)):
            lacking = work[g] - (since[g] - step_s) / self.token_s
            if begun == 0 and steady[g] and lacking > 0.1 * work[g]:
                begun = min(lacking, computed[eldest[g]] - 1.0)
            if begun > 0:
                i = eldest[g]
                self.before[i] = begun / computed[i]
                self.earlier_s[i] = since[g - 1]
            if not steady[g]:
                begun = 0.0
                continue
            room = (since[g] - step_s) / self.token_s - (work[g] - begun)
            following = eldest.get(g + 1)
            waits = following is not None and start[following] < last[g - 1]
            if following is None or not waits or not steady[g + 1] or room < 1:
                begun = 0.0
            else:
                begun = min(room, computed[following] - 1.0)
