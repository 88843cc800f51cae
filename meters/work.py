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

from meters.foreign import Foreign
from meters.others_context import USUAL_STAY_S, others_contexts
from meters.phases import (
    SHORTEST_S,
    Booleans,
    Floats,
    Ints,
    Phases,
    as_counted,
    median,
    phases,
)
from meters.step_clock import StepClock
from meters.types import Activity, Window
from meters.untold_hits import untold_hits

EDGE_S = 0.05  # how late the proxy may see a first token, and how far clocks may be apart
COUNTED_HERE = 0.15  # relative: the proxy's count of a prompt beside the engine's own
UNSURE = 0.1  # of a prompt that waited: the part that may have been computed earlier


class Work(NamedTuple):
    """Pairs of a request and a window, and what the windows had beside them."""

    window: Ints  # index of each pair's window
    request: Ints  # index of each pair's request
    shares: Floats
    tokens: Floats
    context: Floats
    prefilled: Floats
    steps: Floats  # by window: all steps, the engine's count where there is one
    busy_s: Floats  # by window: how long a request of ours was in the engine
    external_shares: Floats  # by window: steps' parts that belong to nobody's request
    external_tokens: Floats
    external_prefilled: Floats
    external_context: Floats  # cached tokens read for them
    context_counted: Booleans  # by window: whether the engine counted that

    def by_window(self, values: Floats) -> Floats:
        """The sum of a value of pairs, for each window."""
        return np.bincount(self.window, values, minlength=len(self.steps)).astype(np.float64)


