"""Kinds of prompts are told apart by their words."""

from __future__ import annotations

import random

import numpy as np

from estimators.prompts_fit import likelihoods, prompts_of
from estimators.text import read

KINDS = 24
OF_EACH = 16


def subject(kind: int, rng: random.Random) -> str:
    """A question in words that all kinds use, some of them oftener in one than in others."""
    usual = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}word" for i in range(400)]
    rare = [usual[(37 * kind + 11 * i) % 400] for i in range(40)]
    return " ".join(rng.choices(usual, k=14) + rng.choices(rare, k=6))


def test_words_tell_many_kinds_apart_by_few_prompts_of_each() -> None:
    rng = random.Random(1)
    kind = np.arange(KINDS * OF_EACH * 2) % KINDS
    prompts = prompts_of([read(subject(k, rng)) for k in kind])
    learnt, judged = np.split(np.arange(len(kind)), 2)
    words, bias = likelihoods(prompts, np.eye(KINDS)[kind[learnt]], learnt)
    right = (prompts.design[judged] @ words + bias).argmax(1) == kind[judged]
    assert right.mean() > 7 / KINDS  # one in as many by chance


def test_a_kind_with_more_prompts_is_likelier_where_words_say_nothing() -> None:
    texts = [read(f"the same question number {i}") for i in range(40)]
    prompts = prompts_of(texts)
    onehot = np.eye(2)[[0] * 30 + [1] * 10]
    words, bias = likelihoods(prompts, onehot, np.arange(40))
    assert (bias[0] - bias[1]) > 0.5
    assert np.allclose(words.sum(1), 0.0)
    assert np.isfinite(words).all()
