from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meters.journal import (
    Journal,
    JournalBusy,
    Sync,
    cut_torn_tail,
    decode,
    frame,
    frames,
    segment_path,
    segments,
)
from meters.types import UsageRecord
from tests.meters.books import attribution, record, window
from tests.waiting import until


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "one")
    yield opened
    opened.close()


def kept(folder: Path) -> list[object]:
    """Every entry in the folder's segments, in order."""
    data = b"".join(segment_path(folder, number).read_bytes() for number in segments(folder))
    return [decode(kind, payload) for _, kind, payload in frames(data)]


def test_entries_of_every_kind_come_back_in_order(journal: Journal) -> None:
    entries = [record(1), attribution(1, {"req-1": 2.0}), window(1), record(2, tags=("x",))]
    for entry in entries:
        journal.append(entry)
    assert journal.flush()
    assert kept(journal.folder) == entries


async def test_durable_answers_once_the_entry_is_in_the_file(journal: Journal) -> None:
    answers = [journal.durable(record(n)) for n in range(100)]
    assert await answers[-1]
    assert kept(journal.folder) == [record(n) for n in range(100)]
    assert all([await answer for answer in answers])


def test_segments_rotate_and_lose_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=1000)
    for n in range(50):
        journal.append(record(n))
        assert journal.flush()
    journal.close()
    assert len(segments(tmp_path)) > 5
    assert kept(tmp_path) == [record(n) for n in range(50)]


def test_a_folder_has_one_writer(journal: Journal) -> None:
    with pytest.raises(JournalBusy, match="another process"):
        Journal(journal.folder)


def test_a_number_is_not_used_again_after_its_segment_is_gone(tmp_path: Path) -> None:
    (tmp_path / "cursor").write_bytes(b"[7,123]")
    journal = Journal(tmp_path)
    assert journal.committed.segment == 8
    journal.close()


@given(st.lists(st.binary(max_size=60), max_size=8), st.data())
def test_whatever_is_cut_off_the_end_the_whole_frames_before_it_are_read(
    payloads: list[bytes], data: st.DataObject
) -> None:
    whole = [frame(n % 3, payload) for n, payload in enumerate(payloads)]
    blob = b"".join(whole)
    cut = data.draw(st.integers(0, len(blob)))
    complete, at = 0, 0
    for one in whole:
        at += len(one)
        complete += at <= cut
    assert [p for _, _, p in frames(blob[:cut])] == payloads[:complete]


def test_damage_in_the_middle_costs_only_what_was_damaged() -> None:
    whole = [frame(0, b'{"n":%d}' % n) for n in range(3)]
    damaged = bytearray(b"".join(whole))
    damaged[len(whole[0]) + 13] ^= 0xFF
    assert [p for _, _, p in frames(bytes(damaged))] == [b'{"n":0}', b'{"n":2}']


def test_a_torn_tail_is_cut_at_the_next_start(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(record(1))
    journal.close()
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    assert cut_torn_tail(tmp_path) == 30
    assert path.read_bytes() == whole


@pytest.mark.alone
def test_append_does_not_wait_for_the_disk(journal: Journal) -> None:
    entry = record(1)
    start_s = time.perf_counter()
    for _ in range(2000):
        journal.append(entry)
    assert (time.perf_counter() - start_s) / 2000 < 0.001
    assert journal.flush()


def test_an_entry_that_cannot_be_encoded_is_counted_and_the_next_is_kept(
    journal: Journal,
) -> None:
    journal.append(record(1, model_asked="\ud800"))
    journal.append(record(2))
    assert journal.flush()
    assert journal.lost == 1
    assert kept(journal.folder) == [record(2)]


async def test_a_full_disk_holds_entries_in_memory_until_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, held_entries=50)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        assert await journal.durable(record(0))
        size = segment_path(tmp_path, 1).stat().st_size
        # as a full disk does it: some bytes of the next entry still fit
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
        assert await journal.durable(record(1)) is False
        for n in range(2, 40):
            journal.append(record(n))
        until(lambda: journal.waiting == 39)
        assert journal.failing
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert await asyncio.to_thread(journal.flush)
    # nothing of the write that failed half-way is left between what was written
    assert segment_path(tmp_path, 1).stat().st_size == journal.committed.offset
    journal.close()
    assert kept(tmp_path) == [record(n) for n in range(40)]
    assert journal.lost == 0
    assert journal.failing is None
    warnings = [r.message for r in caplog.records if "cannot be written" in r.message]
    assert len(warnings) == 1


def test_what_a_full_disk_never_took_is_told_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        for n in range(3):
            journal.append(record(n))
        until(lambda: journal.waiting == 3)
        journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert journal.lost == 3
    assert "3 finished requests are lost" in caplog.text


WRITER = """
    import asyncio, sys
    from pathlib import Path
    from meters.journal import Journal
    from tests.meters.books import record

    async def main():
        journal = Journal(Path(sys.argv[1]), segment_bytes=20_000)
        number = 0
        while True:
            answers = [(n, journal.durable(record(n))) for n in range(number, number + 20)]
            number += 20
            for n, answer in answers:
                if await answer:
                    sys.stdout.write(f"{n}\\n")
            sys.stdout.flush()

    asyncio.run(main())
"""


def test_what_was_called_durable_survives_kill_nine(tmp_path: Path) -> None:
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path / "j")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        promised = [process.stdout.readline() for _ in range(200)]
        os.kill(process.pid, signal.SIGKILL)
        promised += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        numbers = {int(line) for line in promised if line.endswith("\n")}
        Journal(tmp_path / "j").close()  # cuts what is torn
        found = {e.request_id for e in kept(tmp_path / "j") if isinstance(e, UsageRecord)}
        assert len(numbers) >= 200
        assert {f"req-{n}" for n in numbers} <= found


def test_what_is_written_at_once_is_in_the_file_when_it_returns(journal: Journal) -> None:
    for number in range(20):
        journal.write(record(number))
        assert len(kept(journal.folder)) == number + 1
    assert journal.appended == journal.written == 20


@pytest.mark.parametrize("sync", ["always", "interval"])
async def test_what_is_not_written_at_once_says_when_it_is_in_the_file(
    tmp_path: Path, sync: Sync
) -> None:
    journal = Journal(tmp_path / "small", sync=sync, segment_bytes=2_000)
    handed = 0
    for number in range(60):
        if (written := journal.record(record(number))) is not None:
            handed += 1
            assert await written
        assert len(kept(journal.folder)) == number + 1
    assert handed == 60 if sync == "always" else 0 < handed < 60  # a full segment's
    journal.close()


def test_what_is_handed_over_and_what_is_written_at_once_keep_their_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "small", segment_bytes=2_000)
    entries = [record(number) for number in range(100)]
    for number, entry in enumerate(entries):
        (journal.write if number % 3 else journal.append)(entry)
    assert journal.flush()
    journal.close()
    assert len(segments(journal.folder)) > 1
    assert kept(journal.folder) == entries


def test_a_slow_disk_is_left_to_the_thread(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, written_by = os.write, []

    def slow(file: int, data: bytes) -> int:
        written_by.append(threading.current_thread())
        time.sleep(0.1)  # for two seconds the disk is taken to be busy
        return at_once(file, data)

    monkeypatch.setattr("meters.journal.os.write", slow)
    for number in range(20):
        journal.write(record(number))
    assert written_by.count(threading.current_thread()) == 1
    assert journal.flush()
    assert kept(journal.folder) == [record(number) for number in range(20)]
