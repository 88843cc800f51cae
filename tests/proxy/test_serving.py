"""``joulegate serve`` as a process: it stops gracefully, its books are closed, its address is
guarded, its workers share one socket."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop
import yaml

from meters.ledger import Ledger
from meters.migrations import VERSION
from meters.schema import meta
from proxy.__main__ import main
from proxy.config_file import ConfigError
from proxy.serving import handles, listen, log_to_stderr, prepare, url_of
from proxy.settings import Log, Settings
from tests.fakes import answers
from tests.fakes.upstream import HANG, Gate, Upstream
from tests.joulegate_server import Config, Joulegate, config_of, is_refused, reply, write
from tests.waiting import until

Start = Callable[..., Joulegate]
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**ASK, "stream": True}


def ledger_rows(running: Joulegate) -> dict[str, str]:
    """Outcome by request id, from the ledger's file."""
    assert running.log is not None
    with sqlite3.connect(running.log.parent / "state" / "ledger.db") as ledger:
        return dict(ledger.execute("SELECT request_id, outcome FROM requests").fetchall())


def test_on_sigterm_streams_in_flight_finish_and_the_books_are_closed(
    joulegate_process: Start, upstream: Upstream
) -> None:
    gate = Gate()
    first, *rest = (answers.event(one) for one in answers.chat_events(usage=True))
    running = joulegate_process(config_of(upstream.base_url, server={"stop_deadline_s": 20}))
    assert running.process is not None
    done = running.post(ASK).header("x-request-id")
    upstream.play(answers.stream([first, gate, *rest]))
    response = running.open(STREAM).getresponse()
    assert response.read1() == first
    running.process.send_signal(signal.SIGTERM)
    until(lambda: is_refused(running.port))  # it has stopped listening
    assert running.process.poll() is None, "it ended with a stream in flight"
    gate.open()
    assert response.read().endswith(b"data: [DONE]\n\n")
    assert running.process.wait(20) == 0
    rows = ledger_rows(running)
    assert rows[response.headers["x-request-id"]] == "ok"
    assert done in rows


def test_streams_that_never_end_are_cut_at_the_deadline_and_charged(
    joulegate_process: Start, upstream: Upstream
) -> None:
    first = answers.event(answers.chat_events()[0])
    upstream.play(answers.stream([first, HANG], end=False))
    running = joulegate_process(config_of(upstream.base_url, server={"stop_deadline_s": 1}))
    assert running.process is not None
    assert running.log is not None
    response = running.open(STREAM).getresponse()
    assert response.read1() == first
    upstream.play(HANG)
    waiting = running.open(ASK)
    upstream.wait_for(2)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 0
    assert upstream.wait_for(1)[0].gone.wait(5)
    assert response.headers["x-request-id"] in ledger_rows(running)
    rest = response.read()
    assert b"data: {" in rest
    assert b"Joulegate is stopping" in rest
    assert b"[DONE]" not in rest
    refused = reply(waiting.getresponse())
    assert (refused.status, refused.code) == (503, "overloaded")
    assert refused.header("x-request-id") in ledger_rows(running)
    assert "Traceback" not in running.log.read_text()


def test_what_was_finished_survives_a_kill(joulegate_process: Start, upstream: Upstream) -> None:
    config = config_of(upstream.base_url)
    running = joulegate_process(config)
    assert running.process is not None
    assert running.log is not None
    seen = {running.post(ASK).header("x-request-id") for _ in range(50)}
    running.process.kill()
    running.process.wait()
    journal = b"".join(p.read_bytes() for p in running.log.parent.rglob("*.journal"))
    rows = ledger_rows(running)
    assert all(one in rows or str(one).encode() in journal for one in seen)


