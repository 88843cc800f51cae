"""One client's connection: uvicorn's, with limits on what a stranger can make it hold, and with
errors in OpenAI's shape also for bytes that never become a request.

uvicorn has no limit on the size of a head or on the time that a request takes to arrive, and
answers bytes that are not HTTP in plain text.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy import errors
from proxy.errors import ApiError

MAX_HEAD_BYTES = 65_536  # request line and headers; common servers take 8 to 64 kB
IDLE_S = 75.0  # for anything to arrive on a new connection, as long as one is kept after an answer
HEAD_S = 30.0  # for a head to arrive
BODY_S = 300.0  # for a body to arrive: 32 MiB at 1 Mbit/s take 268 s
MAX_JOINED_BYTES = 65_536  # larger bodies are not copied to go with their head
HEAD = b"HTTP/1.1 "
REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class OneSegment:
    """A transport that sends the head of an answer together with what follows it.

    uvicorn writes them apart: two calls of the system, two segments, and a client woken twice.
    A head that nothing follows at once is sent when the event loop comes round again.
    """

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        head = self._head
        if head is not None:
            self._head = None
            if len(data) > MAX_JOINED_BYTES:
                self._transport.write(head)
            else:
                data = head + data
        elif data.startswith(HEAD):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            if not self._transport.is_closing():
                self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """A connection that is closed when its requests are not HTTP, too large or too slow."""

    _in_head = False  # a message has begun, its head is not complete
    _in_body = False
    _resuming = False  # what is parsed now is the head that _decline made up
    _head_bytes = 0
    _slow: asyncio.TimerHandle | None = None  # runs while a message is incomplete
    _silent: asyncio.TimerHandle | None = None  # runs until the first byte

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = OneSegment(transport, self.loop)  # type: ignore[assignment]
        # Without a word: a client that keeps it for later would take one for its answer.
        self._silent = self.loop.call_later(IDLE_S, self.transport.close)

    def data_received(self, data: bytes) -> None:
        if self._silent is not None:
            self._silent.cancel()
            self._silent = None
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._end(errors.not_http())
            return
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._end(errors.head_too_large(MAX_HEAD_BYTES))
                return
        if self._slow is None and (self._in_head or self._in_body):
            self._slow = self.loop.call_later(
                HEAD_S if self._in_head else BODY_S, self._took_too_long
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        if self._silent is not None:
            self._silent.cancel()
        super().connection_lost(exc)

    def _decline(self, rest: bytes) -> None:
        """Go on in HTTP/1.1 with a request that offers another protocol, as clients in Java do
        with HTTP/2 on every request. The parser leaves out its body; another one reads that."""
        body = (b"content-length", b"transfer-encoding")
        lines = [b"%s: %s\r\n" % line for line in self.headers if line[0] in body]
        self.parser = httptools.HttpRequestParser(self)
        self._resuming = True
        self.data_received(b"POST / HTTP/1.1\r\n" + b"".join(lines) + b"\r\n" + rest)

    # -- the parser's callbacks ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._resuming:
            return
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes after the body are trailers: they could pass for headers that were checked.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._resuming:
            self._resuming = False
            return
        self._in_head, self._in_body = False, True
        self._stop_clock()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # its body is still to come, see _decline
        self._in_body = False
        self._stop_clock()
        super().on_message_complete()

    # -- ends ------------------------------------------------------------------------------------

    def _stop_clock(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _answering_an_earlier_one(self) -> bool:
        """Whether a request before the one that is arriving has not got its whole answer."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return not self._in_body or bool(self.pipeline)

    def _took_too_long(self) -> None:
        self._slow = None
        if self._answering_an_earlier_one():  # its answer is not to be cut off
            self._slow = self.loop.call_later(HEAD_S, self._took_too_long)
            return
        self._end(errors.request_timeout())

    def _end(self, error: ApiError) -> None:
        """Close, and say why where that cannot be taken for the answer to something else."""
        self._stop_clock()
        cycle = self.cycle
        begun = cycle is not None and self._in_body and cycle.response_started
        if not begun and not self._answering_an_earlier_one():
            body = error.body()
            head = b"HTTP/1.1 %d %s\r\n" % (error.status, REASONS[error.status])
            lines = [
                *error.headers(),
                (b"x-request-id", b"req_" + os.urandom(12).hex().encode()),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            head += b"".join(b"%s: %s\r\n" % line for line in lines)
            self.transport.write(head + b"\r\n" + body)
        self._in_head = self._in_body = False
        self.transport.close()
