"""Lines of a batch's file, however they are cut, and lines of its answers."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from proxy.batches.lines import Checked, answered, lines_in, unanswered


@given(st.lists(st.binary(max_size=20), max_size=8), st.lists(st.integers(1, 9), max_size=30))
def test_lines_are_the_same_however_their_parts_are_cut(
    lines: list[bytes], cuts: list[int]
) -> None:
    whole = b"\n".join(line.replace(b"\n", b"") for line in lines)
    parts, at = [], 0
    for cut in cuts:
        parts.append(whole[at : at + cut])
        at += cut
    parts.append(whole[at:])
    wanted = [(number, line) for number, line in enumerate(whole.split(b"\n"), 1) if line.strip()]
    assert list(lines_in(parts)) == wanted


def test_of_a_line_that_is_too_long_no_more_is_kept_than_tells_it() -> None:
    parts = [b"a" * 10, b"a" * 10, b"a\nbb\n" + b"c" * 5, b"c"]
    assert list(lines_in(parts, 5)) == [(1, b"a" * 6), (2, b"bb"), (3, b"c" * 6)]


def test_no_more_lines_are_looked_at_than_a_batch_may_have() -> None:
    found = Checked("/v1/chat/completions", most=2, longest_bytes=100)
    for number in (1, 2):
        found.take(
            number,
            b'{"custom_id": "%d", "url": "/v1/chat/completions", "body": {}}' % number,
        )
        assert not found.enough
    found.take(3, b'{"custom_id": "3", "url": "/v1/chat/completions", "body": {}}')
    assert found.enough
    found.end()
    assert [problem.code for problem in found.problems] == ["too_many_requests"]


def test_an_answer_is_one_line_with_its_numbers_as_they_came() -> None:
    body = b'{\n "a": 1.10,\r\n "b": "x\\ny", "c": 12345678901234567890123, "d": null\n}'
    line = answered('q"\n', "req_1", 200, body)
    assert b"\n" not in line
    assert b"1.10" in line
    assert b"12345678901234567890123" in line
    told = json.loads(line)
    assert told["custom_id"] == 'q"\n'
    assert told["response"]["body"]["b"] == "x\ny"
    assert told["response"]["request_id"] == "req_1"


def test_what_is_no_json_is_told_as_text() -> None:
    told = json.loads(answered("a", "req_1", 502, b"<html>\xff"))
    assert told["response"]["body"]["error"]["message"].startswith("<html>")
    told = json.loads(unanswered("a", 7, "batch_expired", "late"))
    assert (told["response"], told["error"]["code"]) == (None, "batch_expired")


def test_lines_too_long_too_deep_and_too_many_are_told() -> None:
    found = Checked("/v1/chat/completions", most=3, longest_bytes=100_000)
    found.take(1, b'{"custom_id": "a", "body": ' + b"[" * 50_000)
    found.take(2, b" " * 100_001)
    found.take(3, b'{"custom_id": "a", "url": "x", "body": {}}')
    found.take(4, b'{"custom_id": "\xff", "url": "x", "body": {}}')
    found.end()
    assert [problem.code for problem in found.problems] == [
        "invalid_json_line",
        "request_too_large",
        "mismatched_url",
        "invalid_json_line",
        "too_many_requests",
    ]
