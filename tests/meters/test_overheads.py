"""Host, building, manufacture and ourselves: each its own column, each with its evidence."""

from __future__ import annotations

import pytest

from meters.carbon import Range, default_embodied
from meters.overheads import OwnEnergy, building_energy, embodied, host_energy
from meters.types import Evidence, Window

WINDOW = Window(window_id="w", node="n", start_s=0.0, end_s=10.0, energy_j=1000.0)


def test_host_energy_is_metered_where_it_was_read_and_else_a_labelled_model() -> None:
    assert host_energy(WINDOW) == (pytest.approx(431.0, abs=0.1), Evidence.MODELLED)
    read = Window(
        window_id="w", node="n", start_s=0.0, end_s=10.0, energy_j=1000.0, host_energy_j=250.0
    )
    assert host_energy(read) == (250.0, Evidence.METERED)


def test_a_building_that_is_not_known_is_unknown_not_zero() -> None:
    assert building_energy(1000.0, None) == (None, Evidence.UNKNOWN)
    value, evidence = building_energy(1000.0, 1.25)
    assert (value, evidence) == (pytest.approx(250.0), Evidence.MODELLED)
    assert building_energy(1000.0, 1.0).value == 0.0
    with pytest.raises(ValueError, match="1 or more"):
        building_energy(1000.0, 0.9)


def test_manufacture_accrues_by_the_hour_as_a_range() -> None:
    low, mid, high = embodied(8, 1800.0)
    assert (low, mid, high) == pytest.approx(tuple(4 * g for g in default_embodied()))
    assert pytest.approx(low, abs=2) == 4 * 17
    assert pytest.approx(high, abs=2) == 4 * 49
    assert low < mid < high
    assert embodied(1, 3600.0, Range(1.0, 2.0, 3.0)) == (1.0, 2.0, 3.0)


def test_our_own_energy_is_processor_time_at_a_stated_power() -> None:
    own = OwnEnergy(core_power_w=5.0)
    assert own.add(10.0).value == 0.0  # what was before is not known
    assert own.add(12.0) == (10.0, Evidence.MODELLED)
    assert (own.total_j, own.metered_j) == (10.0, 0.0)


def test_or_its_share_of_the_hosts_counter() -> None:
    own = OwnEnergy()
    own.add(10.0, host_energy_j=1000.0, host_cpu_s=100.0)
    assert own.add(12.0, 1200.0, 108.0) == (pytest.approx(50.0), Evidence.METERED)
    # the counter fell: what it said in between is not known
    assert own.add(14.0, 5.0, 116.0).evidence is Evidence.MODELLED
    assert own.metered_j == pytest.approx(50.0)
