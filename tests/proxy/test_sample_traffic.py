"""The demonstration's history is written once, and all of it is labelled simulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from meters.ledger import Ledger
from proxy import sample_traffic

NOW_S = 1_795_000_000.0


def test_history_is_simulated_and_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_traffic, "HISTORY_DAYS", 2)
    assert sample_traffic.write_history(str(tmp_path / "state"), NOW_S) > 20
    assert sample_traffic.write_history(str(tmp_path / "state"), NOW_S) == 0
    ledger = Ledger(f"sqlite:///{tmp_path / 'state' / 'ledger.db'}")
    try:
        groups = ledger.usage(None, NOW_S - 4 * 86_400, NOW_S + 86_400, ["simulated", "team"])
        assert {use.group["simulated"] for use in groups} == {1}
        assert {use.group["team"] for use in groups} == set(sample_traffic.TEAMS)
        assert ledger.check().problems == ()
    finally:
        ledger.close()


def test_every_team_of_the_traffic_has_its_key() -> None:
    teams = sample_traffic.teams()
    assert all(teams[name].keys == [f"demo-{name}"] for name in sample_traffic.TEAMS)
