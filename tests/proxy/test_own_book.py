"""Joulegate's own energy in the ledger: counted once, beside the books, in every export."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from meters.ledger import Ledger
from meters.ourselves import OwnSums
from meters.rapl import RaplMeter
from proxy.own_book import OwnBook
from proxy.own_energy import OwnMeter

HOUR_S = 1_700_000_400 // 3600 * 3600


class Process:
    """A process whose processor time and clock are set."""

    def __init__(self, folder: Path) -> None:
        self.cpu_s, self.now_s = 0.0, HOUR_S + 10.0
        self.meter = OwnMeter(
            host=lambda: RaplMeter(folder / "none"),
            cpu_s=lambda: self.cpu_s,
            clock=lambda: self.now_s,
        )

    def book(self, ledger: Ledger, name: str = "a 1") -> OwnBook:
        return OwnBook(ledger, name, self.meter, lambda: self.now_s)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "ledger.db"))


def test_every_joule_is_kept_once_in_its_hour(ledger: Ledger, tmp_path: Path) -> None:
    process = Process(tmp_path)
    book = process.book(ledger)
    for cpu_s, passed_s in ((2.0, 60), (5.0, 60), (9.0, 3600), (9.5, 60)):
        process.cpu_s, process.now_s = cpu_s, process.now_s + passed_s
        book.note()
        book.note()  # nothing more was used
    whole = process.meter.look()
    core_w = whole.core_w
    assert ledger.own_energy(HOUR_S, HOUR_S + 3600).energy_uj == round(5.0 * core_w * 1e6)
    assert ledger.own_energy(HOUR_S + 3600, HOUR_S + 7200).energy_uj == round(4.5 * core_w * 1e6)
    assert ledger.own_energy() == OwnSums(round(whole.energy_j * 1e6), 0)


def test_processes_are_added_up(ledger: Ledger, tmp_path: Path) -> None:
    for name in ("a 1", "a 2", "b 1"):
        process = Process(tmp_path)
        process.cpu_s = 2.0
        process.book(ledger, name).note()
    assert ledger.own_energy().energy_uj == round(6.0 * process.meter.look().core_w * 1e6)


def test_what_the_ledger_did_not_take_is_kept_later(ledger: Ledger, tmp_path: Path) -> None:
    process = Process(tmp_path)
    book = process.book(ledger)
    with ledger.database.write() as connection:
        connection.execute(text("ALTER TABLE own_hours RENAME TO gone"))
    process.cpu_s = 3.0
    book.note()
    process.cpu_s, process.now_s = 5.0, process.now_s + 3600
    book.note()
    with ledger.database.write() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO own_hours"))
    book.note()
    core_w = process.meter.look().core_w
    assert ledger.own_energy(HOUR_S, HOUR_S + 3600).energy_uj == round(3.0 * core_w * 1e6)
    assert ledger.own_energy().energy_uj == round(5.0 * core_w * 1e6)


def test_it_is_in_no_sum_of_the_books(ledger: Ledger, tmp_path: Path) -> None:
    before = ledger.check()
    process = Process(tmp_path)
    process.cpu_s = 100.0
    process.book(ledger).note()
    assert ledger.check() == before


def test_the_last_minute_is_noted_at_the_end(ledger: Ledger, tmp_path: Path) -> None:
    process = Process(tmp_path)
    book = process.book(ledger).start()
    process.cpu_s = 1.0
    book.stop()
    assert ledger.own_energy().energy_uj > 0
