"""Reading what a person or a program thinks of one answer."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from proxy.errors import ApiError, invalid_body

THUMBS = {"up": 1.0, "down": 0.0}
KEYS = frozenset({"request_id", "score", "thumb", "edit"})
MAX_EDIT_CHARS = 200_000  # of an answer before or after


def score_in(given: dict[str, Any]) -> tuple[float, str]:
    """The score, 0 to 1, and the request it is about. Raises ApiError 400."""
    unknown = sorted(set(given) - KEYS)
    if unknown:
        raise _wrong(unknown[0], f"is not known. Known: {', '.join(sorted(KEYS))}.")
    request_id = given.get("request_id")
    if not isinstance(request_id, str) or not request_id:
        raise _wrong("request_id", "should be the x-request-id of an answer.")
    if sum(name in given for name in ("score", "thumb", "edit")) != 1:
        raise _wrong("score", "or 'thumb' or 'edit' is needed, one of the three.")
    if "edit" in given:
        return _left_alone(given["edit"]), request_id
    if "thumb" in given:
        thumb = THUMBS.get(given["thumb"]) if isinstance(given["thumb"], str) else None
        if thumb is None:
            raise _wrong("thumb", "should be 'up' or 'down'.")
        return thumb, request_id
    score = given["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise _wrong("score", "should be a number from 0 to 1.")
    return float(score), request_id


def _left_alone(edit: Any) -> float:
    """How much of an answer somebody left as it was, 0 to 1: the neighbouring pairs of words that
    both texts have, of all their pairs (Dice's coefficient). Takes time linear in the words."""
    texts = (edit.get("answer"), edit.get("edited")) if isinstance(edit, dict) else ()
    if len(texts) != 2 or not all(isinstance(t, str) and len(t) <= MAX_EDIT_CHARS for t in texts):
        raise _wrong("edit", "should have the texts 'answer' and 'edited'.")
    pairs = []
    for text in texts:
        words = ["", *str(text).split(), ""]
        pairs.append(Counter(pairwise(words)))
    before, after = pairs
    return 2.0 * (before & after).total() / (before.total() + after.total())


def _wrong(param: str, message: str) -> ApiError:
    return invalid_body(f"{param!r} {message}", code="invalid_value", param=param)
