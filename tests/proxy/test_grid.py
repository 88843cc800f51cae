"""Which source each zone is fetched from, as the settings say."""

from __future__ import annotations

from pathlib import Path

import msgspec

from estimators.types import Backend
from meters.intensity.hours import iso, parse_hour
from meters.intensity.watttime import WattTime
from proxy import backends
from proxy.grid import Grid, sources_of
from proxy.settings import Settings
from tests.fakes.grid_server import Asked, grid_server

FACTS = {"m@bf16": Backend(name="m@bf16", group="m", zone="US-CAL-CISO")}
START_S = parse_hour("2026-10-01T00:00:00Z")


def settings(**carbon: object) -> Settings:
    return msgspec.convert(
        {
            "backends": [{"model": "m", "url": "http://127.0.0.1:9/v1", "zone": "US-CAL-CISO"}],
            "carbon": carbon,
        },
        Settings,
    )


def answer(asked: Asked) -> tuple[int, object]:
    if asked.path == "/login":
        return 200, {"token": "t"}
    assert asked.query["region"] == "CAISO_NORTH"
    points = [
        {"point_time": iso(s), "value": 1000.0}
        for s in range(parse_hour(asked.query["start"]), parse_hour(asked.query["end"]), 300)
    ]
    return 200, {"meta": {"units": "lbs_co2_per_mwh"}, "data": points}


def test_a_watttime_account_in_the_settings_is_asked_over_http() -> None:
    with grid_server(answer) as server:
        given = settings(watttime={"username": "anna", "password": "secret", "url": server.url})
        source = sources_of(given, backends.of_settings(given, FACTS))["US-CAL-CISO"]
        assert isinstance(source, WattTime)
        (hour,) = source.fetch("US-CAL-CISO", START_S, START_S + 3600)
    assert (round(hour.g_per_kwh, 3), hour.factor_type) == (453.592, "direct")


def test_without_an_account_nobody_is_asked() -> None:
    given = settings()
    assert sources_of(given, backends.of_settings(given, FACTS)) == {}


def test_the_step_of_the_ladder_goes_with_the_figure(tmp_path: Path) -> None:
    given = msgspec.structs.replace(settings(), state_dir=str(tmp_path))
    pool = backends.of_settings(given, FACTS)
    Grid(given, pool).refresh(START_S)
    assert pool.engines[0].facts.intensity_tier == "annual_zone"
    fixed = msgspec.structs.replace(settings(intensity_g_per_kwh=12.0), state_dir=str(tmp_path))
    pool = backends.of_settings(fixed, FACTS)
    Grid(fixed, pool).refresh(START_S)
    facts = pool.engines[0].facts
    assert (facts.intensity_g_per_kwh, facts.intensity_tier) == (12.0, "fixed")
