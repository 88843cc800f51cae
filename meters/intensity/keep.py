"""Fetched figures on disk, so that a restart begins with what was known.

Append-only JSON Lines, one Observation a line, written by the refresher's thread. A later line
about the same hour replaces an earlier one, so the file is also the history of restatements.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec

from meters.intensity.types import Observation
from meters.unreadable import UNREADABLE

log = logging.getLogger("joulegate.intensity")


class KeptObservations:
    """The file at ``path``; made, with its folder, at the first write."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(Observation)

    def load(self) -> list[Observation]:
        """Everything kept, oldest line first. A line cut short by a crash is left out."""
        if not self._path.is_file():
            return []
        found: list[Observation] = []
        bad = 0
        with self._path.open("rb") as file:
            for line in file:
                try:
                    found.append(self._decoder.decode(line))
                except UNREADABLE:
                    bad += 1
        if bad:
            log.warning("%s: %d lines cannot be read and were left out", self._path, bad)
        return found

    def append(self, observations: Iterable[Observation]) -> None:
        """Add lines. Raises OSError when the disk refuses."""
        lines = b"".join(self._encoder.encode(seen) + b"\n" for seen in observations)
        if not lines:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            if file.tell() and not _ends_a_line(self._path):
                file.write(b"\n")
            file.write(lines)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
