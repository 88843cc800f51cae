from __future__ import annotations

import pytest

from policies.answer_budget import AnswerBudget
from policies.budget_effects import BudgetEffects

BRIEF = AnswerBudget(name="brief", directive="Be brief.", output_factor=0.5, quality_factor=0.9)


def test_nothing_learnt_is_what_the_config_expects() -> None:
    assert BudgetEffects().learnt("m", BRIEF, "code") == BRIEF


def test_what_answers_show_outweighs_the_config_and_stays_with_its_backend() -> None:
    effects = BudgetEffects()
    for _ in range(100):
        effects.answered("m+brief", "chat", tokens=90.0, without=100.0)
        effects.scored("m+brief", "chat", score=0.3, without=0.6)
    learnt = effects.learnt("m", BRIEF, "chat")
    assert learnt.output_factor == pytest.approx(0.9, abs=0.05)
    assert learnt.quality_factor == pytest.approx(0.5, abs=0.05)
    assert effects.learnt("other", BRIEF, "chat") == BRIEF
    # Another kind of task takes after all kinds together until it has shown something itself.
    assert 0.5 < effects.learnt("m", BRIEF, "code").output_factor < 0.9
    for _ in range(30):
        effects.answered("m+brief", "code", tokens=20.0, without=100.0)
    assert effects.learnt("m", BRIEF, "code").output_factor < 0.4
    assert effects.learnt("m", BRIEF, "chat").output_factor > 0.8


def test_what_was_learnt_is_kept_as_it_is() -> None:
    effects = BudgetEffects()
    effects.answered("m+brief", "chat", 3.0, 9.0)
    effects.scored("m+brief", None, 0.4, 0.8)
    again = BudgetEffects()
    again.take_json(effects.to_json())
    assert again.learnt("m", BRIEF, "chat") == effects.learnt("m", BRIEF, "chat")
    assert again.lengths == effects.lengths
    assert again.qualities == effects.qualities
