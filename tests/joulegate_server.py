"""Joulegate itself, serving on a free port: in a thread for most tests, in a process for a few."""

from __future__ import annotations

import asyncio
import faulthandler
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
import uvicorn
import uvloop
import yaml

from meters.receipts import Receipt
from meters.types import UsageRecord
from proxy import app, serving
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.waiting import until

Config = Mapping[str, Any]
KEY = "sk-test-0123456789abcdef"
ADMIN = "sk-admin-0123456789abcdef"
TEAMS = {"physics": {"keys": [KEY]}, "operators": {"keys": [{"key": ADMIN, "role": "admin"}]}}


@dataclass
class Reply:
    """An answer, byte for byte."""

    status: int
    headers: list[tuple[str, str]]  # in order, names in lower case
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header; None where it is absent. A repeated one fails the test."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def code(self) -> str | None:
        """The machine-readable code of an error, its shape checked."""
        value = self.json()
        assert value.pop("type", "error") == "error", value  # Anthropic's API has that too
        assert list(value) == ["error"], value
        assert {"message", "type", "param", "code"} <= set(value["error"]), value
        assert value["error"]["message"], value
        assert self.header("x-request-id"), self.headers
        code = value["error"]["code"]
        assert code is None or isinstance(code, str)
        return code


@dataclass
class Joulegate:
    """A running Joulegate."""

    port: int
    log: Path | None = None
    proxy: app.Proxy | None = None  # only in a thread
    process: subprocess.Popen[bytes] | None = None  # only in a process
    headers: dict[str, str] = field(default_factory=dict)  # sent with every request

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as ``base_url``."""
        return f"{self.address}/v1"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def open(
        self,
        body: bytes | Mapping[str, object],
        *,
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPConnection:
        """A connection on which that was POSTed; ``getresponse`` is for the caller."""
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        connection = self.connect()
        fields = {"content-type": "application/json", **self.headers, **(headers or {})}
        connection.request("POST", path, raw, fields)
        return connection

    def post(
        self,
        body: bytes | Mapping[str, object],
        *,
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """The whole answer to a POST."""
        connection = self.open(body, path=path, headers=headers)
        try:
            return reply(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, *, method: str = "GET", **headers: str) -> Reply:
        """The answer to a request without a body; ``_`` in header names stands for ``-``."""
        fields = {**self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection = self.connect()
        try:
            connection.request(method, path, headers=fields)
            return reply(connection.getresponse())
        finally:
            connection.close()

    def client(self, key: str = "any") -> openai.OpenAI:
        """OpenAI's own client, which tries nothing twice."""
        return openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=0)

    def wait_for_meters(self) -> None:
        """Until every engine's meter has closed a window: before that nothing is metered."""
        assert self.proxy is not None
        engines = self.proxy.pool.engines
        until(lambda: all(engine.reported for engine in engines))

    def record(self, request_id: str | None) -> UsageRecord:
        """The usage record of a request, as soon as there is one."""
        assert request_id is not None
        return self.records(lambda record: record.request_id == request_id)[0]

    def records(self, wanted: Callable[[UsageRecord], bool] = lambda _: True) -> list[UsageRecord]:
        """The records that are wanted, as soon as there are any."""
        assert self.proxy is not None
        recent = self.proxy.accounts.recent
        return until(
            lambda: [record for record in list(recent.values()) if wanted(record)], every_s=0.002
        )

    def hang_up(self, said: str) -> None:
        """SIGHUP to the process; waits until its log has that."""
        assert self.process is not None
        assert self.log is not None
        log = self.log
        self.process.send_signal(signal.SIGHUP)
        until(lambda: said in log.read_text(), told=log.read_text)

    def metered(self, request_id: str | None) -> Receipt:
        """The ledger's receipt of a request, as soon as it is metered."""
        assert self.proxy is not None
        assert request_id is not None
        ledger, found = self.proxy.ledger, []

        def look() -> bool:
            found[:] = [ledger.receipt(request_id) if ledger else None]
            return found[0] is not None and found[0].state == "metered"

        until(look, told=lambda: found)
        return found[0]


Start = Callable[[Config], Joulegate]


def reply(response: http.client.HTTPResponse) -> Reply:
    """A response, read to its end."""
    body = response.read()
    headers = [(name.lower(), value) for name, value in response.getheaders()]
    return Reply(response.status, headers, body)


