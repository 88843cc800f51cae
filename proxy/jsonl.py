"""Strict JSON Lines: unknown keys are an error, with the line and the nearest known key."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from meters.unreadable import UNREADABLE

T = TypeVar("T")


class BadLine(Exception):
    """A line that cannot be used. The message names file, line number and what to change."""


def read_lines(path: str, kind: type[T]) -> Iterator[T]:
    """The lines of ``path`` ("-" is standard input) as ``kind``, a msgspec Struct type.

    The struct should be declared with ``forbid_unknown_fields=True``. Blank lines are skipped.
    Raises BadLine.
    """
    decoder = msgspec.json.Decoder(kind)
    for number, line in _numbered(path):
        try:
            yield decoder.decode(line)
        except UNREADABLE as error:
            raise BadLine(f"{path}, line {number}: {explain(error, kind)}") from None


def explain(error: Exception, kind: type[object]) -> str:
    """What a msgspec error means, with the nearest known key for a misspelt one."""
    text = str(error)
    unknown = re.search(r"unknown field `([^`]+)`", text)
    if unknown:
        known = [f.encode_name for f in msgspec.structs.fields(kind)]  # type: ignore[arg-type]
        close = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" Known keys: {', '.join(known)}."
        return f"unknown key {unknown[1]!r}.{hint}"
    return text


def _numbered(path: str) -> Iterator[tuple[int, bytes]]:
    if path == "-":
        yield from _lines(sys.stdin.buffer)
        return
    try:
        with Path(path).open("rb") as file:
            yield from _lines(file)
    except OSError as error:
        raise BadLine(f"{path}: {error.strerror or error}. Name a readable file.") from None


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line
