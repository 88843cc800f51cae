"""R-ICE as published: devices, prefill from a forest, tokens from a polynomial, grams."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from estimators.checks import CHECKS, check_learns_from_metered_requests
from estimators.choices import UnknownEstimator, estimator_named
from estimators.energy import EnergyEstimator
from estimators.hardware import GPUS
from estimators.rice import Rice, Sample, devices, fitted
from estimators.rice_estimator import RiceEstimator, built_in, rice_figures
from estimators.types import Backend, Estimator, Features, Load, ModelFacts
from meters.types import Evidence


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


PUBLISHED = [check for check in CHECKS if check is not check_learns_from_metered_requests]
LLAMA = Backend(
    name="llama", group="llama", gpu=GPUS["H100-SXM"], model=ModelFacts(params_b=8.03, layers=32)
)


@pytest.mark.parametrize("check", PUBLISHED, ids=lambda check: check.__name__)
def test_keeps_the_contract_but_for_learning(check: Callable[[Estimator], None]) -> None:
    check(RiceEstimator())


def test_is_chosen_by_name_and_others_by_import_string() -> None:
    assert estimator_named("r-ice") is RiceEstimator
    assert estimator_named("estimators.energy:EnergyEstimator") is EnergyEstimator
    for wrong in ("rice", "estimators.energy:Nothing", "no.such.module:Class"):
        with pytest.raises(UnknownEstimator, match=wrong.partition(":")[0]):
            estimator_named(wrong)


def test_knows_no_batching_and_says_so_in_its_band() -> None:
    features = Features(prompt_tokens=256)
    alone, busy = (
        RiceEstimator().estimate(features, [LLAMA], [Load(running=running, known=True)])[0]
        for running in (0, 63)
    )
    assert alone.energy_j is not None
    assert busy.energy_j is not None
    assert alone.evidence is Evidence.MODELLED
    assert busy.energy_j.mid == alone.energy_j.mid
    assert busy.energy_j.low < alone.energy_j.low / 20


def test_grams_use_its_own_pue_unless_one_is_configured() -> None:
    grid = Backend(
        name="grid", group="g", gpu=GPUS["H100-SXM"], model=LLAMA.model, intensity_g_per_kwh=400.0
    )
    [found] = RiceEstimator().estimate(Features(prompt_tokens=256), [grid], [Load()])
    assert found.carbon_g is not None
    assert found.energy_j is not None
    assert found.carbon_g.mid == pytest.approx(found.energy_j.mid / 3.6e6 * 1.1 * 400.0)


def test_the_file_says_what_the_formula_says() -> None:
    times = built_in()
    a, b, c = times.token_coefficients
    found = rice_figures(times, 20.0, 1.0, 512.0, 1024.0)
    seconds = times.prefill_s[times.params_b.index(20.0)][times.prompt_tokens.index(512)]
    seconds += 1024 * (a + b * 20 + c * 400)
    assert found.energy_j.mid == pytest.approx(400 * 0.26 * seconds, rel=0.02)
    assert found.ttft_s.mid < 1.0


def test_choosing_it_does_not_load_scikit_learn() -> None:
    # The fit takes seconds to import; what serves reads a file of two kilobytes.
    code = (
        "import sys, estimators.rice_estimator as r; r.built_in(); print('sklearn' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
