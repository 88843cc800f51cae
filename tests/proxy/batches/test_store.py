"""Whose a batch is, and what becomes of its results."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from meters.database import Database
from proxy.batches.files import Files
from proxy.batches.store import OWNED_S, Batches, Lost, Result
from proxy.batches.tables import batches, metadata

ROW = {
    "id": "batch_1",
    "team": "physics",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-1",
    "headers": "{}",
    "status": "in_progress",
    "total": 3,
    "created_s": 1.0,
    "expires_s": 2.0,
}


@pytest.fixture
def database(ledger_url: str) -> Iterator[Database]:
    database = Database(ledger_url, metadata.create_all)
    yield database
    database.close()


def result(line: int, *, ok: bool = True, energy_j: float | None = None) -> Result:
    return Result(line, ok, b"line %d" % line, energy_j, None, "metered" if energy_j else None)


def test_a_batch_is_one_process_at_a_time(database: Database) -> None:
    store = Batches(database)
    store.create(ROW)
    assert [row["id"] for row in store.take("one", 5)] == ["batch_1"]
    assert store.take("two", 5) == ()
    store.keep("one", "batch_1", [result(1)])
    with database.write() as connection:  # it has not said so again for too long
        past_s = time.time() - OWNED_S
        connection.execute(batches.update().values(owned_until_s=past_s))
    assert [row["id"] for row in store.take("two", 5)] == ["batch_1"]
    with pytest.raises(Lost):
        store.keep("one", "batch_1", [result(2)])
    with pytest.raises(Lost):
        store.turn("one", "batch_1", "finalizing")
    with pytest.raises(Lost):
        store.finish("one", ROW, "cancelled", 9e9)
    assert store.hold("one", ["batch_1"]) == {}
    assert store.hold("two", ["batch_1"]) == {"batch_1": "in_progress"}
    assert store.done("batch_1") == {1}


def test_each_team_has_its_share_of_a_process(database: Database) -> None:
    store = Batches(database)
    for number in range(4):
        store.create({**ROW, "id": f"batch_{number}", "created_s": float(number)})
    store.create({**ROW, "id": "batch_other", "team": "biology", "created_s": 9.0})
    taken = [row["id"] for row in store.take("one", 2)]
    assert taken == ["batch_0", "batch_1", "batch_other"]
    assert store.take("one", 2, {"physics": 2, "biology": 1}) == ()
    assert [row["id"] for row in store.take("one", 2, {"physics": 1})] == ["batch_2"]


def test_the_first_result_of_a_line_counts_and_all_are_in_the_files(database: Database) -> None:
    store, files = Batches(database), Files(database)
    store.create(ROW)
    store.take("one", 5)
    store.keep("one", "batch_1", [result(2, energy_j=4.0), result(1, ok=False)])
    store.keep("one", "batch_1", [result(2, energy_j=9.0)])  # once more
    with pytest.raises(RuntimeError):
        store.finish("one", ROW, "completed", 9e9)  # a line has no result
    store.keep("one", "batch_1", [result(3)])
    now = store.get("physics", "batch_1")
    assert now is not None
    assert (now["completed"], now["failed"], now["energy_j"], now["known"]) == (2, 1, 4.0, 1)
    store.finish("one", ROW, "completed", 9e9, [b"never sent"])
    done = store.get("physics", "batch_1")
    assert done is not None
    assert {**now, **{k: done[k] for k in done if now[k] != done[k]}} == done
    assert (done["status"], done["evidence"], done["owner"]) == ("completed", "metered", None)
    assert b"".join(files.content(done["output_file_id"])) == b"line 2\nline 3\n"
    assert b"".join(files.content(done["error_file_id"])) == b"line 1\nnever sent\n"
    assert store.done("batch_1") == set()


def test_what_is_wanted_no_more_is_deleted(database: Database) -> None:
    files, store = Files(database), Batches(database)
    kept, old = (files.begin("physics", "f", "batch", 100.0, now_s=10.0) for _ in range(2))
    half = files.begin("physics", "f", "batch", 1e9, now_s=10.0)
    for file_id in (kept, old):
        files.add(file_id, 0, b"x")
        files.end(file_id, 1, "f", None)
    store.create({**ROW, "input_file_id": kept})
    assert store.using(kept) == "batch_1"
    assert files.sweep(99.0) == 0
    assert files.sweep(100.0) == 1  # one is read by a batch yet, one may still be uploaded
    assert files.get("physics", old) is None
    assert list(files.content(old)) == []
    assert files.get("physics", kept) is not None
    assert files.sweep(10.0 + 86_400.0) == 1
    files.abandon(half)
    assert files.used_bytes("physics") == 1
