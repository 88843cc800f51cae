"""Reading what a person or a program thinks of one answer."""

from __future__ import annotations

from typing import Any

from proxy.errors import ApiError, invalid_body

THUMBS = {"up": 1.0, "down": 0.0}
KEYS = frozenset({"request_id", "score", "thumb"})


def score_in(given: dict[str, Any]) -> tuple[float, str]:
    """The score, 0 to 1, and the request it is about. Raises ApiError 400."""
    unknown = sorted(set(given) - KEYS)
    if unknown:
        raise _wrong(unknown[0], f"is not known. Known: {', '.join(sorted(KEYS))}.")
    request_id = given.get("request_id")
    if not isinstance(request_id, str) or not request_id:
        raise _wrong("request_id", "should be the x-request-id of an answer.")
    if ("score" in given) == ("thumb" in given):
        raise _wrong("score", "or 'thumb' is needed, one of the two.")
    if "thumb" in given:
        thumb = THUMBS.get(given["thumb"]) if isinstance(given["thumb"], str) else None
        if thumb is None:
            raise _wrong("thumb", "should be 'up' or 'down'.")
        return thumb, request_id
    score = given["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise _wrong("score", "should be a number from 0 to 1.")
    return float(score), request_id


def _wrong(param: str, message: str) -> ApiError:
    return invalid_body(f"{param!r} {message}", code="invalid_value", param=param)
