"""Windows kept on disk until the proxy has them: append-only, fsynced, in segments.

A segment being written is ``N.open``; sealed, ``N.jsonl``, it is sent as one batch and deleted
once the proxy has answered for it. A crash between the two sends it again: window ids make that
harmless. A line torn by a crash is left out.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import msgspec

from meters.types import Window
from meters.unreadable import UNREADABLE

log = logging.getLogger("joulegate.meters")

SEGMENT_WINDOWS = 500


class SpoolUnusable(Exception):
    """The folder cannot be used; the message says why and what to do."""


class Batch(NamedTuple):
    path: Path
    windows: list[Window]


class Spool:
    """Safe for one writer and one sender in different threads; one process a folder."""

    def __init__(self, folder: str | Path, max_bytes: float = 256e6) -> None:
        """Raises SpoolUnusable."""
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._encoder, self._decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Window)
        self.lost = 0  # windows deleted unsent, because the spool was full or the disk failed
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = (self._folder / "lock").open("w")
        except OSError as error:
            raise SpoolUnusable(
                f"{folder}: {error.strerror}. Set spool_dir to a folder the meter may write to."
            ) from None
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SpoolUnusable(
                f"{folder} is used by another meter. Give each meter its own spool_dir."
            ) from None
        for left in self._folder.glob("*.open"):
            left.rename(left.with_suffix(".jsonl"))
        self._file: FileIO | None = None
        self._path: Path | None = None
        self._in_segment = 0
        self._next = max((int(p.stem) for p in self._sealed()), default=0) + 1

    def append(self, window: Window) -> None:
        """Keep a window; on disk when this returns. A full disk loses it, counted and logged."""
        line = self._encoder.encode(window) + b"\n"
        with self._lock:
            try:
                file = self._file or self._open_segment()
                _write(file, line)
            except OSError as error:
                self.lost += 1
                log.error("a window could not be kept in %s: %s", self._folder, error)
                return
            self._in_segment += 1
            if self._in_segment >= SEGMENT_WINDOWS:
                self._seal()

    def batch(self) -> Batch | None:
        """The oldest windows not sent yet; None when there are none."""
        while True:
            with self._lock:
                sealed = self._sealed()
                if not sealed and self._in_segment:
                    self._seal()
                    sealed = self._sealed()
                sealed = self._make_room(sealed)
            if not sealed:
                return None
            windows = self._read(sealed[0])
            if windows:
                return Batch(sealed[0], windows)
            sealed[0].unlink(missing_ok=True)

    def done(self, batch: Batch) -> None:
        """The proxy has answered for the batch: forget it."""
        batch.path.unlink(missing_ok=True)

    def set_aside(self, batch: Batch) -> None:
        """The proxy cannot read the batch at all: keep it as ``N.bad`` for a person to look at."""
        batch.path.rename(batch.path.with_suffix(".bad"))

    def close(self) -> None:
        """Seal what is open and let the folder go."""
        with self._lock:
            if self._file is not None:
                self._seal()
        self._lock_file.close()

    def _open_segment(self) -> FileIO:
        self._path = self._folder / f"{self._next:012d}.open"
        self._next += 1
        self._file = FileIO(self._path, "ab")
        self._in_segment = 0
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # else the file's name may not survive a crash
        finally:
            os.close(folder)
        return self._file

    def _seal(self) -> None:
        if self._file is None or self._path is None:
            return
        self._file.close()
        self._path.rename(self._path.with_suffix(".jsonl"))
        self._file, self._path, self._in_segment = None, None, 0

    def _sealed(self) -> list[Path]:
        return sorted(self._folder.glob("*.jsonl"))

    def _make_room(self, sealed: list[Path]) -> list[Path]:
        sizes = {p: p.stat().st_size for p in sealed}
        while len(sealed) > 1 and sum(sizes.values()) > self._max_bytes:
            oldest = sealed.pop(0)
            sizes.pop(oldest)
            self.lost += len(self._read(oldest))
            log.error("the spool is full: %s was deleted unsent", oldest.name)
            oldest.unlink()
        return sealed

    def _read(self, path: Path) -> list[Window]:
        windows = []
        for line in path.read_bytes().splitlines():
            try:
                windows.append(self._decoder.decode(line))
            except UNREADABLE:
                log.warning("%s: a torn line is left out", path.name)
        return windows


def _write(file: FileIO, line: bytes) -> None:
    """All of the line is on the disk, or none of it. Raises OSError."""
    before = os.fstat(file.fileno()).st_size
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            file.truncate(before)
        raise
