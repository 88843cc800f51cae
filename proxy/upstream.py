"""Sending a request to a backend that speaks OpenAI's API, and getting its answer's first bytes.

One connection pool for the process. Cookies are not kept, no proxy is taken from the environment,
redirects are not followed: an upstream cannot send us elsewhere. Compression is never asked for;
answers that are compressed all the same are unpacked, since what is in them has to be read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import cast

import aiohttp
import orjson
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from proxy.backends import Engine
from proxy.errors import ApiError, upstream_failed, upstream_timeout, upstream_unreachable
from proxy.providers import litellm_sdk
from proxy.settings import Time

log = logging.getLogger("joulegate.upstream")

# Request headers that reach the upstream; all others stay here. None of them can choose an address.
PASSED_ON = frozenset(
    {
        "accept",
        "content-type",
        "user-agent",
        "openai-organization",
        "openai-project",
        "openai-beta",
        "idempotency-key",
        "traceparent",
        "tracestate",
        "anthropic-version",
        "anthropic-beta",
        "x-session-id",
        "x-client-request-id",
    }
)

# Response headers that belong to one connection, or that we set ourselves.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"server",
        b"date",
        b"set-cookie",
        b"content-length",
        b"access-control-allow-origin",
        b"access-control-allow-credentials",
        b"access-control-expose-headers",
        b"alt-svc",  # these three are about the upstream's own address
        b"clear-site-data",
        b"strict-transport-security",
    }
)
MAX_HELD_BYTES = 8_388_608  # of an answer; what is larger is passed on, or left, unread
# Content codings that are unpacked on the way.
UNPACKED = frozenset({b"gzip", b"deflate", b"br", b"zstd"})
# What is answered over chat completions where an engine has no such route.
BRIDGEABLE = frozenset({"/responses", "/messages"})
NO_ROUTE = frozenset({404, 405})
# What engines and the servers before them say to a path that they do not know, and to no other.
_NOTHING_THERE = frozenset(
    {"", "not found", "file not found", "page not found", "method not allowed"}
)
# What is said of the key that is sent there, or of the model that is asked for: the config's.
MISCONFIGURED = frozenset({401, 403, 404})
# Statuses that another backend may do better at.
WORTH_ANOTHER = frozenset({429, 500, 502, 503, 504, 529}) | MISCONFIGURED


class Held:
    """A response whose answer, or the beginning of it, has been read; looks like a response."""

    def __init__(self, response: aiohttp.ClientResponse, body: bytes, complete: bool) -> None:
        self._response = response
        self._body = body
        self._complete = complete
        self.status = response.status
        self.headers = response.headers
        self.raw_headers = response.raw_headers
        self.content = self

    @property
    def closed(self) -> bool:
        return self._response.closed

    def close(self) -> None:
        self._response.close()

    async def readany(self) -> bytes:
        if self._body:
            body, self._body = self._body, b""
            return body
        return b"" if self._complete else await self._response.content.readany()

    async def read(self) -> bytes:
        return self._body if self._complete else self._body + await self._response.read()


class Connector(aiohttp.TCPConnector):
    """Connections that are kept, without those that got something while nobody had asked.

    aiohttp gives what came by itself (a second answer, a 408 for being idle) to whoever uses the
    connection next: to another team, and from then on each gets the answer of the one before.
    """

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            protocol = connection.protocol
            if protocol is None or not protocol.should_close:
                return connection
            connection.close()
        return None


class Upstream:
    """The client side of the proxy."""

    def __init__(self, limits: Time) -> None:
        self.limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[tuple[str, str], URL] = {}

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=Connector(limit=0, ttl_dns_cache=60, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=None, sock_read=None, sock_connect=self.limits.connect_s
            ),
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the upstream client was not started")
        return self._session

    def url(self, engine: Engine, path: str) -> URL:
        key = (engine.url, path)
        found = self._urls.get(key)
        if found is None:
            found = self._urls[key] = URL(engine.url + path)
        return found

    async def post(
        self, engine: Engine, path: str, body: bytes, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """The response once its headers are in. Raises what aiohttp raises."""
        if engine.bridges(path):
            # Looks like a response to everything that uses one.
            return cast(aiohttp.ClientResponse, await litellm_sdk.post(engine, path, body))
        response = await self.session.post(
            self.url(engine, path), data=body, headers=headers, allow_redirects=False
        )
        if (
            path in BRIDGEABLE
            and response.status in NO_ROUTE
            and engine.settings.bridge is None
            and response.content_type != "text/event-stream"
        ):
            said, whole = await beginning(response, MAX_HELD_BYTES)
            if not is_no_route(said, path):
                return cast(aiohttp.ClientResponse, Held(response, said, whole))
            response.close()
            log.warning(
                "backend %s has no %s: from now on it is asked over its chat completions",
                engine.name,
                path,
            )
            engine.bridged |= {path}
            await asyncio.to_thread(litellm_sdk.sdk)  # seconds, the first time
            return cast(aiohttp.ClientResponse, await litellm_sdk.post(engine, path, body))
        return response

    async def ask(
        self, engine: Engine, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> aiohttp.ClientResponse:
        """The answer to what names no model, once its headers are in. Raises what aiohttp does."""
        return await self.session.request(
            method,
            URL(engine.url + target),
            data=body or None,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                sock_connect=self.limits.connect_s, sock_read=self.limits.first_byte_s
            ),
        )


def is_no_route(body: bytes, path: str) -> bool:
    """Whether an error says that a server has no such path, rather than no such model or answer."""
    text = body.decode("utf-8", "replace").strip()
    try:
        told = orjson.loads(text)
    except orjson.JSONDecodeError:
        told = None
        if "<html" in text[:200].lower():
            return True
    if isinstance(told, dict):
        error = told.get("error", told)
        if isinstance(error, dict):
            error = error.get("message", error.get("detail", ""))
        text = str(error)
    said = text.lower().removeprefix("404").strip(" .:!")
    return said in _NOTHING_THERE or f"/v1{path}" in said


async def beginning(response: aiohttp.ClientResponse, limit: int) -> tuple[bytes, bool]:
    """An answer, and whether that is all: where nobody said how long it is, or it unpacks, no more
    than a little over ``limit`` bytes of it are read."""
    pieces: list[bytes] = []
    size = 0
    while size <= limit:
        piece = await response.content.readany()
        if not piece:
            return b"".join(pieces), True
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces), False


def request_headers(
    given: Mapping[bytes, bytes], engine: Engine, request_id: str
) -> dict[str, str]:
    """The headers to send upstream: the passed-on ones, then the backend's own."""
    headers = {
        text: value.decode("latin-1")
        for name, value in given.items()
        if (text := name.decode("latin-1")) in PASSED_ON
    }
    headers.update(engine.headers)
    headers["x-request-id"] = request_id
    headers.setdefault("content-type", "application/json")
    return headers


