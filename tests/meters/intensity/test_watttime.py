from __future__ import annotations

import base64

import pytest

from meters.intensity.hours import iso, parse_hour
from meters.intensity.types import HOUR_S, SourceUnavailable
from meters.intensity.watttime import WattTime
from tests.fakes.grid_server import Asked, grid_server

START_S = parse_hour("2026-10-01T00:00:00Z")


class Service:
    """Logs in with anna:secret; its first token is taken back after one use."""

    def __init__(self, units: str = "lbs_co2_per_mwh") -> None:
        self.units = units
        self.tokens = 0
        self.used: list[str] = []

    def __call__(self, asked: Asked) -> tuple[int, object]:
        if asked.path == "/login":
            basic = base64.b64encode(b"anna:secret").decode()
            if asked.headers["authorization"] != f"Basic {basic}":
                return 403, {"error": "no"}
            self.tokens += 1
            return 200, {"token": f"t{self.tokens}"}
        token = asked.headers["authorization"]
        self.used.append(token)
        if token == "Bearer t1" and self.used.count(token) > 1:
            return 401, {"error": "expired"}
        start_s, end_s = parse_hour(asked.query["start"]), parse_hour(asked.query["end"])
        points = [
            {"point_time": iso(s), "value": 900.0 + (s - start_s) % HOUR_S / 300}
            for s in range(start_s, end_s, 300)
        ]
        return 200, {"meta": {"units": self.units, "region": asked.query["region"]}, "data": points}


def test_pounds_per_megawatt_hour_become_grams_per_kilowatt_hour() -> None:
    with grid_server(Service()) as server:
        source = WattTime("anna", "secret", url=server.url)
        found = source.fetch("US-CAL-CISO", START_S, START_S + 2 * HOUR_S)
    # twelve five-minute points of 900 ... 911 lb/MWh, mean 905.5; 1 lb = 453.59237 g
    assert [f.g_per_kwh for f in found] == pytest.approx([905.5 * 0.45359237] * 2)
    assert found[0].hour_s == START_S


def test_the_marginal_signal_is_marked_marginal() -> None:
    with grid_server(Service()) as server:
        source = WattTime("anna", "secret", url=server.url)
        assert source.fetch("US-CAL-CISO", START_S, START_S + HOUR_S)[0].factor_type == "marginal"


def test_a_token_taken_back_early_is_renewed_once() -> None:
    service = Service()
    with grid_server(service) as server:
        source = WattTime("anna", "secret", url=server.url)
        source.fetch("US-CAL-CISO", START_S, START_S + HOUR_S)
        source.fetch("US-CAL-CISO", START_S, START_S + HOUR_S)
    assert service.used == ["Bearer t1", "Bearer t1", "Bearer t2"]


def test_other_units_are_refused() -> None:
    with (
        grid_server(Service(units="kg_co2_per_mwh")) as server,
        pytest.raises(SourceUnavailable, match="kg_co2_per_mwh"),
    ):
        WattTime("anna", "secret", url=server.url).fetch("US-CAL-CISO", START_S, START_S + HOUR_S)


def test_a_zone_without_a_region_is_never_guessed_from_the_callers_place() -> None:
    with grid_server(Service()) as server:
        with pytest.raises(SourceUnavailable, match="No WattTime region is set for zone DE"):
            WattTime("anna", "secret", url=server.url).fetch("DE", START_S, START_S + HOUR_S)
        assert server.asked == []


def test_a_wrong_password_is_told_without_the_password() -> None:
    with (
        grid_server(Service()) as server,
        pytest.raises(SourceUnavailable, match="Check user name and password") as raised,
    ):
        WattTime("anna", "hunter2", url=server.url).fetch("US-CAL-CISO", START_S, START_S + HOUR_S)
    assert "hunter2" not in str(raised.value)
