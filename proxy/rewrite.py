"""Changing one field of a JSON body and no other byte of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import orjson

from proxy.features import Peek, peek

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
            if span is not None:
                changed = body[: span[0]] + value + body[span[1] :]
                if _model_of(changed, len(kept) > 1) == model:
                    return changed
            at = body.find(b'"model"', at + 7, end)
    fields = orjson.loads(body)  # the key was written in another way, such as "\u006dodel"
    fields["model"] = model
    return orjson.dumps(fields)


def with_usage_asked(body: bytes, request: Peek) -> bytes:
    """The body asking for usage at the end of the stream, for our own books."""
    if request.stream_options is None and b'"stream_options"' not in body[:4096] + body[-4096:]:
        brace = body.index(b"{")
        rest = body[brace + 1 :].lstrip(_WHITE)
        comma = b"" if rest[:1] == b"}" else b","
        return b"".join(
            (body[: brace + 1], b'"stream_options":{"include_usage":true}', comma, rest)
        )
    fields = orjson.loads(body)
    options = fields.get("stream_options")
    fields["stream_options"] = {**(options or {}), "include_usage": True}
    return orjson.dumps(fields)


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


def _model_of(body: bytes, large: bool) -> str | None:
    try:
        return _model.decode(body).model if large else peek(body).model
    except Exception:
        return None


class _Model(msgspec.Struct):
    model: str | None = None


_model = msgspec.json.Decoder(_Model)
