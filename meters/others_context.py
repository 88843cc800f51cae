"""How long others' contexts are, from what an engine counts of all traffic. Pure.

An engine counts a prompt when it is done and a token when it is generated, but not which prompt
that token followed. Yet a prompt stays in the batch for about as long as ours do. So others'
cached tokens now are the prompts counted of them lately, as ours are those counted of us: the
ratio of the two, beside the ratio of the tokens that both generated, says how many times as long
as ours the contexts of others are.
"""

from __future__ import annotations

import numpy as np

from meters.phases import Floats

LOOKED_AT_S = 20.0  # e-folding time, to both sides: less is chance, more is other traffic
USUAL_STAY_S = 5.0  # in a batch, where nobody saw one end
LIKE_OURS = 0.05  # of ours, added to both sides of the ratio, where next to nothing is counted


def others_contexts(
    starts: Floats,
    ends: Floats,
    stay_s: float,
    ours: tuple[Floats, Floats, Floats],
    theirs: tuple[Floats, Floats],
) -> Floats:
    """Cached tokens that others' requests read in each window.

    ``ours``: prompt tokens counted, tokens generated and cached tokens read for them; ``theirs``:
    prompt tokens and tokens. ``stay_s``: how long a request of ours generates.
    """
    prompts, tokens, context = ours
    their_prompts, their_tokens = theirs
    if not their_tokens.any():
        return np.zeros(len(starts))
    middles = (starts + ends) / 2
    held, their_held = (_held(middles, p, max(stay_s, 0.1)) for p in (prompts, their_prompts))
    held, their_held, batch, their_batch, read = (
        _around(middles, values) for values in (held, their_held, tokens, their_tokens, context)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        least = LIKE_OURS * held * batch
        times = (their_held * batch + least) / (held * their_batch + least)
        found = their_tokens * read / batch * times
    return np.where(np.isfinite(found), found, 0.0)


def _held(middles: Floats, counted: Floats, stay_s: float) -> Floats:
    """What of the tokens counted until then is still there, if it leaves by chance."""
    found, now, at_s = np.zeros(len(counted)), 0.0, -np.inf
    for i, (middle_s, tokens) in enumerate(zip(middles.tolist(), counted.tolist(), strict=True)):
        now = now * np.exp((at_s - middle_s) / stay_s) + tokens
        found[i], at_s = now, middle_s
    return found


def _around(middles: Floats, values: Floats) -> Floats:
    forth = _held(middles, values, LOOKED_AT_S)
    back = _held(-middles[::-1], values[::-1], LOOKED_AT_S)[::-1]
    return np.asarray(forth + back - values)
