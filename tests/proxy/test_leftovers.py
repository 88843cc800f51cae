from __future__ import annotations

from pathlib import Path

from meters.journal import Journal
from meters.ledger import Ledger
from meters.types import StepPhysics
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
