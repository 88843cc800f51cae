"""Prompts that share a passage are known as such."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from estimators.passages import sharing

WORDS = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}word" for i in range(300)]


def words(count: int, rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def test_a_shared_passage_binds_and_through_others_too() -> None:
    rng = random.Random(1)
    first, second = words(12, rng), words(12, rng)
    texts = [words(20, rng) for _ in range(40)]
    texts[3] += " " + first
    texts[8] = first.upper() + ", " + second + "?"
    texts[21] = second + " " + texts[21]
    number = sharing(texts)
    assert number[3] == number[8] == number[21]
    assert len(set(number.tolist())) == len(texts) - 2


def test_eleven_words_are_shared_by_chance() -> None:
    rng = random.Random(2)
    passage = words(11, rng)
    texts = [f"{passage} {words(15, rng)}" for _ in range(2)] + [words(20, rng) for _ in range(30)]
    assert len(set(sharing(texts).tolist())) == len(texts)


def test_what_many_hold_is_a_template() -> None:
    rng = random.Random(3)
    template = words(30, rng)
    texts = [f"{template} x{number}y {words(15, rng)}" for number in range(21)]
    texts += [words(20, rng) for _ in range(300)]
    assert len(set(sharing(texts).tolist())) == len(texts)
    assert len(set(sharing(texts[:20] + texts[21:]).tolist())) == len(texts) - 20


def test_short_texts_share_when_they_are_the_same_words() -> None:
    rng = random.Random(4)
    texts = ["How many?", "how many", "How few?"] + [words(20, rng) for _ in range(30)]
    number = sharing(texts)
    assert number[0] == number[1] != number[2]


@settings(max_examples=40)
@given(st.lists(st.text(max_size=40), max_size=12), st.randoms())
def test_any_texts_will_do_in_any_order(texts: list[str], rng: random.Random) -> None:
    number = sharing(texts)
    assert len(number) == len(texts)
    order = rng.sample(range(len(texts)), len(texts))
    moved = sharing([texts[i] for i in order])
    for i in range(len(texts)):
        for j in range(i):
            assert (moved[i] == moved[j]) == (number[order[i]] == number[order[j]])
