from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from meters.intensity import Tier
from proxy.dashboard.advice import Advice, advise
from proxy.dashboard.snapshot import Snapshots
from tests.seed_ledger import MONTH, TIME_ZONE


def advice_of(snapshots: Snapshots, team: str, hourly: bool = True) -> tuple[Advice, ...]:
    account = snapshots.account(team, MONTH, False)
    zone = ZoneInfo(TIME_ZONE)

    def intensity(name: str, hour_s: int) -> tuple[float, bool]:
        answer = snapshots.book.at(name or None, hour_s)
        return answer.g_per_kwh, hourly and answer.tier in (Tier.HOURLY, Tier.ESTIMATED)

    lines = snapshots.of(team, MONTH).lines["model"]
    return advise(account, lines, lambda s: datetime.fromtimestamp(s, zone).hour, intensity)


def test_at_most_three_each_a_range_the_largest_first(snapshots: Snapshots) -> None:
    found = advice_of(snapshots, "search")
    assert 1 <= len(found) <= 3
    assert all(0 <= a.low_ug <= a.high_ug for a in found)
    middles = [a.low_ug + a.high_ug for a in found]
    assert middles == sorted(middles, reverse=True)


def test_no_advice_saves_more_than_there_is(snapshots: Snapshots) -> None:
    total_ug = snapshots.of("search", MONTH).total.operational_ug
    assert all(a.high_ug < total_ug for a in advice_of(snapshots, "search"))


def test_a_job_that_runs_to_a_schedule_is_moved_to_the_cleanest_hour(
    snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    from proxy.dashboard import advice

    account = snapshots.account("research", MONTH, False)
    zone = ZoneInfo(TIME_ZONE)
    found = advice._shift(
        account,
        lambda s: datetime.fromtimestamp(s, zone).hour,
        lambda name, s: (snapshots.book.at(name or None, s).g_per_kwh, True),
    )
    # 20:00 and 21:00 UTC; in DE the sample's grid is cleanest at 13:00 UTC
    assert [a.title for a in found] == ["Move nightly-eval from 21:00 to 15:00"]
    assert found[0].low_ug > 0


def test_without_hourly_figures_no_hour_is_recommended(snapshots: Snapshots) -> None:
    assert "shift" not in {a.kind for a in advice_of(snapshots, "research", hourly=False)}


def test_nothing_is_advised_where_nothing_was_used(snapshots: Snapshots, tmp_path: Path) -> None:
    assert advice_of(snapshots, "nobody") == ()
