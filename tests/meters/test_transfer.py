from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from meters import transfer
from meters.ledger import Ledger
from meters.ourselves import OwnSums
from meters.schema import feedback, windows
from meters.types import Attribution, UsageRecord, Window
from proxy.people import People
from proxy.settings import Organisation, Settings, Team
from proxy.teams import TeamStore
from tests.meters.books import NOON_S, attribution, record, window


def traffic(seed: int = 1) -> tuple[list[UsageRecord], list[Attribution], list[Window]]:
    """Two hours of five requests a minute, with a window every ten seconds."""
    dice = random.Random(seed)
    records = [
        record(
            n,
            start_s=NOON_S + n * 12.0,
            end_s=NOON_S + n * 12.0 + 8.0,
            sent_s=NOON_S + n * 12.0,
            team=dice.choice(["search", "ads"]),
            energy_j=dice.choice([None, dice.expovariate(0.1)]),
            decision='{"chosen":"x"}',
            tags=("a", "b") if n % 3 else (),
        )
        for n in range(600)
    ]
    attributions, windows = [], []
    for n in range(720):
        start_s = NOON_S + n * 10.0
        inside = [r for r in records if r.start_s < start_s + 10 and r.end_s > start_s]
        shares = {r.request_id: dice.expovariate(0.02) for r in inside if dice.random() < 0.95}
        divided = attribution(n, shares, start_s=start_s, end_s=start_s + 10.0)
        attributions.append(divided)
        windows.append(
            window(
                n,
                start_s=start_s,
                end_s=start_s + 10.0,
                energy_j=divided.metered_j,
                host_energy_j=dice.choice([None, 5.0]),
                generated_tokens=dice.choice([None, 100.0]),
            )
        )
    return records, attributions, windows


