from __future__ import annotations

import msgspec
import pytest

from estimators.energy import EnergyEstimator
from estimators.hardware import GPUS
from estimators.types import Backend, Features, Load, ModelFacts, Outcome
from meters.types import Evidence, StepPhysics
from proxy.dashboard import planning
from proxy.dashboard.lines import Line
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


LLAMA = Backend(
    name="llama@bf16",
    group="llama",
    precision="bf16",
    engine="vllm",
    gpu=GPUS["H100-SXM"],
    num_gpus=1,
    model=ModelFacts(params_b=8.0),
    zone="FR",
    pue=1.2,
)
TAUGHT = StepPhysics(
    idle_power_w=80.0,
    step_j=9.0,
    token_j=0.4,
    context_j=1e-5,
    prefill_j=0.05,
    step_s=0.02,
    token_s=1e-4,
    context_s=1e-8,
    prefill_s=1e-4,
)


@pytest.fixture
def taught() -> EnergyEstimator:
    """An estimator that the windows of one engine of ours have taught."""
    return EnergyEstimator(learnt={LLAMA.name: TAUGHT}.get)


def planned(estimator: EnergyEstimator, plan: Plan, *own: Backend) -> dict[str, Planned]:
    found = planning.compare(plan, estimator, GPUS, hourly_book(), MONTH.end_s - 3600.0, own)
    return {each.what: each for each in found}


def test_an_engine_of_ours_is_planned_by_what_its_windows_taught(taught: EnergyEstimator) -> None:
    plan = planning.of_backend(Plan(), LLAMA)
    found = planned(taught, plan, LLAMA)
    features = Features(prompt_tokens=500, prompt_tokens_counted=True)
    load = Load(running=15.0, context_tokens=15.0 * 650, known=True)
    wanted = taught.at_lengths(features, LLAMA, load, 300)
    for what in ("as asked", "half the output", "half the prompt", "batch of 64", "in zone PL"):
        assert found[what].evidence == "calibrated", what
        assert (found[what].stands_on, found[what].figures) == (planning.OWN, (LLAMA.name,)), what
    assert found["as asked"].energy_j == wanted.energy_j
    assert found["as asked"].latency_s == wanted.latency_s


def test_what_we_do_not_have_is_the_benchmarks_scaled_so_that_rows_compare(
    taught: EnergyEstimator, estimator: EnergyEstimator
) -> None:
    plan = planning.of_backend(Plan(), LLAMA)
    ours, published = planned(taught, plan, LLAMA), planned(estimator, plan, LLAMA)
    assert {each.stands_on for each in published.values()} == {planning.PUBLISHED}
    ratio = joules(ours["as asked"]) / joules(published["as asked"])
    assert abs(ratio - 1.0) > 0.05, "the engine of this test must differ from the benchmarks"
    for what in ("in fp8", "a model of 2 B", "on sglang", "on L40S"):
        each = ours[what]
        assert (each.evidence, each.stands_on) == ("benchmark", planning.SCALED), what
        name, factor = each.figures
        assert name == LLAMA.name
        assert factor == pytest.approx(ratio)
        assert joules(each) == pytest.approx(joules(published[what]) * ratio), what
        assert each.energy_j is not None
        assert each.energy_j.low < each.energy_j.mid < each.energy_j.high


def test_another_engine_of_ours_is_known_where_it_is_what_is_changed(
    taught: EnergyEstimator,
) -> None:
    fp8 = msgspec.structs.replace(LLAMA, name="llama@fp8", precision="fp8")
    both = EnergyEstimator(learnt={LLAMA.name: TAUGHT, fp8.name: TAUGHT}.get)
    found = planned(both, planning.of_backend(Plan(), LLAMA), LLAMA, fp8)
    assert found["in fp8"].figures == ("llama@fp8",)
    assert found["in fp8"].evidence == "calibrated"
    other = planned(taught, msgspec.structs.replace(Plan(), engine="tgi", num_gpus=2), LLAMA, fp8)
    assert {each.stands_on for each in other.values()} == {planning.PUBLISHED}


def test_metered_requests_teach_the_plan_too(estimator: EnergyEstimator) -> None:
    learner = EnergyEstimator()
    learner.prepare([LLAMA])
    features = Features(prompt_tokens=500, prompt_tokens_counted=True)
    for _ in range(5):
        learner.learn(
            Outcome(
                backend=LLAMA.name,
                features=features,
                load=Load(running=15.0, known=True),
                energy_j=500.0,
                output_tokens=300,
                evidence=Evidence.METERED,
            )
        )
    found = planned(learner, planning.of_backend(Plan(), LLAMA), LLAMA)
    assert found["as asked"].evidence == "calibrated"
    assert found["as asked"].stands_on == planning.OWN


def test_only_engines_that_the_team_used_in_this_book_are_its_own() -> None:
    made_up = msgspec.structs.replace(LLAMA, name="sim", simulated=True)
    api = Backend(name="gpt", group="gpt", engine="api")
    facts = [LLAMA, made_up, api]
    used = [Line(key="gpt"), Line(key="sim"), Line(key=LLAMA.name)]
    assert planning.own_backends(facts, used, [*GPUS], False) == [LLAMA]
    assert planning.own_backends(facts, used, [*GPUS], True) == [made_up]
    assert planning.own_backends(facts, [Line(key="gpt")], [*GPUS], False) == []


def test_a_link_that_begins_with_an_engine_is_read_back_as_it() -> None:
    plan = planning.of_backend(Plan(requests=7), LLAMA)
    assert planning.parse(planning.written(plan), [*GPUS]) == plan


def test_planning_leaves_nothing_behind_however_much_is_asked(taught: EnergyEstimator) -> None:
    for size in range(1, 6):
        planned(taught, Plan(params_b=float(size)), LLAMA)
    assert len(taught._known) <= 2


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
