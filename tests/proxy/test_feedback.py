"""A score is read, or the error says what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from proxy import feedback
from proxy.errors import ApiError


@pytest.mark.parametrize(
    ("given", "score"),
    [
        ({"score": 0.25}, 0.25),
        ({"score": 1}, 1.0),
        ({"thumb": "up"}, 1.0),
        ({"thumb": "down"}, 0.0),
        ({"edit": {"answer": "a b c d", "edited": "a b c d"}}, 1.0),
        ({"edit": {"answer": "a b c d", "edited": "e f g h"}}, 0.0),
        ({"edit": {"answer": "a b c d", "edited": "a b c e"}}, 0.6),  # 3 of 5 pairs, ends included
        ({"edit": {"answer": "", "edited": ""}}, 1.0),
    ],
)
def test_reads_scores_and_thumbs(given: dict[str, Any], score: float) -> None:
    assert feedback.score_in({"request_id": "req_1", **given}) == (score, "req_1")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"score": 1}, "request_id"),
        ({"request_id": "r"}, "score"),
        ({"request_id": "r", "score": 1, "thumb": "up"}, "score"),
        ({"request_id": "r", "score": 2}, "score"),
        ({"request_id": "r", "score": True}, "score"),
        ({"request_id": "r", "score": float("nan")}, "score"),
        ({"request_id": "r", "thumb": ["up"]}, "thumb"),
        ({"request_id": "r", "scor": 1}, "scor"),
        ({"request_id": "r", "score": 1, "edit": {}}, "score"),
        ({"request_id": "r", "edit": {"answer": "a"}}, "edit"),
        ({"request_id": "r", "edit": "a"}, "edit"),
        ({"request_id": "r", "edit": {"answer": "a", "edited": "b" * 200_001}}, "edit"),
    ],
)
def test_refuses_what_is_no_score(given: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        feedback.score_in(given)
    assert (caught.value.status, caught.value.param) == (400, param)