@pytest.fixture
def full(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    ledger.write(*traffic())
    store = TeamStore(ledger.database, Settings())
    store.create_team("search", Team(), "a test")
    store.create_key("search", actor="a test")
    ledger.add_feedback("req-1", "judge", 0.5, "search", NOON_S)
    ledger.keep_own("replica 1", {int(NOON_S) // 3600 * 3600: OwnSums(5_000_000, 2_000_000)})
    yield ledger
    ledger.close()


def rows(ledger: Ledger) -> list[bytes]:
    """An export without its first line, which says when it was made."""
    return sorted(list(transfer.exported(ledger))[1:])


def day(ledger: Ledger, *group_by: str) -> object:
    return ledger.usage(None, NOON_S - 86_400, NOON_S + 86_400, group_by)


def test_a_ledger_moves_whole_to_another_of_its_kind(
    full: Ledger, new_ledger_url: Callable[[], str]
) -> None:
    lines = list(transfer.exported(full))
    moved = Ledger(new_ledger_url())
    counts = transfer.imported(moved, lines)
    assert counts["requests"] == 600
    assert counts["api_keys"] == 1
    assert moved.check() == full.check()
    assert day(moved, "hour_s", "team", "tags") == day(full, "hour_s", "team", "tags")
    assert moved.receipt("req-7") == full.receipt("req-7")
    assert rows(moved) == rows(full)
    assert moved.own_energy() == OwnSums(5_000_000, 2_000_000)
    moved.close()


def test_importing_again_changes_nothing(full: Ledger) -> None:
    before = full.check()
    transfer.imported(full, list(transfer.exported(full)))
    assert full.check() == before
    assert before.balanced


def test_an_export_that_was_cut_off_is_noticed_and_can_be_taken_up(
    full: Ledger, new_ledger_url: Callable[[], str]
) -> None:
    lines = list(transfer.exported(full))
    moved = Ledger(new_ledger_url())
    with pytest.raises(transfer.BadExport, match="cut off"):
        transfer.imported(moved, lines[:-1])
    with pytest.raises(transfer.BadExport, match="cut off"):
        transfer.imported(moved, [*lines[:700], lines[-1]])
    transfer.imported(moved, lines)
    assert moved.check() == full.check()
    moved.close()


@pytest.mark.parametrize("first", [b"", b"not json\n", b'{"format":"other"}\n'])
def test_what_is_no_export_is_refused(tmp_path: Path, first: bytes) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}")
    with pytest.raises(transfer.BadExport):
        transfer.imported(ledger, [first])
    ledger.close()


def test_folding_keeps_every_sum(full: Ledger) -> None:
    before, sums = full.check(), day(full, "hour_s", "team", "tags")
    receipts = [full.receipt(f"req-{n}") for n in range(200)]
    receipt = next(r for r in receipts if r is not None and len(r.shares) == 2)
    folded = full.compact(NOON_S + 3600 + 1800)
    after = full.check()
    assert folded.before_s == NOON_S + 3600
    assert folded.windows == 359
    assert after.balanced
    assert (after.metered_uj, after.attributed_uj, after.idle_uj) == (
        before.metered_uj,
        before.attributed_uj,
        before.idle_uj,
    )
    assert after.shares < before.shares
    assert day(full, "hour_s", "team", "tags") == sums
    now = full.receipt(receipt.record.request_id)
    assert now is not None
    assert now.attributed_j == receipt.attributed_j
    assert (now.state, now.settled) == (receipt.state, receipt.settled)
    assert len(now.shares) == 1
    assert now.record.decision is None
    with full.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(windows)) == 361
    assert full.undivided("gpu-1", NOON_S, NOON_S + 3600) == []
    assert now.shares[0].host_energy_j is None  # it was read in half of that hour's windows


def test_a_receipt_keeps_its_host_when_its_windows_are_folded(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ends = [(NOON_S + n, NOON_S + n + 1.0) for n in range(8, 14)]
    ledger.write(
        [record(1)],
        [attribution(n, {"req-1": 7.0}, start_s=a, end_s=b) for n, (a, b) in enumerate(ends)],
        [
            window(n, start_s=a, end_s=b, energy_j=68.0, host_energy_j=20.0)
            for n, (a, b) in enumerate(ends)
        ],
    )
    before = ledger.receipt("req-1")
    ledger.compact(NOON_S + 3600)
    after = ledger.receipt("req-1")
    balance = ledger.check()
    ledger.close()
    assert before is not None
    assert after is not None
    assert sum(share.host_energy_j or 0.0 for share in before.shares) == 120.0
    assert [share.host_energy_j for share in after.shares] == [120.0]
    assert balance.balanced


def test_a_window_of_a_folded_hour_is_not_counted_again(full: Ledger) -> None:
    full.compact(NOON_S + 3600)
    before = full.check()
    written = full.write(*traffic())
    assert written.late == 360
    assert full.check() == before


def test_folding_goes_on_where_it_ended(full: Ledger) -> None:
    full.compact(NOON_S + 3600)
    assert full.compact(NOON_S + 3600).windows == 0
    assert full.compact(NOON_S + 7200).windows == 359
    assert full.check().balanced
    assert full.check().windows == 2


def test_a_folded_ledger_moves_but_not_into_one_that_is_not_folded(
    full: Ledger, new_ledger_url: Callable[[], str]
) -> None:
    whole = list(transfer.exported(full))
    full.compact(NOON_S + 3600)
    moved = Ledger(new_ledger_url())
    lines = list(transfer.exported(full))
    transfer.imported(moved, lines)
    assert moved.check() == full.check()
    with pytest.raises(transfer.BadExport, match="different hours"):
        transfer.imported(moved, whole)
    moved.close()


def test_a_second_import_brings_what_people_changed_since(
    full: Ledger, new_ledger_url: Callable[[], str]
) -> None:
    here = TeamStore(full.database, Settings())
    kept = here.create_key("search", actor="a test")
    gone = here.create_key("search", actor="a test")
    here.set_organisation("acme", Organisation(), "a test")
    people = People(full.database)
    people.create("ada", "correct horse battery", role="lead", teams=("search",), actor="a test")
    before = list(transfer.exported(full))
    moved = Ledger(new_ledger_url())
    transfer.imported(moved, before)

    there = TeamStore(moved.database, Settings())
    there.revoke_key(kept.key_id, "a test")  # which the export does not know
    here.revoke_key(gone.key_id, "a test")
    here.change_team("search", Team(policy="quality-first"), "a test")
    here.set_organisation("acme", Organisation(timezone="Europe/Berlin"), "a test")
    people.remove("ada", "a test")
    full.add_feedback("req-1", "judge", 0.9, "search", NOON_S + 60)
    full.keep_own("replica 1", {int(NOON_S) // 3600 * 3600: OwnSums(7_000_000, 3_000_000)})
    for lines in (list(transfer.exported(full)), before):  # the older one changes nothing back
        transfer.imported(moved, lines)
        states = {key.key_id: key.state(time.time()) for key in there.list_keys()}
        assert states[gone.key_id] == states[kept.key_id] == "revoked"
        (team,) = (team for team in there.list_teams() if team.team == "search")
        assert team.settings.policy == "quality-first"
        assert there.directory().organisations["acme"].timezone == "Europe/Berlin"
        assert People(moved.database).all() == {}
        assert moved.own_energy() == OwnSums(7_000_000, 3_000_000)
        with moved.database.read() as connection:
            assert connection.scalar(select(feedback.c.score)) == 0.9
    moved.close()
