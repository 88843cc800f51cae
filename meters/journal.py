"""An append-only file that holds what was finished until the ledger has it.

``write`` writes at once; ``append`` hands over to a thread, which writes whatever has gathered in
one go. Waking that thread costs a busy event loop more than the writing, so ``write`` is for what
comes with every request, and turns to the thread while the disk is slow. What is written survives
the death of the process at once, and of the machine once synced. Each replica writes its own
folder, locked for as long as it lives, so that another can take over what a dead one left.

A frame is ``JG``, the payload's length and CRC-32, one byte for its kind, and JSON. A torn frame
at the end is what a killed process leaves; it is cut off. A damaged one in the middle is skipped
to the next that is whole.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

import msgspec

from meters.types import Attribution, UsageRecord, Window
from meters.unreadable import UNREADABLE
from meters.whole_file import write_whole

log = logging.getLogger("joulegate.journal")

Entry = UsageRecord | Attribution | Window
Sync = Literal["always", "interval", "never"]

_HEADER = struct.Struct("<2sIIB")
_MAGIC = b"JG"
_KINDS: tuple[type[Entry], ...] = (UsageRecord, Attribution, Window)  # by their number; only add
_KIND_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_DECODERS = [msgspec.json.Decoder(kind) for kind in _KINDS]
_LARGEST = 64 * 1024 * 1024  # a longer frame is damage, not data
_GATHER = 5_000  # entries written in one go, at most
_RETRY_S = 0.25
SYNC_EVERY_S = 0.05
_SLOW_S = 0.005  # a write that takes longer shows a busy disk: others are left to the thread
_SLOW_TIMES = 20.0  # for so many times as long as it took
_SLOW_FOR_S = 2.0  # at most

_encode = msgspec.json.Encoder().encode


class JournalBusy(Exception):
    """Another living process writes this folder; the message names it."""


class Position(NamedTuple):
    """A place in the journal: which segment, and how many bytes into it."""

    segment: int
    offset: int


class _Waiting(NamedTuple):
    frame: bytes
    future: asyncio.Future[bool] | None = None


class Journal:
    """Appends entries to the segments of one folder. Methods may be called from any thread."""

    def __init__(
        self,
        folder: Path,
        *,
        sync: Sync = "interval",
        segment_bytes: int = 8 * 1024 * 1024,
        held_entries: int = 200_000,
    ) -> None:
        """``sync``: when what was written is forced to the disk itself (fsync): ``always`` before
        ``durable`` answers, at most every SYNC_EVERY_S, or ``never``. ``held_entries``: how
        many are kept in memory while the disk takes none; what comes on top is lost and counted.
        Raises JournalBusy, or OSError when the folder cannot be written.
        """
        self.folder = folder
        self.sync = sync
        self.grew = threading.Event()  # set whenever there is more to read
        self.appended = 0
        self.written = 0
        self.lost = 0
        self.failing: str | None = None  # why the disk takes nothing now
        self._segment_bytes = segment_bytes
        self._held_entries = held_entries
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(folder)
        if self._lock is None:
            raise JournalBusy(f"{folder} is written by another process: give each its own.")
        cut_torn_tail(folder)
        numbers = segments(folder)
        # a number is never used again, or the cursor would call its entries drained already
        last = max([read_cursor(folder).segment, *numbers])
        self._committed = Position(last + 1, 0)
        self._file = _open(folder, self._committed.segment)
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._counting = threading.Lock()
        self._writing = threading.Lock()  # held by whoever writes the file
        self._slow_until_s = 0.0
        self._sync_asked = False
        self._homeless = False  # its folder is gone and cannot be made
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._thread.start()

    @property
    def committed(self) -> Position:
        """Everything before this is in the file."""
        return self._committed

    @property
    def waiting(self) -> int:
        """Entries that are not in the file yet."""
        return self.appended - self.written - self.lost

    def write(self, entry: Entry) -> None:
        """Write ``entry`` before this returns; hand it over where that could take long.

        Handed over is what comes while the disk is slow or refuses, while others wait, when the
        segment is full, and all of it with ``sync`` ``always``. Never raises.
        """
        if not self._written_at_once(entry):
            self.append(entry)

    def record(self, entry: Entry) -> asyncio.Future[bool] | None:
        """Like ``write``; None when ``entry`` is in the file, or when nobody should wait for that
        since the disk takes nothing. Else the future of ``durable``. For the event loop."""
        if self._written_at_once(entry):
            return None
        if self.failing is not None:
            self.append(entry)
            return None
        return self.durable(entry)

    def _written_at_once(self, entry: Entry) -> bool:
        started_s = time.monotonic()
        if (
            self.sync == "always"
            or self.waiting
            or self._homeless
            or started_s < self._slow_until_s
            or not self._writing.acquire(blocking=False)
        ):
            return False
        try:
            if self._committed.offset >= self._segment_bytes:
                return False
            payload = _encode(entry)
            blob = frame(_KIND_NUMBERS[type(entry)], payload)
            written = os.write(self._file, blob)
            segment, offset = self._committed
            if written < len(blob):
                os.ftruncate(self._file, offset)
                return False
            self._committed = Position(segment, offset + written)
            with self._counting:
                self.appended += 1
                self.written += 1
        except (OSError, TypeError, ValueError):
            return False  # handed over, the thread says what is wrong, and tries again
        finally:
            self._writing.release()
        if not self.grew.is_set():
            self.grew.set()
        if not self._sync_asked and self.sync == "interval":
            self._sync_asked = True
            self._queue.put(_SYNC)
        took_s = time.monotonic() - started_s
        if took_s > _SLOW_S:
            self._slow_until_s = started_s + min(_SLOW_FOR_S, _SLOW_TIMES * took_s)
        return True

    def come_back(self) -> None:
        """Where somebody deleted or moved the segment, or all of the folder, under the process:
        make it anew, with all that was in the segment. What is written to a file that has no name
        any more can be read by nobody else, and looks as if it were kept. Never raises."""
        with self._writing:
            number, offset = self._committed
            path = segment_path(self.folder, number)
            try:
                if os.path.samestat(os.fstat(self._file), path.stat()):
                    return
            except OSError:
                pass
            try:
                self._move_back(os.pread(self._file, offset, 0))
            except OSError as error:
                self._homeless = True
                self._refused(error)
                return
            if self._homeless:
                self._homeless, self.failing = False, None
        log.error(
            "%s was deleted or moved under this process, and is made anew. What older segments "
            "held and the ledger did not have yet is lost, unless they are put back.",
            path,
        )
        self.grew.set()

    def _move_back(self, kept: bytes) -> None:
        """Go on in a new segment that begins with ``kept``. Raises OSError, and then nothing is
        different."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(self.folder)  # None: it is where it was, and still held
        number = max([self._committed.segment, *segments(self.folder)]) + 1
        fresh = None
        try:
            fresh = _open(self.folder, number)
            if os.write(fresh, kept) < len(kept):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            if fresh is not None:
                os.close(fresh)
                segment_path(self.folder, number).unlink(missing_ok=True)
            if lock is not None:
                os.close(lock)
            raise
        os.close(self._file)
        self._file, self._committed = fresh, Position(number, len(kept))
        if lock is not None:
            if self._lock is not None:
                os.close(self._lock)
            self._lock = lock

    def append(self, entry: Entry) -> None:
        """Hand ``entry`` to the writing thread. Never blocks and never raises."""
        self._put(entry, None)

    def durable(self, entry: Entry) -> asyncio.Future[bool]:
        """Like ``append``; the future gives True once the entry is in the file.

        False when the disk takes nothing now: the entry is held in memory and tried again, and
        nobody should wait for that. Must be called in the event loop that awaits it.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._put(entry, future)
        return future

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything appended so far is in the file; False when it is not in time."""
        end_s = time.monotonic() + timeout_s
        wanted = self.appended
        while self.written + self.lost < wanted:
            if time.monotonic() > end_s or not self._thread.is_alive():
                return False
            time.sleep(0.001)
        return True

    def close(self) -> None:
        """Write what is left, force it to the disk, and let others have the folder."""
        self._queue.put(None)
        self._thread.join(10)
        try:
            os.fsync(self._file)
        except OSError:
            pass
        os.close(self._file)
        if self._lock is not None:
            os.close(self._lock)

    def _put(self, entry: Entry, future: asyncio.Future[bool] | None) -> None:
        try:
            payload = _encode(entry)
        except Exception:
            log.exception("An entry cannot be encoded; it is lost to the books")
            with self._counting:
                self.appended += 1
                self.lost += 1
            if future is not None:
                future.set_result(False)
            return
        with self._counting:
            self.appended += 1
        self._queue.put(_Waiting(frame(_KIND_NUMBERS[type(entry)], payload), future))

    def _write_all(self) -> None:
        held: list[_Waiting] = []
        unsynced_since_s: float | None = None
        closing = False
        while not (closing and not held):
            wait_s = None
            if held:
                wait_s = _RETRY_S
            elif unsynced_since_s is not None:
                wait_s = max(0.0, unsynced_since_s + SYNC_EVERY_S - time.monotonic())
            came, ended = self._gather(wait_s)
            closing = closing or ended
            if _SYNC in came:
                came = [item for item in came if item is not _SYNC]
                unsynced_since_s = unsynced_since_s or time.monotonic()
            held += came
            if held:
                if self._write(held):
                    held = []
                    if unsynced_since_s is None and self.sync == "interval":
                        unsynced_since_s = time.monotonic()
                else:
                    self._shed(held)
                    if closing:
                        with self._counting:
                            self.lost += len(held)
                        log.error(
                            "%d finished requests are lost: the disk took nothing until the end",
                            len(held),
                        )
                        return
            due_s = SYNC_EVERY_S
            if unsynced_since_s is not None and time.monotonic() >= unsynced_since_s + due_s:
                self._sync_asked = False
                self._force()
                unsynced_since_s = None

    def _gather(self, wait_s: float | None) -> tuple[list[_Waiting], bool]:
        came: list[_Waiting] = []
        try:
            item = self._queue.get(timeout=wait_s)
            while item is not None:
                came.append(item)
                if len(came) >= _GATHER:
                    return came, False
                item = self._queue.get_nowait()
            return came, True
        except Empty:
            return came, False

    def _write(self, items: list[_Waiting]) -> bool:
        with self._writing:
            return self._write_locked(items)

    def _write_locked(self, items: list[_Waiting]) -> bool:
        if self._homeless:
            return False
        blob = b"".join(item.frame for item in items)
        segment, offset = self._committed
        try:
            done = 0
            while done < len(blob):
                done += os.write(self._file, memoryview(blob)[done:])
            if self.sync == "always":
                os.fsync(self._file)
        except OSError as error:
            # What was written in part must not stay before what is written next.
            try:
                os.ftruncate(self._file, offset)
            except OSError:
                self._next_segment()
            self._refused(error)
            return False
        self._committed = Position(segment, offset + len(blob))
        with self._counting:
            self.written += len(items)
        if self.failing is not None:
            log.warning("The journal in %s is written again", self.folder)
            self.failing = None
        self.grew.set()
        _answer(items, True)
        if self._committed.offset >= self._segment_bytes:
            self._next_segment()
        return True

    def _next_segment(self) -> None:
        number = self._committed.segment + 1
        try:
            if self.sync != "never":
                os.fsync(self._file)
            fresh = _open(self.folder, number)
        except OSError as error:
            self._refused(error)
            return
        os.close(self._file)
        self._file = fresh
        self._committed = Position(number, 0)
        self.grew.set()

    def _refused(self, error: OSError) -> None:
        if self.failing is None:
            log.warning(
                "The journal in %s cannot be written (%s): finished requests are held in memory "
                "until it can. Make room on the disk.",
                self.folder,
                error.strerror or error,
            )
        self.failing = str(error.strerror or error)

    def _shed(self, held: list[_Waiting]) -> None:
        _answer(held, False)
        held[:] = [item if item.future is None else _Waiting(item.frame) for item in held]
        excess = len(held) - self._held_entries
        if excess > 0:
            del held[-excess:]
            with self._counting:
                self.lost += excess
            log.error("%d finished requests are lost: the disk and the memory are full", excess)

    def _force(self) -> None:
        try:
            os.fsync(self._file)
        except OSError as error:
            self._refused(error)


