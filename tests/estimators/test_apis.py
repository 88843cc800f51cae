"""Closed APIs get EcoLogits' figures, called modelled; what it does not know stays unknown."""

from __future__ import annotations

import warnings

from estimators.energy import EnergyEstimator
from estimators.types import Backend, Features, Load
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
