"""The lines of a batch's file: what each asks for, and what is wrong with it. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import orjson

from meters.unreadable import UNREADABLE
from proxy.front import ENDPOINTS

# What takes and gives JSON, and needs no backend of its own.
PATHS = tuple(path for path, endpoint in ENDPOINTS.items() if endpoint.text)
MOST_ERRORS = 100  # told of one file


class Line(msgspec.Struct, frozen=True):
    """One request of a batch; ``body`` as it was written."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with a file, as OpenAI's batches say it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


_decode = msgspec.json.Decoder(Line).decode
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


def read(line: bytes) -> Line:
    """A line that was found sound. Raises msgspec.MsgspecError otherwise."""
    return _decode(line)


class Checked:
    """Looks at the lines of a file one after the other; ``problems`` is what it found."""

    def __init__(self, endpoint: str, most: int, longest_bytes: int) -> None:
        self.problems: list[Problem] = []
        self.total = 0
        self._endpoint, self._most, self._longest = endpoint, most, longest_bytes
        self._ids: set[str] = set()

    @property
    def enough(self) -> bool:
        return len(self.problems) >= MOST_ERRORS or self.total > self._most

    def take(self, number: int, line: bytes) -> None:
        """The line with that number, counted from 1."""
        self.total += 1
        found = self._problem(line)
        if found is not None:
            code, message, param = found
            self.problems.append(Problem(code, message, number, param))

    def end(self) -> None:
        if not self.total:
            self.problems.append(Problem("empty_file", "The file has no requests."))
        if self.total > self._most:
            told = f"The file has more than {self._most} requests, the most of one batch."
            self.problems.append(Problem("too_many_requests", told))

    def _problem(self, line: bytes) -> tuple[str, str, str | None] | None:
        if len(line) > self._longest:
            return "request_too_large", f"Longer than {self._longest} bytes.", None
        try:
            request = _decode(line)
        except UNREADABLE as error:
            told = f"Should be a JSON object with custom_id, method, url and body: {error}."
            return "invalid_json_line", told, None
        body = _object(request.body)
        if not isinstance(body, dict):
            return "invalid_body", "The body should be a JSON object.", "body"
        if body.get("stream"):
            return "invalid_body", "Answers of a batch cannot be streamed.", "body.stream"
        if request.method != "POST":
            return "invalid_method", "The method should be POST.", "method"
        if request.url != self._endpoint:
            told = f"The url should be the batch's endpoint, {self._endpoint}."
            return "mismatched_url", told, "url"
        if request.custom_id in self._ids:
            told = f"The custom_id {request.custom_id[:100]!r} was used before in this file."
            return "duplicate_custom_id", told, "custom_id"
        self._ids.add(request.custom_id)
        return None


def _object(body: msgspec.Raw) -> Any:
    try:
        return orjson.loads(bytes(body))
    except orjson.JSONDecodeError:
        return None


def lines_in(parts: Iterable[bytes], most_bytes: int = sys.maxsize) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers, counted from 1; however the parts are cut.
    Of one that is longer than ``most_bytes`` come so many and one more."""
    number, kept = 0, bytearray()
    for part in parts:
        *ends, rest = part.split(b"\n")
        for end in ends:
            kept += end[: most_bytes + 1 - len(kept)]
            number += 1
            if kept.strip():
                yield number, bytes(kept)
            kept.clear()
        kept += rest[: most_bytes + 1 - len(kept)]
    if kept.strip():
        yield number + 1, bytes(kept)


def answered(custom_id: str, request_id: str, status: int, body: bytes) -> bytes:
    """A line of the output or error file: what came, its bytes unchanged where it is JSON."""
    try:
        orjson.loads(body)
        told = body.translate(_ONE_LINE)  # line ends are nothing but space there
    except orjson.JSONDecodeError:
        told = orjson.dumps({"error": {"message": body.decode("utf-8", "replace")[:2000]}})
    response = b'{"status_code":%d,"request_id":%b,"body":%b}' % (status, _text(request_id), told)
    return _line(custom_id, request_id, response, b"null")


def unanswered(custom_id: str, line: int, code: str, message: str) -> bytes:
    """A line of the error file for a request that was not sent."""
    return _line(
        custom_id, f"line_{line}", b"null", orjson.dumps({"code": code, "message": message})
    )


def _line(custom_id: str, name: str, response: bytes, error: bytes) -> bytes:
    name = name.removeprefix("req_")
    return b'{"id":%b,"custom_id":%b,"response":%b,"error":%b}' % (
        _text(f"batch_req_{name}"),
        _text(custom_id),
        response,
        error,
    )


def _text(text: str) -> bytes:
    return msgspec.json.encode(text)
