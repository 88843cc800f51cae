"""Money and grams of a predicted request, from the config first and published lists second."""

from __future__ import annotations

import sys

import pytest

from estimators.carbon import grams
from estimators.price import litellm_prices, money, price_of
from estimators.types import Backend, Band, Lengths

LENGTHS = Lengths(10.0, 50.0, 300.0, 100.0)


def test_the_configs_price_comes_before_the_lists() -> None:
    backend = Backend(
        name="b",
        group="b",
        provider="openai",
        provider_model="gpt-4o",
        input_usd_per_mtok=1.0,
        output_usd_per_mtok=10.0,
        cached_input_usd_per_mtok=0.1,
    )
    found = money(price_of(backend), 1000, 400, LENGTHS)
    assert found is not None
    assert found.mid == pytest.approx((600 * 1.0 + 400 * 0.1 + 100 * 10.0) / 1e6)
    assert found.low < found.mid < found.high


def test_a_known_api_has_litellms_price_without_importing_litellm() -> None:
    backend = Backend(name="b", group="b", provider="openai", provider_model="gpt-4o")
    price = price_of(backend)
    assert price is not None
    assert 0 < price.input_usd < price.output_usd
    assert price.source.startswith("litellm")
    assert "litellm" not in sys.modules or litellm_prices()


def test_no_price_is_none_and_not_free() -> None:
    backend = Backend(name="b", group="b", provider="openai", provider_model="not-a-model")
    assert price_of(backend) is None
    assert money(None, 10, 0, LENGTHS) is None


def test_grams_follow_intensity_and_pue_and_are_unknown_without_a_grid() -> None:
    energy = Band(1.8e6, 3.6e6, 7.2e6)
    backend = Backend(name="b", group="b", intensity_g_per_kwh=400.0, pue=1.2)
    found = grams(backend, energy)
    assert found is not None
    assert found == pytest.approx(Band(240.0, 480.0, 960.0))
    assert grams(Backend(name="b", group="b"), energy) is None
    assert grams(backend, None) is None


def test_embodied_grams_are_added_where_they_are_configured() -> None:
    backend = Backend(
        name="b",
        group="b",
        intensity_g_per_kwh=400.0,
        num_gpus=2,
        embodied_g_per_gpu_hour=10.0,
    )
    found = grams(backend, Band(0.0, 0.0, 0.0), busy_s=1800.0)
    assert found == pytest.approx(Band(10.0, 10.0, 10.0))
