"""A learnt model tells kinds of prompts apart, doubts strange ones, and survives the disk."""

from __future__ import annotations

import json
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators.quality_fit import NothingToLearn, Scored, learn
from estimators.quality_model import QualityModel, UnreadableModel
from estimators.text import read
from tests.estimators.outcomes import RIGHT, outcomes, prompt

STRANGE = "Übersetze bitte: der schnelle braune Fuchs springt über den faulen Hund hinweg"


@pytest.fixture(scope="module")
def model() -> QualityModel:
    return learn(outcomes(450))


def mids(model: QualityModel, text: str) -> dict[str, float]:
    said = model.predict(read(text))
    assert said.quality is not None
    return dict(zip(model.backends, said.quality[:, 1].tolist(), strict=True))


def test_backends_that_answered_once_have_lengths_that_can_be() -> None:
    rng = random.Random(3)
    once = [
        Scored(f"question {i}, {rng.random()}", f"b{i}", None, rng.randint(50, 800))
        for i in range(300)
    ]
    lengths = learn(once).predict(read("question 5")).lengths
    assert lengths is not None
    assert 10 < lengths[:, :3].min() < lengths[:, :3].max() < 4000
    assert (lengths[:, 2] > 1.5 * lengths[:, 0]).all()


def test_the_order_of_the_outcomes_does_not_matter() -> None:
    rows = outcomes(150, labels=False)
    rng = random.Random(5)
    asked = [prompt(task, rng) for task in ("code", "cooking", "law") for _ in range(5)]
    shuffled = rng.sample(rows, len(rows))
    one, other = learn(rows), learn(shuffled)
    assert one.backends == other.backends
    for text in asked:
        assert mids(one, text) == mids(other, text)


@pytest.mark.parametrize("labels", [True, False])
def test_knows_who_is_good_at_what(labels: bool) -> None:
    model = learn(outcomes(450, labels=labels))
    rng = random.Random(99)
    for task in ("code", "cooking", "law"):
        said = [mids(model, prompt(task, rng)) for _ in range(20)]
        for backend in ("small", "large"):
            mean = np.mean([each[backend] for each in said])
            assert mean == pytest.approx(RIGHT[backend][task], abs=0.15)


def test_labelled_tasks_are_told_by_their_words_too(model: QualityModel) -> None:
    """What they say moves the guess, and not how strange a prompt is."""
    by_words = model.kinds.systems[-1]
    assert not by_words.tells
    assert by_words.names == model.kinds.systems[0].names
    rng = random.Random(6)
    for task in ("code", "cooking", "law"):
        sight = model.kinds.see(read(prompt(task, rng)))
        odds = sight.kinds[by_words.start : by_words.stop]
        assert by_words.names[int(odds.argmax())] == task
    assert all(system.tells for system in learn(outcomes(120, labels=False)).kinds.systems)


def test_names_the_task_it_was_taught(model: QualityModel) -> None:
    rng = random.Random(5)
    for task in ("code", "cooking", "law"):
        named = [model.predict(read(prompt(task, rng))).task for _ in range(20)]
        assert named.count(task) >= 18


def test_rare_labels_are_named_beside_common_ones() -> None:
    """By a regression that gives rare labels no more than their share, one in four is."""
    rng = random.Random(3)
    usual = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}word" for i in range(400)]

    def subject(kind: int) -> str:
        own = [usual[(37 * kind + 11 * i) % 400] for i in range(40)]
        return " ".join(rng.choices(usual, k=10) + rng.choices(own, k=10))

    kinds = [kind for kind in range(20) for _ in range(60 if kind < 3 else 14)]
    rng.shuffle(kinds)
    model = learn(
        Scored(subject(kind), "a", float(rng.random() < 0.5), None, f"subject {kind}")
        for kind in kinds
    )
    rare = [3 + number % 17 for number in range(170)]
    said = model.predict_all([read(subject(kind)) for kind in rare])
    right = [each.task == f"subject {kind}" for each, kind in zip(said, rare, strict=True)]
    assert np.mean(right) > 0.4


def test_a_strange_prompt_gets_every_backends_overall_mean(model: QualityModel) -> None:
    said = mids(model, STRANGE)
    overall = {name: np.mean(list(tasks.values())) for name, tasks in RIGHT.items()}
    gap = overall["large"] - overall["small"]
    assert said["large"] - said["small"] == pytest.approx(gap, abs=0.08)
    assert model.predict(read(STRANGE)).task == "chat"


def test_bands_are_wider_for_a_strange_prompt(model: QualityModel) -> None:
    rng = random.Random(3)
    known = model.predict_all([read(prompt("code", rng)) for _ in range(30)])[0]
    strange = model.predict(read(STRANGE))
    assert strange.familiarity < known.familiarity
    assert known.quality is not None
    assert strange.quality is not None
    assert np.ptp(strange.quality, axis=1).mean() > np.ptp(known.quality, axis=1).mean()


def test_length_bands_hold_four_answers_in_five(model: QualityModel) -> None:
    inside, longer = [], []
    rows = outcomes(300, seed=7)
    for row, each in zip(rows, model.predict_all([read(row.text) for row in rows]), strict=True):
        said = each.lengths
        assert said is not None
        assert row.output_tokens is not None
        q10, _, q90, mean = said[model.backends.index(row.backend)]
        inside.append(q10 <= row.output_tokens <= q90)
        longer.append((row.output_tokens, mean))
    assert 0.74 <= np.mean(inside) <= 0.86
    came, foreseen = np.array(longer).sum(0)
    assert foreseen == pytest.approx(came, rel=0.05)


