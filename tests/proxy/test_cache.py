"""Whose answers are found again, and whose never."""

from __future__ import annotations

import pytest

from proxy import cache, features
from proxy.auth import Caller
from proxy.cache import Answer
from proxy.settings import Cache

A, B = Caller(team="a"), Caller(team="b")
BODY = b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":0}'


def key(body: bytes, caller: Caller = A, endpoint: str = "chat.completions") -> str:
    found = cache.key_of(body, endpoint, caller)
    assert found is not None
    return found


def test_order_and_white_space_do_not_matter_and_everything_else_does() -> None:
    same = b'{ "temperature": 0, "messages":[{"content":"x","role":"user"}], "model":"m" }'
    assert key(BODY) == key(same)
    assert key(BODY) != key(BODY.replace(b'"x"', b'"y"'))
    assert key(BODY) != key(BODY.replace(b"}]", b'}],"seed":1'))
    assert key(BODY) != key(BODY, endpoint="completions")


def test_teams_never_share_unless_both_opt_in() -> None:
    shares = [Caller(team=t, share_cache=True) for t in "ab"]
    assert key(BODY, A) != key(BODY, B)
    assert key(BODY, shares[0]) == key(BODY, shares[1])
    assert key(BODY, A) != key(BODY, shares[0])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (BODY, True),
        (BODY.replace(b'"temperature":0', b'"temperature":0.7'), False),
        (BODY.replace(b',"temperature":0', b""), False),
        (BODY.replace(b'"temperature":0', b'"seed":5'), True),
        (BODY.replace(b'"temperature":0', b'"temperature":0,"tools":[{}]'), False),
    ],
)
def test_only_repeatable_answers_are_cached(body: bytes, expected: bool) -> None:
    assert cache.cacheable(features.peek(body), body, "chat.completions", Cache()) is expected


def test_sampled_answers_are_cached_only_where_asked_for() -> None:
    body = BODY.replace(b'"temperature":0', b'"temperature":0.7')
    rules = Cache(sampled=True)
    assert cache.cacheable(features.peek(body), body, "chat.completions", rules)


def test_what_goes_on_with_a_kept_conversation_is_not_cached() -> None:
    for more, expected in ((b"", True), (b',"conversation":"conv_1"', False)):
        body = b'{"model":"m","input":"and then?","temperature":0' + more + b"}"
        assert cache.cacheable(features.peek(body), body, "responses", Cache()) is expected


def test_what_is_computed_and_not_sampled_is_always_cached() -> None:
    body = b'{"model":"m","input":"x"}'
    for endpoint, expected in (("embeddings", True), ("rerank", True), ("responses", False)):
        assert cache.cacheable(features.peek(body), body, endpoint, Cache()) is expected


def test_a_least_quality_is_part_of_the_key() -> None:
    keys = {cache.key_of(BODY, "chat.completions", A, least) for least in (None, 0.0, 0.5, 0.8)}
    assert len(keys) == 4


def test_an_answer_survives_packing() -> None:
    answer = Answer(b"application/json", b"{}", "m@int4", 3, 4, 5.0, "benchmark")
    assert cache.unpack(cache.pack(answer)) == answer
    assert cache.unpack(b"something else") is None
