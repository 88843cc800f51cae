"""``joulegate ledger``: check, export, import and compact, as a person runs them."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import inspect, select, text

from meters.ledger import Ledger
from meters.ourselves import OwnSums
from meters.schema import dashboard_frozen, meta, metadata
from proxy.__main__ import main
from proxy.people import People
from proxy.settings import Budget, KeyRules, LimitSettings, Organisation, Settings, Team
from proxy.teams import TeamStore
from tests.meters.books import NOON_S, attribution, record, window
from tests.meters.test_transfer import traffic
from tests.servers import new_database

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


def test_moving_and_folding_books_is_in_the_audit_log(
    config: Path,
    new_ledger_url: Callable[[], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def done(config: Path) -> list[tuple[str, str]]:
        capsys.readouterr()
        assert main(["teams", "--config", str(config), "audit", "--json"]) == 0
        entries = json.loads(capsys.readouterr().out)
        assert all(entry["actor"].startswith("command line") for entry in entries)
        return sorted((entry["action"], entry["subject"]) for entry in entries)

    out = str(tmp_path / "books.jsonl")
    assert main(["ledger", "--config", str(config), "export", "--out", out]) == 0
    assert main(["ledger", "--config", str(config), "compact", "--older-than", "2d"]) == 0
    assert main(["ledger", "--config", str(config), "check"]) == 0
    assert done(config) == [("ledger.compact", "all"), ("ledger.export", out)]
    other = _config(tmp_path / "two", new_ledger_url())
    assert main(["ledger", "--config", str(other), "import", out]) == 0
    assert done(other) == [("ledger.export", out), ("ledger.import", out)]


def test_a_ledger_moves_between_sqlite_and_postgresql_both_ways_and_loses_nothing(
    tmp_path: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [
        f"sqlite:///{tmp_path / 'first.db'}",
        new_database(postgres_url, f"moved_{time.time_ns()}"),
        f"sqlite:///{tmp_path / 'third.db'}",
    ]
    configs = [_config(tmp_path / str(number), url) for number, url in enumerate(urls)]
    first = Ledger(urls[0])
    fill(first)
    first.close()
    for number, (source, target) in enumerate(pairwise(configs)):
        out = tmp_path / f"{number}.jsonl"
        assert main(["ledger", "--config", str(source), "export", "--out", str(out)]) == 0
        assert main(["ledger", "--config", str(target), "import", str(out)]) == 0
    found = [checked(config, capsys) for config in configs]
    assert (found[0][0], found[0][1]["balanced"], found[0][1]["requests"]) == (0, True, 600)
    assert found[1] == found[0] == found[2]
    one, *others = (every_table(url) for url in urls)
    for imports, other in enumerate(others, 1):
        for name, rows in one.items():
            assert rows, f"the test moves nothing in {name}"
            if name == "changes":  # replicas that run notice each import
                rows = [(watched, number + imports) for watched, number in rows]
            assert other[name] == rows, name


def fill(ledger: Ledger) -> None:
    """Something in every table."""
    ledger.write(*traffic())
    ledger.add_feedback("req-1", "judge", 0.5, "search", NOON_S)
    ledger.keep_own("replica 1", {int(NOON_S) // 3600 * 3600: OwnSums(5_000_000, 2_000_000)})
    store = TeamStore(ledger.database, Settings())
    budgets = [Budget(per="day", tokens=9)]
    store.create_team("search", Team(organisation="acme", budgets=budgets), "a test")
    store.set_organisation("acme", Organisation(budgets=budgets), "a test")
    rules = KeyRules(budgets=budgets, limits=LimitSettings(max_energy_j=0.1))
    made = store.create_key("search", project="p", name="é", rules=rules, actor="a test")
    store.rotate_key(made.key_id, overlap_s=60.0, actor="a test")
    people = People(ledger.database)
    people.create("ada", "twelve letters", role="lead", teams=("search",), actor="a test")
    with ledger.database.write() as connection:
        frozen = {"hash": "h", "team": "search", "frozen_s": 0.1, "body": "{}"}
        connection.execute(dashboard_frozen.insert().values(frozen))


def every_table(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of all tables and roll-ups; only when the tables were made may differ, and that
    the audit log of each says what was done with it."""
    ledger = Ledger(url)
    with ledger.database.read() as connection:
        names = set(inspect(connection).get_table_names())
        assert names == {table.name for table in metadata.sorted_tables}  # none is forgotten
        found = {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)
            for table in metadata.sorted_tables
            if table is not meta
        }
    moves = {row for row in found["audit_log"] if "ledger." in repr(row)}
    found["audit_log"] = [row for row in found["audit_log"] if row not in moves]
    ledger.close()
    return found
