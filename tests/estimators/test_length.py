"""Lengths start usual, follow what came, and their bands notice when the traffic changes."""

from __future__ import annotations

import random
from math import log
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimators.length import LengthEstimator
from estimators.prompt_reader import PromptReader
from estimators.quality_fit import learn
from estimators.types import Backend, Features, Lengths
from tests.estimators.outcomes import outcomes, prompt

BF16 = Backend(name="m@bf16", group="m")
FP8 = Backend(name="m@fp8", group="m", precision="fp8")
OTHER = Backend(name="o", group="o")
CHAT = Features(prompt_tokens=10, task="chat", text="Hello")
CODE = Features(prompt_tokens=10, task="code", text="def f():")


def one(estimator: LengthEstimator, features: Features, backend: Backend) -> Lengths:
    (found,) = estimator.predict(features, [backend])
    return found


def test_answers_before_learning() -> None:
    estimator = LengthEstimator()
    for features in (CHAT, CODE, Features(prompt_tokens=1), Features(prompt_tokens=1, task="?")):
        low, mid, high, mean = one(estimator, features, BF16)
        assert 0 < low < mid < high
        assert mean > mid


def test_a_choice_is_expected_to_be_answered_shorter_than_an_essay_asked_for() -> None:
    estimator = LengthEstimator()
    choice = Features(prompt_tokens=1, text="Which?\nA. one\nB. two\nC. three\nD. four")
    essay = Features(prompt_tokens=1, text="Write a long essay about rivers.")
    assert one(estimator, choice, BF16).q50 < one(estimator, essay, BF16).q50


def test_starts_from_a_learnt_model_that_knows_the_backend() -> None:
    estimator = LengthEstimator(PromptReader(learn(outcomes(300))))
    rng = random.Random(2)
    large = Backend(name="large", group="large")
    code = Features(prompt_tokens=9, text=prompt("code", rng))
    cooking = Features(prompt_tokens=9, text=prompt("cooking", rng))
    assert one(estimator, code, large).q50 == pytest.approx(400, rel=0.3)
    assert one(estimator, cooking, large).q50 == pytest.approx(120, rel=0.3)


def test_a_new_backend_is_usable_after_thirty_answers() -> None:
    rng = random.Random(1)
    estimator = LengthEstimator()
    for _ in range(30):
        estimator.learn(BF16, CHAT, rng.lognormvariate(4.0, 0.3))
    assert one(estimator, CHAT, BF16).q50 == pytest.approx(54.6, rel=0.2)


def test_each_precision_has_its_own() -> None:
    rng = random.Random(1)
    estimator = LengthEstimator()
    for _ in range(200):
        estimator.learn(BF16, CHAT, rng.lognormvariate(6.0, 0.2))
        estimator.learn(FP8, CHAT, 0.83 * rng.lognormvariate(6.0, 0.2))
    ratio = one(estimator, CHAT, FP8).q50 / one(estimator, CHAT, BF16).q50
    assert ratio == pytest.approx(0.83, abs=0.06)


def test_what_is_learnt_of_one_backend_helps_a_new_one() -> None:
    estimator = LengthEstimator()
    for _ in range(100):
        estimator.learn(BF16, CHAT, 40)
    assert one(estimator, CHAT, OTHER).q50 < 0.3 * one(LengthEstimator(), CHAT, OTHER).q50


def test_requests_that_begin_alike_are_told_apart_from_others() -> None:
    def mail(subject: object) -> Features:
        return Features(prompt_tokens=9, task="chat", text=f"{'You sort mail. ' * 40}{subject}")

    def letter(subject: object) -> Features:
        return Features(prompt_tokens=9, task="chat", text=f"{'You write letters. ' * 40}{subject}")

    estimator = LengthEstimator()
    for number in range(60):
        estimator.learn(BF16, mail(number), 3)
        estimator.learn(BF16, letter(number), 500)
    assert one(estimator, mail("new"), BF16).q50 < 10
    assert one(estimator, letter("new"), BF16).q50 > 250


def test_means_add_up() -> None:
    rng = random.Random(3)
    estimator = LengthEstimator()
    came, foreseen = 0.0, 0.0
    for number in range(1500):
        tokens = rng.lognormvariate(5.0, 0.8)
        if number >= 300:
            foreseen += one(estimator, CHAT, BF16).mean
            came += tokens
        estimator.learn(BF16, CHAT, tokens)
    assert foreseen == pytest.approx(came, rel=0.06)


def coverage(
    estimator: LengthEstimator, draws: list[float], features: Features = CHAT
) -> list[bool]:
    inside = []
    for tokens in draws:
        low, _, high, _ = one(estimator, features, BF16)
        inside.append(low <= tokens <= high)
        estimator.learn(BF16, features, tokens)
    return inside


@pytest.mark.parametrize(("middle", "spread"), [(6.4, 0.9), (4.0, 0.2), (6.0, 1.6)])
def test_bands_come_to_hold_four_in_five(middle: float, spread: float) -> None:
    rng = random.Random(4)
    inside = coverage(LengthEstimator(), [rng.lognormvariate(middle, spread) for _ in range(900)])
    assert 0.75 <= sum(inside[150:]) / 750 <= 0.85