def response_headers(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """The upstream's headers as they go on to the client."""
    kept = []
    for name, value in response.raw_headers:
        lower = name.lower()
        if lower in HOP_BY_HOP or lower.startswith(b"x-joulegate-"):
            continue  # another Joulegate's word on itself would contradict ours
        if lower == b"content-encoding" and value.lower() in UNPACKED:
            continue
        if lower == b"x-request-id":
            lower = b"x-joulegate-upstream-request-id"
        kept.append((lower, value))
    return kept


def no_answer(engine: Engine, status: int) -> ApiError | None:
    """What to tell the client instead of what is no answer: it would follow a redirect, with its
    prompt and in x-api-key its key."""
    if 200 <= status < 300 or 400 <= status < 600:
        return None
    return upstream_failed(f"The backend {engine.name} answered with the status {status}.")


def as_error(engine: Engine, error: BaseException) -> ApiError:
    """What to tell the client of a failed call; names the backend, not its address."""
    if isinstance(error, (asyncio.TimeoutError, aiohttp.ServerTimeoutError)):
        return upstream_timeout(f"The backend {engine.name} did not accept a connection in time.")
    if isinstance(error, aiohttp.ClientConnectorError | ConnectionRefusedError):
        return upstream_unreachable(f"The backend {engine.name} cannot be reached. Try again.")
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return upstream_unreachable(f"The backend {engine.name} closed the connection. Try again.")
    return upstream_failed(f"The backend {engine.name} sent an answer that is not HTTP.")
