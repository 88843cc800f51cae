"""A very fast upstream for benchmarks: canned answers, so that what is measured is the gateway.

``python -m benchmarks.mock_upstream PORT``. A body with ``"stream":true`` gets 64 events, one
every PACE_S, each in a write of its own, as an engine's decode steps are; others get 1 KB of JSON,
those with ``"seed":100`` after 100 ms, as from an engine that has to think.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator

import httptools
import uvloop

EVENTS = 64
PACE_S = 0.005
PROMPT_TOKENS, OUTPUT_TOKENS = 60, 64


def _length(body: bytes, kind: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: " + kind
    return head + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def _usage() -> bytes:
    total = PROMPT_TOKENS + OUTPUT_TOKENS
    return b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (
        PROMPT_TOKENS,
        OUTPUT_TOKENS,
        total,
    )


def _chat() -> bytes:
    start = (
        b'{"id":"chatcmpl-bench","object":"chat.completion","created":1790000000,'
        b'"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"'
    )
    end = b'"},"logprobs":null,"finish_reason":"stop"}],"usage":' + _usage() + b"}"
    return start + b"word " * ((1024 - len(start) - len(end)) // 5) + end


def _events() -> Iterator[bytes]:
    start = (
        b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1790000000,'
        b'"model":"bench","choices":['
    )
    choice = b'{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}'
    for _ in range(EVENTS - 1):
        yield start + choice + b"]}\n\n"
    yield start + choice.replace(b"null}", b'"stop"}') + b"]}\n\n"


def _framed(piece: bytes) -> bytes:
    return b"%x\r\n" % len(piece) + piece + b"\r\n"


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
CHAT = _length(_chat())
STREAM = [_framed(event) for event in _events()]
USAGE_EVENT = _framed(
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"bench","choices":[],"usage":' + _usage() + b"}\n\n"
)
DONE = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
PAGES = {
    b"/v1/models": _length(b'{"object":"list","data":[{"id":"bench","object":"model"}]}'),
    b"/get_server_info": _length(b"{}"),
    b"/version": _length(b'{"version":"0.32.0"}'),
    b"/health": _length(b"ok", b"text/plain"),
    b"/metrics": _length(
        b'vllm:num_requests_running{engine="0",model_name="bench"} 8.0\n'
        b'vllm:num_requests_waiting{engine="0",model_name="bench"} 0.0\n'
        b'vllm:kv_cache_usage_perc{engine="0",model_name="bench"} 0.25\n',
        b"text/plain",
    ),
}
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body: list[bytes] = []
        self._next = 0
        self._usage = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path, self._path = self._path, b""
        body, self._body = b"".join(self._body), []
        if self._parser.get_method() == b"GET":
            self.transport.write(PAGES.get(path, NOT_FOUND))
            return
        # Gateways may write the body anew: with or without the space, and usage asked for.
        compact = body.replace(b'": ', b'":') if len(body) < 4096 else body[:64] + body[-256:]
        if b'"stream":true' not in compact:
            if b'"seed":100' in compact:
                self._loop.call_later(0.1, self.transport.write, CHAT)
            else:
                self.transport.write(CHAT)
            return
        self._usage = b'"include_usage":true' in compact
        self._next = 0
        self.transport.write(STREAM_HEAD)
        self._step()

    def _step(self) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(STREAM[self._next])
        self._next += 1
        if self._next < len(STREAM):
            self._loop.call_later(PACE_S, self._step)
            return
        if self._usage:
            self.transport.write(USAGE_EVENT)
        self.transport.write(DONE)


async def serve(port: int) -> None:
    """Serve until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(loop), "127.0.0.1", port, backlog=2048, reuse_address=True
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
