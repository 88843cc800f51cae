"""Strict JSON Lines: unknown keys are an error, with the line and the nearest known key."""

from __future__ import annotations

import difflib
import re
import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, get_args, get_type_hints

import msgspec
from msgspec.inspect import is_struct_type

from meters.unreadable import UNREADABLE

T = TypeVar("T")

_OTHER_FILES = {
    b"\x1f\x8b": "compressed with gzip. Unpack it first, or pipe it into -.",
    BOM_UTF16_LE: "UTF-16. Save it as UTF-8.",
    BOM_UTF16_BE: "UTF-16. Save it as UTF-8.",
}


class BadLine(Exception):
    """A line that cannot be used. The message names file, line number and what to change."""


def read_lines(path: str, kind: type[T]) -> Iterator[T]:
    """The lines of ``path`` ("-" is standard input) as ``kind``, a msgspec Struct type.

    The struct should be declared with ``forbid_unknown_fields=True``. Blank lines are skipped.
    Raises BadLine.
    """
    return (value for _, value in numbered_lines(path, kind))


def numbered_lines(path: str, kind: type[T]) -> Iterator[tuple[int, T]]:
    """As ``read_lines``, each with its line's number, for what else may be wrong with it."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in _numbered(path):
        try:
            yield number, decoder.decode(line)
        except UNREADABLE as error:
            raise BadLine(f"{path}, line {number}: {explain(error, kind)}") from None


def explain(error: Exception, kind: type[object]) -> str:
    """What a msgspec error means, with the nearest known key for a misspelt one."""
    text = str(error)
    unknown = re.search(r"unknown field `([^`]+)`", text)
    if unknown:
        at = re.search(r"at `\$\.([\w.]+)`", text)
        kind = _inside(kind, at[1].split(".") if at else [])
        known = [f.encode_name for f in msgspec.structs.fields(kind)]  # type: ignore[arg-type]
        close = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" Known keys: {', '.join(known)}."
        where = f" in {at[1]}" if at else ""
        return f"unknown key {unknown[1]!r}{where}.{hint}"
    return text


def _inside(kind: type[object], path: Iterable[str]) -> type[object]:
    """The Struct type that ``path`` leads to from another; the last one found where it ends."""
    for name in path:
        hint = get_type_hints(kind).get(name)
        kind = next((t for t in get_args(hint) or (hint,) if is_struct_type(t)), kind)
    return kind


def _numbered(path: str) -> Iterator[tuple[int, bytes]]:
    if path == "-":
        yield from _lines(sys.stdin.buffer, path)
        return
    try:
        with Path(path).open("rb") as file:
            yield from _lines(file, path)
    except OSError as error:
        raise BadLine(f"{path}: {error.strerror or error}. Name a readable file.") from None


def _lines(file: BinaryIO, path: str) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(file, 1):
        if number == 1:
            for beginning, what in _OTHER_FILES.items():
                if line.startswith(beginning):
                    raise BadLine(f"{path}: {what}")
            line = line.removeprefix(BOM_UTF8)  # as Windows' editors and shells put it there
        if line.strip():
            yield number, line
