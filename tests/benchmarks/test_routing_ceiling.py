"""What other models made of the same question is known for the same question only."""

from __future__ import annotations

import random

import numpy as np

from benchmarks.routing_ceiling import same_questions
from benchmarks.routing_sets import OutcomeSet, passages


def outcomes(texts: list[str]) -> OutcomeSet:
    scores = np.zeros((len(texts), 2))
    return OutcomeSet(
        "made up", texts, [""] * len(texts), ["a", "b"], scores, None, np.ones(2), passages(texts)
    )


def test_questions_are_matched_by_a_passage_that_only_they_share() -> None:
    rng = random.Random(1)
    words = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400)]
    text = [" ".join(rng.choices(words, k=20)) for _ in range(6)]
    data = outcomes([text[0], text[1] + " with four options", text[2], text[3]])
    other = outcomes([text[5], text[1] + " and with ten", text[0], text[3], text[3] + " again"])
    assert same_questions(data, other).tolist() == [2, 1, -1, -1]
