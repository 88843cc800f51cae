"""Which prompts count as near-copies, and which never do."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.similar import SimilarPrompts, likeness, prompt_of, question_in

CAPITAL = "What is the capital of France?"


@pytest.mark.parametrize(
    "other",
    [
        "what is the capital of france",
        "Please, what is the capital of France",
        "Hi! Could you please what is the capital of France?",
        "What is   the capital of France ??",
    ],
)
def test_courtesy_case_and_punctuation_do_not_matter(other: str) -> None:
    assert likeness(prompt_of(CAPITAL), prompt_of(other)) > 0.8


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CAPITAL, "What is the capital of Italy?"),
        (CAPITAL, "What is not the capital of France?"),
        (CAPITAL, "What was the capital of France?"),
        ("What is my name?", "What is your name?"),
        ("Add 2 and 3", "Add 2 and 4"),
        ("Is 3 < 4?", "Is 3 > 4?"),
        ("Is it 1.5?", "Is it 15?"),
        ("dog bites man", "man bites dog"),
        ("A) one B) two", "A) two B) one"),
    ],
)
def test_whatever_may_turn_the_meaning_round_makes_another_prompt(one: str, other: str) -> None:
    assert likeness(prompt_of(one), prompt_of(other)) == 0.0


@given(st.text(max_size=200), st.text(max_size=200))
def test_likeness_is_symmetric_within_its_range_and_whole_for_the_same(a: str, b: str) -> None:
    one, other = prompt_of(a), prompt_of(b)
    assert likeness(one, other) == pytest.approx(likeness(other, one), abs=1e-6)
    assert -1e-6 <= likeness(one, other) <= 1.0 + 1e-6
    assert likeness(one, one) == pytest.approx(1.0, abs=1e-5) or not one.vector.any()


def body(text: object, **more: object) -> bytes:
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more})


def test_only_the_last_message_s_text_may_differ() -> None:
    one, other = question_in(body("a"), "team"), question_in(body("b"), "team")
    assert one is not None
    assert other is not None
    assert one.scope == other.scope
    for stranger in (
        question_in(body("a"), "another team"),
        question_in(body("a", max_tokens=5), "team"),
    ):
        assert stranger is not None
        assert stranger.scope != one.scope


@pytest.mark.parametrize(
    "given_body",
    [body([{"type": "text", "text": "a"}]), body(""), b"[]", b"{", body("x" * 8001), b'{"a":1}'],
)
def test_what_is_not_plain_text_is_not_compared(given_body: bytes) -> None:
    assert question_in(given_body, "team") is None


def test_the_oldest_prompts_are_forgotten_and_dropped_ones_are_not_found() -> None:
    kept = SimilarPrompts(prompts=2)
    texts = ["first question", "second question", "third question"]
    for number, text in enumerate(texts):
        kept.add("s", prompt_of(text), f"k{number}")
    assert kept.find("s", prompt_of(texts[0]), 0.5) is None
    assert kept.find("s", prompt_of("Please, third question!"), 0.5) == "k2"
    assert kept.find("other", prompt_of(texts[2]), 0.5) is None
    kept.drop("s", prompt_of(texts[2]), "k2")
    assert kept.find("s", prompt_of(texts[2]), 0.5) is None
