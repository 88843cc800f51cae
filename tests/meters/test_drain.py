from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from meters.drain import Drain
from meters.journal import (
    Journal,
    Position,
    frames,
    lock_folder,
    read_cursor,
    segment_path,
    segments,
)
from meters.ledger import Ledger
from meters.migrations import VERSION
from meters.schema import meta
from tests.meters.books import attribution, record, window
from tests.servers import Server, new_database, start_postgres
from tests.waiting import until


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Server]:
    """A PostgreSQL that these tests may kill."""
    server = start_postgres()
    yield server
    server.close()


def drained(folder: Path, ledger: Ledger) -> Drain:
    """What the folder holds is in the ledger when this returns; the drain is stopped."""
    journal = Journal(folder)
    drain = Drain(journal, ledger, gather_s=0.0).start()
    assert drain.wait()
    drain.stop()
    journal.close()
    return drain


def test_what_is_appended_is_soon_in_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal" / "a")
    drain = Drain(journal, ledger).start()
    journal.append(record(1))
    journal.append(attribution(1, {"req-1": 3.0}))
    journal.append(window(1, energy_j=64.0))
    until(lambda: ledger.receipt("req-1") is not None, within_s=5.0)
    assert drain.wait()
    drain.stop()
    journal.close()
    balance = ledger.check()
    assert balance.balanced
    assert (balance.requests, balance.windows) == (1, 1)


