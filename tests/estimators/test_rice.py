"""R-ICE as published: devices, prefill from a forest, tokens from a polynomial, grams."""

from __future__ import annotations

import pytest

from estimators.rice import Rice, Sample, devices, fitted


@pytest.fixture(scope="module")
def rice() -> Rice:
    prefill = [
        Sample(size, tokens, 0.01 + 1e-6 * size * tokens)
        for size in (0.35, 6.0, 20.0, 52.0, 175.0)
        for tokens in (1, 64, 256, 512, 1024, 1536)
    ]
    per_token = [(0.35, 0.019), (6.0, 0.021), (20.0, 0.033), (52.0, 0.054), (175.0, 0.081)]
    return fitted(prefill, per_token)


def test_devices_are_those_of_its_second_table() -> None:
    assert [devices(size) for size in (6, 17, 52)] == [1, 1, 4]


def test_a_token_of_a_larger_model_takes_longer(rice: Rice) -> None:
    assert rice.token_s(0.35) < rice.token_s(20) < rice.token_s(100)
    assert rice.token_s(20) == pytest.approx(0.033, rel=0.2)


def test_energy_is_devices_times_power_times_time(rice: Rice) -> None:
    seconds = rice.prefill_s(52, 512) + 100 * rice.token_s(52)
    assert rice.energy_j(52, 512, 100) == pytest.approx(4 * 400 * 0.26 * seconds)
    assert rice.grams(52, 512, 100, 500.0) == pytest.approx(
        rice.energy_j(52, 512, 100) / 3.6e6 * 1.1 * 500.0
    )
