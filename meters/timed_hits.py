"""Which prompts were found in the cache, from how soon their first tokens came. Pure.

An engine that tells no request its prefix-cache hits still shows them: a step lasts as long as the
prompt tokens in it take, and it ends with the first tokens of those prompts. Where it began is
nearly known as well: at the step's end that was seen last, or so many ordinary steps later that
the prompt had come. So for prompts that were done together

    first token - begin of its step = ordinary step + token_s · (prompt tokens computed)

The engine's page says how many tokens were cached in each window, and how many steps there were;
so windows' sums tell ``token_s``, and how long an ordinary step was there. How far prompts stray
from this, windows tell as well. What each prompt had cached is then what is most likely, given its
time, the window's count, and that hits come and go from prompt to prompt.
"""

from __future__ import annotations

import numpy as np

from meters.phases import SHORTEST_S, Booleans, Floats, Ints, Phases, median

ENOUGH = 5  # windows with prompts, before their sums tell how long a token takes
TOGETHER = 0.2  # of an ordinary step, that first tokens of one step may come apart
COUNT_OFF = 0.005  # relative, of the page's count of a window's prompts
LARGE = 3.0  # deviations; more is something else
ROUNDS = 3
STEP_VARIES = (0.6, 1.6)  # times its usual length, that an ordinary step may take in some window


def timed_hits(
    requests: Phases,
    window: Ints,
    inside: Booleans,
    expected: Floats,
    prompts: Floats,
    lengths: Floats,
    steps: Floats,
) -> Floats | None:
    """Cached tokens of the prompts that are ``inside`` a window; None where times tell nothing.

    ``window``: that of each first token. ``expected``: cached tokens by request, as far as is
    known without their times; right in each window's sum. ``prompts`` and ``steps``: by window as
    the engine counts them, NaN where unknown; ``lengths``: of the windows, in seconds.
    """
    # Where the engine counted none (or nothing else) there is nothing to tell apart.
    open_ = (expected > 0) & (expected < requests.prompt - 1)
    if not (inside & open_).any():
        return None
    order = np.flatnonzero(inside & (requests.prompt > 0))
    order = order[np.argsort(requests.first[order], kind="stable")]
    going = (requests.decoded > 0) & (requests.end - requests.first > SHORTEST_S)
    each = (requests.end - requests.first)[going] / requests.decoded[going]
    if len(order) < ENOUGH or not len(each):
        return None
    ordinary = np.full(len(lengths), float(np.quantile(each, 0.1)))
    apart = np.diff(requests.first[order]) > TOGETHER * ordinary[0]
    group = np.concatenate([[0], np.cumsum(apart)]).astype(np.int64)
    theirs = window[order][np.searchsorted(group, np.arange(int(group[-1]) + 1))]
    computed = _sums(window[order], (requests.prompt - expected)[order], len(lengths))
    for _ in range(ROUNDS):
        last_step, since_sent = _took(requests, order, group, ordinary[theirs])
        line = _Line(theirs, last_step - ordinary[theirs], computed)
        if not line.tells:
            return None
        ordinary = _ordinary(lengths, steps, line.token_s * computed, ordinary)
    # Longer than all of them can have taken, they waited for a place.
    most = _sums(group, requests.prompt[order])
    longest = ordinary[theirs] + line.token_s * most + LARGE * line.deviation_s
    took = np.where(since_sent <= longest, since_sent, last_step) - ordinary[theirs]
    line = _Line(theirs, took, computed)
    if not line.tells:
        return None
    found = expected.copy()
    found[order] = _likeliest(
        requests.prompt[order],
        expected[order],
        group,
        theirs,
        (took - line.more_s) / line.token_s,
        (line.deviation_s / line.token_s) ** 2,
        prompts,
    )
    return found


def _took(requests: Phases, order: Ints, group: Ints, ordinary: Floats) -> tuple[Floats, Floats]:
    """Seconds that each group of prompts took, in the step in which they were done, and in all
    steps since the first of them came."""
    n = int(group[-1]) + 1
    at = requests.first[order]
    first = at[np.searchsorted(group, np.arange(n))]
    last, newest, eldest = np.full(n, -np.inf), np.full(n, -np.inf), np.full(n, np.inf)
    np.maximum.at(last, group, at)
    np.maximum.at(newest, group, requests.start[order])
    np.minimum.at(eldest, group, requests.start[order])
    ends = np.unique(np.concatenate([requests.first, requests.end]))
    own = np.searchsorted(ends, first - TOGETHER * ordinary)  # place of its own step's end

    def begin(sent: Floats, place: Ints) -> Floats:
        """When a step began after they were sent; ``place``: of an end that is too late for it."""
        before = np.where(place > 0, ends[np.maximum(place - 1, 0)], sent)
        steps = np.maximum(np.ceil((sent - before) / ordinary - 1e-6), 0.0)
        return np.asarray(before + steps * ordinary, dtype=np.float64)

    last_step = last - np.minimum(begin(newest, own), last)
    after = np.minimum(np.searchsorted(ends, eldest, side="right"), own)
    soonest = np.minimum(begin(eldest, after), ends[np.minimum(after, len(ends) - 1)])
    # Until then the engine worked on the prompts before them.
    soonest = np.maximum(soonest, np.concatenate([[-np.inf], last[:-1]]))
    return last_step, np.maximum(last - soonest, last_step)


