"""What a provider behind the litellm SDK answered instead of an answer.

The SDK raises an error of its own for each, with a status that it finds more fitting and with
words before the provider's; in the errors behind it stands what the provider really said.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pydantic

from proxy.errors import (
    ApiError,
    of_messages,
    upstream_failed,
    upstream_timeout,
    upstream_unreachable,
)

Named = list[tuple[str, str]]

# Headers of a refusal that reach the client.
WHEN_AGAIN = ("retry-after", "x-should-retry", "x-ratelimit-", "anthropic-ratelimit-")
LONGEST_WORDS = 2_000  # characters of an error page
# How the SDK tells of a provider that it got no answer from.
_NOBODY_THERE = re.compile(
    r"cannot connect to|connection (?:error|refused)|connect call failed", re.I
)
_CLOSED = re.compile(r"server disconnected|connection reset|peer closed|payload is not", re.I)
# What Python raises where something has another shape than expected; no lack of keys or packages.
_MISTAKEN = (
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    json.JSONDecodeError,
    pydantic.ValidationError,
)
# What the SDK puts before and after a provider's words.
_BEFORE = re.compile(
    r"^(?:(?:litellm\.)?\w+(?:Error|Exception): |\w*(?:Exception|Error)(?: \w+Error)? - )+"
)
_AFTER = re.compile(r"\.? Handle with `litellm\.\w+`\.?$")


class Refusal(NamedTuple):
    """An error for the client."""

    status: int
    body: bytes
    headers: Named


def refusal_of(error: Exception, backend: str, key: str | None, path: str, bridge: bool) -> Refusal:
    """What to tell a client of a call that failed. With ``bridge`` the backend speaks OpenAI's
    API, and its own words go on as they are."""
    said = str(getattr(error, "message", error))
    if key:
        said = said.replace(key, "REDACTED")
    status = _status_of(error)
    headers = _headers_of(error)
    unreadable = _ours(
        upstream_failed(f"The backend {backend} sent an answer that cannot be read.")
    )
    if status is None:
        name = type(error).__name__
        own = int(getattr(error, "status_code", None) or 502)
        if _NOBODY_THERE.search(said):
            return _ours(
                upstream_unreachable(f"The backend {backend} cannot be reached. Try again.")
            )
        if _CLOSED.search(said):
            return _ours(
                upstream_unreachable(f"The backend {backend} closed the connection. Try again.")
            )
        if name == "Timeout":
            return _ours(upstream_timeout(f"The backend {backend} sent nothing in time."))
        if not 400 <= own < 500:
            return unreadable
        status = own  # the SDK's own: nothing was sent
    elif status < 400:
        return unreadable
    said = _written_out(said)
    written, body = _object_in(said)
    told = body.get("error", body)
    if isinstance(body.get("error"), dict) and (
        bridge or (path == "/messages" and isinstance(told.get("type"), str))
    ):
        return Refusal(status, written, headers)  # as clients of that API know it
    if isinstance(told, str):
        told = {"message": told}
    told = told if told else _parsed_by_the_sdk(error)
    words = told.get("message") or told.get("detail")
    if not isinstance(words, str):
        words = _AFTER.sub("", _BEFORE.sub("", said))[:LONGEST_WORDS]
    words = words.replace(key, "REDACTED") if key else words
    return Refusal(status, in_openais_shape(status, words, told, _code_of(error)), headers)


def untranslatable(error: Exception) -> bool:
    """Whether the SDK fell over something that was not what it took it for."""
    *_, first = _behind(error)
    return isinstance(first, _MISTAKEN) or type(first) is Exception  # of no kind: its own


def refused(status: int, message: str) -> Refusal:
    """A refusal in our own words."""
    return Refusal(status, in_openais_shape(status, message), [])


def as_message(refusal: Refusal) -> bytes:
    """What a refusal says, as clients of the Messages API know it."""
    told = json.loads(refusal.body)
    error = told["error"]
    return refusal.body if told.get("type") == "error" else of_messages(refusal.status, error)


def _ours(error: ApiError) -> Refusal:
    headers = [(name.decode(), value.decode()) for name, value in error.headers()]
    return Refusal(error.status, error.body(), headers[1:])  # without the type of its content


def in_openais_shape(
    status: int, message: str, told: dict[str, Any] | None = None, code: str | None = None
) -> bytes:
    """An error as OpenAI words it, with what the provider called it where it did."""
    kinds = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    told = told or {}
    own, called, param = told.get("code"), told.get("type"), told.get("param")
    error = {
        "message": message,
        "type": called if isinstance(called, str) else kind,
        "param": param if isinstance(param, str) else None,
        "code": code or (own if isinstance(own, str) else str(status)),
    }
    return json.dumps({"error": error}, separators=(",", ":")).encode()


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status_of(error: Exception) -> int | None:
    """The status that the provider answered with; None where it did not answer."""
    status = None
    for one in _behind(error):
        response = getattr(one, "response", None)
        found = getattr(response, "status_code", None)
        # Where there was no answer the SDK makes one up, without a body or a stream of one.
        if isinstance(found, int) and _is_real(response):
            status = found
    return status


def _is_real(response: Any) -> bool:
    return bool(getattr(response, "headers", None))


def _headers_of(error: Exception) -> Named:
    """What a provider said beside its refusal of when to try again."""
    given: Any = getattr(error, "litellm_response_headers", None)
    return [
        (name.lower(), str(value))
        for name, value in dict(given or {}).items()
        if name.lower().startswith(WHEN_AGAIN)
    ]


def _code_of(error: Exception) -> str | None:
    exceeded = type(error).__name__ == "ContextWindowExceededError"
    return "context_length_exceeded" if exceeded else None


def _written_out(said: str) -> str:
    """The text, where the SDK puts a provider's words as Python writes bytes, as for streams."""
    written = re.search(r"\bb'.*'|\bb\".*\"", said, re.S)
    if written is None:
        return said
    try:
        return str(ast.literal_eval(written[0]).decode("utf-8", "replace"))
    except (ValueError, SyntaxError, AttributeError):
        return said


def _object_in(said: str) -> tuple[bytes, dict[str, Any]]:
    """The provider's own error, which the SDK puts after words of its own; empty where there is
    none."""
    begin = said.find("{")
    try:
        told, end = json.JSONDecoder().raw_decode(said, max(begin, 0))
    except ValueError:
        return b"", {}
    if not isinstance(told, dict) or not isinstance(told.get("error", {}), dict | str):
        return b"", {}
    return said[begin:end].encode(), told


def _parsed_by_the_sdk(error: Exception) -> dict[str, Any]:
    """The provider's own error, where the client that the SDK calls it with has read it."""
    for one in _behind(error):
        body = getattr(one, "body", None)
        if isinstance(body, dict) and isinstance(body.get("message"), str):
            return body
    return {}
