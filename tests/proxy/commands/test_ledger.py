"""``joulegate ledger``: check, export, import and compact, as a person runs them."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import text

from meters.ledger import Ledger
from proxy.__main__ import main
from tests.meters.books import attribution, record, window

Run = Callable[..., int]


@pytest.fixture
def config(ledger_url: str, tmp_path: Path) -> Path:
    """A config whose ledger holds three requests with shares and one without."""
    ledger = Ledger(ledger_url)
    ledger.write(
        [record(n, decision="{}") for n in range(4)],
        [attribution(1, {"req-0": 5.0, "req-1": 7.0}), attribution(2, {"req-2": 1.0})],
        [window(1, energy_j=73.0), window(2, energy_j=62.0)],
    )
    ledger.close()
    return _config(tmp_path / "one", ledger_url)


def _config(folder: Path, url: str) -> Path:
    folder.mkdir()
    path = folder / "config.yaml"
    backend = {"model": "llama", "url": "http://127.0.0.1:9/v1"}
    settings = {"backends": [backend], "ledger": {"url": url}, "state_dir": str(folder / "state")}
    path.write_text(yaml.safe_dump(settings))
    return path


def checked(config: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = main(["ledger", "--config", str(config), "check", "--json"])
    return status, json.loads(capsys.readouterr().out)[0]


def test_check_says_that_all_agrees_or_where_it_does_not(
    config: Path, ledger_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = checked(config, capsys)
    assert (status, found["balanced"], found["requests"], found["shares"]) == (0, True, 4, 3)
    ledger = Ledger(ledger_url)
    with ledger.database.write() as connection:
        connection.execute(text("UPDATE request_hours SET prompt_tokens = prompt_tokens + 1"))
    ledger.close()
    status, found = checked(config, capsys)
    assert (status, found["balanced"]) == (1, False)
    assert "prompt_tokens" in found["problems"][0]


def test_an_export_imported_elsewhere_is_the_same_ledger(
    config: Path,
    new_ledger_url: Callable[[], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "books.jsonl"
    assert main(["ledger", "--config", str(config), "export", "--out", str(out)]) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert main(["ledger", "--config", str(config), "export", "--out", str(out)]) != 0  # is there
    other = _config(tmp_path / "two", new_ledger_url())
    for _ in range(2):  # again changes nothing
        assert main(["ledger", "--config", str(other), "import", str(out)]) == 0
    assert checked(other, capsys) == checked(config, capsys)


def test_a_cut_export_is_refused(
    config: Path,
    new_ledger_url: Callable[[], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "books.jsonl"
    assert main(["ledger", "--config", str(config), "export", "--out", str(out)]) == 0
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:-1]))
    other = _config(tmp_path / "two", new_ledger_url())
    assert main(["ledger", "--config", str(other), "import", str(out)]) != 0
    assert "cut off" in capsys.readouterr().err


def test_compacting_keeps_every_sum_and_refuses_hours_that_are_open(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, before = checked(config, capsys)
    assert main(["ledger", "--config", str(config), "compact", "--older-than", "1h"]) != 0
    assert "2d" in capsys.readouterr().err
    assert main(["ledger", "--config", str(config), "compact", "--older-than", "2d"]) == 0
    assert "Folded 1 windows" in capsys.readouterr().out
    status, after = checked(config, capsys)
    assert (status, after["balanced"]) == (0, True)
    assert (after["windows"], after["metered_j"]) == (1, before["metered_j"])
