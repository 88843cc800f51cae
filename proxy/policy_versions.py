"""The texts of all versions of policies that ever decided here, as files of the state folder."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from meters.whole_file import write_whole
from policies.language import Book

log = logging.getLogger("joulegate.policies")

_VERSION = re.compile(r"^[0-9a-f]{8}$")


def kept(folder: Path) -> dict[str, str]:
    """Version to text, for every version that was kept."""
    try:
        return {
            path.stem: path.read_text(encoding="utf-8")
            for path in folder.glob("*.json")
            if _VERSION.match(path.stem)
        }
    except OSError as error:
        log.warning("older versions of policies cannot be read (%s)", error)
        return {}


def keep(folder: Path, book: Book) -> Book:
    """Write down what is new, and give the book with all older texts in it."""
    older = kept(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for version, text in book.texts.items():
            if version not in older:
                write_whole(folder / f"{version}.json", text.encode())
    except OSError as error:
        log.warning("the policies of now cannot be kept for later (%s)", error)
    return Book(book.policies, book.specs, {**older, **book.texts})
