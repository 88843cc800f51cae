"""Requests as no client should send them, and what an answer to any of them has to be.

`cases` generates whole requests as bytes: bodies, headers, paths, methods, encodings and framings,
right and wrong. `verdict` sends one over a socket of its own and says what is wrong with the
answer: a failure of ours, a hang, or an error that is not in OpenAI's shape.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from dataclasses import dataclass, field
from typing import Any

import httptools
from hypothesis import strategies as st

from proxy.front import ENDPOINTS
from tests.fakes import answers
from tests.fakes.upstream import Received, Script
from tests.joulegate_server import ADMIN, KEY, TEAMS, config_of

PATIENCE_S = 20.0  # an answer that takes longer is a hang
LIMIT_BYTES = 65_536  # server.max_body_bytes while fuzzing, so that some bodies are too large


@dataclass(frozen=True)
class Case:
    """One request."""

    raw: bytes
    path: str
    method: str
    waits: bool  # the framing promises more than is sent: the server may wait for the rest

    def __repr__(self) -> str:
        return f"Case({self.raw[:3000]!r}, waits={self.waits})"


@dataclass
class Answer:
    """What came back."""

    status: int | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False
    wrong: str | None = None  # what is wrong with it; None: nothing


# -- what is sent --------------------------------------------------------------------------------

_odd_text = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "tiny",
            "auto",
            "",
            "\0",
            "a\r\nx-evil: 1",
            "\u202e\u2066",
            "ｔｉｎｙ",
            "ti\u200bny",
            "💥" * 9,
        ]
    ),
)
_leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    _odd_text,
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -1, 0]),
)
_value = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_odd_text, inner, max_size=3)
    ),
    max_leaves=6,
)
_part = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": _odd_text}),
    st.just({"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}),
    _value,
)
_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool", "x", "\ud800"])},
    optional={
        "content": st.one_of(_odd_text, st.lists(_part, max_size=2), _value),
        "tool_calls": _value,
        "name": _value,
    },
)
_names = st.sampled_from(["tiny", "tiny", "tiny", "tiny", "auto", "TINY", "tiny\0", "../tiny"])
_optional: dict[str, st.SearchStrategy[Any]] = {
    "stream": st.one_of(st.booleans(), _value),
    "stream_options": st.one_of(st.just({"include_usage": True}), _value),
    "prompt": _value,
    "input": _value,
    "tools": _value,
    "response_format": _value,
    "user": _value,
}
for _name in ("max_tokens", "max_completion_tokens", "n", "seed", "temperature", "top_p"):
    _optional[_name] = st.one_of(st.integers(-2, 9), _leaf)
_request = st.fixed_dictionaries(
    {"model": st.one_of(_names, _names, _value)},
    optional={"messages": st.one_of(st.lists(_message, max_size=2), _value), **_optional},
)


def _json(value: Any, ascii_only: bool) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def _deep(opening: bytes, depth: int) -> bytes:
    return b'{"model":"tiny","messages":[{"role":"user","content":' + opening * depth


_MESSAGE = b'{"model":"tiny","messages":[{"role":"user","content":"x"}]'
_attacks = st.sampled_from(
    [
        _deep(b"[", 50_000),
        _deep(b'{"a":', 9_000),
        _deep(b"[", 400) + b"]" * 400 + b"}]}",
        _MESSAGE + b',"max_tokens":' + b"9" * 5_000 + b"}",
        _MESSAGE + b',"temperature":1e999999}',
        _MESSAGE + b',"temperature":-1e-999999}',
        _MESSAGE + b',"n":NaN,"seed":Infinity}',
        _MESSAGE + b',"metadata":[' + b"[" * 900 + b"]" * 900 + b"]}",
        b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"\\ud800","messages":[]}',
        b'{"model":"tiny\\u0000","messages":[]}',
        b'{"model":"tiny","model":"auto","model":7,"messages":[]}',
        b'{"\\u006dodel":"tiny","messages":[]}',
        b"\xef\xbb\xbf" + _MESSAGE + b"}",
        (_MESSAGE + b"}").decode().encode("utf-16"),
        _MESSAGE + b"}" + b" " * LIMIT_BYTES,
        _MESSAGE + b"}}",
        _MESSAGE + b'}{"model":"tiny"}',
        b"[" + _MESSAGE + b"}]",
        b"null",
        b"",
        b"\0" * 100,
        b"\xff\xfe\xfd",
        b"model=tiny&messages=x",
    ]
)
_right = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["tiny", "tiny", "auto", "none"]),
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": _odd_text}), max_size=2
        ),
    },
    optional={
        "stream": st.booleans(),
        "stream_options": st.just({"include_usage": True}),
        "max_tokens": st.integers(0, 9),
        "n": st.integers(1, 2),
        "temperature": st.floats(0, 2),
        "input": _odd_text,
        "metadata": _value,
    },
)
_bodies = st.one_of(
    st.builds(_json, _right, st.booleans()),
    st.builds(_json, _right, st.booleans()),
    st.builds(_json, _right, st.booleans()),
    st.builds(_json, _request, st.booleans()),
    st.builds(_json, _request, st.booleans()),
    st.builds(_json, _request, st.booleans()).flatmap(
        lambda whole: st.integers(0, len(whole)).map(lambda end: whole[:end])
    ),
    st.builds(_json, _value, st.booleans()),
    _attacks,
    st.binary(max_size=64),
)


def _pack(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.compress(body, 1)
    if encoding == "deflate":
        return zlib.compress(body)
    if encoding == "gzip, cut":
        return gzip.compress(body)[:-9]
    if encoding == "gzip, twice":
        return gzip.compress(gzip.compress(body))
    if encoding == "gzip, bomb":
        return gzip.compress(body + b" " * 3_000_000)
    return body


_ENCODINGS = ["gzip", "deflate", "gzip, cut", "gzip, twice", "gzip, bomb", "br", "identity", "\xff"]

_paths = st.one_of(
    st.sampled_from(sorted(ENDPOINTS)),
    st.just("/v1/chat/completions"),
    st.sampled_from(
        [
            "/chat/completions",
            "/v1/chat/completions/",
            "/v1/chat/completions?a=%00&b",
            "/v1/chat%2fcompletions",
            "//v1/chat/completions",
            "/v1/../v1/chat/completions",
            "http://other.example/v1/chat/completions",
            "*",
            "/",
            "/v1/models",
            "/v1/models/tiny",
            "/v1/models/%00%ff%e2%82",
            "/v1/models/" + "a/" * 300,
            "/v1/route",
            "/v1/feedback",
            "/v1/usage/%0d%0ax-evil:%201",
            "/v1/usage/req_x",
            "/health",
            "/health/ready",
            "/metrics",
            "/admin/teams",
            "/admin/keys",
            "/admin/keys/x/rotate",
            "/admin/audit",
            "/dashboard/sign-in",
            "/dashboard/physics/overview?period=%00&tz=../../etc/passwd",
            "/meters/windows",
            "/openapi.json",
            "/" + "x" * 5_000,
        ]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(lambda t: "/" + t),
)
_methods = st.one_of(
    st.just("POST"),
    st.just("POST"),
    st.just("POST"),
    st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PRI", "post"]),
)
_odd_value = st.one_of(
    st.sampled_from(
        [
            b"",
            b"green",
            b"auto",
            b"0.5",
            b"1e999",
            b"nan",
            b"-1",
            b"0x10",
            b"\xc3\xbc\xff",
            b"a,b,,c",
            b"x" * 70,
            b",".join(b"%d" % i for i in range(40)),
            b"no-cache",
            b"no-store, max-age=\xb2",
            b"\t tab \x80\x9b31m",
        ]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"))
    .map(lambda t: t.encode("latin-1"))
    .filter(lambda v: len(v) < 200),
)
_header_names = st.sampled_from(
    [
        b"x-joulegate-policy",
        b"x-joulegate-min-quality",
        b"x-joulegate-max-energy-j",
        b"x-joulegate-max-ttft-ms",
        b"x-joulegate-tags",
        b"x-session-id",
        b"cache-control",
        b"content-type",
        b"user-agent",
        b"traceparent",
        b"idempotency-key",
        b"accept",
        b"cookie",
        b"origin",
        b"x-forwarded-for",
        b"x-request-id",
        b"range",
        b"host",
    ]
)
_headers = st.lists(st.tuples(_header_names, _odd_value), max_size=3)
_credentials = st.one_of(
    *[st.just(b"authorization: Bearer " + KEY.encode())] * 4,
    st.just(b"authorization: Bearer " + KEY.encode()),
    st.just(b"authorization: Bearer " + KEY.encode()),
    st.just(b"x-api-key: " + KEY.encode()),
    st.just(b"authorization: Bearer " + ADMIN.encode()),
    st.sampled_from(
        [b"authorization: Bearer \xff\xfe", b"authorization: Basic eDp5", b"x-nothing: 1"]
    ),
    _odd_value.map(lambda v: b"api-key: " + v),
)
_framings = st.one_of(
    *[st.just("length")] * 8,
    st.just("chunked"),
    st.sampled_from(
        [
            "too long",
            "too short",
            "none",
            "both",
            "two lengths",
            "negative",
            "not a number",
            "unknown coding",
            "chunked, identity",
            "bad chunk",
            "trailers",
            "folded",
            "bare lf",
            "expect",
            "1.0",
            "upgrade",
            "websocket",
            "space before colon",
            "nul in header",
        ]
    ),
)


def _chunked(body: bytes, trailers: bytes = b"") -> bytes:
    middle = len(body) // 3
    pieces = [piece for piece in (body[:middle], body[middle:]) if piece]
    framed = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return framed + b"0\r\n" + trailers + b"\r\n"


# The header lines that frame a body of that length; what is not here is a matter of the body.
_LINES = {
    "too long": b"content-length: %d",
    "too short": b"content-length: %d",
    "both": b"content-length: %d\r\ntransfer-encoding: chunked",
    "two lengths": b"content-length: %d\r\ncontent-length: 1",
    "negative": b"content-length: -%d",
    "not a number": b"content-length: 0x%d",
    "unknown coding": b"content-length: %d\r\ntransfer-encoding: xchunked",
    "chunked, identity": b"content-length: %d\r\ntransfer-encoding: chunked, identity",
    "folded": b"content-length: %d\r\nx-folded: a\r\n transfer-encoding: chunked",
    "expect": b"content-length: %d\r\nexpect: 100-continue",
    "upgrade": b"content-length: %d\r\nconnection: upgrade\r\nupgrade: h2c",
    "websocket": b"content-length: %d\r\nconnection: upgrade\r\nupgrade: websocket",
    "space before colon": b"content-length : %d",
    "nul in header": b"content-length: %d\r\nx-nul: a\0b",
}
_SURE = frozenset({"length", "chunked", "trailers", "bad chunk", "expect", "1.0"})


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any request, most of them near a right one."""
    body, framing, method, path = draw(_bodies), draw(_framings), draw(_methods), draw(_paths)
    lines = [b"host: joulegate", draw(_credentials)]
    lines += [name + b": " + value for name, value in draw(_headers)]
    if draw(st.integers(0, 7)) == 0:
        encoding = draw(st.sampled_from(_ENCODINGS))
        body = _pack(body, encoding)
        lines.append(b"content-encoding: " + encoding.split(",")[0].encode("latin-1"))
    size = len(body) + {"too long": 7, "too short": -min(len(body), 5)}.get(framing, 0)
    sent = body
    if framing in ("chunked", "trailers", "bad chunk"):
        lines.append(b"transfer-encoding: chunked")
        evil = b"authorization: Bearer x\r\nx-late: 1\r\n" if framing == "trailers" else b""
        sent = _chunked(body, evil)
        if framing == "bad chunk":
            sent = b"zz\r\n" + sent
    elif framing != "none":
        lines.append((_LINES.get(framing) or b"content-length: %d") % size)
    end = b"\n" if framing == "bare lf" else b"\r\n"
    version = b"HTTP/1.0" if framing == "1.0" else b"HTTP/1.1"
    first = method.encode() + b" " + path.encode() + b" " + version
    raw = end.join([first, *lines, b"", b""]) + sent
    return Case(raw, path, method, framing not in _SURE or method in ("HEAD", "TRACE", "PRI"))


