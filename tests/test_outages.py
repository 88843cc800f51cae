"""Serving goes on while PostgreSQL or the disk is gone, and nothing that finished is lost.

Each outage is a real one: a server killed, stopped or made read-only, a file system that is full.
What is checked is the same for all: every request is answered, a person is told once, the metric
says so, and afterwards the books hold every request and balance.
"""

from __future__ import annotations

import logging
import os
import pwd
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from meters.ledger import Ledger
from proxy import app
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Joulegate, Start, config_of
from tests.servers import Server, new_database, start_postgres
from tests.waiting import until

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
FEW, MANY = 3, 40


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """A PostgreSQL of these tests' own."""
    server = start_postgres()
    yield server
    server.close()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 24 MB of its own, where a server that runs as another user can go."""
    folder = Path(tempfile.mkdtemp(prefix="joulegate-small-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        folder.rmdir()
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


def fill(folder: Path) -> Path:
    """Write until nothing more fits; returns the file to remove."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    return filler


class Watched:
    """A Joulegate whose log and metrics are looked at while something is gone."""

    def __init__(
        self, running: Joulegate, part: str, warning: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.running = running
        self.part = part
        self.warning = warning
        self._log = caplog
        self._answered = 0

    def ask(self, times: int) -> None:
        for _ in range(times):
            began_s = time.monotonic()
            assert self.running.post(ASKED).status == 200
            assert time.monotonic() - began_s < 2.0
            self._answered += 1

    def until(self, degraded: bool) -> None:
        line = f'joulegate_degraded{{part="{self.part}"}} {float(degraded)}'
        until(lambda: line in self.running.get("/metrics").body.decode(), told=lambda: line)
        told = self.running.get("/health/ready").json()
        assert (self.part in told["degraded"]) is degraded, told

    @property
    def proxy(self) -> app.Proxy:
        assert self.running.proxy is not None
        return self.running.proxy

    def drained(self) -> None:
        assert self.proxy.drain is not None
        assert self.proxy.drain.wait(30)

    def settled(self) -> None:
        """All that was answered is in books that balance; a person was told once, and once again
        when it was over."""
        self.drained()
        self.until(degraded=False)
        proxy, ledger = self.proxy, self.proxy.ledger
        assert isinstance(ledger, Ledger)
        assert proxy.drain is not None
        balance = ledger.check()
        assert balance.balanced, balance.problems
        assert balance.requests == self._answered
        assert proxy.journal.lost == 0
        assert proxy.drain.quarantined == 0
        told = [record.getMessage() for record in self._log.records]
        assert len([message for message in told if self.warning in message]) == 1, told


@pytest.fixture
def watched(
    joulegate: Start, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> Callable[..., Watched]:
    caplog.set_level(logging.WARNING)

    def start(part: str, warning: str, **more: object) -> Watched:
        config = config_of(upstream.base_url, **more)
        one = Watched(joulegate(config), part, warning, caplog)
        one.ask(FEW)
        one.drained()
        return one

    return start


def test_postgresql_gone(postgres: Server, watched: Callable[..., Watched]) -> None:
    url = new_database(postgres.url, "gone")
    one = watched("ledger", "The ledger cannot be written", ledger={"url": url})
    postgres.kill()
    one.ask(FEW)
    one.until(degraded=True)
    one.ask(MANY)
    postgres.start()
    one.settled()


def test_postgresql_read_only(postgres: Server, watched: Callable[..., Watched]) -> None:
    url = new_database(postgres.url, "fixed")
    one = watched("ledger", "The ledger cannot be written", ledger={"url": url})
    _set(postgres.url, "default_transaction_read_only", "on")
    one.ask(FEW)
    one.until(degraded=True)
    one.ask(MANY)
    _set(postgres.url, "default_transaction_read_only", "off")
    one.settled()


def test_postgresql_stuck(postgres: Server, watched: Callable[..., Watched]) -> None:
    url = new_database(postgres.url, "stuck")
    one = watched("ledger", "The ledger cannot be written", ledger={"url": url})
    postgres.pause()
    try:
        one.ask(FEW)
        one.until(degraded=True)
        one.ask(MANY)
    finally:
        postgres.resume()
    one.settled()


def test_postgresql_full(
    postgres: Server, watched: Callable[..., Watched], small_disk: Path
) -> None:
    user = pwd.getpwnam("nobody")
    small_disk.chmod(0o755)
    os.chown(small_disk, user.pw_uid, user.pw_gid)
    space = small_disk / "space"
    space.mkdir()
    os.chown(space, user.pw_uid, user.pw_gid)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{space}'")  # type: ignore[call-overload]
        connection.execute("CREATE DATABASE narrow TABLESPACE small")
    url = postgres.url.rsplit("/", 1)[0] + "/narrow"
    one = watched("ledger", "The ledger cannot be written", ledger={"url": url})
    filler = fill(small_disk)
    one.ask(MANY)  # what fits into pages that are there already still fits
    until(lambda: one.ask(FEW) or "ledger" in one.proxy.degraded())
    one.until(degraded=True)
    one.ask(MANY)
    filler.unlink()
    one.settled()


def test_the_disk_of_journal_and_sqlite_full(
    watched: Callable[..., Watched], small_disk: Path
) -> None:
    # the ledger on the same disk has a warning of its own
    warning = "finished requests are held in memory"
    one = watched("journal", warning, state_dir=str(small_disk / "state"))
    filler = fill(small_disk)
    one.ask(MANY)  # the first of them still find room in the block that was begun
    one.until(degraded=True)
    one.ask(MANY)
    filler.unlink()
    one.settled()


def _set(url: str, name: str, value: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER SYSTEM SET {name} = {value}")  # type: ignore[call-overload]
        connection.execute("SELECT pg_reload_conf()")
