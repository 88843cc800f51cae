"""A judge is shown two answers, and what it says is read, or not taken for more than it is."""

from __future__ import annotations

import json

import pytest

from estimators.pairwise import MUCH_BETTER
from proxy import verdicts
from tests.fakes import answers


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("A is right. [[A>>B]]", (1.0, MUCH_BETTER)),
        ("[[ A>B ]]", (1.0, 1.0)),
        ("[[A=B]]", (0.5, 1.0)),
        ("[[B=A]]", (0.5, 1.0)),
        ("[[B>A]]", (0.0, 1.0)),
        ("[[A<<B]]", (0.0, MUCH_BETTER)),
        ("[[B>>A]] I repeat: [[B>>A]]", (0.0, MUCH_BETTER)),
        ("[[A>B]], or perhaps [[B>A]]", None),
        ("A>B", None),
        ("", None),
    ],
)
def test_reads_a_verdict(said: str, verdict: tuple[float, float] | None) -> None:
    assert verdicts.verdict_in(said) == verdict


def test_shows_the_request_and_both_answers_in_the_order_given() -> None:
    system, user = verdicts.comparison("user: why?", "because", "who knows")
    assert system["role"] == "system"
    text = user["content"]
    assert text.index("why?") < text.index("because") < text.index("who knows")


def body(**more: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "hi"}], **more}).encode()


def test_reads_the_text_of_a_chat() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert verdicts.prompt_in(body()) == "user: hi"
    assert verdicts.prompt_in(body(messages=[{"role": "user", "content": parts}])) == (
        "user: one\ntwo"
    )


@pytest.mark.parametrize(
    "given",
    [
        body(tools=[{"type": "function"}]),
        body(n=2),
        body(messages=[]),
        body(messages=[{"role": "user", "content": None}]),
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        body(messages=[{"role": "user", "content": "x" * (verdicts.MAX_CHARS + 1)}]),
        b"{",
        b"[]",
    ],
)
def test_leaves_what_holds_more_than_a_judge_can_read(given: bytes) -> None:
    assert verdicts.prompt_in(given) is None


def test_reads_whole_answers_and_streams() -> None:
    stream = b"".join(answers.event(e) for e in answers.chat_events(("Grüß ", "Gott")))
    assert verdicts.answer_in(json.dumps(answers.CHAT).encode()) == "Grüß Gott"
    assert verdicts.answer_in(stream) == "Grüß Gott"


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"data: {broken\n\n",
        json.dumps({"choices": []}).encode(),
        json.dumps({"choices": [{"message": {"content": " "}}]}).encode(),
        json.dumps({"choices": [{"message": {"content": "x", "tool_calls": [{}]}}]}).encode(),
    ],
)
def test_an_answer_without_text_is_none(given: bytes) -> None:
    assert verdicts.answer_in(given) is None
