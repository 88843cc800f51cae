"""A server that plays a script of bytes for each request, and remembers what it received.

A script is a sequence of actions: ``bytes`` are written at once and in a packet of their own; a
`Gate` waits until the test opens it; `HANG` writes nothing more until the client is gone; `CUT`
closes the connection and `RESET` breaks it. Nothing sleeps: a test opens gates and waits for
conditions.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

import httptools


class End(Enum):
    """How a script can stop before its answer is complete."""

    HANG = "hang"
    CUT = "cut"
    RESET = "reset"


HANG, CUT, RESET = End.HANG, End.CUT, End.RESET


class Gate:
    """Closed until a test opens it; a script waits there."""

    def __init__(self) -> None:
        self.reached = threading.Event()  # a script waits here, or has passed
        self._lock = threading.Lock()
        self._is_open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def open(self) -> None:
        """Let every script that waits here go on, and those that come later pass."""
        with self._lock:
            self._is_open = True
            for loop, event in self._waiting:
                loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        event = asyncio.Event()
        with self._lock:
            if self._is_open:
                event.set()
            self._waiting.append((asyncio.get_running_loop(), event))
        self.reached.set()
        await event.wait()


@dataclass(frozen=True)
class Pace:
    """Wait that long: an engine's time for a token, where the time itself is what is tested."""

    seconds: float


Action = bytes | Gate | Pace | End
Script = Sequence[Action]


@dataclass(eq=False)
class Received:
    """One request, byte for byte, and what became of its connection."""

    method: str = ""
    target: str = ""  # path and query as sent
    headers: list[tuple[str, str]] = field(default_factory=list)  # in order, names as sent
    body: bytes = b""
    head: bytes = b""  # request line and headers as sent
    at_s: float = 0.0  # time.monotonic() when it was complete
    gone_s: float | None = None  # when the client went away before the answer was complete
    gone: threading.Event = field(default_factory=threading.Event)
    answered: threading.Event = field(default_factory=threading.Event)  # the script was played

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """The value of a header; None where it is absent. A repeated one fails the test."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    def json(self) -> dict[str, object]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


Answer = Callable[[Received], Script]


class Upstream:
    """A server on a free port of 127.0.0.1, on a thread of its own. Use it as a context manager.

    POSTs are answered by the scripts given to `play`, in order, the last one for ever; or by one
    function of the request. GETs are answered from ``pages`` (path → answer function), so that
    health checks and metrics do not use up scripts; other GETs are a 404.
    """

    def __init__(self, *scripts: Script | Answer, pages: dict[str, Answer] | None = None) -> None:
        self.received: list[Received] = []
        self.pages: dict[str, Answer] = dict(pages or {})
        self.connections = 0  # accepted so far
        self._scripts: list[Script | Answer] = list(scripts)
        self._changed = threading.Condition()
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._connections: set[_Connection] = set()

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"

    def play(self, *scripts: Script | Answer) -> None:
        """Answer the coming POSTs with these, in order; the last one for ever."""
        with self._changed:
            self._scripts = list(scripts)

    def wait_for(self, count: int, within_s: float = 10.0) -> list[Received]:
        """Wait until that many POSTs have been received, and give them all."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.received) >= count, within_s), (
                f"{len(self.received)} of {count} requests within {within_s} s"
            )
            return list(self.received)

    def __enter__(self) -> Upstream:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    # -- on the server's thread ----------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: _Connection(self), sock=self._socket, backlog=2048)
        )
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            for connection in list(self._connections):
                connection.transport.abort()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    def script_for(self, request: Received) -> Script:
        if request.method in ("GET", "HEAD"):
            page = self.pages.get(request.path)
            return page(request) if page else (NOT_FOUND,)
        with self._changed:
            self.received.append(request)
            self._changed.notify_all()
            chosen = self._scripts.pop(0) if len(self._scripts) > 1 else None
            if chosen is None:
                chosen = self._scripts[0] if self._scripts else (NOT_FOUND,)
        return chosen(request) if callable(chosen) else chosen


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._parser = httptools.HttpRequestParser(self)
        self._bytes = bytearray()
        self._request = Received()
        self._body = bytearray()
        self._playing: asyncio.Task[None] | None = None
        self._waiting: Received | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._upstream.connections += 1
        self._upstream._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def eof_received(self) -> bool:
        self._client_gone()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream._connections.discard(self)
        self._client_gone()
        if self._playing is not None:
            self._playing.cancel()

    def _client_gone(self) -> None:
        if self._waiting is not None and self._waiting.gone_s is None:
            self._waiting.gone_s = time.monotonic()
            self._waiting.gone.set()

    # -- httptools' callbacks ------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self._request.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        head, _, _ = bytes(self._bytes).partition(b"\r\n\r\n")
        self._request.head = head

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        request, self._request = self._request, Received()
        request.method = self._parser.get_method().decode()
        request.body = bytes(self._body)
        request.at_s = time.monotonic()
        self._body.clear()
        self._bytes.clear()
        self._waiting = request
        script = self._upstream.script_for(request)
        self._playing = asyncio.ensure_future(self._play(request, script))

    async def _play(self, request: Received, script: Script) -> None:
        for action in script:
            if isinstance(action, bytes):
                self.transport.write(action)
                await asyncio.sleep(0)
            elif isinstance(action, Gate):
                await action.wait()
            elif isinstance(action, Pace):
                await asyncio.sleep(action.seconds)
            elif action is HANG:
                return
            else:
                self._waiting = None
                if action is RESET:
                    sock = self.transport.get_extra_info("socket")
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.transport.close()
                break
        self._waiting = None
        request.answered.set()


@contextmanager
def refusing_address() -> Iterator[str]:
    """An address where nobody listens, kept free of others meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