def config_of(*upstreams: Any, **more: Any) -> dict[str, Any]:
    """A config with one backend of the group ``tiny`` for each upstream: a base URL, or a mapping
    of backend settings. Quick to give up and without a cache, unless ``more`` says so."""
    backends = []
    for number, upstream in enumerate(upstreams):
        given = {"url": upstream} if isinstance(upstream, str) else dict(upstream)
        backends.append({"model": "tiny", "name": f"tiny-{number}", **given})
    config: dict[str, Any] = {
        "backends": backends,
        "cache": {"enabled": False},
        "retries": {"health_check_s": 0, "wait_s": 0.01},
        "server": {"stop_deadline_s": 1},
        "log": {"level": "error"},
    }
    return {**config, **more}


@pytest.fixture
def joulegate(tmp_path: Path) -> Iterator[Start]:
    """Starts Joulegate with a config, as written in config.yaml; all are stopped at the end."""
    stops: list[Callable[[], None]] = []

    def start(config: Config) -> Joulegate:
        running, stop = in_thread(config, tmp_path / f"joulegate-{len(stops)}")
        stops.append(stop)
        return running

    yield start
    for stop in reversed(stops):
        stop()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A backend that answers as an engine does, until it is told to do something else."""
    with Upstream(answers.like_an_engine(), pages=answers.engine_pages()) as running:
        yield running


@pytest.fixture
def running(joulegate: Start, upstream: Upstream) -> Joulegate:
    """Joulegate in front of that backend alone, with nothing else set."""
    return joulegate(config_of(upstream.base_url))


@pytest.fixture
def joulegate_process(tmp_path: Path) -> Iterator[Start]:
    """Likewise, as ``joulegate serve`` in a process of its own."""
    running: list[Joulegate] = []

    def start(config: Config) -> Joulegate:
        running.append(in_process(config, tmp_path / f"joulegate-{len(running)}"))
        return running[-1]

    yield start
    for one in running:
        assert one.process is not None
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGKILL)
        one.process.wait()


def write(config: Config, folder: Path) -> Path:
    """The config as a file in a folder of its own, its state beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"state_dir": str(folder / "state"), **config}))
    return path


class Prompt(uvicorn.Server):
    """uvicorn without the tenths of a second that it lets pass before it looks whether to end, and
    while it does: a test run stops hundreds of servers. Those in a process are as delivered."""

    async def main_loop(self) -> None:
        looks = 0
        while not self.should_exit:
            if looks % 20 == 0:  # uvicorn's own pace, at which it notes the time of day
                await self.on_tick(looks // 20)
            looks += 1
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        listening: list[Any] = [*self.servers, *(sockets or [])]
        for one in listening:
            one.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown()
        else:
            await self.lifespan.shutdown()


def in_thread(config: Config, folder: Path) -> tuple[Joulegate, Callable[[], None]]:
    """Joulegate on a thread of this process, and what stops it."""
    prepared = serving.prepare(str(write(config, folder)), port=0, environment={})
    listening = serving.listen("127.0.0.1", 0)
    proxy = app.build(prepared.settings, prepared.facts)
    server = Prompt(serving.server(proxy, prepared.settings).config)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve(sockets=[listening]))

    thread = threading.Thread(target=run, name="joulegate", daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 60  # the litellm SDK takes half of it on a busy machine
    while not server.started:
        assert thread.is_alive(), "Joulegate ended while it started"
        assert time.monotonic() < deadline_s, "Joulegate did not start"
        time.sleep(0.002)  # between two looks at uvicorn's flag

    def stop() -> None:
        server.should_exit = True
        thread.join(20)
        prepared.close()
        listening.close()
        if thread.is_alive():
            faulthandler.dump_traceback(all_threads=True)  # what it waits for
        assert not thread.is_alive(), "Joulegate did not stop"

    return Joulegate(port=listening.getsockname()[1], proxy=proxy), stop


def in_process(config: Config, folder: Path, *arguments: str) -> Joulegate:
    """``joulegate serve`` in a process; it has said that it serves when this returns."""
    log = folder / "log.txt"
    path = write(config, folder)
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(path), "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            stderr=output,
            stdout=output,
            cwd=Path(__file__).resolve().parent.parent,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    deadline_s = time.monotonic() + 90  # two workers on a busy machine take their time
    while True:
        text = log.read_text()
        said = re.search(r"http://127\.0\.0\.1:(\d+)", text)
        if said:
            return Joulegate(port=int(said[1]), log=log, process=process)
        assert process.poll() is None, f"joulegate ended: {text}"
        assert time.monotonic() < deadline_s, f"joulegate is not ready: {text}"
        time.sleep(0.01)  # between two looks at another process's log


def is_refused(port: int) -> bool:
    """Whether nobody accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False
