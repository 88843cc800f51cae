from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from sqlalchemy import select

from meters.journal import Journal
from meters.ledger import Ledger
from meters.schema import shares
from meters.types import Activity, Attribution, StepPhysics
from proxy.accounts import AHEAD_S, HOLD_S, undivided
from proxy.leftovers import Leftovers
from proxy.measuring import divide
from tests.meters.books import NOON_S, attribution, record, window
from tests.meters.test_drain import drained

PHYSICS = StepPhysics(
    idle_power_w=50.0,
    step_j=1.0,
    token_j=0.1,
    context_j=0.0,
    prefill_j=0.01,
    step_s=0.01,
    token_s=0.0,
    context_s=0.0,
    prefill_s=0.0,
)


def test_a_window_that_a_dead_replica_left_is_divided_by_another(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    left = window(1, energy_j=300.0, prompt_tokens=100, generated_tokens=50, steps=50)
    done = window(2, start_s=NOON_S + 11, end_s=NOON_S + 12, energy_j=64.0)
    young = window(3, start_s=NOON_S + 12, end_s=NOON_S + 13)
    elsewhere = window(4, node="gpu-2")
    divided = attribution(2, {"req-1": 3.0}, start_s=NOON_S + 11, end_s=NOON_S + 12)
    ledger.write([record(1)], [divided], [left, done, young, elsewhere])

    folder = tmp_path / "journal" / "a"
    journal = Journal(folder)
    leftovers = Leftovers(ledger, journal, ["gpu-1"], divide, lambda node: PHYSICS, patience_s=30.0)
    assert leftovers.look(NOON_S + 12 + 30.5) == 1
    journal.close()
    drained(folder, ledger)

    balance = ledger.check()
    assert balance.balanced
    assert balance.metered_uj == 364_000_000
    receipt = ledger.receipt("req-1")
    assert receipt is not None
    assert [share.window_id for share in receipt.shares] == ["win-1", "win-2"]
    assert ledger.undivided("gpu-1", 0, NOON_S + 12.5) == []
    ledger.close()


def test_the_owner_that_comes_late_after_all_changes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    left = window(1)
    ledger.write([record(1)], [undivided(left)], [left])
    before = ledger.check()
    ledger.write([], [attribution(1, {"req-1": 3.0}, metered_j=300.0)])
    assert ledger.check() == before
    ledger.close()


def test_a_window_that_its_own_replica_may_still_hold_is_left_to_it(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    held = window(1, energy_j=300.0)
    ledger.write([], [], [held])
    journal = Journal(tmp_path / "journal" / "a")
    leftovers = Leftovers(ledger, journal, ["gpu-1"], divide, lambda node: PHYSICS)
    assert leftovers.look(held.end_s + HOLD_S + AHEAD_S) == 0
    assert leftovers.look(held.end_s + 60.0) == 1
    journal.close()
    ledger.close()


def test_a_window_that_comes_hours_late_is_divided_among_all_that_was_in_flight_then(
    tmp_path: Path,
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    folder = tmp_path / "journal" / "a"
    journal = Journal(folder)
    still = Activity(
        request_id="req-long",
        node="gpu-1",
        start_s=NOON_S + 9.0,
        first_token_s=NOON_S + 9.1,
        prompt_tokens=10.0,
        output_tokens=20_000.0,
    )
    later = msgspec.structs.replace(still, request_id="req-later", start_s=NOON_S + 500.0)
    leftovers = Leftovers(
        ledger,
        journal,
        ["gpu-1"],
        divide,
        lambda node: PHYSICS,
        live=lambda node: [still, later],
    )
    now_s = NOON_S + 5 * 3600.0
    assert leftovers.look(now_s) == 0  # the first look goes back far, others an hour
    late = window(1, energy_j=300.0, prompt_tokens=100, generated_tokens=50, steps=50)
    ledger.write([record(1)], [], [late])
    leftovers.expect(late)
    assert leftovers.look(now_s) == 1
    journal.close()
    drained(folder, ledger)
    with ledger.database.read() as connection:
        charged = set(connection.scalars(select(shares.c.request_id)))
    assert charged == {"req-1", "req-long"}
    assert ledger.check().balanced
    ledger.close()


async def test_nothing_is_divided_while_journals_are_carried_into_the_ledger(
    tmp_path: Path,
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    folder = tmp_path / "journal" / "a"
    journal = Journal(folder)
    left = window(1, energy_j=300.0)
    ledger.write([], [], [left])
    caught_up_s, counted = 0.0, list[Attribution]()
    told = asyncio.Event()

    def note(attribution: Attribution) -> None:
        counted.append(attribution)
        told.set()

    leftovers = Leftovers(
        ledger,
        journal,
        ["gpu-1"],
        divide,
        lambda node: PHYSICS,
        every_s=0.01,
        caught_up_s=lambda: caught_up_s,
        divided=note,
    )
    leftovers.expect(left)
    leftovers.start()
    await asyncio.sleep(0.1)  # ten looks
    assert journal.appended == 0
    caught_up_s = 3600.0
    async with asyncio.timeout(10):
        await told.wait()
    await leftovers.stop()
    assert journal.appended == 1
    assert [a.window_id for a in counted] == [left.window_id]
    journal.close()
    ledger.close()
