"""One field changes; every other byte stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import features, rewrite

TEXT = st.text(max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "a", '"model"', "x\\"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["a", "messages", "model2", "modél", '"model":"']), JSON),
    st.integers(0, 5),
    TEXT,
    TEXT,
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")]),
)
def test_only_the_top_level_model_changes(
    others: dict[str, object], at: int, old: str, new: str, separators: tuple[str, str]
) -> None:
    items = list(others.items())
    items.insert(min(at, len(items)), ("model", old))
    before = json.dumps(dict(items), separators=separators).encode()
    after = rewrite.with_model(before, new, [(0, len(before))])
    assert json.loads(after) == {**dict(items), "model": new}
    assert list(json.loads(after)) == [key for key, _ in items]
    # All that is not the value is byte for byte the same.
    value = json.dumps(old).encode()
    assert len(after) - len(before) == len(rewrite.orjson.dumps(new)) - len(value)


def test_numbers_and_white_space_stay() -> None:
    body = b'{ "temperature": 1.0e-1 , "model":"a", "big": 12345678901234567890123 }'
    out = rewrite.with_model(body, "b", [(0, len(body))])
    assert out == b'{ "temperature": 1.0e-1 , "model":"b", "big": 12345678901234567890123 }'


def test_a_nested_model_is_not_taken_for_the_top_one() -> None:
    body = b'{"tools":[{"model":"x"}],"messages":"\\"model\\":\\"y\\"","model":"a"}'
    out = rewrite.with_model(body, "b", [(0, len(body))])
    assert out == body.replace(b'"model":"a"', b'"model":"b"')


def test_an_escaped_key_is_still_rewritten() -> None:
    body = b'{"\\u006dodel":"a","n":1}'
    assert json.loads(rewrite.with_model(body, "b", [(0, len(body))]))["model"] == "b"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"m"}', b'{"stream_options":{"include_usage":true},"model":"m"}'),
        (b'{ "model":"m"}', b'{"stream_options":{"include_usage":true},"model":"m"}'),
        (b" {}", b' {"stream_options":{"include_usage":true}}'),
    ],
)
def test_usage_is_asked_for_and_the_rest_stays(body: bytes, expected: bytes) -> None:
    assert rewrite.with_usage_asked(body, features.peek(body)) == expected


def test_other_stream_options_are_kept() -> None:
    body = b'{"model":"m","stream_options":{"x":1,"include_usage":false}}'
    out = json.loads(rewrite.with_usage_asked(body, features.peek(body)))
    assert out == {"model": "m", "stream_options": {"x": 1, "include_usage": True}}
