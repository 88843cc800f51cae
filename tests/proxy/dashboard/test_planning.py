from __future__ import annotations

import msgspec
import pytest

from estimators.energy import EnergyEstimator
from estimators.hardware import GPUS
from proxy.dashboard import planning
from proxy.dashboard.account import Line
from proxy.dashboard.planning import Plan, Planned
from tests.seed_ledger import MONTH, hourly_book


@pytest.fixture(scope="module")
def estimator() -> EnergyEstimator:
    return EnergyEstimator()


def compared(estimator: EnergyEstimator, plan: Plan) -> dict[str, Planned]:
    found = planning.compare(plan, estimator, GPUS, hourly_book(), MONTH.end_s - 3600.0)
    return {each.what: each for each in found}


def joules(planned: Planned) -> float:
    assert planned.energy_j is not None
    return planned.energy_j.mid


def test_every_what_if_is_answered_with_a_range(estimator: EnergyEstimator) -> None:
    found = compared(estimator, Plan())
    kinds = ("a model of", "in fp8", "half the output", "half the prompt", "batch of", "on sglang")
    for kind in (*kinds, "on L40S", "in zone FR"):
        assert any(what.startswith(kind) for what in found), kind
    for what, each in found.items():
        assert each.energy_j is not None, what
        assert each.carbon_g is not None, what
        assert 0 < each.energy_j.low < each.energy_j.mid < each.energy_j.high, what
        assert 0 < each.carbon_g.low < each.carbon_g.mid < each.carbon_g.high, what


@pytest.mark.parametrize("output_tokens", [100, 1267, 20_000])
def test_half_the_output_takes_about_half_whatever_is_usual(
    estimator: EnergyEstimator, output_tokens: int
) -> None:
    found = compared(estimator, Plan(prompt_tokens=10, output_tokens=output_tokens))
    half = joules(found["half the output"]) / joules(found["as asked"])
    assert 0.25 < half < 0.65  # less than half where the context weighs
    slow, quick = found["as asked"].latency_s, found["half the output"].latency_s
    assert slow is not None
    assert quick is not None
    assert quick.mid < 0.65 * slow.mid


def test_each_thing_changed_goes_the_way_it_must(estimator: EnergyEstimator) -> None:
    found = compared(estimator, Plan(prompt_tokens=8000))
    asked = joules(found["as asked"])
    for what in ("a model of 2 B", "half the prompt", "half the output", "batch of 64"):
        assert joules(found[what]) < asked, what
    here, there = found["as asked"].carbon_g, found["in zone FR"].carbon_g
    assert joules(found["in zone FR"]) == asked
    assert here is not None
    assert there is not None
    assert there.mid < here.mid


def test_a_plan_begins_with_the_teams_own_lengths() -> None:
    line = Line(key="total", requests=10, prompt_tokens=5_000, output_tokens=700)
    assert planning.usual(line) == msgspec.structs.replace(
        Plan(), prompt_tokens=500, output_tokens=70, requests=10
    )


def test_what_makes_no_sense_in_the_form_is_left_as_it_was() -> None:
    asked = {"params_b": "nan", "num_gpus": "x", "pue": "99", "gpu": "abacus", "output_tokens": "7"}
    found = planning.parse(asked, ["H100-SXM"])
    assert (found.params_b, found.num_gpus, found.gpu) == (8.0, 1, "H100-SXM")
    assert (found.pue, found.output_tokens) == (3.0, 7)