def moved(work: Work, wanted: Floats) -> Work:
    """``work`` with prompts moved between the windows they may have been computed in.

    ``wanted``: by window, how many times the modelled energy was measured. When exactly a prompt
    was computed is the least certain of all that ``rebuild`` finds; the energy itself says more.
    """
    if not len(work.prefilled):
        return work
    towards = work.prefilled * np.clip(wanted, 0.5, 2.0)[work.window]
    n = int(work.request.max()) + 1
    before = np.bincount(work.request, work.prefilled, minlength=n)
    after = np.bincount(work.request, towards, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        back = np.where(after > 0, before / after, 0.0)
    return work._replace(prefilled=towards * back[work.request])


def rebuild(
    windows: Sequence[Window],
    activities: Sequence[Activity],
    foreign: Foreign | None = None,
    new: int | None = None,
) -> Work:
    """The work in ``windows``, which are of one node, in order, and do not overlap.

    ``foreign`` remembers between calls what the engine counted beyond our requests; without it
    the windows are taken to be all there are. ``new``: the only one that it has not seen before.
    """
    foreign = foreign or Foreign()
    starts = np.array([w.start_s for w in windows], dtype=np.float64)
    ends = np.array([w.end_s for w in windows], dtype=np.float64)
    until_s = float(ends[-1]) if len(ends) else 0.0
    requests = phases(activities, until_s)
    generated = as_counted([w.generated_tokens for w in windows])
    prompts = as_counted([w.prompt_tokens for w in windows])
    cached = as_counted([w.cached_prompt_tokens for w in windows])
    likely = as_counted([a.likely_cached_tokens for a in activities])
    steps = as_counted([w.steps for w in windows])
    hits = untold_hits(starts, ends, requests, likely, prompts, cached, steps)
    if hits is not None:
        requests = phases(activities, until_s, hits)
    clock = StepClock(starts, ends, requests, steps, np.zeros(len(windows)))
    work = _pairs(starts, ends, requests, clock, activities)
    ours = work.by_window(work.tokens)
    external_tokens = foreign.tokens.beyond(
        generated, ours, _token_slack(ours, clock, ends - starts)
    )
    our_prompts = _first_token_prompts(starts, ends, requests)
    external_prompts = foreign.prompts.beyond(
        prompts,
        our_prompts,
        _prompt_slack(starts, ends, requests, activities),
    )
    if external_tokens.any():
        batch = external_tokens / np.maximum(np.nan_to_num(clock.steps, nan=1.0), 1.0)
        clock = StepClock(starts, ends, requests, steps, batch)
        work = _pairs(starts, ends, requests, clock, activities)
    elif np.isnan(steps).any() and not np.isnan(generated).all():
        # As many steps more or less than found as there were tokens more or less.
        with np.errstate(invalid="ignore", divide="ignore"):
            told = np.where(ours > 0, clock.steps * generated / ours, 0.0)
        steps = np.where(np.isnan(steps), told, steps)
        clock = StepClock(starts, ends, requests, steps, np.zeros(len(windows)))
        work = _pairs(starts, ends, requests, clock, activities)
    with np.errstate(invalid="ignore", divide="ignore"):
        hit = np.clip(np.nan_to_num(cached / prompts, posinf=0.0, neginf=0.0), 0.0, 1.0)
    counted = foreign.counted.others_context(
        as_counted([w.read_bytes for w in windows]),
        as_counted([w.steps for w in windows]),
        work.by_window(work.context),
        (external_tokens == 0) & (external_prompts == 0),
        new,
    )
    likely = others_contexts(
        starts,
        ends,
        median((requests.end - requests.first)[requests.decoded > 0], USUAL_STAY_S),
        (our_prompts, ours, work.by_window(work.context)),
        (external_prompts, external_tokens),
    )
    return work._replace(
        external_context=np.where(np.isnan(counted), likely, counted),
        context_counted=~np.isnan(counted),
        external_tokens=external_tokens,
        external_prefilled=external_prompts * (1 - hit),
        external_shares=np.maximum(clock.steps - work.by_window(work.shares), 0.0),
    )


def _token_slack(tokens: Floats, clock: StepClock, lengths: Floats) -> Floats:
    """How far counts of tokens may disagree: a few steps of the whole batch, a quarter second."""
    if not len(tokens):
        return tokens
    most = 3 * clock.peak.max() + 0.25 * float((tokens / np.maximum(lengths, SHORTEST_S)).max())
    return np.full(len(tokens), most)


def _pairs(
    starts: Floats,
    ends: Floats,
    requests: Phases,
    clock: StepClock,
    activities: Sequence[Activity],
) -> Work:
    # It may have begun earlier than it seems, though not before it was sent.
    span = requests.first - requests.prefill
    earliest = np.maximum(requests.prefill - span, np.minimum(requests.start, requests.prefill))
    low = np.searchsorted(ends, earliest, side="right")
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
    middle, before = requests.middle[request], requests.before[request]
    part = (1 - before) * _covered(from_, to, middle, first)
    part += before * _covered(from_, to, prefill, middle)
    queued = earliest[request] < prefill - SHORTEST_S
    wide = _covered(from_, to, earliest[request], first)
    part = np.where(queued, (1 - UNSURE) * part + UNSURE * wide, part)
    prefilled = requests.computed[request] * part
    share_at = clock.share
    shares = (
        share_at[clock.index(np.clip(to, prefill, end))]
        - share_at[clock.index(np.clip(from_, prefill, end))]
    )
    empty = np.zeros(len(starts))
    return Work(
        window, request.astype(np.int64), shares, tokens, context, prefilled,
        clock.steps, clock.busy_s, empty, empty, empty, empty, np.zeros(len(starts), dtype=bool),
    )  # fmt: skip


def _covered(from_: Floats, to: Floats, begin: Floats, end: Floats) -> Floats:
    """The part of begin..end that lies in from..to."""
    inside = np.clip(np.minimum(to, end) - np.maximum(from_, begin), 0.0, None)
    return np.asarray(inside / np.maximum(end - begin, SHORTEST_S), dtype=np.float64)


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


def _prompt_slack(
    starts: Floats, ends: Floats, requests: Phases, activities: Sequence[Activity]
) -> Floats:
    """How far counts of prompt tokens may disagree, by window: prompts that may be counted on
    either side of its end, and our own counts of those whose engine has not told them yet."""
    prompt = requests.prompt
    if not len(prompt) or not len(ends):
        return np.zeros(len(ends))
    told = np.array([a.first_token_s is not None for a in activities])
    begin = np.where(told, requests.first - EDGE_S, requests.start)
    finish = np.where(told, requests.first + EDGE_S, requests.end + EDGE_S)
    order, last = np.argsort(begin), np.argsort(finish)
    begun = np.concatenate([[0.0], np.cumsum(prompt[order])])
    done = np.concatenate([[0.0], np.cumsum(prompt[last])])

    def around(edges: Floats) -> Floats:
        before = np.searchsorted(finish[last], edges, side="left")
        return np.asarray(begun[np.searchsorted(begin[order], edges, side="right")] - done[before])

    guessed = np.array([a.end_s is None for a in activities]) & requests.started
    slack = around(starts) + around(ends) + COUNTED_HERE * float(prompt[guessed].sum())
    return np.asarray(np.maximum(slack, float(prompt.max())), dtype=np.float64)