_SYNC = _Waiting(b"")  # asks the thread to force to the disk what ``write`` wrote


def frame(kind: int, payload: bytes) -> bytes:
    """One entry as it lies in the file."""
    return _HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload), kind) + payload


def frames(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Whole frames in ``data``: (where it ends, kind, payload). Damage is skipped."""
    at = 0
    while 0 <= at < len(data):
        found = _frame_at(data, at)
        if found is None:
            at = data.find(_MAGIC, at + 1)
        else:
            yield found
            at = found[0]


def _frame_at(data: bytes, at: int) -> tuple[int, int, bytes] | None:
    """The frame that starts at ``at``; None for damage and for what is cut off."""
    if at + _HEADER.size > len(data):
        return None
    magic, length, crc, kind = _HEADER.unpack_from(data, at)
    end = at + _HEADER.size + length
    if magic != _MAGIC or length > _LARGEST or end > len(data) or kind >= len(_KINDS):
        return None
    payload = data[at + _HEADER.size : end]
    return (end, kind, payload) if zlib.crc32(payload) == crc else None


def decode(kind: int, payload: bytes) -> Entry:
    """The entry of a frame. Raises msgspec's errors for what is none."""
    return _DECODERS[kind].decode(payload)


def segments(folder: Path) -> list[int]:
    """The numbers of the folder's segments, oldest first."""
    return sorted(int(path.stem) for path in folder.glob("*.journal") if path.stem.isdigit())


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"{number:012d}.journal"


def cut_torn_tail(folder: Path) -> int:
    """Cut what a killed process wrote in part off the last segment; returns the bytes cut."""
    numbers = segments(folder)
    if not numbers:
        return 0
    path = segment_path(folder, numbers[-1])
    data = path.read_bytes()
    end = 0
    for end, _, _ in frames(data):  # noqa: B007 - the last one's end is wanted
        pass
    if end < len(data):
        os.truncate(path, end)
        log.info("Cut %d bytes of an unfinished entry off %s", len(data) - end, path)
    return len(data) - end


def read_cursor(folder: Path) -> Position:
    """How far the folder was drained; the beginning when that is not known."""
    try:
        return msgspec.json.decode((folder / "cursor").read_bytes(), type=Position)
    except (OSError, *UNREADABLE):
        return Position(0, 0)


def write_cursor(folder: Path, position: Position) -> None:
    """Remember how far the folder was drained. A failure costs only time at the next start."""
    try:
        write_whole(folder / "cursor", msgspec.json.encode(position))
    except OSError:
        log.debug("The journal's cursor cannot be written in %s", folder)


def lock_folder(folder: Path) -> int | None:
    """A file descriptor that holds the folder's lock until it is closed; None when it is taken."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _open(folder: Path, number: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return os.open(segment_path(folder, number), flags, 0o600)


def _answer(items: list[_Waiting], done: bool) -> None:
    for item in items:
        if item.future is not None:
            try:
                item.future.get_loop().call_soon_threadsafe(_resolve, item.future, done)
            except RuntimeError:
                pass  # its loop is closed: nobody waits any more


def _resolve(future: asyncio.Future[bool], done: bool) -> None:
    if not future.done():
        future.set_result(done)
