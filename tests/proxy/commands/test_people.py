"""`joulegate teams`, `keys` and `ledger`, as a person uses them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from meters.ledger import Ledger
from meters.schema import shares
from proxy.__main__ import main
from proxy.auth import digest
from tests.meters.test_transfer import traffic

Output = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path, ledger_url: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(f"ledger:\n  url: {ledger_url}\nteams:\n  ops:\n    keys: [from-config]\n")
    return str(path)


def test_a_team_its_keys_and_their_ends(config: str, capsys: Output) -> None:
    def run(*words: str) -> str:
        command, *rest = words
        assert main([command, "--config", config, *rest]) == 0
        return capsys.readouterr().out

    run("teams", "create", "search", "--timezone", "Europe/Berlin")
    key = run("keys", "create", "--team", "search", "--expires", "90d").splitlines()[0]
    assert re.fullmatch(r"jg-[\w-]{43}", key)
    key_id = digest(key)[:12]
    listed = json.loads(run("keys", "list", "--json"))
    assert [(k["key_id"], k["team"], k["state"], k["source"]) for k in listed] == [
        (digest("from-config")[:12], "ops", "active", "config"),
        (key_id, "search", "active", "ledger"),
    ]
    new = json.loads(run("keys", "rotate", key_id, "--overlap", "1h", "--json"))[0]
    run("keys", "revoke", new["key_id"])
    states = {k["key_id"]: k["state"] for k in json.loads(run("keys", "list", "--json"))}
    assert states[new["key_id"]] == "revoked"
    actions = [e["action"] for e in json.loads(run("teams", "audit", "--json"))]
    assert sorted(actions) == ["key.create", "key.revoke", "key.rotate", "team.create"]
    assert "Europe/Berlin" in run("teams", "list")
    assert key not in run("keys", "list")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["keys", "create", "--team", "nobody"], "teams create nobody"),
        (["keys", "revoke", "abc"], "no key abc"),
        (["keys", "create", "--team", "ops", "--expires", "soon"], "not a time"),
        (["keys", "create", "--team", "ops", "--expires", "2020-01-31"], "has passed"),
        (["teams", "create", "ops"], "in the config file"),
        (["ledger", "import", "missing.jsonl"], "cannot be read"),
        (["ledger", "compact", "--older-than", "1h"], "Name 2d or more"),
    ],
)
def test_what_can_be_mended_is_said(
    tmp_path: Path, capsys: Output, words: list[str], says: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"state_dir: {tmp_path}\nteams:\n  ops:\n    keys: [from-config]\n")
    assert main([words[0], "--config", str(path), *words[1:]]) == 1
    assert says in capsys.readouterr().err


def test_a_ledger_that_does_not_answer_is_named(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("ledger:\n  url: postgresql://joulegate@127.0.0.1:1/none\n")
    assert main(["ledger", "--config", str(path), "check"]) == 1
    assert "Check ledger.url" in capsys.readouterr().err


def test_check_export_import_and_compact(
    config: str, ledger_url: str, tmp_path: Path, capsys: Output
) -> None:
    ledger = Ledger(ledger_url)
    ledger.write(*traffic())
    assert main(["ledger", "--config", config, "check"]) == 0
    assert re.search(r"balanced +True", capsys.readouterr().out)
    out = tmp_path / "export.jsonl"
    assert main(["ledger", "--config", config, "export", "--out", str(out)]) == 0
    assert out.stat().st_mode & 0o077 == 0
    assert main(["ledger", "--config", config, "export", "--out", str(out)]) == 1
    other = tmp_path / "other.yaml"
    other.write_text(f"state_dir: {tmp_path / 'other'}\n")
    assert main(["ledger", "--config", str(other), "import", str(out)]) == 0
    assert re.search(r"requests +600", capsys.readouterr().out)
    assert main(["ledger", "--config", config, "compact", "--older-than", "2d"]) == 0
    assert "Folded 718 windows" in capsys.readouterr().out

    with ledger.database.write() as connection:
        connection.execute(shares.delete())
    ledger.close()
    assert main(["ledger", "--config", config, "check"]) == 1
    told = capsys.readouterr()
    assert re.search(r"balanced +False", told.out)
    assert "shares differ" in told.err


def test_settings_of_a_file_are_read_as_the_config_is(
    config: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_JOULES", "5e6")
    written = tmp_path / "search.yaml"
    written.write_text(
        "budgets:\n  - {per: month, energy_j: 3.6e9}\n"
        "  - {per: day, energy_j: os.environ/SEARCH_JOULES}\n"
    )
    create = ["teams", "create", "search", "--config", config, "--settings", str(written)]
    assert main(create) == 0
    assert main(["teams", "audit", "--config", config, "--json"]) == 0
    audited = json.loads(capsys.readouterr().out.splitlines()[-1])[0]
    told = (
        json.loads(audited["detail"]) if isinstance(audited["detail"], str) else audited["detail"]
    )
    assert [budget["energy_j"] for budget in told["budgets"]] == [3.6e9, 5e6]
    written.write_text("budgets:\n  - {per: month, enery_j: 1}\n")
    create[2] = "other"
    assert main(create) == 1
    said = capsys.readouterr().err
    assert "line 2: budgets[0].enery_j: unknown key 'enery_j'. Did you mean 'energy_j'?" in said