# -- what comes back -----------------------------------------------------------------------------


class _Parser:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.answer.complete:
            self.answer.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if not self.answer.complete:
            self.answer.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self.answer.complete:
            self.answer.body += body

    def on_message_complete(self) -> None:
        if self.answer.status is not None and self.answer.status < 200:
            self.answer.status = None  # 100 Continue
            self.answer.headers.clear()
        else:
            self.answer.complete = True


def ask(port: int, case: Case) -> Answer:
    """Send it, and read one answer. A server that may wait for more is told there is none."""
    answer = Answer()
    reader = _Parser(answer)
    begun_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        try:
            sock.sendall(case.raw)
            if case.waits:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # answered and closed before it had all: the answer is there to be read
        try:
            while not answer.complete:
                data = sock.recv(65_536)
                if not data:
                    break
                reader.parser.feed_data(data)
        except TimeoutError:
            answer.wrong = f"hang: nothing for {time.monotonic() - begun_s:.0f} s"
        except ConnectionResetError:
            pass
        except httptools.HttpParserError as error:
            answer.wrong = f"the answer is not HTTP: {error}"
    return answer


def verdict(port: int, case: Case) -> Answer:
    """The answer to a case, and in ``wrong`` what is wrong with it."""
    answer = ask(port, case)
    if answer.wrong is not None:
        return answer
    if answer.status is None:
        if not case.waits:
            answer.wrong = "closed without an answer"
    elif answer.status >= 500:
        answer.wrong = f"status {answer.status}: {answer.body[:300]!r}"
    elif any(name.startswith(b"x-evil") or name == b"x-late" for name, _ in answer.headers):
        answer.wrong = f"a header was injected: {answer.headers}"
    elif answer.status >= 400 and case.method != "HEAD" and answer.complete:
        answer.wrong = _shape(case, answer)
    return answer


def _shape(case: Case, answer: Answer) -> str | None:
    """What is wrong with an error's shape. Pages and the agents' route have shapes of their own."""
    if "/dashboard" in case.path or "/meters/" in case.path:
        return None
    try:
        error = json.loads(answer.body)["error"]
        good = {"message", "type", "param", "code"} <= set(error) and error["message"]
    except (ValueError, TypeError, KeyError):
        good = False
    return None if good else f"not an error of OpenAI's: {answer.status} {answer.body[:200]!r}"


# -- who is asked --------------------------------------------------------------------------------


def any_answer(request: Received) -> Script:
    """What an engine says that takes anything."""
    try:
        return answers.like_an_engine()(request)
    except (ValueError, AssertionError, RecursionError):
        return answers.answer(answers.CHAT)


def config(url: str) -> dict[str, Any]:
    """Joulegate's config while fuzzing: keys, a cache, and a limit that bodies can exceed."""
    return config_of(
        url,
        teams=TEAMS,
        cache={"enabled": True},
        server={
            "max_body_bytes": LIMIT_BYTES,
            "stop_deadline_s": 1,
            "failed_keys_per_minute": 0,
        },
        log={"level": "warning"},
    )
