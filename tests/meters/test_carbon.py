from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meters import carbon

amounts = st.floats(0, 1e12)


def test_a_kilowatt_hour_at_pue_one_has_the_grids_grams() -> None:
    assert carbon.operational_g(3.6e6, 1.0, 473.0) == 473.0
    assert carbon.operational_g(3.6e6, 1.2, 100.0) == pytest.approx(120.0)


@given(amounts, st.floats(1, 3), st.floats(0, 1500))
def test_overhead_is_what_pue_adds(energy_j: float, pue: float, intensity: float) -> None:
    whole = carbon.operational_g(energy_j, pue, intensity)
    at_devices = carbon.operational_g(energy_j, 1.0, intensity)
    overhead = carbon.operational_g(carbon.overhead_j(energy_j, pue), 1.0, intensity)
    assert whole == pytest.approx(at_devices + overhead)


def test_sci_of_130_kg_over_a_billion_tokens_is_130_g_per_million() -> None:
    # The published worked example says 0.13 g; it is wrong by a factor of a thousand.
    assert carbon.sci(130_000.0, 0.0, 1e9 / 1e6) == 130.0


def test_sci_includes_embodied_and_is_unknown_without_units() -> None:
    assert carbon.sci(60.0, 40.0, 10.0) == 10.0
    assert carbon.sci(60.0, 40.0, 0.0) is None


def test_modelled_host_energy_follows_the_published_breakdown() -> None:
    assert carbon.modelled_host_j(58.0) == pytest.approx(25.0)


def test_embodied_spans_the_published_factors() -> None:
    found = carbon.default_embodied()
    # 16.7, 28.1 and 48.9 g per installed GPU-hour: recomputed from the same published factors
    assert [round(v, 1) for v in found] == [16.7, 28.1, 48.9]


def test_r_ice_is_devices_times_tdp_times_their_usual_use() -> None:
    # 8 x 700 W x 0.26 x 1 h x 1.1 x 0.4 kg/kWh
    assert carbon.r_ice_g(8, 700.0, 3600.0, 400.0) == pytest.approx(1.456 * 1.1 * 400.0)
