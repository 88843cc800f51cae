"""Closed APIs get EcoLogits' figures, called modelled; what it does not know stays unknown."""

from __future__ import annotations

import warnings

import msgspec
import pytest

from estimators.energy import EnergyEstimator
from estimators.types import Backend, Band, Declared, Estimate, Features, Load
from meters.types import Evidence


def api(model: str, provider: str = "openai") -> Backend:
    return Backend(
        name=model,
        group=model,
        engine="api",
        provider=provider,
        provider_model=model,
        intensity_g_per_kwh=400.0,
        pue=1.5,
    )


def test_a_known_api_is_modelled_and_an_unknown_one_is_unknown() -> None:
    estimator = EnergyEstimator()
    backends = [api("gpt-4o"), api("never-released")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that EcoLogits imports
        estimator.prepare(backends)
    short, unknown = estimator.estimate(
        Features(prompt_tokens=100, max_tokens=50), backends, [Load(), Load()]
    )
    [long] = estimator.estimate(Features(prompt_tokens=100), backends[:1], [Load()])
    assert short.evidence is Evidence.MODELLED
    assert short.energy_j is not None
    assert long.energy_j is not None
    assert 0 < short.energy_j.low <= short.energy_j.mid <= short.energy_j.high
    assert long.energy_j.mid > short.energy_j.mid
    assert short.ttft_s is None
    assert short.carbon_g is not None
    # its joules hold the building's overhead already: no PUE on top
    assert short.carbon_g.mid * 3.6e6 / 400.0 == short.energy_j.mid
    assert unknown.energy_j is None
    assert unknown.evidence is Evidence.UNKNOWN


def declared(
    features: Features, said: Declared, output_tokens: int = 400, model: str = "gpt-4o"
) -> Estimate:
    backend = msgspec.structs.replace(api(model), declared=said)
    return EnergyEstimator().at_lengths(features, backend, Load(), output_tokens)


def test_what_a_provider_declares_goes_before_ecologits_and_helps_models_it_does_not_know() -> None:
    said = Declared(j_per_request=864.0, source="Google 2025, median text prompt: 0.24 Wh")
    for model in ("gpt-4o", "never-released"):
        found = declared(Features(prompt_tokens=100), said, model=model)
        assert found.energy_j is not None
        assert found.energy_j.mid == 864.0
        assert found.energy_j == Band(432.0, 864.0, 1728.0)
        assert found.evidence is Evidence.MODELLED
        assert found.why == "declared, Google 2025, median text prompt: 0.24 Wh"


def test_cached_prompt_tokens_cost_nothing_and_reasoning_tokens_are_output() -> None:
    said = Declared(j_per_output_token=2.0, j_per_input_token=0.1)
    fresh = declared(Features(prompt_tokens=1000), said)
    cached = declared(Features(prompt_tokens=1000, cached_prompt_tokens=900), said)
    thinking = declared(Features(prompt_tokens=1000), said, output_tokens=400 + 1600)
    assert fresh.energy_j is not None
    assert cached.energy_j is not None
    assert thinking.energy_j is not None
    assert fresh.energy_j.mid == pytest.approx(900.0)
    assert cached.energy_j.mid == pytest.approx(810.0)
    assert thinking.energy_j.mid == pytest.approx(4100.0)


def test_a_declared_figure_without_the_building_gets_its_pue() -> None:
    whole = declared(Features(prompt_tokens=10), Declared(j_per_request=100.0))
    chips = declared(Features(prompt_tokens=10), Declared(j_per_request=100.0, whole=False))
    assert whole.carbon_g is not None
    assert chips.carbon_g is not None
    assert chips.carbon_g.mid == pytest.approx(1.5 * whole.carbon_g.mid)


def test_a_declaration_without_figures_declares_nothing() -> None:
    found = declared(Features(prompt_tokens=10), Declared(source="a blog"), model="never-released")
    assert found.energy_j is None
    assert found.evidence is Evidence.UNKNOWN
