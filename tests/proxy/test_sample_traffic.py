"""The demonstration's history is written once, and all of it is labelled simulated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from meters.ledger import Ledger
from proxy import sample_traffic, serving
from proxy.commands import CommandError
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import TEAMS, Config, Joulegate, config_of

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


def test_a_history_that_was_stopped_half_way_is_written_whole_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_traffic, "HISTORY_DAYS", 2)
    hours = sample_traffic.sample_hours

    def stopped(*given: Any, **more: Any) -> Iterator[Any]:
        yield from islice(hours(*given, **more), 20)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sample_traffic, "sample_hours", stopped)
        with pytest.raises(KeyboardInterrupt):
            sample_traffic.write_history(str(tmp_path), NOW_S)
    assert sample_traffic.write_history(str(tmp_path), NOW_S) > 20
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]


@pytest.mark.parametrize(
    ("platform", "environment", "shown"),
    [
        ("linux", {"TERM": "xterm"}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("darwin", {}, True),
    ],
)
def test_no_text_browser_takes_the_terminal(
    platform: str, environment: dict[str, str], shown: bool
) -> None:
    assert sample_traffic.has_screen(platform, environment) is shown


def test_a_browser_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sample_traffic.webbrowser, "open", lambda url: closed.wait(10))
    begun_s = time.monotonic()
    stop = sample_traffic.of_rate(0.01, open_dashboard=True)("http://127.0.0.1:9")
    assert time.monotonic() - begun_s < 5
    stop()
    closed.set()


def test_every_team_of_the_traffic_has_its_key() -> None:
    teams = sample_traffic.teams()
    assert all(teams[name].keys == [f"demo-{name}"] for name in sample_traffic.TEAMS)


def test_its_dashboard_is_open_on_this_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def guests(host: str | None) -> bool:
        prepared = serving.prepare(None, host=host, environment={}, simulated=True)
        prepared.close()
        return prepared.settings.sign_in.guests

    assert guests(None)
    assert not guests("0.0.0.0")
    config = tmp_path / "config.yaml"
    config.write_text(
        "backends: [{model: m, url: 'http://127.0.0.1:9/v1'}]\n"
        "teams: {a: {keys: [k]}}\nsign_in: {guests: true}\n"
    )
    with pytest.raises(CommandError, match=r"sign_in\.guests"):
        serving.prepare(str(config), host="0.0.0.0", environment={})


def test_a_guest_sees_the_dashboard_and_calls_nothing(
    joulegate: Callable[[Config], Joulegate],
) -> None:
    with Upstream(answers.like_an_engine()) as upstream:
        closed = config_of(upstream.base_url, teams=TEAMS)
        assert "sign-in" in (joulegate(closed).get("/dashboard").header("location") or "")
        running = joulegate({**closed, "sign_in": {"guests": True}})
        first = running.get("/dashboard").header("location")
        assert first is not None
        assert running.get(first).status == 200
        assert running.get("/dashboard", authorization="Bearer wrong").status == 401
        assert running.get("/v1/models").status == 401
        assert running.post({"model": "tiny", "messages": []}).status == 401
