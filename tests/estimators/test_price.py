"""Money and grams of a predicted request, from the config first and published lists second."""

from __future__ import annotations

import sys

import pytest

from estimators.carbon import grams
from estimators.price import Counted, Price, litellm_prices, money, paid, price_of
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
    assert tuple(found) == pytest.approx((240.0, 480.0, 960.0))
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


def of_map(name: str, provider: str) -> Price:
    price = price_of(Backend(name="b", group="b", provider=provider, provider_model=name))
    assert price is not None
    return price


def test_each_seller_of_a_model_has_its_own_price() -> None:
    # litellm's map: 10 and 30 dollars a million tokens at OpenAI, 11 and 33 at Azure
    assert of_map("gpt-4-turbo", "openai")[:2] == (10e-6, 30e-6)
    assert of_map("gpt-4-turbo", "azure")[:2] == (11e-6, 33e-6)


def test_an_engine_of_ones_own_costs_no_tokens_whatever_its_model_is_called() -> None:
    assert price_of(Backend(name="b", group="b", provider_model="gpt-4o")) is None


def test_tokens_written_into_a_cache_cost_more_and_those_for_an_hour_most() -> None:
    # Anthropic's list for Sonnet 4.5, dollars a million: 3, read 0.30, written 3.75 or 6, out 15
    counted = Counted(161, 4, cached=100, written=50, written_1h=20)
    usd = paid(of_map("claude-sonnet-4-5", "anthropic"), counted)
    assert usd == pytest.approx((11 * 3 + 100 * 0.3 + 30 * 3.75 + 20 * 6 + 4 * 15) / 1e6)


def test_a_long_prompt_has_another_price_for_all_of_the_request() -> None:
    price = of_map("gemini-2.5-pro", "gemini")  # 1.25, 10 and 0.125 up to 200,000 tokens
    assert paid(price, Counted(200_000, 100)) == pytest.approx((200_000 * 1.25 + 100 * 10) / 1e6)
    usd = paid(price, Counted(200_001, 100, cached=1))
    assert usd == pytest.approx((200_000 * 2.5 + 0.25 + 100 * 15) / 1e6)
    short, long = money(price, 200_000, 0, LENGTHS), money(price, 200_001, 0, LENGTHS)
    assert short is not None
    assert long is not None
    assert long.mid > 1.9 * short.mid


def test_sound_and_images_have_prices_of_their_own() -> None:
    flash = of_map("gemini-2.5-flash", "gemini")  # 0.30 for text, 1.00 for sound
    usd = paid(flash, Counted(1000, 10, audio_input=900))
    assert usd == pytest.approx((100 * 0.3 + 900 * 1.0 + 10 * 2.5) / 1e6)
    image = of_map("gpt-image-1", "openai")  # 5 for text, 10 for images, 40 for what it draws
    usd = paid(image, Counted(300, 1056, image_input=200))
    assert usd == pytest.approx((100 * 5 + 200 * 10 + 1056 * 40) / 1e6)


def test_parts_of_a_count_never_exceed_the_whole() -> None:
    price = Price(1.0, 1.0, 0.5, "config")
    assert paid(price, Counted(10, 2, cached=50, written=50, audio_input=9, audio_output=9)) == 7.0


def test_what_is_not_paid_for_by_tokens_has_no_price_by_tokens() -> None:
    # litellm's map: 0 dollars a token, and 0.002 a query
    assert (
        price_of(Backend(name="b", group="b", provider="cohere", provider_model="rerank-v3.5"))
        is None
    )
