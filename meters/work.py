"""What each request did in each window, rebuilt from what the proxy and the engine counted.

The proxy knows when a request was sent, when its first token came and when it ended; the engine
knows how many steps and tokens a window had. ``meters.phases`` says when prompts were computed,
``meters.step_clock`` how steps went; from these follows, for every pair of a request and a window:

- ``shares``: steps it was in, each divided by the number of sequences in that step;
- ``tokens``: what it generated; ``context``: cached tokens read for them;
- ``prefilled``: prompt tokens computed for it, which end with its first token.

Pure; arrays instead of objects, since an hour of a busy engine has a million pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meters.phases import SHORTEST_S, Floats, Ints, Phases, as_counted, phases
from meters.step_clock import StepClock
from meters.types import Activity, Window

LEAST_FOREIGN = 0.005


class Work(NamedTuple):
    """Pairs of a request and a window, and what the windows had beside them."""

    window: Ints  # index of each pair's window
    request: Ints  # index of each pair's request
    shares: Floats
    tokens: Floats
    context: Floats
    prefilled: Floats
    steps: Floats  # by window: all steps, the engine's count where there is one
    external_shares: Floats  # by window: steps' parts that belong to nobody's request
    external_tokens: Floats
    external_prefilled: Floats

    def by_window(self, values: Floats) -> Floats:
        """The sum of a value of pairs, for each window."""
        return np.bincount(self.window, values, minlength=len(self.steps)).astype(np.float64)


def rebuild(windows: Sequence[Window], activities: Sequence[Activity]) -> Work:
    """The work in ``windows``, which are of one node, in order, and do not overlap."""
    starts = np.array([w.start_s for w in windows], dtype=np.float64)
    ends = np.array([w.end_s for w in windows], dtype=np.float64)
    until_s = max(
        [float(ends[-1]) if len(ends) else 0.0, *(a.end_s for a in activities if a.end_s)],
        default=0.0,
    )
    requests = phases(activities, until_s)
    nothing = np.zeros(len(windows))
    counted_steps = as_counted([w.steps for w in windows])
    clock = StepClock(starts, ends, requests, counted_steps, nothing)
    work = _pairs(starts, ends, requests, clock, activities)
    external_tokens = _beyond(
        as_counted([w.generated_tokens for w in windows]),
        work.by_window(work.tokens),
        slack=_token_slack(work.by_window(work.tokens), clock.peak, ends - starts),
    )
    prompts = _first_token_prompts(starts, ends, requests)
    cached = as_counted([w.cached_prompt_tokens for w in windows])
    counted = as_counted([w.prompt_tokens for w in windows])
    external_prompts = _beyond(counted, prompts, slack=_prompt_slack(requests, len(windows)))
    with np.errstate(invalid="ignore", divide="ignore"):
        hit = np.where(counted > 0, np.nan_to_num(cached) / counted, 0.0)
    external_prefilled = external_prompts * (1 - np.clip(np.nan_to_num(hit), 0.0, 1.0))
    if external_tokens.any():
        batch = external_tokens / np.maximum(np.nan_to_num(clock.steps, nan=1.0), 1.0)
        clock = StepClock(starts, ends, requests, counted_steps, batch)
        work = _pairs(starts, ends, requests, clock, activities)
    return work._replace(
        external_tokens=external_tokens,
        external_prefilled=external_prefilled,
        external_shares=np.maximum(clock.steps - work.by_window(work.shares), 0.0),
    )


def _token_slack(tokens: Floats, peak: Floats, lengths: Floats) -> Floats:
    """How far counts of tokens may disagree: a few steps of the whole batch, a quarter second."""
    if not len(tokens):
        return tokens
    most = 3 * peak.max() + 0.25 * float((tokens / np.maximum(lengths, SHORTEST_S)).max())
    return np.full(len(tokens), most)


def _pairs(
    starts: Floats,
    ends: Floats,
    requests: Phases,
    clock: StepClock,
    activities: Sequence[Activity],
) -> Work:
    low = np.searchsorted(ends, requests.prefill, side="right")
    high = np.searchsorted(starts, requests.end, side="left")
    # A request that ends at the moment it begins still is somewhere.
    count = np.maximum(high - low, 0)
    request = np.repeat(np.arange(len(count)), count)
    offset = np.arange(len(request)) - np.repeat(np.cumsum(count) - count, count)
    window = (np.repeat(low, count) + offset).astype(np.int64)
    from_, to = starts[window], ends[window]
    prefill, first, end = requests.prefill[request], requests.first[request], requests.end[request]

    total_at = clock.total
    base = total_at[clock.index(first)]
    whole = total_at[clock.index(end)] - base
    begin = clock.index(np.clip(from_, first, end))
    finish = clock.index(np.clip(to, first, end))
    decoded = requests.decoded[request]
    with np.errstate(invalid="ignore", divide="ignore"):
        done0 = np.where(whole > 0, decoded * (total_at[begin] - base) / whole, 0.0)
        done1 = np.where(whole > 0, decoded * (total_at[finish] - base) / whole, 0.0)
    done0, done1 = _watched(activities, requests, request, from_, to, done0, done1)
    context = (done1 - done0) * (requests.prompt[request] + (done0 + done1 + 1) / 2)
    has_first = requests.started[request] & (first > from_) & (first <= to)
    tokens = done1 - done0 + has_first
    covered = np.clip(np.minimum(to, first) - np.maximum(from_, prefill), 0.0, None)
    prefilled = requests.computed[request] * covered / np.maximum(first - prefill, SHORTEST_S)
    share_at = clock.share
    shares = (
        share_at[clock.index(np.clip(to, prefill, end))]
        - share_at[clock.index(np.clip(from_, prefill, end))]
    )
    empty = np.zeros(len(starts))
    return Work(
        window, request.astype(np.int64), shares, tokens, context, prefilled,
        clock.steps, empty, empty, empty,
    )  # fmt: skip


def _watched(
    activities: Sequence[Activity],
    requests: Phases,
    request: Ints,
    from_: Floats,
    to: Floats,
    done0: Floats,
    done1: Floats,
) -> tuple[Floats, Floats]:
    """Where a stream was watched, its tokens after the first at the windows' edges are known."""
    first_pair = np.searchsorted(request, np.arange(len(activities) + 1))
    for i, activity in enumerate(activities):
        if not activity.progress or requests.decoded[i] <= 0:
            continue
        pairs = slice(int(first_pair[i]), int(first_pair[i + 1]))
        times = np.array([requests.first[i], *(t for t, _ in activity.progress), requests.end[i]])
        known = np.array([1.0, *(n for _, n in activity.progress), requests.decoded[i] + 1])
        order = np.argsort(times, kind="stable")
        times, known = times[order], np.maximum.accumulate(known[order])
        for done, edges in ((done0, from_), (done1, to)):
            seen = np.interp(edges[pairs], times, known) - 1
            done[pairs] = np.clip(seen, 0.0, requests.decoded[i])
    return done0, done1


