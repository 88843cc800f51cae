from __future__ import annotations

import pytest

from meters.intensity.electricity_maps import ElectricityMaps
from meters.intensity.hours import iso, parse_hour
from meters.intensity.types import HOUR_S, SourceUnavailable
from tests.fakes.grid_server import Asked, grid_server

START_S = parse_hour("2026-10-01T00:00:00Z")
DAY_S = 24 * HOUR_S


def row(hour_s: int, g: float, zone: str = "DE", estimated: bool = False) -> dict[str, object]:
    return {
        "zone": zone,
        "carbonIntensity": g,
        "datetime": iso(hour_s).replace("Z", ".000Z"),
        "updatedAt": iso(hour_s + 5000),
        "emissionFactorType": "lifecycle",
        "isEstimated": estimated,
        "estimationMethod": "TIME_SLICER_AVERAGE" if estimated else None,
    }


def service(asked: Asked) -> tuple[int, object]:
    if asked.headers.get("auth-token") != "secret":
        return 401, {"error": "no"}
    if asked.path.endswith("/history"):
        hours = range(START_S, START_S + DAY_S, HOUR_S)
        return 200, {
            "zone": "DE",
            "history": [row(h, 300.0, estimated=h == START_S) for h in hours],
        }
    start_s, end_s = parse_hour(asked.query["start"]), parse_hour(asked.query["end"])
    if end_s - start_s > 10 * DAY_S:
        return 400, {"error": "range too long"}
    return 200, {"zone": "DE", "data": [row(h, 200.0) for h in range(start_s, end_s, HOUR_S)]}


def test_gives_hours_with_their_estimated_flag_and_method() -> None:
    with grid_server(service) as server:
        found = ElectricityMaps("secret", url=server.url).fetch("DE", START_S, START_S + DAY_S)
    assert len(found) == 24
    assert (found[0].estimated, found[0].method) == (True, "TIME_SLICER_AVERAGE")
    assert (found[1].estimated, found[1].updated_s) == (False, START_S + HOUR_S + 5000)


def test_never_asks_for_the_place_the_caller_is_in() -> None:
    with grid_server(service) as server:
        source = ElectricityMaps("secret", url=server.url)
        source.fetch("DE", START_S, START_S + DAY_S)
        source.fetch("DE", START_S, START_S + 28 * DAY_S)
        assert len(server.asked) == 4
        for asked in server.asked:
            assert asked.query["shouldUseFallbackCallerLookup"] == "false"
            assert asked.query["zone"] == "DE"


def test_an_answer_for_another_zone_is_refused() -> None:
    def elsewhere(asked: Asked) -> tuple[int, object]:
        return 200, {"zone": "SE", "history": [row(START_S, 20.0, zone="SE-SE3")]}

    with (
        grid_server(elsewhere) as server,
        pytest.raises(SourceUnavailable, match="another zone"),
    ):
        ElectricityMaps("secret", url=server.url).fetch("DE", START_S, START_S + DAY_S)


def test_long_spans_are_asked_in_pieces_without_a_gap() -> None:
    with grid_server(service) as server:
        found = ElectricityMaps("secret", url=server.url).fetch("DE", START_S, START_S + 28 * DAY_S)
    assert [f.hour_s for f in found] == list(range(START_S, START_S + 28 * DAY_S, HOUR_S))


def test_a_plan_without_ranges_still_gives_the_last_day() -> None:
    def small_plan(asked: Asked) -> tuple[int, object]:
        return service(asked) if asked.path.endswith("/history") else (403, {"error": "plan"})

    with grid_server(small_plan) as server:
        found = ElectricityMaps("secret", url=server.url).fetch("DE", START_S, START_S + 28 * DAY_S)
    assert len(found) == 24


def test_refusals_name_the_status_and_never_the_token() -> None:
    with (
        grid_server(service) as server,
        pytest.raises(SourceUnavailable, match="status 401") as raised,
    ):
        ElectricityMaps("wrong-token", url=server.url).fetch("DE", START_S, START_S + DAY_S)
    assert "wrong-token" not in str(raised.value)
