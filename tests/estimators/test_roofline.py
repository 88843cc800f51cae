"""The roofline follows the physics it is named for."""

from __future__ import annotations

import pytest

from estimators.energy import EnergyEstimator
from estimators.hardware import GPUS, gpu_named
from estimators.models import shape_of
from estimators.roofline import roofline_of
from estimators.types import Backend, Features, Load, ModelFacts


def backend(**changes: object) -> Backend:
    facts: dict[str, object] = {
        "name": "llama-3.1-8b",
        "group": "llama-3.1-8b",
        "gpu": GPUS["H100-SXM"],
        "model": ModelFacts(params_b=8.03, layers=32, kv_heads=8, head_dim=128),
    }
    return Backend(**{**facts, **changes})  # type: ignore[arg-type]


def test_energy_of_a_token_falls_steeply_with_the_batch() -> None:
    roofline = roofline_of(backend())
    assert roofline is not None
    alone = roofline.request(1, 100, 300).energy_j
    crowded = roofline.request(256, 100, 300).energy_j
    assert alone > 20 * crowded


def test_half_the_bytes_take_less_than_all_of_them_at_batch_one() -> None:
    full, half = roofline_of(backend()), roofline_of(backend(precision="fp8"))
    assert full is not None
    assert half is not None
    assert 0.4 < half.request(1, 100, 300).energy_j / full.request(1, 100, 300).energy_j < 0.75


def test_a_mixture_touches_its_active_weights_alone_and_all_of_them_in_a_crowd() -> None:
    shape = shape_of(
        ModelFacts(params_b=30.5, active_params_b=3.3, experts=128, experts_per_token=8)
    )
    assert shape.touched(1) == pytest.approx(3.3e9, rel=0.01)
    assert shape.touched(1000) == pytest.approx(30.5e9, rel=0.01)


@pytest.mark.parametrize("gpu", GPUS)
def test_step_physics_has_no_negative_coefficient_on_any_gpu(gpu: str) -> None:
    physics = EnergyEstimator().physics(backend(gpu=GPUS[gpu], num_gpus=2))
    assert physics is not None
    values = [getattr(physics, name) for name in physics.__struct_fields__]
    assert all(value >= 0 for value in values)
    assert physics.step_j > 0
    assert physics.prefill_j > 0


def test_gpus_are_found_by_the_names_drivers_give() -> None:
    for name, ours in {
        "NVIDIA H100 80GB HBM3": "H100-SXM",
        "NVIDIA A100-SXM4-40GB": "A100-40GB-SXM",
        "NVIDIA GeForce RTX 5090": "RTX-5090",
        "Tesla T4": "T4",
        "rtx5060ti": "RTX-5060Ti-16GB",
        "B200": "B200-SXM",
        "nvidia-tesla-a100": "A100-40GB-SXM",  # a label of Google's, of the smaller one
        "nvidia-a100-80gb": "A100-80GB-SXM",
        "NVIDIA-A100-SXM4-80GB": "A100-80GB-SXM",
        "A100-SXM-80GB": "A100-80GB-SXM",
        "Tesla V100-PCIE-16GB": "V100-PCIe-16GB",
        "nvidia-h200-141gb": "H200-SXM",
        "H100 80GB SXM5": "H100-SXM",
    }.items():
        found = gpu_named(name)
        assert found is not None, name
        assert found.name == ours
    for strange in ("Abacus 9000", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "RTX 4090 Laptop GPU"):
        assert gpu_named(strange) is None, strange


def test_what_is_not_known_stays_unknown() -> None:
    estimator = EnergyEstimator()
    unknown = backend(model=None)
    assert estimator.physics(unknown) is None
    [estimate] = estimator.estimate(Features(prompt_tokens=10), [unknown], [Load()])
    assert estimate.energy_j is None
    assert estimate.evidence == "unknown"