def test_a_new_backend_is_usable_after_thirty_answers() -> None:
    rows = outcomes(450)
    new = [
        row._replace(backend="new", output_tokens=2 * (row.output_tokens or 0))
        for row in outcomes(450)[:60]
        if row.backend == "large"
    ]
    assert len(new) == 30
    model = learn(rows + new)
    rng = random.Random(4)
    error = []
    for task in ("code", "cooking", "law"):
        for _ in range(10):
            said = model.predict(read(prompt(task, rng))).lengths
            assert said is not None
            by_name = dict(zip(model.backends, said[:, 1].tolist(), strict=True))
            error.append(abs(by_name["new"] / by_name["large"] - 2.0))
    assert np.mean(error) < 0.5


def test_one_backend_a_prompt_is_enough_to_learn_from() -> None:
    rng = random.Random(0)
    rows = outcomes(900)
    kept = [rows[i + rng.randrange(2)] for i in range(0, len(rows), 2)]
    model = learn(kept)
    code = [mids(model, prompt("code", rng)) for _ in range(20)]
    assert np.mean([each["large"] - each["small"] for each in code]) > 0.3


def test_the_same_outcomes_give_the_same_model() -> None:
    first, second = learn(outcomes(90)), learn(outcomes(90))
    text = read(prompt("law", random.Random(1)))
    assert (first.predict(text).quality == second.predict(text).quality).all()


@pytest.mark.parametrize("number", [1, 2, 7, 25])
def test_a_handful_of_outcomes_gives_their_mean(number: int) -> None:
    rows = [Scored(f"prompt number {i}", "only", float(i % 2), 10.0 + i) for i in range(number)]
    said = learn(rows).predict(read("prompt number 3"))
    assert said.quality is not None
    assert said.lengths is not None
    assert said.quality[0, 1] == pytest.approx(np.mean([row.score for row in rows]), abs=0.35)
    assert np.isfinite(said.lengths).all()


@pytest.mark.parametrize(("number", "low"), [(1, 0.5), (5, 0.9), (30, 0.98)])
def test_a_few_answers_that_are_all_right_do_not_make_it_sure(number: int, low: float) -> None:
    rows = [Scored(f"question {n}", "a", 1.0, None, None) for n in range(number)]
    said = learn(rows).predict(read("question 3"))
    assert said.quality is not None
    assert 0.0 < said.quality[0, 0] < low


def test_scores_without_lengths_and_lengths_without_scores() -> None:
    scores = learn([row._replace(output_tokens=None) for row in outcomes(60)])
    assert scores.predict(read("x")).lengths is None
    lengths = learn([row._replace(score=None) for row in outcomes(60)])
    assert lengths.predict(read("x")).quality is None
    assert lengths.predict(read("x")).lengths is not None


def test_nothing_is_learnt_from_nothing() -> None:
    with pytest.raises(NothingToLearn):
        learn([])


@settings(max_examples=60)
@given(text=st.text())
def test_bands_are_ordered_and_finite_for_any_text(model: QualityModel, text: str) -> None:
    said = model.predict(read(text))
    assert said.quality is not None
    assert said.lengths is not None
    assert np.isfinite(said.quality).all()
    assert np.isfinite(said.lengths).all()
    assert (np.diff(said.quality, axis=1) >= 0).all()
    assert ((said.quality >= 0) & (said.quality <= 1)).all()
    assert (np.diff(said.lengths[:, :3], axis=1) >= 0).all()
    assert (said.lengths >= 0).all()


def test_survives_the_disk_and_holds_no_prompt(model: QualityModel, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "quality.npz"
    model.save(path)
    again = QualityModel.load(path)
    assert again.backends == model.backends
    text = read(prompt("code", random.Random(8)))
    before, after = model.predict(text), again.predict(text)
    assert before.task == after.task
    assert np.allclose(before.quality, after.quality, atol=2e-3)
    assert np.allclose(before.lengths, after.lengths, rtol=2e-2)
    with np.load(path, allow_pickle=False) as file:
        everything = b"".join(file[name].tobytes() for name in file.files)
    for word in ("butter", "plaintiff", "python"):
        assert word.encode() not in everything


def test_reads_what_the_version_before_wrote(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """It wrote four fields of a system, and knew regressions only."""
    model = learn(outcomes(90, labels=False))
    path = tmp_path / "quality.npz"
    model.save(path)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(arrays["meta"].tobytes())
    meta["format"] = 3
    meta["systems"] = [system[:4] for system in meta["systems"]]
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    np.savez_compressed(path, **arrays)
    text = read(prompt("code", random.Random(8)))
    assert np.allclose(
        QualityModel.load(path).predict(text).quality, model.predict(text).quality, atol=2e-3
    )


def test_words_of_the_format_before_name_no_task(model: QualityModel, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """They told a kind by words alone, which names it no better than the first system does."""
    path = tmp_path / "quality.npz"
    model.save(path)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(arrays["meta"].tobytes())
    meta["format"] = 4
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    np.savez_compressed(path, **arrays)
    loaded = QualityModel.load(path)
    assert [bool(system.names) for system in loaded.kinds.systems] == [True, False, False]
    text = read(prompt("law", random.Random(8)))
    assert loaded.predict(text).task == "law"
    assert np.allclose(loaded.predict(text).quality, model.predict(text).quality, atol=2e-3)


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 damaged"])
def test_refuses_what_is_no_model(content: bytes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(UnreadableModel):
        QualityModel.load(path)


def test_predicting_costs_little_more_than_reading(model: QualityModel) -> None:
    text = prompt("law", random.Random(2)) * 20

    def best(what) -> float:  # type: ignore[no-untyped-def]
        times = []
        for _ in range(50):
            start = time.perf_counter()
            what()
            times.append(time.perf_counter() - start)
        return min(times)

    seen = read(text)
    assert best(lambda: model.predict(seen)) < 5 * best(lambda: read(text))
