"""What text.py keeps of a prompt, and how little that is."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimators.text import (
    _WORD,
    BUCKETS,
    DENSE,
    TASKS,
    _words,
    coarse_task,
    read,
    text_of_messages,
)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("Write a Python function that reverses a linked list.", "code"),
        ("What does this do?\n```\nx = 1\n```", "code"),
        ("Tom has 3 apples and buys 5 more. How many apples does he have?", "math"),
        ("Solve $x^2 = 4$ for $x$ and prove that there are two roots.", "math"),
        ("Which is a mammal?\nA. Trout\nB. Whale\nC. Gecko\nD. Wasp\nAnswer:", "choice"),
        ("Summarize the following article in two sentences: it rained.", "extraction"),
        ("Write a short story about a lighthouse.", "writing"),
        ("Who wrote Moby Dick?", "question"),
        ("Hello there, I feel a bit lost today", "chat"),
        ("", "chat"),
    ],
)
def test_knows_coarse_kinds_of_prompt(text: str, task: str) -> None:
    assert coarse_task(text) == task


@given(st.text())
def test_any_text_has_finite_features(text: str) -> None:
    features = read(text)
    assert features.task in TASKS
    assert features.dense.shape == (len(DENSE),)
    assert np.isfinite(features.dense).all()
    assert (np.diff(features.buckets) > 0).all()
    assert ((features.buckets >= 0) & (features.buckets < BUCKETS)).all()


@given(st.text())
def test_the_same_text_gives_the_same_features(text: str) -> None:
    first, second = read(text), read(text)
    assert (first.buckets == second.buckets).all()
    assert (first.dense == second.dense).all()


def test_word_order_matters_through_pairs() -> None:
    a, b = read("dog bites man").buckets, read("man bites dog").buckets
    assert set(a) != set(b)
    assert len(set(a) & set(b)) == 3  # the words themselves are the same


def test_both_ends_of_a_long_prompt_are_read() -> None:
    middle = "filler words " * 3000
    start, end = read("Summarize this: " + middle), read(middle + " Translate that.")
    assert start.task == end.task == "extraction"
    assert start.dense[DENSE.index("log_chars")] > 10


def test_reads_the_text_parts_of_messages_and_nothing_else() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:secret"}},
            ],
        },
        {"role": "assistant", "content": None},
    ]
    assert text_of_messages(messages) == "Be brief.\nWhat is this?"


def test_reading_takes_no_longer_for_a_book_than_for_a_page() -> None:
    page = "It was the best of times, it was the worst of times. " * 30
    book = page * 300

    def best_of(text: str) -> float:
        times = []
        for _ in range(30):
            start = time.perf_counter()
            read(text)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best_of(book) < 4 * best_of(page)


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_the_quick_way_to_find_words_finds_the_same(part: str) -> None:
    assert _words(part) == _WORD.findall(part.lower())


@given(st.text())
def test_the_kind_of_task_alone_is_the_one_among_all_features(part: str) -> None:
    assert coarse_task(part) == read(part).task
