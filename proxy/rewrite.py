"""Changing one field of a JSON body and no other byte of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import orjson

from proxy.errors import invalid_body
from proxy.features import Peek

_WHITE = b" \t\r\n"


def with_model(body: bytes, model: str, kept: Sequence[tuple[int, int]]) -> bytes:
    """The body with its top-level ``model`` set; all other bytes as they were.

    ``kept`` are the parts worth searching (see features.elided). The key's text may occur deeper
    in the body too, so each place is tried and what comes out is read again.
    """
    value = orjson.dumps(model)
    for start, end in kept:
        at = body.find(b'"model"', start, end)
        while at >= 0:
            span = _string_value(body, at + 7)
            if span is not None and _is_the_model(body, span, model, kept):
                whole = memoryview(body)
                return b"".join((whole[: span[0]], value, whole[span[1] :]))
            at = body.find(b'"model"', at + 7, end)
    fields = _read(body)  # the key was written in another way, such as "\u006dodel"
    fields["model"] = model
    return _written(fields)


def with_usage_asked(body: bytes, request: Peek) -> bytes:
    """The body asking for usage at the end of the stream, for our own books."""
    if request.stream_options is None and b'"stream_options"' not in body[:4096] + body[-4096:]:
        brace = body.index(b"{")
        first = brace + 1
        while body[first] in _WHITE:
            first += 1
        comma = b"" if body[first] == 0x7D else b","  # "}"
        whole = memoryview(body)
        return b"".join(
            (whole[: brace + 1], b'"stream_options":{"include_usage":true}', comma, whole[first:])
        )
    fields = _read(body)
    options = fields.get("stream_options")
    fields["stream_options"] = {**(options or {}), "include_usage": True}
    return _written(fields)


def with_fields(body: bytes, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """The body with its fields changed; written anew."""
    return _written(change(_read(body)))


def _read(body: bytes) -> dict[str, Any]:
    """The body as a whole, which is stricter than reading a few of its fields."""
    try:
        fields: dict[str, Any] = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid_body(f"We could not parse the JSON body of your request: {error}.") from None
    return fields


def _written(fields: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields)
    except orjson.JSONEncodeError as error:  # nested too deeply
        raise invalid_body(f"We could not pass on the JSON body: {error}.") from None


def _string_value(body: bytes, at: int) -> tuple[int, int] | None:
    """Where the string after a key's colon begins and ends; None when there is none."""
    size = len(body)
    while at < size and body[at] in _WHITE:
        at += 1
    if at >= size or body[at] != 0x3A:  # ":"
        return None
    at += 1
    while at < size and body[at] in _WHITE:
        at += 1
    if at >= size or body[at] != 0x22:  # '"'
        return None
    end = at + 1
    while True:
        end = body.find(b'"', end)
        if end < 0:
            return None
        backslashes = 0
        while body[end - 1 - backslashes] == 0x5C:
            backslashes += 1
        if backslashes % 2 == 0:
            return at, end + 1
        end += 1


def _is_the_model(
    body: bytes, span: tuple[int, int], model: str, kept: Sequence[tuple[int, int]]
) -> bool:
    """Whether writing there changes the top-level model. What is written to see that is no name:
    the top level may hold ``model`` already. Only the kept parts are read: going through 20 MB
    of base64 once more would stall other requests for 10 ms."""
    probe = "\0" + model
    value = orjson.dumps(probe)
    parts: list[bytes] = []
    for start, end in kept:
        if start <= span[0] and span[1] <= end:
            parts += (body[start : span[0]], value, body[span[1] : end])
        else:
            parts.append(body[start:end])
    try:
        return _model.decode(b"".join(parts)).model == probe
    except Exception:
        return False


class _Model(msgspec.Struct):
    model: str | None = None


_model = msgspec.json.Decoder(_Model)
