"""Quality starts from what is known, follows feedback, and says how sure it is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimators.prompt_reader import PromptReader
from estimators.quality import QualityEstimator
from estimators.quality_fit import learn
from estimators.types import Backend, Band, Features
from tests.estimators.outcomes import outcomes, prompt

PLAIN = Backend(name="mine@bf16", group="mine")
STATED = Backend(name="a", group="a", quality=0.7, quality_by_task={"code": 0.4})
LLAMA = Backend(name="llama-3.1-8b@int4", group="llama-3.1-8b", precision="int4")
CHAT = Features(prompt_tokens=10, task="chat")
CODE = Features(prompt_tokens=10, task="code")
MATH = Features(prompt_tokens=10, task="math")


def band(estimator: QualityEstimator, features: Features, backend: Backend) -> Band:
    (found,) = estimator.predict(features, [backend])
    assert found is not None
    return found


def test_unknown_stays_unknown_until_feedback_comes() -> None:
    estimator = QualityEstimator()
    assert estimator.predict(CHAT, [PLAIN, PLAIN]) == [None, None]
    estimator.learn(PLAIN, CHAT, 1.0)
    assert estimator.predict(CHAT, [PLAIN]) != [None]


def test_starts_from_the_config_by_task_then_overall() -> None:
    estimator = QualityEstimator()
    assert band(estimator, CODE, STATED).mid == pytest.approx(0.4)
    assert band(estimator, CHAT, STATED).mid == pytest.approx(0.7)
    assert estimator.source(CHAT, STATED) == "the config"


def test_starts_from_published_scores_where_there_are_some() -> None:
    estimator = QualityEstimator()
    assert band(estimator, CHAT, LLAMA).mid == pytest.approx(0.294)
    assert estimator.predict(MATH, [LLAMA]) == [None]
    assert "Arena-Hard" in estimator.source(CHAT, LLAMA)


def test_starts_from_a_learnt_model_that_knows_the_backend() -> None:
    estimator = QualityEstimator(PromptReader(learn(outcomes(300))))
    small, large = (Backend(name=name, group=name, quality=0.99) for name in ("small", "large"))
    other = Backend(name="other", group="other", quality=0.99)
    features = Features(prompt_tokens=9, text=prompt("code", random.Random(1)))
    low, high, stated = estimator.predict(features, [small, large, other])
    assert low is not None
    assert high is not None
    assert stated is not None
    assert low.mid < 0.45 < 0.65 < high.mid
    assert stated.mid == pytest.approx(0.99)


def test_feedback_that_contradicts_moves_it_and_widens_it_until_there_is_much_of_it() -> None:
    estimator = QualityEstimator()
    before = band(estimator, CHAT, STATED)
    for _ in range(10):
        estimator.learn(STATED, CHAT, 0.2)
    first = band(estimator, CHAT, STATED)
    for _ in range(290):
        estimator.learn(STATED, CHAT, 0.2)
    after = band(estimator, CHAT, STATED)
    assert after.mid == pytest.approx(0.2, abs=0.06)
    assert first.high - first.low > 5 * (before.high - before.low)
    assert after.high - after.low < (first.high - first.low) / 2


def test_a_stated_quality_is_meant_as_it_stands_until_scores_contradict() -> None:
    estimator = QualityEstimator()
    stated = band(estimator, CHAT, STATED)
    assert stated.high - stated.low < 0.03
    for score in (0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0):  # as stated: 0.7
        estimator.learn(STATED, CHAT, score)
    agreed = band(estimator, CHAT, STATED)
    assert agreed.high - agreed.low < 0.05


def test_a_published_quality_is_as_sure_as_its_own_interval() -> None:
    # 68.05 points, 95 % interval 2.19 points to each side (Wetzel 2024, table 10)
    llama = Backend(name="l", group="llama-3.1-70b-instruct", precision="bf16")
    found = band(QualityEstimator(), CHAT, llama)
    assert found.mid == pytest.approx(0.6805)
    assert found.high - found.mid == pytest.approx(0.0219 * 1.2816 / 1.96, rel=1e-3)


def test_feedback_on_one_task_moves_others_less() -> None:
    estimator = QualityEstimator()
    for _ in range(40):
        estimator.learn(STATED, CODE, 0.9)
    moved = band(estimator, CODE, STATED).mid - 0.4
    elsewhere = band(estimator, CHAT, STATED).mid - 0.7
    assert 0.0 < elsewhere < moved


def test_feedback_on_one_backend_leaves_others_alone() -> None:
    estimator = QualityEstimator()
    before = band(estimator, CHAT, LLAMA)
    estimator.learn(STATED, CHAT, 0.0)
    assert band(estimator, CHAT, LLAMA) == before


def test_a_changed_backend_is_doubted_at_once() -> None:
    estimator = QualityEstimator()
    for _ in range(200):
        estimator.learn(STATED, CHAT, 0.1)
    sure = band(estimator, CHAT, STATED)
    other = Backend(name="a", group="a", quality=0.7, precision="int4")
    doubted = band(estimator, CHAT, other)
    assert doubted.high - doubted.low > sure.high - sure.low
    assert doubted.mid > sure.mid


def test_old_feedback_fades() -> None:
    estimator = QualityEstimator()
    for _ in range(2000):
        estimator.learn(PLAIN, CHAT, 0.0)
    for _ in range(1500):
        estimator.learn(PLAIN, CHAT, 1.0)
    assert band(estimator, CHAT, PLAIN).mid > 0.85


def test_eighty_percent_bands_hold_about_four_means_in_five() -> None:
    rng = random.Random(0)
    inside = []
    for number in range(300):
        truth = rng.betavariate(6, 3)
        estimator = QualityEstimator()
        backend = Backend(name=str(number), group="x")
        for _ in range(40):
            estimator.learn(backend, CHAT, float(rng.random() < truth))
        low, _, high = band(estimator, CHAT, backend)
        inside.append(low <= truth <= high)
    assert 0.74 <= sum(inside) / len(inside) <= 0.9


@given(st.lists(st.tuples(st.sampled_from([CHAT, CODE]), st.floats(0, 1)), max_size=60))
def test_bands_stay_ordered_whatever_is_learnt(scores: list[tuple[Features, float]]) -> None:
    estimator = QualityEstimator()
    for features, score in scores:
        estimator.learn(STATED, features, score)
    for features in (CHAT, CODE, MATH):
        low, mid, high = band(estimator, features, STATED)
        assert 0.0 <= low <= mid <= high <= 1.0


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_refuses_what_is_no_score(score: float) -> None:
    estimator = QualityEstimator()
    with pytest.raises(ValueError, match="0 to 1"):
        estimator.learn(PLAIN, CHAT, score)
    assert estimator.predict(CHAT, [PLAIN]) == [None]


def test_survives_save_and_load(tmp_path: Path) -> None:
    estimator = QualityEstimator()
    for score in (0.0, 1.0, 1.0):
        estimator.learn(STATED, CODE, score)
    estimator.save(tmp_path / "q.json")
    again = QualityEstimator()
    again.load(tmp_path / "q.json")
    for features in (CHAT, CODE):
        assert again.predict(features, [STATED]) == estimator.predict(features, [STATED])
    (tmp_path / "q.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="no state"):
        again.load(tmp_path / "q.json")
