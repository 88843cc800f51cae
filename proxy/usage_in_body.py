"""Puts our figures beside an answer's own usage, as ``usage.joulegate``, for clients that asked.

Some clients' libraries show no response headers. The figures are those of the headers, so nothing
is told here that is not told there. All other fields keep their bytes and their order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from meters.unreadable import UNREADABLE
from proxy.answering import content_length
from proxy.asgi import RawHeaders, Send
from proxy.sse import MAX_LINE_BYTES

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode
_RANGE = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?)-(.+)")  # 1e-05-2e-05 too
_USAGE = b'"usage"'
_LENGTH = b"content-length"


class UsageInBody:
    """An ASGI ``send`` in front of another."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Any = None  # held back: the length of the body is not known yet
        self._figures: bytes | None = None  # None: nothing is put into this answer
        self._events = False
        self._line = b""  # of a stream, what has no end yet

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body" and self._figures is not None:
            await self._go_on(message, self._figures)
        else:
            await self._send(message)

    async def _begin(self, message: Any) -> None:
        headers = dict(message["headers"])
        sort = headers.get(b"content-type", b"")
        self._events = sort.startswith(b"text/event-stream")
        if message["status"] == 200 and (self._events or sort.startswith(b"application/json")):
            self._figures = figures_in(headers)
        if self._figures is not None and _LENGTH in headers:
            self._start = message
        else:
            await self._send(message)

    async def _go_on(self, message: Any, figures: bytes) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._start is not None and more:  # too large to be held; its length has been said
            self._figures = None
        elif self._events:
            body = self._lines(body, figures, more)
        elif not more:
            body = with_figures(body, figures)
        if self._start is not None:
            start, self._start = self._start, None
            if not more:
                start = {**start, "headers": _of_length(start["headers"], len(body))}
            await self._send(start)
        await self._send({"type": message["type"], "body": body, "more_body": more})

    def _lines(self, chunk: bytes, figures: bytes, more: bool) -> bytes:
        """A stream's next bytes, whole lines only; an endless line goes on unread."""
        *lines, self._line = (self._line + chunk).split(b"\n")
        out = b"".join(_line(line, figures) + b"\n" for line in lines)
        if not more or len(self._line) > MAX_LINE_BYTES:
            out, self._line = out + self._line, b""
        return out


def _line(line: bytes, figures: bytes) -> bytes:
    if not line.startswith(b"data:") or _USAGE not in line:
        return line
    data = line[5:]
    told = with_figures(data, figures)
    if told is data:
        return line
    return b"data: " + told + (b"\r" if line.endswith(b"\r") else b"")


def with_figures(answer: bytes, figures: bytes) -> bytes:
    """An answer in JSON with ``figures`` in its usage; the same object where it tells none."""
    try:
        fields = _fields.decode(answer)
        name = "usage" if "usage" in fields else "response"  # an event of Responses has it inside
        told = bytes(fields.get(name, b""))
        if name == "response":
            changed = with_figures(told, figures)
        else:
            usage = _fields.decode(told)
            usage["joulegate"] = msgspec.Raw(figures)
            changed = _encode(usage)
    except UNREADABLE:
        return answer
    if changed is told:
        return answer
    fields[name] = msgspec.Raw(changed)
    return _encode(fields)


def figures_in(headers: Mapping[bytes, bytes]) -> bytes:
    """What our response headers say, as JSON; unknown is null."""
    told = {name.decode(): value.decode("latin-1") for name, value in headers.items()}
    energy, between = told.get("x-joulegate-energy-j"), told.get("x-joulegate-energy-range-j", "")
    ends = _RANGE.fullmatch(between)
    carbon_g = told.get("x-joulegate-carbon-g")
    figures = {
        "request_id": told.get("x-request-id"),
        "backend": told.get("x-joulegate-backend"),
        "policy": told.get("x-joulegate-policy"),
        "cache": told.get("x-joulegate-cache"),
        "energy_j": None
        if energy is None or ends is None
        else {"low": float(ends[1]), "mid": float(energy), "high": float(ends[2])},
        "carbon_g": None if carbon_g is None else float(carbon_g),
        "evidence": told.get("x-joulegate-evidence"),
    }
    return _encode(figures)


def _of_length(headers: RawHeaders, length: int) -> RawHeaders:
    kept = [(name, value) for name, value in headers if name != _LENGTH]
    return [*kept, content_length(str(length))]