def _ordinary(lengths: Floats, steps: Floats, prompts_s: Floats, otherwise: Floats) -> Floats:
    """How long a step without prompts was in each window, where its steps were counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (lengths - prompts_s) / steps
    known = np.isfinite(found) & (found > 0)
    if not known.any():
        return otherwise
    usual = float(np.median(found[known]))
    low, high = STEP_VARIES
    return np.asarray(np.clip(np.where(known, found, usual), low * usual, high * usual))


def _sums(group: Ints, values: Floats, groups: int = 0) -> Floats:
    return np.bincount(group, values, groups).astype(np.float64)


class _Line:
    """``more_s + token_s · computed``: what groups took beyond an ordinary step, from windows."""

    def __init__(self, window: Ints, took: Floats, computed: Floats) -> None:
        """``window`` and ``took`` by group; ``computed``: tokens by window."""
        groups = np.bincount(window, minlength=len(computed)).astype(np.float64)
        known = groups > 0
        # The more prompts in a window, the more they stray in all.
        each = np.sqrt(groups[known])
        rows = np.stack([each, computed[known] / each], axis=1)
        goal = np.bincount(window, took, minlength=len(computed))[known] / each
        self.more_s = self.token_s = self.deviation_s = 0.0
        weight = np.ones(len(goal))
        for _ in range(ROUNDS + 1):
            one, both, other = (
                weight @ c for c in (rows[:, 0] ** 2, rows.prod(1), rows[:, 1] ** 2)
            )
            size = one * other - both * both
            if len(goal) < ENOUGH or not size > 1e-9 * one * other:
                self.token_s = 0.0
                return
            right = (rows * weight[:, None]).T @ goal
            self.more_s = float(other * right[0] - both * right[1]) / size
            self.token_s = float(one * right[1] - both * right[0]) / size
            off = np.abs(goal - rows @ np.array([self.more_s, self.token_s]))
            self.deviation_s = max(1.48 * median(off, 0.0), SHORTEST_S)
            weight = np.minimum(1.0, (self.deviation_s / np.maximum(off, SHORTEST_S)) ** 2)

    @property
    def tells(self) -> bool:
        return bool(np.isfinite(self.token_s) and self.token_s > 0)


def _likeliest(
    prompt: Floats,
    expected: Floats,
    group: Ints,
    theirs: Ints,
    computed: Floats,
    variance: float,
    counted: Floats,
) -> Floats:
    """Cached tokens of each prompt; ``theirs``: each group's window, ``computed``: what its time
    says, give or take ``variance``."""
    most = np.maximum(prompt - 1.0, 0.0)
    part = np.clip(expected / prompt, 0.0, 1.0)
    spread = part * (1 - part) * prompt**2  # of prompts with all of it cached, or nothing
    n, place = len(counted), theirs[group]
    varies, hoped = _sums(group, spread), _sums(group, expected)
    room = _sums(group, most)
    timed = np.clip(_sums(group, prompt) - computed, 0.0, room)
    # Each group between what is usual and what its time says,
    moved = (timed - hoped) / (varies + variance)
    found = np.clip(expected + spread * moved[group], 0.0, most)
    # and what the window counted then tells of those that are not certain.
    doubt = spread * (variance / (varies + variance))[group]
    ours, hits = _sums(place, prompt, n), _sums(place, expected, n)
    unsure = np.abs(counted - ours) / np.maximum(np.maximum(counted, ours), 1.0)
    loose = (COUNT_OFF * ours) ** 2 + unsure**2 * _sums(place, spread, n)
    free = _sums(place, doubt, n)
    for _ in range(ROUNDS):
        lacking = (hits - _sums(place, found, n)) / (free + loose + 1e-9)
        found = np.clip(found + doubt * lacking[place], 0.0, most)
    return np.asarray(found, dtype=np.float64)
