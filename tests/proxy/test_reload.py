"""A config is read again without dropping a connection; one with mistakes changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from meters import simulated_engine
from meters.ledger import Ledger
from meters.simulated_physics import EngineConfig
from proxy.audit_log import AuditEntry
from proxy.settings import Settings
from proxy.teams import TeamStore
from tests.joulegate_server import ADMIN, KEY, TEAMS, Joulegate, config_of, in_process
from tests.waiting import until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def engine() -> Iterator[simulated_engine.Started]:
    with simulated_engine.start(EngineConfig(model="tiny")) as started:
        yield started


@pytest.fixture
def running(engine: simulated_engine.Started, tmp_path: Path) -> Iterator[Joulegate]:
    config = config_of(f"{engine.url}/v1", teams=TEAMS, log={"level": "info"})
    started = in_process(config, tmp_path)
    yield started
    assert started.process is not None
    started.process.kill()
    started.process.wait()


def change(folder: Path, **settings: object) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **settings}))


def status(running: Joulegate, key: str) -> int:
    return running.post(CHAT, headers={"x-api-key": key}).status


def test_new_keys_and_backends_are_used_and_streams_go_on(
    running: Joulegate, engine: simulated_engine.Started, tmp_path: Path
) -> None:
    assert (status(running, KEY), status(running, "sk-new")) == (200, 401)
    assert b'healthy{backend="tiny-0"}' in running.get("/metrics", x_api_key=ADMIN).body
    long = {**CHAT, "stream": True, "max_tokens": 150, "ignore_eos": True}
    connection = running.open(long, headers={"x-api-key": KEY})
    response = connection.getresponse()
    assert response.readline().startswith(b"data:")
    change(
        tmp_path,
        teams={"new": {"keys": [{"key": "sk-new", "role": "admin"}]}},
        backends=[{"model": "tiny", "name": "renamed", "url": f"{engine.url}/v1"}],
    )
    running.hang_up("was read again")
    rest = response.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    connection.close()
    until(lambda: status(running, "sk-new") == 200)
    reply = running.post(CHAT, headers={"x-api-key": "sk-new"})
    assert reply.header("x-joulegate-backend") == "renamed"
    entry = audited(tmp_path)
    assert entry.actor.startswith("SIGHUP at ")
    assert entry.detail == {"changed": ["backends", "teams"]}
    assert status(running, KEY) == 401
    healthy = 'joulegate_backend_healthy{backend="'
    page = running.get("/metrics", x_api_key="sk-new").body.decode()
    assert [line for line in page.splitlines() if line.startswith(healthy)] == [
        f'{healthy}renamed"}} 1.0'
    ]


def test_a_config_with_mistakes_or_without_a_teams_policy_changes_nothing(
    running: Joulegate, tmp_path: Path
) -> None:
    change(tmp_path, policies={"mine": {"objective": "energy"}}, log={"level": "debug"})
    running.hang_up("was read again")
    made = running.post(
        {"team": "late", "settings": {"policy": "mine"}},
        path="/admin/teams",
        headers={"x-api-key": ADMIN},
    )
    assert made.status < 300, made.body
    key = running.post({"team": "late"}, path="/admin/keys", headers={"x-api-key": ADMIN}).json()
    until(lambda: status(running, key["key"]) == 200)
    change(tmp_path, policies={"other": {"objective": "energy"}})
    running.hang_up("there is no policy 'mine', and the team 'late' of the ledger uses it")
    assert status(running, key["key"]) == 200
    change(tmp_path, default_polcy="pinned")
    running.hang_up("Did you mean 'default_policy'?")
    assert status(running, KEY) == 200


def test_says_what_needs_a_restart(running: Joulegate, tmp_path: Path) -> None:
    change(tmp_path, ledger={"fsync": True})
    running.hang_up("a restart is needed for what changed under: ledger")
    assert status(running, KEY) == 200


def audited(folder: Path) -> AuditEntry:
    """The latest entry of the audit log, as soon as there is one."""
    (database,) = folder.rglob("ledger.db")
    ledger = Ledger(f"sqlite:///{database}")
    found = until(TeamStore(ledger.database, Settings()).audit)
    ledger.close()
    return found[0]
