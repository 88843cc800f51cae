"""Writing a file whole or not at all."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, value: bytes) -> None:
    """Put ``value`` in the place of what ``path`` holds: a reader finds the one or the other.

    It is written beside it first, with the suffix ``.new``. Raises OSError.
    """
    fresh = path.with_suffix(".new")
    fresh.write_bytes(value)
    fresh.replace(path)
