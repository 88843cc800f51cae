"""Carries the journal into the ledger, in a thread of its own, for as long as the process lives.

The ledger may be gone for hours: the journal grows meanwhile, one warning is logged, and all of it
is written when the ledger is back. What was written is remembered in ``cursor``; losing that only
means writing some entries again, which changes nothing.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from meters.journal import (
    Entry,
    Journal,
    Position,
    cut_torn_tail,
    decode,
    frame,
    frames,
    lock_folder,
    read_cursor,
    segment_path,
    segments,
    write_cursor,
)
from meters.types import Attribution, UsageRecord, Window
from meters.unreadable import UNREADABLE

log = logging.getLogger("joulegate.drain")

BATCH = 2_000
GATHER_S = 0.25  # how long entries gather before a batch is written
ADOPT_S = 20.0  # how often folders of dead replicas are looked for
STOP_S = 5.0
_SLOWEST_RETRY_S = 2.0
_STUCK_S = 5.0  # a batch that takes the ledger longer shows one that is stuck


class Books(Protocol):
    """What a drain writes to: ``Ledger`` is one."""

    def write(
        self,
        records: list[UsageRecord],
        attributions: list[Attribution],
        windows: list[Window],
    ) -> object: ...


class Drain:
    """Writes what ``journal`` holds, and what dead siblings of its folder left, to ``ledger``."""

    def __init__(self, journal: Journal, ledger: Books, *, gather_s: float = GATHER_S) -> None:
        self.journal = journal
        self.drained = 0  # entries written to the ledger
        self.quarantined = 0  # entries that no ledger takes, kept in ``quarantine``
        self.ledger_down = False
        self._ledger = ledger
        self._gather_s = gather_s
        self._done = read_cursor(journal.folder)
        self._stumbled = False
        self._stop = threading.Event()
        self._writing_since_s: float | None = None
        self._behind_s = time.monotonic()  # when there was last something to catch up with
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)
        self._watch = threading.Thread(target=self._watch_over, name="drain-watch", daemon=True)

    def start(self) -> Drain:
        self._thread.start()
        self._watch.start()
        return self

    @property
    def backlog_bytes(self) -> int:
        """What lies in the journal and not yet in the ledger."""
        total = 0
        for number in segments(self.journal.folder):
            if number >= self._done.segment:
                try:
                    total += segment_path(self.journal.folder, number).stat().st_size
                except OSError:
                    continue  # drained and deleted just now
        return max(0, total - self._done.offset)

    @property
    def caught_up_s(self) -> float:
        """For how many seconds the ledger has had all that is older than the last batch, of this
        journal and of those left by others; 0 while it has not."""
        return 0.0 if self.ledger_down else time.monotonic() - self._behind_s

    def wait(self, timeout_s: float = 10.0) -> bool:
        """Until the ledger has everything appended so far; False when it has not in time."""
        if not self.journal.flush(timeout_s):
            return False
        wanted = self.journal.committed
        end_s = time.monotonic() + timeout_s
        while self._done < wanted:
            if time.monotonic() > end_s:
                return False
            time.sleep(0.002)
        return True

    def stop(self) -> None:
        """Drain what can be drained in STOP_S; the rest stays in the journal."""
        if self._thread.is_alive():
            self.wait(STOP_S)
            self._stop.set()
            self.journal.grew.set()
            self._thread.join(STOP_S)

    def _run(self) -> None:
        adopt_at_s = time.monotonic()
        while not self._stop.is_set():
            try:
                self.journal.come_back()
                if time.monotonic() >= adopt_at_s:
                    self._adopt()
                    adopt_at_s = time.monotonic() + ADOPT_S
                self.journal.grew.clear()
                if self._drain_own() < BATCH:
                    self.journal.grew.wait(1.0)
                    self._stop.wait(self._gather_s)
                self._stumbled = False
            except OSError as error:
                if not self._stumbled:
                    log.error("The journal cannot be read (%s); trying again", error)
                self._stumbled = True
                self._stop.wait(1.0)
            except Exception:
                log.exception("Draining the journal failed; trying again")
                self._stop.wait(1.0)

    def _drain_own(self) -> int:
        """Write one batch; how many entries that were."""
        folder = self.journal.folder
        end = self.journal.committed
        batch = _Batch(self._done)
        numbers = [number for number in segments(folder) if number >= self._done.segment]
        for number in numbers:
            limit = end.offset if number == end.segment else None
            start = self._done.offset if number == self._done.segment else 0
            if number > end.segment or batch.take(folder, number, start, limit):
                break
        if batch.end == self._done:
            return 0
        if len(batch.entries) >= BATCH:
            self._behind_s = time.monotonic()
        if batch.entries and not self._write(batch.entries, folder):
            return 0
        self._done = batch.end
        write_cursor(folder, self._done)
        for number in numbers:
            if number < self._done.segment:
                segment_path(folder, number).unlink(missing_ok=True)
        return len(batch.entries)

    def _adopt(self) -> None:
        for folder in abandoned(self.journal.folder):
            lock = lock_folder(folder)
            if lock is None:
                continue
            try:
                self._drain_abandoned(folder)
            finally:
                os.close(lock)
                self._behind_s = time.monotonic()

    def _drain_abandoned(self, folder: Path) -> None:
        cut_torn_tail(folder)
        done = read_cursor(folder)
        for number in segments(folder):
            start = done.offset if number == done.segment else 0
            while number >= done.segment:
                batch = _Batch(Position(number, start))
                batch.take(folder, number, start, None)
                if batch.end.offset == start:
                    break
                self._behind_s = time.monotonic()
                if not self._write(batch.entries, folder):
                    return  # stopping
                start = batch.end.offset
            segment_path(folder, number).unlink(missing_ok=True)
        log.info("Took over the journal that a stopped replica left in %s", folder)
        _remove(folder)

    def _watch_over(self) -> None:
        """Notices a ledger that neither takes a batch nor refuses it, and a journal that is gone
        while the other thread waits for the ledger."""
        while not self._stop.wait(_STUCK_S / 4):
            self.journal.come_back()
            since_s = self._writing_since_s
            if since_s is not None and time.monotonic() - since_s > _STUCK_S:
                self._refused("it does not answer")

    def _refused(self, reason: str) -> None:
        if not self.ledger_down:
            self.ledger_down = True
            log.warning(
                "The ledger cannot be written (%s): the journal keeps what is finished.", reason
            )

    def _write(self, entries: list[Entry], folder: Path) -> bool:
        """Until the ledger took them; False when stopped before."""
        wait_s = 0.1
        while True:
            try:
                self._writing_since_s = time.monotonic()
                self._write_sound(entries, folder)
            except (SQLAlchemyError, OSError) as error:
                self._refused(_reason(error))
            else:
                if self.ledger_down:
                    self._behind_s = time.monotonic()
                    self.ledger_down = False
                    log.warning("The ledger is written again")
                return True
            finally:
                self._writing_since_s = None
            if self._stop.wait(wait_s):
                return False
            wait_s = min(wait_s * 2, _SLOWEST_RETRY_S)

    def _write_sound(self, entries: list[Entry], folder: Path) -> None:
        """Write them; those that no ledger can take are put aside, found by halving."""
        try:
            self._ledger.write(
                [e for e in entries if isinstance(e, UsageRecord)],
                [e for e in entries if isinstance(e, Attribution)],
                [e for e in entries if isinstance(e, Window)],
            )
            self.drained += len(entries)
        except (DataError, IntegrityError, ValueError, OverflowError, TypeError) as error:
            if len(entries) > 1:
                middle = len(entries) // 2
                self._write_sound(entries[:middle], folder)
                self._write_sound(entries[middle:], folder)
                return
            for entry in entries:
                self.quarantined += 1
                put_aside(folder, entry)
                log.error(
                    "The ledger cannot hold a %s (%s); it is kept in %s",
                    type(entry).__name__,
                    type(error).__name__,
                    folder / "quarantine",
                )


class _Batch:
    """Entries from the journal, and the position after them."""

    def __init__(self, start: Position) -> None:
        self.entries: list[Entry] = []
        self.end = start

    def take(self, folder: Path, number: int, start: int, limit: int | None) -> bool:
        """Read a segment from ``start`` to ``limit`` (None: its end); True when it is full."""
        size = None if limit is None else limit - start
        if size is not None and size <= 0:
            self.end = max(self.end, Position(number, start))
            return False
        with segment_path(folder, number).open("rb") as file:
            file.seek(start)
            data = file.read() if size is None else file.read(size)
        self.end = Position(number, start + len(data))
        for end, kind, payload in frames(data):
            try:
                self.entries.append(decode(kind, payload))
            except UNREADABLE:
                log.error("An entry of %s cannot be read", segment_path(folder, number))
            if len(self.entries) >= BATCH:
                self.end = Position(number, start + end)
                return True
        return False


def abandoned(own: Path) -> Iterator[Path]:
    """Sibling folders of ``own`` that hold segments; their lock says whether they are in use."""
    try:
        folders = sorted(own.parent.iterdir())
    except FileNotFoundError:
        return  # deleted under us
    for folder in folders:
        if folder != own and folder.is_dir() and segments(folder):
            yield folder


def _remove(folder: Path) -> None:
    """Take an emptied folder away, unless something in it was put aside. The lock is held."""
    if (folder / "quarantine").exists():
        return
    try:
        for name in ("cursor", "cursor.new", "lock"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        log.debug("%s stays", folder)


def put_aside(folder: Path, entry: Entry) -> None:
    """Append to ``quarantine``, a file of frames like a segment's."""
    kinds = (UsageRecord, Attribution, Window)
    with (folder / "quarantine").open("ab") as file:
        file.write(frame(kinds.index(type(entry)), msgspec.json.encode(entry)))


def _reason(error: Exception) -> str:
    """The database's first line, without the statement and its values."""
    if isinstance(error, DBAPIError):
        return str(error.orig).strip().splitlines()[0][:200] if error.orig else type(error).__name__
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