@pytest.mark.parametrize("stream", [False, True])
def test_with_fsync_an_answer_ends_after_its_record_was_forced_to_the_disk(
    joulegate: Start, upstream: Upstream, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced = os.fsync

    def slowly(file: int) -> None:
        time.sleep(0.05)
        forced(file)

    monkeypatch.setattr("meters.journal.os.fsync", slowly)
    running = joulegate(config_of(upstream.base_url, ledger={"fsync": True}))
    assert running.proxy is not None
    for _ in range(5):
        reply = running.post({**ASK, "stream": stream})
        assert reply.status == 200
        assert running.proxy.journal.waiting == 0
        files = running.proxy.journal.folder.glob("*.journal")
        told = b"".join(path.read_bytes() for path in files)
        assert str(reply.header("x-request-id")).encode() in told


def test_workers_share_the_port_and_the_books(joulegate_process: Start, upstream: Upstream) -> None:
    config = config_of(upstream.base_url, server={"stop_deadline_s": 5, "workers": 2})
    running = joulegate_process(config)
    assert running.process is not None
    seen = {running.post(ASK).header("x-request-id") for _ in range(40)}
    assert len(seen) == 40
    until(lambda: all(counted(running) == 40.0 for _ in range(6)))  # both have published
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0
    assert seen <= set(ledger_rows(running))
    assert running.log is not None
    assert not list((running.log.parent / "state" / "metrics").iterdir())


def counted(running: Joulegate) -> float:
    """Finished requests, as whichever worker answers has them."""
    page = running.get("/metrics").body.decode()
    lines = [line for line in page.splitlines() if line.startswith("joulegate_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_the_address_it_says_is_one_that_clients_take() -> None:
    for host, shown in (("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")):
        with listen(host, 0) as listening:
            url = url_of(listening)
            assert url.startswith(shown)
            assert urlsplit(url).port == listening.getsockname()[1]


def test_it_may_open_as_many_connections_as_the_system_allows(
    upstream: Upstream, tmp_path: Path
) -> None:
    path = write(config_of(upstream.base_url, log={"level": "warning"}), tmp_path)
    command = (
        f"ulimit -Sn 300; ulimit -Hn 900; exec {sys.executable} -m proxy serve --config {path}"
    )
    process = subprocess.Popen(
        ["sh", "-c", f"{command} --port 0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = ""
    try:
        while "serves http" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        line = next(one for one in limits.splitlines() if one.startswith("Max open files"))
        assert line.split()[3:5] == ["900", "900"]
        assert "Only 900 file descriptors" in said
    finally:
        process.kill()
        process.wait()


def test_workers_do_not_outlive_the_process_that_started_them(
    joulegate_process: Start, upstream: Upstream
) -> None:
    config = config_of(upstream.base_url, server={"stop_deadline_s": 1, "workers": 2})
    running = joulegate_process(config)
    assert running.process is not None
    assert running.post(ASK).status == 200
    running.process.kill()
    running.process.wait(10)
    until(lambda: is_refused(running.port))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"server": {"host": "0.0.0.0"}}, "No keys are configured"),
        ({"servr": {}}, "server"),
        ({"backends": []}, "backends"),
    ],
)
def test_a_config_that_cannot_be_meant_stops_the_start(
    tmp_path: Path, change: Config, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write({**config_of("http://127.0.0.1:9/v1"), **change}, tmp_path / "bad")
    assert main(["serve", "--config", str(path), "--port", "0"]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("way", ["config", "option"])
def test_processes_that_would_each_keep_a_budget_alone_do_not_start(
    tmp_path: Path, way: str
) -> None:
    teams = {"physics": {"keys": ["sk-physics"], "budgets": [{"per": "day", "requests": 1}]}}
    config = config_of("http://127.0.0.1:9/v1", teams=teams)
    path = tmp_path / "config.yaml"
    if way == "config":
        config["server"] = {"workers": 2}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"teams\.physics\.budgets: each of 2 processes"):
        prepare(str(path), workers=2 if way == "option" else None)
    config["redis"] = {"url": "redis://127.0.0.1:1/0"}
    path.write_text(yaml.safe_dump(config))
    assert prepare(str(path), workers=2).settings.server.workers == 2


def test_a_state_folder_that_takes_nothing_stops_the_start_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    taken = tmp_path / "file"
    taken.touch()
    config = {**config_of("http://127.0.0.1:9/v1"), "state_dir": str(taken / "state")}
    path.write_text(yaml.safe_dump(config))
    assert main(["serve", "--config", str(path), "--port", "0"]) == 1
    assert f"state_dir {taken / 'state'} cannot be written" in capsys.readouterr().err


def test_libraries_say_nothing_below_warnings_at_any_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = {name: logging.getLogger(name) for name in ("", "joulegate", "httpx", "openai._base")}
    before = {name: logger.level for name, logger in named.items()}
    monkeypatch.setattr(named[""], "handlers", [])
    try:
        log_to_stderr(Settings(log=Log(level="debug")))
        enabled = {name: logger.getEffectiveLevel() for name, logger in named.items()}
    finally:
        for name, logger in named.items():
            logger.setLevel(before[name])
    assert enabled.pop("joulegate") == logging.DEBUG
    assert set(enabled.values()) == {logging.WARNING}


def test_a_ledger_that_a_newer_release_brought_up_to_date_stops_no_answers(
    joulegate: Start, upstream: Upstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(str(path))
    with ledger.database.write() as connection:
        connection.execute(meta.insert().values(version=VERSION + 1, applied_s=0.0))
    running = joulegate(config_of(upstream.base_url, ledger={"url": f"sqlite:///{path}"}))
    asked = running.post(ASK)
    assert asked.status == 200
    until(lambda: "ledger" in running.get("/health/ready").json()["degraded"])
    assert running.get("/dashboard").status == 503
    assert "Install the newer one" in caplog.text
    with ledger.database.write() as connection:
        connection.execute(meta.delete().where(meta.c.version > VERSION))
    until(lambda: ledger.receipt(asked.header("x-request-id") or ""))  # it is written after all
    ledger.close()
    assert not [r for r in caplog.records if r.exc_info]


def turns_until_accepted(listening: list[socket.socket], clients: int) -> int:
    """In how many turns of its event loop a server has accepted that many that came at once."""
    address = listening[0].getsockname()
    waiting = [socket.create_connection(address) for _ in range(clients)]
    accepted, turns = list[asyncio.Protocol](), 0

    def accept() -> asyncio.Protocol:
        accepted.append(asyncio.Protocol())
        return accepted[-1]

    async def serve() -> None:
        nonlocal turns
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(accept, sock=each) for each in listening]
        while len(accepted) < clients:
            turns += 1
            await asyncio.sleep(0)
        for server in servers:
            server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    for client in waiting:
        client.close()
    return turns


def test_clients_that_come_at_once_do_not_wait_for_a_turn_each() -> None:
    one, many = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    assert turns_until_accepted([one], 64) >= 64
    assert turns_until_accepted(handles(many), 64) <= 8
