"""``joulegate learn-quality`` and ``predict-quality``: files in, one model, lines out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from proxy.__main__ import main
from tests.estimators.outcomes import outcomes, prompt


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("quality")
    lines = [
        {
            "prompt": row.text,
            "backend": row.backend,
            "score": row.score,
            "output_tokens": row.output_tokens,
            "task": row.task,
        }
        for row in outcomes(240)
    ]
    out = str(folder / "quality.npz")
    assert main(["learn-quality", write(folder / "in.jsonl", lines), "--out", out]) == 0
    return out


def test_answers_every_prompt_for_every_backend(model, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(3)
    code = prompt("code", rng)
    batch = [
        {"id": "a", "prompt": code},
        {"id": 2, "messages": [{"role": "user", "content": code}]},
    ]
    status = main(["predict-quality", model, "--batch", write(tmp_path / "b.jsonl", batch)])
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert status == 0
    assert (first["id"], second["id"]) == ("a", 2)
    assert first["task"] == "code"
    assert set(first["quality"]) == set(first["output_tokens"]) == {"small", "large"}
    for band in first["quality"].values():
        assert 0 <= band["low"] <= band["mid"] <= band["high"] <= 1
    for tokens in first["output_tokens"].values():
        assert 0 <= tokens["q10"] <= tokens["q50"] <= tokens["q90"]
        assert tokens["mean"] > 0
    # the same words say the same, however they are wrapped
    assert first["quality"] == second["quality"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"prompt": "p", "backend": "a", "scores": 1}, "Did you mean 'score'?"),
        ({"prompt": "p", "backend": "a", "score": 1.5}, "<= 1.0"),
        ({"prompt": "p", "backend": "a", "score": -0.1}, ">= 0.0"),
        ({"prompt": "p", "score": 1}, "backend"),
        ({"backend": "a", "score": 1}, "either prompt or messages"),
        ({"prompt": "p", "messages": [], "backend": "a", "score": 1}, "either prompt or"),
        ({"prompt": "p", "backend": "a"}, "a score, output_tokens, or both"),
    ],
)
def test_a_bad_outcome_is_explained(line, says, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "in.jsonl", [line])
    assert main(["learn-quality", path, "--out", str(tmp_path / "m")]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_an_empty_file_teaches_nothing(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["learn-quality", write(tmp_path / "e", []), "--out", str(tmp_path / "m")]) == 1
    assert "no outcome" in capsys.readouterr().err


def test_a_missing_folder_is_noticed_before_learning(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["learn-quality", "nowhere.jsonl", "--out", str(tmp_path / "no" / "m")]) == 1
    assert "--out" in capsys.readouterr().err


def test_a_file_that_is_no_model_is_refused(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    bad = tmp_path / "bad"
    bad.write_text("hello")
    assert main(["predict-quality", str(bad), "--batch", "-"]) == 1
    said = capsys.readouterr().err
    assert "no model made by learn-quality" in said
    assert "pickle" not in said  # numpy's advice to load it unsafely
    assert main(["predict-quality", str(tmp_path / "gone"), "--batch", "-"]) == 1
    assert "Make one with joulegate learn-quality" in capsys.readouterr().err


def test_an_unknown_key_in_the_batch_is_named(model, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    batch = write(tmp_path / "b", [{"id": "a", "prompts": "x"}])
    assert main(["predict-quality", model, "--batch", batch]) == 1
    assert "Did you mean 'prompt'?" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", [0, 1, 256])
def test_answers_of_one_length_still_have_a_band(
    tokens: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"prompt": row.text, "backend": row.backend, "output_tokens": tokens}
        for row in outcomes(60)
    ]
    out = str(tmp_path / "quality.npz")
    assert main(["learn-quality", write(tmp_path / "in.jsonl", lines), "--out", out]) == 0
    batch = write(tmp_path / "b.jsonl", [{"id": 1, "prompt": lines[0]["prompt"]}])
    assert main(["predict-quality", out, "--batch", batch]) == 0
    for said in json.loads(capsys.readouterr().out)["output_tokens"].values():
        assert said["q10"] <= said["q50"] == pytest.approx(tokens, abs=0.1)
        assert said["q10"] < said["q90"]


def test_a_mistake_is_told_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(
        '{"prompt": "x", "backend": "a", "score": 1}\n\n{"prompt": "x", "backend": "a"}\n'
    )
    assert main(["learn-quality", str(file), "--out", str(tmp_path / "q.npz")]) == 1
    assert "line 3: give a score" in capsys.readouterr().err


def test_a_folder_as_the_model_is_told_before_anything_is_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["learn-quality", "nothing.jsonl", "--out", str(tmp_path)]) == 1
    assert "is a folder" in capsys.readouterr().err
