"""Kinds of prompts are told apart by their words."""

from __future__ import annotations

import random

import numpy as np
import pytest

from estimators.prompts_fit import Solver, balanced, folds_of, likelihoods, prompts_of
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


def test_a_rare_kind_is_named_as_readily_as_a_common_one() -> None:
    rng = random.Random(5)
    kind = np.array(([0] * 15 + [1]) * 40)
    prompts = prompts_of([read(subject(k, rng)) for k in kind])
    learnt, judged = np.split(np.arange(len(kind)), 2)
    solver, onehot = Solver(prompts.directions, learnt), np.eye(3)[kind[learnt]]
    plain = prompts.directions[judged] @ solver.solve(onehot - onehot.mean(0), 1.0)[0]
    scores = prompts.directions[judged] @ balanced(solver, onehot)
    rare = kind[judged] == 1
    assert ((plain + onehot.mean(0))[rare].argmax(1) == 1).mean() < 0.1
    assert (scores[rare].argmax(1) == 1).mean() > 0.9
    assert scores[rare, 1].mean() > scores[~rare, 1].mean() + 0.5
    assert np.allclose(scores[:, 2], 0.0)  # a kind without prompts says nothing


@pytest.mark.parametrize("twins", [1, 2, 3, 50])
def test_folds_keep_what_is_alike_together(twins: int) -> None:
    alike = np.random.default_rng(1).permutation(np.arange(300) // twins)
    folds = folds_of(alike, 5, np.random.default_rng(2))
    assert sorted(np.concatenate(folds).tolist()) == list(range(300))
    assert len(folds) == 5
    owners = [set(alike[fold].tolist()) for fold in folds]
    assert sum(len(each) for each in owners) == len(set(alike.tolist()))
    assert max(len(fold) for fold in folds) <= 100


def test_what_does_not_fit_into_a_fold_is_spread() -> None:
    alike = np.array([0] * 200 + list(range(1, 101)))
    folds = folds_of(alike, 5, np.random.default_rng(2))
    assert sorted(len(fold) for fold in folds) == [60] * 5