def _first_token_prompts(starts: Floats, ends: Floats, requests: Phases) -> Floats:
    """Prompt tokens by window as engines count them: all at once, with the first token."""
    window = np.searchsorted(ends, requests.first, side="left")
    inside = (window < len(ends)) & requests.started
    inside &= requests.first > starts[np.minimum(window, len(starts) - 1)] if len(starts) else False
    return np.bincount(window[inside], requests.prompt[inside], minlength=len(starts)).astype(float)


def _prompt_slack(requests: Phases, n: int) -> Floats:
    longest = float(requests.prompt.max()) if len(requests.prompt) else 0.0
    return np.full(n, 2 * longest)


def _beyond(counted: Floats, ours: Floats, slack: Floats) -> Floats:
    """What the engine counted beyond our requests, window by window.

    The two never agree to the token: clocks jitter, and a token may fall on either side of an
    edge. Such errors come and go, while foreign traffic only ever adds. So the running difference
    must first rise by ``slack`` above where it was lowest; then all of that rise is foreign, and
    every new height after it, until it has fallen by ``slack`` again.
    """
    found = np.zeros(len(counted))
    level = lowest = highest = 0.0
    since = 0
    foreign = False
    rise = np.maximum(np.nan_to_num(counted - ours), 0.0)
    for i, (engine, own, band) in enumerate(zip(counted, ours, slack, strict=True)):
        if np.isnan(engine):
            continue
        level += engine - own
        if foreign and level > highest:
            found[i] = min(level - highest, engine)
            highest = level
        elif foreign and level < highest - band:
            foreign, lowest, since = False, level, i + 1
        elif not foreign and level <= lowest:
            lowest, since = level, i + 1
        elif not foreign and level > lowest + band:
            part = rise[since : i + 1]
            found[since : i + 1] = part * min(1.0, (level - lowest) / part.sum())
            foreign, highest = True, level
    # Less than this of all is within what counting differs by, whatever shape it has.
    return found if found.sum() > LEAST_FOREIGN * np.nansum(counted) else np.zeros(len(counted))
