"""The command line ends in a sentence, wherever what it prints goes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.__main__ import main
from proxy.commands import COMMANDS, check


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("backends: [{model: m, url: 'http://127.0.0.1:9/v1'}]\n")
    return str(path)


@pytest.fixture
def unread() -> Iterator[int]:
    """The end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_every_help_can_be_read(command: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"] if command is None else [command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for name in COMMANDS if command is None else ["example: joulegate"]:
        assert name in said


@pytest.mark.parametrize("buffering", [1, 65_536])
def test_a_full_disk_under_what_is_printed_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str, buffering: int
) -> None:
    with open("/dev/full", "w", buffering=buffering) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["check", config]) == 1
    said = capsys.readouterr().err
    assert (
        said == "joulegate: what is printed cannot be written or read: No space left on device.\n"
    )


@pytest.mark.parametrize("buffering", [1, 65_536])
@pytest.mark.parametrize("words", [["check"], ["--help"], ["check", "--help"]])
def test_a_pipe_that_nobody_reads_ends_it_quietly(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    config: str,
    unread: int,
    buffering: int,
    words: list[str],
) -> None:
    with open(unread, "w", buffering=buffering, closefd=False) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main([*words, config] if words == ["check"] else words) == 1
    assert capsys.readouterr().err == ""


def test_an_interrupt_ends_it_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    monkeypatch.setattr(check, "show", lambda report: signal.raise_signal(signal.SIGINT))
    assert main(["check", config]) == 130
    assert capsys.readouterr().err == "joulegate: stopped.\n"
