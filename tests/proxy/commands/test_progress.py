"""Long commands say on standard error how far they are, and nothing of it on standard output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from estimators.quality_fit import learn
from proxy.__main__ import main
from proxy.commands import progress
from tests.estimators.outcomes import outcomes
from tests.proxy.commands.test_attribute import REQUEST, WINDOW


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)


def written(path: Path, lines: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_commands_over_files_say_how_far_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learn(outcomes(30)).save(tmp_path / "model")
    windows = written(tmp_path / "w", [WINDOW])
    requests = written(tmp_path / "r", [REQUEST])
    asked = written(tmp_path / "p", [{"id": 1, "prompt": "x"}])
    chats = written(tmp_path / "c", [{"id": 1, "messages": [{"role": "user", "content": "x"}]}])
    for command, said in (
        (["attribute", "--windows", windows, "--requests", requests], "1 requests: 0 s"),
        (["predict-quality", str(tmp_path / "model"), "--batch", asked], "1 lines predicted"),
        (["explain", "--batch", chats], "1 lines explained"),
    ):
        assert main(command) == 0
        out, told = capsys.readouterr()
        assert said in told
        assert all(json.loads(line) for line in out.splitlines())


def test_what_is_left_is_told_where_the_end_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    progress.progress("answers judged")(3, 4)
    assert capsys.readouterr().err.startswith("3 of 4 answers judged, 0 s left")


def test_nothing_is_said_of_what_is_soon_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_EVERY_S", 60.0)
    with progress.busy("waiting"):
        progress.progress("things done")(1)
    assert capsys.readouterr().err == ""
