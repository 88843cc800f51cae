"""Windows on disk until the proxy has them."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from meters.spool import SEGMENT_WINDOWS, Spool, SpoolUnusable
from meters.types import Window


def window(number: int) -> Window:
    return Window(
        window_id=f"n:r:{number}", node="n", start_s=number, end_s=number + 1, energy_j=5.0
    )


def drain(spool: Spool) -> list[str]:
    ids = []
    while (batch := spool.batch()) is not None:
        ids += [w.window_id for w in batch.windows]
        spool.done(batch)
    return ids


def test_what_goes_in_comes_out_once_and_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.batch() is None
    for n in range(SEGMENT_WINDOWS + 10):
        spool.append(window(n))
    assert drain(spool) == [f"n:r:{n}" for n in range(SEGMENT_WINDOWS + 10)]
    assert spool.batch() is None
    assert not list(tmp_path.glob("*.jsonl"))


def test_what_was_not_answered_for_comes_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(window(0))
    first = spool.batch()
    spool.append(window(1))
    assert spool.batch() == first
    assert drain(spool) == ["n:r:0", "n:r:1"]


def test_windows_survive_a_crash_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    crashed = Spool(tmp_path)
    crashed.append(window(0))
    crashed.append(window(1))
    crashed._lock_file.close()  # as the kernel does for a process that died
    (open_segment,) = tmp_path.glob("*.open")
    with open_segment.open("ab") as file:
        file.write(b'{"window_id":"n:r:2","no')
    again = Spool(tmp_path)
    again.append(window(3))
    assert drain(again) == ["n:r:0", "n:r:1", "n:r:3"]


def test_a_full_spool_loses_the_oldest_and_counts_them(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=2_000)
    for n in range(30):
        spool.append(window(n))
        spool._seal()
    left = drain(spool)
    assert left[-1] == "n:r:29"
    assert spool.lost == 30 - len(left) > 0


def test_one_folder_is_one_meters(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(SpoolUnusable, match="another meter"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolUnusable, match="spool_dir"):
        Spool(tmp_path / "file")


def test_a_disk_that_fails_loses_a_window_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    spool.append(window(0))
    assert spool.lost == 1


def test_a_full_disk_loses_what_has_no_room_and_nothing_else(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's end: it, too, cuts a write short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        spool = Spool(tmp_path)
        for n in range(30):
            spool.append(window(n))
        kept = drain(spool)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert kept == [f"n:r:{n}" for n in range(len(kept))]
    assert spool.lost == 30 - len(kept)
    assert 0 < len(kept) < 30
    spool.append(window(30))
    assert drain(spool) == ["n:r:30"]
    spool.close()


def test_a_batch_nobody_can_read_is_set_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(window(0))
    batch = spool.batch()
    assert batch is not None
    spool.set_aside(batch)
    assert spool.batch() is None
    assert len(list(tmp_path.glob("*.bad"))) == 1
