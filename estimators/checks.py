"""The contract of an estimator, as code: any implementation is run through ``CHECKS``.

Each check takes an estimator and raises AssertionError with a sentence. Use them on your own::

    for check in CHECKS:
        check(MyEstimator())
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import msgspec

from estimators.hardware import GPUS
from estimators.types import (
    Backend,
    Band,
    Estimate,
    Estimator,
    Features,
    GpuFacts,
    Load,
    ModelFacts,
    Outcome,
)
from meters.types import Evidence

_LOADS = tuple(Load(running=float(running), known=True) for running in (0, 3, 40, 300))
_FIGURES = ("energy_j", "marginal_energy_j", "ttft_s", "latency_s", "carbon_g", "money_usd")


def backends() -> list[Backend]:
    """Backends of every kind: all precisions, dense and mixtures, and some nobody knows."""
    dense = ModelFacts(params_b=8.03, layers=32, kv_heads=8, head_dim=128)
    large = ModelFacts(params_b=70.6, layers=80, kv_heads=8, head_dim=128)
    mixture = ModelFacts(params_b=30.5, active_params_b=3.3, layers=48, kv_heads=4, head_dim=128)
    latent = ModelFacts(params_b=671.0, active_params_b=37.0, layers=61, kv_heads=0, head_dim=0)
    strange = GpuFacts(
        name="unheard of", memory_gb=48, mem_bandwidth_gbs=1200, fp16_tflops=300, tdp_w=450
    )
    return [
        _backend("dense", dense, GPUS["H100-SXM"]),
        _backend("int4", dense, GPUS["L40S"], precision="int4"),
        _backend("awq", dense, GPUS["T4"], precision="awq"),
        _backend("int8", dense, GPUS["A10"], precision="int8"),
        _backend("fp8", large, GPUS["H100-SXM"], num_gpus=4, precision="fp8"),
        _backend("mixture", mixture, GPUS["A100-80GB-SXM"], num_gpus=2),
        _backend("latent", latent, GPUS["B200-SXM"], num_gpus=16, precision="fp8"),
        _backend("strange", dense, strange),
        _backend("plain", dense, GPUS["A40"], engine="transformers"),
        _backend("no model", None, GPUS["H100-SXM"]),
        _backend("no gpu", dense, None),
        _backend("odd precision", dense, GPUS["H100-SXM"], precision="bf17"),
    ]


def check_answers_in_order_before_learning(estimator: Estimator) -> None:
    """One estimate per backend, in the order of the backends."""
    given = backends()
    found = estimator.estimate(Features(prompt_tokens=100), given, [Load()] * len(given))
    names = [one.backend for one in found]
    assert names == [one.name for one in given], f"answers came for {names}"
    again = estimator.estimate(Features(prompt_tokens=100), given[::-1], [Load()] * len(given))
    assert found == again[::-1], "the order of backends changed their estimates"


def check_nothing_asked_is_nothing_answered(estimator: Estimator) -> None:
    """No backends, no estimates."""
    assert estimator.estimate(Features(prompt_tokens=1), [], []) == []


def check_bands_are_ordered_and_finite(estimator: Estimator) -> None:
    """low <= mid <= high, all finite and not negative, for everything in range."""
    for features in _requests():
        for load in (*_LOADS, Load()):
            for found in _all(estimator, features, load):
                for name in (*_FIGURES, "quality"):
                    band: Band | None = getattr(found, name)
                    if band is None:
                        continue
                    fine = all(math.isfinite(value) and value >= 0.0 for value in band)
                    assert fine, f"{found.backend}: {name} is {band}"
                    assert band.low <= band.mid <= band.high, f"{found.backend}: {name} is {band}"


def check_unknown_in_unknown_out(estimator: Estimator) -> None:
    """What cannot be known is None, never 0, and its evidence says so."""
    by_name = {
        found.backend: found for found in _all(estimator, Features(prompt_tokens=100), _LOADS[0])
    }
    for name in ("no model", "no gpu", "odd precision"):
        assert by_name[name].energy_j is None, f"{name} has an energy"
        assert by_name[name].evidence is Evidence.UNKNOWN, f"{name} claims evidence"
    known = by_name["dense"].energy_j
    assert known is not None, "a plain dense model on an H100 has no energy"
    assert known.low > 0.0, "a plain dense model on an H100 costs nothing"


def check_more_output_never_costs_less(estimator: Estimator) -> None:
    """A higher limit on tokens never lowers energy or latency."""
    for load in _LOADS:
        _never_falls(
            [
                _all(estimator, Features(prompt_tokens=300, max_tokens=tokens), load)
                for tokens in (1, 5, 17, 64, 150, 200, 400)
            ],
            "output",
        )


def check_longer_prompts_never_cost_less(estimator: Estimator) -> None:
    """A longer prompt never lowers energy or the time to the first token."""
    for load in _LOADS:
        _never_falls(
            [
                _all(estimator, Features(prompt_tokens=tokens, max_tokens=200), load)
                for tokens in (0, 1, 30, 100, 1000, 7000, 30_000, 120_000)
            ],
            "prompt",
        )


def check_more_parameters_never_cost_less(estimator: Estimator) -> None:
    """Twice the parameters of the same kind never cost less, all else equal."""
    cards = (("bf16", "H100-SXM"), ("fp8", "H100-SXM"), ("bf16", "A100-80GB-SXM"), ("int4", "L4"))
    for precision, gpu in cards:
        kinds = [
            _backend(
                f"{size} {precision} {gpu}",
                ModelFacts(params_b=size),
                GPUS[gpu],
                precision=precision,
            )
            for size in (0.5, 2.0, 3.2, 4.0, 8.0, 9.0, 16.0, 64.0)
        ]
        for load in _LOADS:
            found = estimator.estimate(
                Features(prompt_tokens=300, max_tokens=300), kinds, [load] * len(kinds)
            )
            joules = [one.energy_j.mid for one in found if one.energy_j is not None]
            assert joules == sorted(joules), f"{precision} on {gpu}: {joules} J along sizes"


def check_units_fit_together(estimator: Estimator) -> None:
    """Joules, seconds, grams and dollars of the same request agree with each other."""
    features = Features(prompt_tokens=300, max_tokens=500)
    for load in _LOADS:
        for found in _all(estimator, features, load):
            if found.energy_j is None or found.latency_s is None or found.ttft_s is None:
                continue
            said = f"{found.backend}: {found.energy_j} J in {found.latency_s} s"
            assert found.ttft_s.mid <= found.latency_s.mid, said
            # what serving one more adds is no more than its part of everything
            assert found.marginal_energy_j is not None, said
            assert found.marginal_energy_j.mid <= 1.001 * found.energy_j.mid, said
            # one request takes no more than sixteen kilowatt cards for as long as it lasts
            assert found.energy_j.mid <= 16_000.0 * found.latency_s.mid, said
            assert found.carbon_g is not None, said
            least = found.energy_j.mid / 3.6e6 * 300.0  # every backend here is at 300 g/kWh
            assert least * 0.999 <= found.carbon_g.mid <= 2.0 * least, said
            assert found.money_usd is not None, said
            assert found.output_tokens is not None, said
            dollars = (300.0 * 1.0 + found.output_tokens.mean * 3.0) / 1e6
            assert math.isclose(found.money_usd.mid, dollars, rel_tol=1e-6), said


def check_simulated_is_called_simulated(estimator: Estimator) -> None:
    """Nothing a simulated engine does is given real evidence."""
    one = msgspec.structs.replace(backends()[0], name="pretended", simulated=True)
    [found] = estimator.estimate(Features(prompt_tokens=10), [one], [Load()])
    assert found.evidence in (Evidence.SIMULATED, Evidence.UNKNOWN), found.evidence


def check_missing_outcomes_teach_nothing(estimator: Estimator) -> None:
    """An outcome without figures, or of a backend nobody knows, changes no estimate."""
    features = Features(prompt_tokens=100)
    before = _all(estimator, features, _LOADS[1])
    for name in ("dense", "never seen", "no model"):
        estimator.learn(Outcome(backend=name, features=features, load=_LOADS[1]))
        estimator.learn(
            Outcome(
                backend=name,
                features=features,
                load=_LOADS[1],
                energy_j=0.0,
                evidence=Evidence.METERED,
                output_tokens=10,
            )
        )
    assert _all(estimator, features, _LOADS[1]) == before, "an empty outcome taught something"


def check_learns_from_metered_requests(estimator: Estimator) -> None:
    """After many requests that cost half, it says about half."""
    features = Features(prompt_tokens=100, max_tokens=100)
    one = _backend("half as hungry", ModelFacts(params_b=8.0), GPUS["H100-SXM"])
    load = _LOADS[2]
    [before] = estimator.estimate(features, [one], [load])
    if before.energy_j is None or before.output_tokens is None:
        return
    for _ in range(200):
        estimator.learn(
            Outcome(
                backend=one.name,
                features=features,
                load=load,
                energy_j=0.5 * before.energy_j.mid,
                output_tokens=round(before.output_tokens.mean),
                evidence=Evidence.METERED,
            )
        )
    [after] = estimator.estimate(features, [one], [load])
    assert after.energy_j is not None, "learning lost the estimate"
    ratio = after.energy_j.mid / before.energy_j.mid
    assert 0.45 < ratio < 0.55, f"after 200 requests at half, {ratio:.2f} of what it said before"
    assert after.evidence is Evidence.CALIBRATED, after.evidence


CHECKS: tuple[Callable[[Estimator], None], ...] = (
    check_answers_in_order_before_learning,
    check_nothing_asked_is_nothing_answered,
    check_bands_are_ordered_and_finite,
    check_unknown_in_unknown_out,
    check_more_output_never_costs_less,
    check_longer_prompts_never_cost_less,
    check_more_parameters_never_cost_less,
    check_units_fit_together,
    check_simulated_is_called_simulated,
    check_missing_outcomes_teach_nothing,
    check_learns_from_metered_requests,
)


def _backend(
    name: str,
    model: ModelFacts | None,
    gpu: GpuFacts | None,
    *,
    num_gpus: int = 1,
    precision: str = "bf16",
    engine: str = "vllm",
) -> Backend:
    return Backend(
        name=name,
        group=name,
        model=model,
        gpu=gpu,
        num_gpus=num_gpus,
        precision=precision,
        engine=engine,
        intensity_g_per_kwh=300.0,
        input_usd_per_mtok=1.0,
        output_usd_per_mtok=3.0,
    )


def _all(estimator: Estimator, features: Features, load: Load) -> list[Estimate]:
    given = backends()
    return estimator.estimate(features, given, [load] * len(given))


def _requests() -> Iterator[Features]:
    for prompt in (0, 100, 200_000, 10_000_000):
        for limit in (None, 1, 1_000_000):
            yield Features(prompt_tokens=prompt, max_tokens=limit)
    yield Features(prompt_tokens=1000, cached_prompt_tokens=900, n=3)
    yield Features(prompt_tokens=10, cached_prompt_tokens=100)


def _never_falls(steps: Sequence[Sequence[Estimate]], what: str) -> None:
    for before, after in itertools.pairwise(steps):
        for less, more in zip(before, after, strict=True):
            for name in ("energy_j", "ttft_s", "latency_s"):
                a: Band | None = getattr(less, name)
                b: Band | None = getattr(more, name)
                if a is None or b is None:
                    continue
                fine = b.mid >= a.mid * (1.0 - 1e-9)
                assert fine, f"{less.backend}: more {what} lowered {name} from {a.mid} to {b.mid}"
