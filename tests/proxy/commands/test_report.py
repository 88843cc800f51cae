from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import msgspec
import pytest

from meters.ledger import Ledger
from meters.types import Evidence
from proxy.__main__ import main
from proxy.dashboard.snapshot import Snapshot, encode
from tests.seed_ledger import MONTH, fill


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config whose ledger has nine hours of two teams' traffic on 1 October in Berlin."""
    ledger = fill(tmp_path / "ledger.db", MONTH.start_s + 7 * 3600, 9, scale=0.5)
    ledger.close()
    path = tmp_path / "config.yaml"
    path.write_text(
        "backends:\n"
        "- {model: llama-3.3-70b, url: 'http://127.0.0.1:9/v1', node: node-a, zone: DE, pue: 1.2}\n"
        "teams:\n  search: {keys: [abc], timezone: Europe/Berlin}\n"
        f"state_dir: {tmp_path}\n"
    )
    return path


def report(config: Path, *more: str) -> int:
    return main(["report", "--config", str(config), "--team", "search", *more])


def test_writes_the_days_asked_for_in_the_teams_time_zone(
    config: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert report(config, "--from", "2026-10-01", "--to", "2026-10-02", "--format", "csv") == 0
    text = capfdbinary.readouterr().out.decode()
    assert "# time_zone: Europe/Berlin" in text
    assert re.search(r"^day,2026-10-01,[1-9]", text, re.M)
    assert re.search(r"^day,2026-10-02,0,", text, re.M)


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "focus", "esrs", "pdf"])
def test_every_format_is_written_to_a_file(config: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"r.{kind}"
    assert report(config, "--period", "2026-10", "--format", kind, "--out", str(out)) == 0
    assert out.stat().st_size > 300


def test_the_hash_in_the_json_is_of_its_contents(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert report(config, "--period", "2026-10-01", "--format", "json", "--out", str(out)) == 0
    body = json.loads(out.read_bytes())["snapshot"]
    named = body.pop("hash")
    snapshot = msgspec.convert(body | {"hash": ""}, Snapshot)
    assert hashlib.sha256(encode(snapshot)).hexdigest() == named


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--period", "yesterday"], "is no period"),
        (["--from", "2026-10-01"], "both --from and --to"),
        (["--from", "2026-10-02", "--to", "2026-10-01"], "is before"),
        (["--period", "2026-10", "--tz", "Mars"], "IANA"),
        (["--period", "2026-10", "--team", "nobody"], "no team 'nobody'"),
    ],
)
def test_what_cannot_be_done_says_what_to_change(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert report(config, *arguments) == 1
    assert says in capsys.readouterr().err


def test_simulated_data_is_called_so_on_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger: Ledger = fill(
        tmp_path / "ledger.db", MONTH.start_s + 7 * 3600, 3, Evidence.SIMULATED, 0.5
    )
    ledger.close()
    path = tmp_path / "config.yaml"
    path.write_text(f"state_dir: {tmp_path}\n")
    assert report(path, "--period", "2026-10") == 0
    out, err = capfd.readouterr()
    assert "SIMULATED" in err
    assert "# data: SIMULATED" in out