def test_what_an_earlier_process_left_is_drained_at_start(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "journal" / "a"
    earlier = Journal(folder, segment_bytes=500)
    for n in range(30):
        earlier.append(record(n))
        earlier.flush()
    earlier.close()
    drain = drained(folder, ledger)
    assert drain.drained == 30
    assert ledger.check().requests == 30
    assert len(segments(folder)) <= 2  # what is drained is deleted


def test_it_says_for_how_long_it_has_been_up_to_date(ledger: Ledger, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OperationalError("", {}, Exception("away"))

    journal = Journal(tmp_path / "journal" / "a")
    drain = Drain(journal, ledger, gather_s=0.0).start()
    until(lambda: drain.caught_up_s > 0.2)
    writes, ledger.write = ledger.write, refuse  # type: ignore[method-assign]
    journal.write(record(1))
    until(lambda: drain.caught_up_s == 0.0)
    back_s = time.monotonic()
    ledger.write = writes  # type: ignore[method-assign]
    assert drain.wait()
    until(lambda: drain.caught_up_s > 0.0)
    assert 0.0 < drain.caught_up_s < time.monotonic() - back_s
    drain.stop()
    journal.close()


def test_losing_the_cursor_counts_nothing_twice(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "journal" / "a"
    journal = Journal(folder)
    for n in range(30):
        journal.append(record(n))
    journal.close()
    segment = segment_path(folder, 1).read_bytes()
    drained(folder, ledger)
    # killed after the ledger had committed, before cursor and segment were changed
    (folder / "cursor").unlink()
    segment_path(folder, 1).write_bytes(segment)
    again = drained(folder, ledger)
    assert again.drained == 30
    balance = ledger.check()
    assert balance.balanced
    assert balance.requests == 30


def test_more_than_a_batch_is_drained_in_batches(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "journal" / "a"
    journal = Journal(folder, segment_bytes=200_000)
    for n in range(2500):
        journal.append(record(n))
    journal.close()
    assert drained(folder, ledger).drained == 2500
    assert ledger.check().balanced
    assert read_cursor(folder) > Position(1, 0)


def test_the_journal_of_a_dead_sibling_is_taken_over(ledger: Ledger, tmp_path: Path) -> None:
    dead = Journal(tmp_path / "journal" / "dead")
    dead.append(record("left"))
    dead.close()
    living = Journal(tmp_path / "journal" / "living")
    living.append(record("kept"))
    living.flush()
    drained(tmp_path / "journal" / "mine", ledger)
    assert ledger.receipt("req-left") is not None
    assert ledger.receipt("req-kept") is None
    assert not (tmp_path / "journal" / "dead").exists()
    living.close()

    # and when it comes back, what it writes then is not taken for drained
    back = Journal(tmp_path / "journal" / "dead")
    back.append(record("new"))
    back.close()
    drained(tmp_path / "journal" / "dead", ledger)
    assert ledger.receipt("req-new") is not None


def test_an_entry_that_no_ledger_takes_is_put_aside_and_the_others_are_kept(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "journal" / "a"
    journal = Journal(folder)
    for n in range(10):
        journal.append(record(n, output_tokens=2**70 if n == 6 else 5))
    journal.append(attribution(1, {"req-1": -4.0}))
    journal.append(record("nan", start_s=math.nan))  # JSON has no NaN: unreadable, not unwritable
    journal.close()
    drain = drained(folder, ledger)
    assert drain.quarantined == 2
    assert ledger.check().requests == 9
    assert len(list(frames((folder / "quarantine").read_bytes()))) == 2
    assert "req-" not in caplog.text


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_journal_that_is_deleted_under_the_process_is_made_anew_and_loses_nothing(
    ledger: Ledger, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    journal = Journal(state / "journal" / "a")
    drain = Drain(journal, ledger, gather_s=0.0).start()
    journal.write(record(1))
    assert drain.wait()
    if how == "deleted":
        shutil.rmtree(state.rename(tmp_path / "deleted"))  # at once: the drain writes there
    else:
        state.rename(tmp_path / "elsewhere")
    for n in (2, 3):
        journal.write(record(n))
    until(lambda: ledger.receipt("req-3") is not None)
    assert lock_folder(journal.folder) is None  # still nobody else's
    drain.stop()
    journal.close()
    assert ledger.check().requests == 3
    assert caplog.text.count("deleted or moved") == 1


def test_a_journal_whose_folder_cannot_be_made_again_holds_and_says_so(
    ledger: Ledger, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    journal = Journal(state / "journal" / "a")
    drain = Drain(journal, ledger, gather_s=0.0).start()
    shutil.rmtree(state.rename(tmp_path / "deleted"))  # at once: the drain writes there
    state.write_text("in the way")
    journal.write(record(1))
    until(lambda: journal.failing is not None)
    journal.write(record(2))
    state.unlink()
    until(lambda: ledger.receipt("req-2") is not None)
    drain.stop()
    assert journal.failing is None
    journal.close()
    assert ledger.check().requests == 2


def test_a_ledger_of_a_newer_program_is_waited_for_with_one_warning(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ledger.database.write() as connection:
        connection.execute(meta.insert().values(version=VERSION + 1, applied_s=0.0))
    newer = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", lazy=True)
    journal = Journal(tmp_path / "journal" / "a")
    drain = Drain(journal, newer, gather_s=0.0).start()
    journal.write(record(1))
    until(lambda: drain.ledger_down)
    with ledger.database.write() as connection:
        connection.execute(meta.delete().where(meta.c.version > VERSION))
    assert drain.wait()
    drain.stop()
    journal.close()
    newer.close()
    assert ledger.check().requests == 1
    assert [r.levelname for r in caplog.records if "newer" in r.getMessage()] == ["WARNING"]
    assert not [r for r in caplog.records if r.exc_info]


def test_the_journal_outlives_a_killed_postgresql(
    own_postgres: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    ledger = Ledger(new_database(own_postgres.url, "outage"))
    journal = Journal(tmp_path / "journal" / "a")
    drain = Drain(journal, ledger, gather_s=0.0).start()
    journal.append(record("before"))
    assert drain.wait()
    own_postgres.kill()
    for n in range(500):
        journal.append(record(n))
    until(lambda: drain.ledger_down)
    assert drain.backlog_bytes > 0
    own_postgres.start()
    assert drain.wait(30)
    assert not drain.ledger_down
    drain.stop()
    journal.close()
    balance = ledger.check()
    ledger.close()
    assert balance.balanced
    assert balance.requests == 501
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1
    assert len([r for r in caplog.records if "written again" in r.message]) == 1


def test_a_read_only_postgresql_is_waited_for(own_postgres: Server, tmp_path: Path) -> None:
    url = new_database(own_postgres.url, "read_only")
    ledger = Ledger(url)
    journal = Journal(tmp_path / "journal" / "a")
    drain = Drain(journal, ledger, gather_s=0.0).start()
    _set_read_only(own_postgres.url, "on", ledger)
    journal.append(record(1))
    until(lambda: drain.ledger_down)
    _set_read_only(own_postgres.url, "off", ledger)
    assert drain.wait(30)
    drain.stop()
    journal.close()
    assert ledger.receipt("req-1") is not None
    assert drain.quarantined == 0
    ledger.close()


def _set_read_only(url: str, value: str, ledger: Ledger) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE read_only SET default_transaction_read_only = {value}"  # type: ignore[arg-type]
        )
    ledger.database.writer.dispose()  # connections keep the setting they began with
