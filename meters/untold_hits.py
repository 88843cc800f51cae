"""Cached tokens of prompts whose engine does not say how many they were. Pure.

The engine counts them for all prompts together; ``meters.prefixes`` says which prompts begin as
earlier ones did. What the engine counted in all is believed, and which prompts had it is what
their beginnings say. Hits that no beginning explains (after a restart, or of prompts that another
replica sent) are divided among the prompts of their window, by length.
"""

from __future__ import annotations

import numpy as np

from meters.phases import Floats, Phases
from meters.timed_hits import timed_hits

AGREES = 1.05  # times what beginnings explain, up to which the count says nothing more
LEAST_EXPLAINED = 0.02  # of prompts: below that the count of hits and beginnings have no ratio


def untold_hits(
    starts: Floats,
    ends: Floats,
    requests: Phases,
    likely: Floats,
    prompts: Floats,
    cached: Floats,
    steps: Floats,
) -> Floats | None:
    """Cached tokens of each prompt, those told among them; None where the told ones are all.

    ``likely``: tokens by request, NaN where the engine has told or nobody knows. ``prompts`` and
    ``cached``: tokens by window as the engine counts them, with first tokens, NaN where unknown.
    """
    # One that waits, or was cancelled before its first token, computed less as well.
    told = np.where(requests.started, requests.prompt - requests.computed, 0.0)
    told = np.where(told > 1, told, 0.0)
    unknown = requests.started & (told == 0)
    guessed = np.minimum(np.nan_to_num(likely), np.maximum(requests.prompt - 1, 0.0))
    if (told > 0).any():
        # It tells: who has not heard yet is still in flight, and has what its beginning says.
        return np.where(np.isnan(likely), told, guessed) if (guessed > 0).any() else None
    if not len(ends) or np.isnan(cached).all():
        return None  # no count: perhaps there is no cache
    window = np.minimum(np.searchsorted(ends, requests.first, side="left"), len(ends) - 1)
    inside = unknown & (requests.first > starts[window]) & (requests.first <= ends[window])
    inside &= ~np.isnan(cached[window])
    # Traffic that is not ours has hits of its own: taken to be as many as ours, by length.
    all_ours = float(requests.prompt[inside].sum())
    counted = float(np.nansum(cached)) * min(1.0, all_ours / max(float(np.nansum(prompts)), 1.0))
    explained = float(guessed[inside].sum())
    if explained > LEAST_EXPLAINED * all_ours:
        if counted <= AGREES * explained:
            return guessed * min(1.0, float(np.nansum(cached)) / explained)
        others = (counted - explained) / max(all_ours - explained, 1.0)
        return guessed + (requests.prompt - guessed) * np.where(unknown, min(others, 1.0), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        hit = np.clip(np.nan_to_num(cached / prompts, posinf=0.0, neginf=0.0), 0.0, 1.0)
    found = np.where(inside, requests.prompt * hit[window], 0.0)
    timed = timed_hits(requests, window, inside, found, prompts, ends - starts, steps)
    return found if timed is None else timed
