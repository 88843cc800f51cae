from __future__ import annotations

import threading
import time
from pathlib import Path

from meters.intensity.book import IntensityBook
from meters.intensity.electricity_maps import ElectricityMaps
from meters.intensity.keep import KeptObservations
from meters.intensity.refresh import Breaker, IntensityRefresher
from meters.intensity.table import AnnualTable
from meters.intensity.types import HOUR_S, Observation, SourceUnavailable, Tier
from tests.fakes.grid_server import Asked, grid_server
from tests.waiting import until

DAY_S = 24 * HOUR_S
NOW_S = 1_790_000_000.0


class Steady:
    """Gives 100 g for every hour; fails while ``broken``."""

    name = "steady"
    attribution = "made up"

    def __init__(self) -> None:
        self.spans_s: list[int] = []
        self.broken = False
        self.asked = threading.Event()

    def fetch(self, zone: str, start_s: int, end_s: int) -> list[Observation]:
        self.asked.set()
        self.spans_s.append(end_s - start_s)
        if self.broken:
            raise SourceUnavailable("gone")
        return [
            Observation(zone=zone, hour_s=s, g_per_kwh=100.0, source=self.name)
            for s in range(start_s, end_s, HOUR_S)
        ]


class Clock:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def made(source: Steady, clock: Clock, kept: KeptObservations | None = None) -> tuple:
    book = IntensityBook(AnnualTable())
    return book, IntensityRefresher(
        book, {"DE": source}, kept=kept, clock=clock, jitter=lambda: 0.5
    )


def test_fetches_each_zone_hourly_and_all_28_days_once_a_day() -> None:
    source, clock = Steady(), Clock()
    book, refresher = made(source, clock)
    due_s = refresher.refresh_due()
    assert book.at("DE", NOW_S).tier is Tier.HOURLY
    assert HOUR_S * 0.05 < due_s - NOW_S < 2 * HOUR_S
    for _ in range(30):
        clock.now_s = due_s
        due_s = refresher.refresh_due()
    assert source.spans_s[0] == 28 * DAY_S
    assert source.spans_s.count(28 * DAY_S) in (2, 3)
    assert set(source.spans_s) == {28 * DAY_S, 2 * DAY_S}


def test_nothing_is_asked_before_it_is_due() -> None:
    source, clock = Steady(), Clock()
    _, refresher = made(source, clock)
    due_s = refresher.refresh_due()
    clock.now_s = due_s - 1
    refresher.refresh_due()
    assert len(source.spans_s) == 1


def test_a_failing_source_is_left_alone_for_longer_and_longer_up_to_an_hour() -> None:
    breaker = Breaker()
    waits = [breaker.failed() for _ in range(9)]
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    breaker.worked()
    assert breaker.failed() == 30


def test_the_ladder_bridges_an_outage_and_health_tells_of_it() -> None:
    source, clock = Steady(), Clock()
    book, refresher = made(source, clock)
    clock.now_s = refresher.refresh_due()
    source.broken = True
    due_s = refresher.refresh_due()
    assert 30 <= due_s - clock.now_s <= 33
    health = refresher.health()[0]
    assert (health.failures, health.error, health.last_success_s) == (1, "gone", NOW_S)
    assert book.at("DE", clock.now_s + 5 * HOUR_S).tier is Tier.LAST_VALUE


def test_what_was_fetched_survives_a_restart_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "state" / "intensity.jsonl"
    source, clock = Steady(), Clock()
    first, refresher = made(source, clock, KeptObservations(path))
    refresher.refresh_due()
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"zone":"DE","hour_')
    again, later = made(source, clock, KeptObservations(path))
    assert again.version == first.version
    clock.now_s += DAY_S
    later.refresh_due()  # writes after the torn line without losing its own first line
    third, _ = made(source, clock, KeptObservations(path))
    assert third.version == again.version != first.version
    assert path.stat().st_size < size * 1.1  # hours already kept are not kept again


def test_a_full_disk_does_not_stop_the_figures(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source, clock = Steady(), Clock()
    book, refresher = made(source, clock, KeptObservations(tmp_path / "file" / "below.jsonl"))
    refresher.refresh_due()
    assert book.at("DE", NOW_S).tier is Tier.HOURLY


def test_the_thread_fills_the_book_and_stops() -> None:
    def service(asked: Asked) -> tuple[int, object]:
        return 403, {}

    source = Steady()
    with grid_server(service) as server:
        book = IntensityBook(AnnualTable())
        refused = ElectricityMaps("t", url=server.url)
        refresher = IntensityRefresher(book, {"DE": source, "FR": refused})
        refresher.start()
        assert source.asked.wait(5)
        until(lambda: book.zones and refresher.health()[1].error)
        refresher.stop()
    assert book.at("DE", time.time()).tier is Tier.HOURLY
    assert "403" in (refresher.health()[1].error or "")
    assert "intensity" not in {thread.name for thread in threading.enumerate()}


def test_zones_and_sources_can_be_changed_while_it_runs() -> None:
    first, second = Steady(), Steady()
    _, refresher = made(first, Clock())
    refresher.refresh_due()
    refresher.take({"DE": first, "FR": second}, anew=False)
    refresher.refresh_due()
    assert [len(first.spans_s), len(second.spans_s)] == [1, 1]  # the old one was not due again
    refresher.take({"DE": second}, anew=True)
    refresher.refresh_due()
    assert [len(first.spans_s), len(second.spans_s)] == [1, 2]
    assert [one.zone for one in refresher.health()] == ["DE"]


def test_the_thread_begins_at_once_with_a_zone_that_is_new() -> None:
    first, second = Steady(), Steady()
    _, refresher = made(first, Clock())
    refresher.start()
    assert first.asked.wait(5.0)
    refresher.take({"DE": first, "FR": second}, anew=False)
    assert second.asked.wait(5.0)
    refresher.stop()
