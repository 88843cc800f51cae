"""``joulegate estimators``: what is loaded, and how good it has been by the ledger."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from meters.ledger import Ledger
from proxy.__main__ import main
from tests.meters.books import attribution, record

REQUESTS = 40


def config_of(folder: Path, url: str | None) -> Path:
    path = folder / "config.yaml"
    settings: dict[str, Any] = {
        "backends": [{"model": "llama", "url": "http://127.0.0.1:9/v1"}],
        "state_dir": str(folder / "state"),
    }
    if url is not None:
        settings["ledger"] = {"url": url}
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def config(ledger_url: str, tmp_path: Path) -> Path:
    """A ledger in which an engine became dearer: first as estimated, then a quarter more."""
    ledger = Ledger(ledger_url)
    records, windows = [], []
    for n in range(REQUESTS):
        start_s = time.time() - 3600.0 + n
        took_j = (10.0 if n < REQUESTS // 2 else 12.5) * (1.01 if n % 2 else 0.99)
        times = {"start_s": start_s, "end_s": start_s + 1.0}
        records.append(
            record(
                n,
                **times,
                sent_s=start_s,
                energy_j=10.0,
                energy_low_j=8.0,
                energy_high_j=12.0,
                estimator_version="prior-1",
            )
        )
        windows.append(attribution(n, {f"req-{n}": took_j}, **times))
    ledger.write(records, windows, [])
    ledger.close()
    return config_of(tmp_path, ledger_url)


def test_the_ledger_says_how_good_estimates_have_been_and_that_they_drift(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimators", "--config", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prior"]["held_out"]["new_model"]["energy_mape"] < 0.2
    (one,) = told["lately"]
    assert one["backend"] == "llama@bf16"
    assert one["requests"] == REQUESTS
    assert one["error"] == pytest.approx(0.2, abs=0.01)
    assert one["bias"] == pytest.approx(-0.2, abs=0.01)
    assert one["band_holds"] == 0.0  # 12.4 and 12.6 J are above 12
    assert one["drift"] == pytest.approx(-0.2, abs=0.01)
    assert one["drifts"]
    assert one["versions"] == ["prior-1"]


def test_people_see_a_line_for_each_backend(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimators", "--config", str(config)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("llama@bf16")
    assert "20.0%" in last
    assert "-20.0%" in last
    assert "DRIFTS" in last
    assert "prior-1" in last


def test_requests_of_another_team_or_time_are_not_counted(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimators", "--config", str(config), "--team", "nobody", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lately"] == []
    assert main(["estimators", "--config", str(config), "--days", "0"]) == 1


def test_without_a_ledger_what_is_loaded_is_shown_and_none_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimators", "--config", str(config_of(tmp_path, None))]) == 0
    said = capsys.readouterr()
    assert "energy prior" in said.out
    assert "no ledger yet" in said.err
    assert not (tmp_path / "state").exists()


def test_outcomes_from_a_file_are_judged_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "outcomes.jsonl"
    line = {"backend": "a", "energy_j": 11.0, "metered_j": 10.0}
    file.write_text((json.dumps(line) + "\n") * 3)
    assert main(["estimators", "--usage", str(file), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["lately"]
    assert one["error"] == pytest.approx(0.1)
    assert one["band_holds"] is None