def test_bands_widen_by_themselves_when_a_new_kind_of_traffic_breaks_them() -> None:
    rng = random.Random(5)
    estimator = LengthEstimator()
    coverage(estimator, [rng.lognormvariate(5.0, 0.2) for _ in range(500)])
    before = one(estimator, CHAT, BF16)
    # now half the answers are ten times as long
    broken = [rng.lognormvariate(rng.choice((5.0, 7.3)), 0.2) for _ in range(600)]
    inside = coverage(estimator, broken)
    after = one(estimator, CHAT, BF16)
    assert after.q90 / after.q10 > 2 * before.q90 / before.q10
    assert sum(inside[:40]) / 40 < 0.75  # they were broken
    assert 0.75 <= sum(inside[150:]) / 450 <= 0.87


@pytest.mark.parametrize(("before", "after"), [(800, 6400), (200, 4000)])
def test_totals_are_right_again_soon_after_another_kind_of_traffic(before: int, after: int) -> None:
    rng = random.Random(8)
    estimator = LengthEstimator()
    for _ in range(300):
        estimator.learn(BF16, CHAT, rng.lognormvariate(log(before), 0.5))
    said = came = 0.0
    for answer in range(300):
        length = rng.lognormvariate(log(after), 0.5)
        if answer >= 100:
            said, came = said + one(estimator, CHAT, BF16).mean, came + length
        estimator.learn(BF16, CHAT, length)
    assert said == pytest.approx(came, rel=0.25)


def test_the_caps_of_answers_are_known() -> None:
    capped = Features(prompt_tokens=10, task="chat", text="Hello", max_tokens=50)
    low, mid, high, mean = one(LengthEstimator(), capped, BF16)
    assert high == mid == 50
    assert low <= 50
    assert 0 < mean <= 50


def test_an_answer_cut_by_its_cap_says_only_that_it_is_no_shorter() -> None:
    estimator = LengthEstimator()
    before = one(estimator, CHAT, BF16)
    capped = Features(prompt_tokens=10, task="chat", text="Hello", max_tokens=50)
    for _ in range(50):
        estimator.learn(BF16, capped, 50)
    after = one(estimator, CHAT, BF16)
    assert before.q50 <= after.q50 < 1.1 * before.q50
    assert after.q90 / after.q10 == pytest.approx(before.q90 / before.q10, rel=0.2)


@pytest.mark.parametrize(("median", "cap"), [(800, 1000), (800, 400), (800, 100), (5000, 1000)])
def test_answers_that_caps_cut_do_not_teach_that_answers_are_short(median: int, cap: int) -> None:
    rng = random.Random(5)
    estimator = LengthEstimator()
    capped = msgspec.structs.replace(CHAT, max_tokens=cap)
    said = came = 0.0
    for _ in range(300):
        cut = min(rng.lognormvariate(log(median), 0.6), cap)
        said, came = said + one(estimator, capped, BF16).mean, came + cut
        estimator.learn(BF16, capped, cut)
    assert said == pytest.approx(came, rel=0.06)  # with the cap, totals are right
    free = one(estimator, CHAT, BF16)  # and without it nobody is told that answers end there
    whole = [rng.lognormvariate(log(median), 0.6) for _ in range(1000)]
    assert sum(free.q10 <= length <= free.q90 for length in whole) / 1000 > 0.55


def test_several_answers_are_counted_as_several() -> None:
    estimator = LengthEstimator()
    four = Features(prompt_tokens=10, task="chat", text="Hello", n=4)
    for _ in range(200):
        estimator.learn(BF16, four, 400)
    assert one(estimator, CHAT, BF16).q50 == pytest.approx(100, rel=0.1)


tokens = st.floats(0, 1e6)


@given(
    learnt=st.lists(st.tuples(st.sampled_from([CHAT, CODE]), tokens), max_size=60),
    cap=st.none() | st.integers(1, 10000),
)
def test_quantiles_stay_ordered_and_finite_whatever_is_learnt(
    learnt: list[tuple[Features, float]], cap: int | None
) -> None:
    estimator = LengthEstimator()
    for features, came in learnt:
        estimator.learn(BF16, features, came)
    asked = Features(prompt_tokens=10, task="chat", text="Hello", max_tokens=cap)
    low, mid, high, mean = one(estimator, asked, BF16)
    assert 0 <= low <= mid <= high < float("inf")
    assert 0 <= mean < float("inf")
    if cap is not None:
        assert max(high, mean) <= cap


def test_survives_save_and_load_and_holds_no_text(tmp_path: Path) -> None:
    estimator = LengthEstimator()
    secret = Features(prompt_tokens=9, task="chat", text="the secret recipe", team="red")
    for came in (10, 200, 30):
        estimator.learn(BF16, secret, came)
    estimator.save(tmp_path / "l.json")
    assert "secret" not in (tmp_path / "l.json").read_text()
    again = LengthEstimator()
    again.load(tmp_path / "l.json")
    assert again.predict(secret, [BF16, OTHER]) == estimator.predict(secret, [BF16, OTHER])
    (tmp_path / "l.json").write_text("[]")
    with pytest.raises(ValueError, match="no state"):
        again.load(tmp_path / "l.json")


def test_a_changed_backend_forgets_most_of_what_is_its_own() -> None:
    estimator = LengthEstimator()
    for _ in range(100):
        estimator.learn(BF16, CHAT, 20)
        estimator.learn(OTHER, CHAT, 600)
    before = one(estimator, CHAT, BF16).q50
    estimator.changed(BF16.name)
    assert one(estimator, CHAT, BF16).q50 > before
