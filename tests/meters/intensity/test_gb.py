from __future__ import annotations

import pytest

from meters.intensity.gb import GreatBritain
from meters.intensity.hours import iso, parse_hour
from meters.intensity.types import HOUR_S, SourceUnavailable
from tests.fakes.grid_server import Asked, grid_server

START_S = parse_hour("2026-10-01T00:00:00Z")
DAY_S = 24 * HOUR_S


def short(unix_s: int) -> str:
    return iso(unix_s)[:-4] + "Z"


def service(asked: Asked) -> tuple[int, object]:
    """Like the service: any half-hour that ends at or after `from` and starts before `to`."""
    parts = asked.path.split("/")
    regional = parts[1] == "regional"
    start_s, end_s = (parse_hour(p) for p in (parts[3:5] if regional else parts[2:4]))
    if end_s - start_s > 14 * DAY_S:
        return 400, {"error": "range"}
    rows = []
    for s in range((start_s - 1) // 1800 * 1800, end_s, 1800):
        known = not regional and s < START_S + DAY_S
        intensity = {"forecast": 250, "index": "moderate"}
        if not regional:
            intensity["actual"] = 100 + 10 * (s // 1800 % 2) if known else None
        rows.append({"from": short(s), "to": short(s + 1800), "intensity": intensity})
    return 200, {"data": {"regionid": 13, "data": rows} if regional else rows}


def test_half_hours_become_hours() -> None:
    with grid_server(service) as server:
        found = GreatBritain(url=server.url).fetch("GB", START_S, START_S + 3 * HOUR_S)
    assert [(f.hour_s - START_S, f.g_per_kwh, f.estimated) for f in found] == [
        (0, 105.0, False),
        (3600, 105.0, False),
        (7200, 105.0, False),
    ]


def test_hours_without_actuals_use_the_forecast_and_say_so() -> None:
    with grid_server(service) as server:
        found = GreatBritain(url=server.url).fetch("GB", START_S, START_S + 2 * DAY_S)
    assert (found[-1].g_per_kwh, found[-1].estimated, found[-1].method) == (250.0, True, "forecast")


def test_a_month_is_asked_in_pieces_and_no_half_hour_counts_twice() -> None:
    with grid_server(service) as server:
        found = GreatBritain(url=server.url).fetch("GB", START_S - 27 * DAY_S, START_S + DAY_S)
    assert len(found) == 28 * 24
    assert {f.g_per_kwh for f in found} == {105.0}


def test_regions_have_forecasts_only() -> None:
    with grid_server(service) as server:
        found = GreatBritain(url=server.url).fetch("GB-13", START_S, START_S + HOUR_S)
        assert server.asked[0].path.endswith("/regionid/13")
    assert (found[0].zone, found[0].estimated) == ("GB-13", True)


@pytest.mark.parametrize("zone", ["DE", "GB-18", "GB-x"])
def test_other_zones_are_refused_unasked(zone: str) -> None:
    with grid_server(service) as server:
        with pytest.raises(SourceUnavailable, match="no zone of Great Britain"):
            GreatBritain(url=server.url).fetch(zone, START_S, START_S + HOUR_S)
        assert server.asked == []
