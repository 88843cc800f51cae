"""The learner: true coefficients come back, changes are followed, the untold stays open."""

import json
import math
import random
from functools import cache

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators.steps import StepLearner
from meters.attribution import Regressors, regressors
from meters.simulated_physics import LLAMA_8B_BF16, LLAMA_8B_INT4, EngineConfig, Job
from meters.simulated_traffic import simulate
from meters.types import StepPhysics, Window

TRUE = LLAMA_8B_BF16
NAMES = TRUE.__struct_fields__
ENERGY = NAMES[:5]
ZERO = dict.fromkeys(NAMES, 0.0)


def times(physics, factor):
    return StepPhysics(**{name: getattr(physics, name) * factor for name in NAMES})


def traffic(physics, seconds):
    """Windows with what was done in them, from traffic that rises and falls."""
    return recorded(physics, 1800 if seconds > 900 else 900)[:seconds]


@cache
def recorded(physics, seconds):
    return list(traffic_of(physics, seconds))


def traffic_of(physics, seconds, seed=1, rate=10.0):
    random_ = random.Random(seed)
    jobs = []
    at_s = 0.0
    while at_s < seconds:
        now = rate * (0.02 + max(0.0, math.sin(2 * math.pi * at_s / 400)) ** 2)
        at_s += random_.expovariate(now)
        jobs.append(
            Job(
                request_id=str(len(jobs)),
                prompt_tokens=1 + int(random_.lognormvariate(6, 1)),
                output_tokens=1 + int(random_.lognormvariate(5, 0.8)),
                arrival_s=at_s,
            )
        )
    run = simulate(EngineConfig(physics=physics, seed=seed), jobs, keep_truth=False)
    waiting = sorted(run.activities, key=lambda a: a.start_s)
    active = []
    for window in run.windows:
        if window.end_s > seconds:
            return
        while waiting and waiting[0].start_s < window.end_s:
            active.append(waiting.pop(0))
        active = [a for a in active if a.end_s >= window.start_s]
        yield window, regressors(window, active)


def off(found, true, names=NAMES):
    return {name: getattr(found, name) / getattr(true, name) - 1 for name in names}


def worst(found, true, names=NAMES):
    return max(map(abs, off(found, true, names).values()))


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_true_coefficients_come_back_within_five_per_cent_in_thirty_minutes(factor):
    learner = StepLearner(times(TRUE, factor))
    for window, work in traffic(TRUE, 1800):
        learner.observe(window, work)
    assert worst(learner.physics(), TRUE, ENERGY) < 0.05, off(learner.physics(), TRUE)
    assert learner.trained


def test_a_changed_engine_is_known_within_ten_per_cent_in_fifteen_minutes():
    learner = StepLearner(TRUE)
    for window, work in traffic(TRUE, 900):
        learner.observe(window, work)
    changed = msgspec.structs.replace(
        LLAMA_8B_INT4, idle_power_w=120.0, context_j=2.6e-5, context_s=8e-8
    )
    for window, work in traffic(changed, 900):
        later = msgspec.structs.replace(
            window, start_s=window.start_s + 900, end_s=window.end_s + 900
        )
        learner.observe(later, work)
    assert worst(learner.physics(), changed, ENERGY) < 0.10, off(learner.physics(), changed)


def saturated(seconds, factor=1.0):
    """An engine whose every window is the same but for noise."""
    random_ = random.Random(1)
    step_s = 0.02
    per_s = 1 / step_s
    work = Regressors(1.0, 1.0, per_s, 64 * per_s, 64 * 800 * per_s, 4 * per_s, 0.0)
    energy_j = factor * (
        TRUE.idle_power_w
        + TRUE.step_j * work.steps
        + TRUE.token_j * work.generated
        + TRUE.context_j * work.context_steps
        + TRUE.prefill_j * work.prefilled
    )
    for i in range(seconds):
        window = Window(
            window_id=str(i),
            node="n",
            start_s=float(i),
            end_s=i + 1.0,
            energy_j=energy_j * random_.gauss(1, 0.02),
        )
        yield window, work


def test_a_saturated_engine_keeps_the_priors_proportions_and_wide_bands():
    learner = StepLearner(TRUE)
    for window, work in saturated(1800, factor=1.2):
        learner.observe(window, work)
    found = learner.physics()
    ratios = [getattr(found, name) / getattr(TRUE, name) for name in ENERGY[1:]]
    assert min(ratios) > 0.9
    assert max(ratios) < 1.7
    assert not learner.trained
    predicted = (
        found.idle_power_w
        + found.step_j * work.steps
        + found.token_j * work.generated
        + found.context_j * work.context_steps
        + found.prefill_j * work.prefilled
    )
    assert predicted == pytest.approx(1.2 * next(saturated(1))[0].energy_j, rel=0.25)


def test_idle_time_teaches_idle_power_and_nothing_else():
    learner = StepLearner(TRUE)
    for i in range(120):
        window = Window(window_id=str(i), node="n", start_s=float(i), end_s=i + 1.0, energy_j=140.0)
        learner.observe(window, Regressors(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    found = learner.physics()
    assert found.idle_power_w == pytest.approx(140.0, rel=0.01)
    assert worst(found, TRUE, NAMES[1:]) < 1e-9
    assert not learner.trained


def test_a_few_wild_windows_hardly_matter():
    calm, wild = StepLearner(TRUE), StepLearner(TRUE)
    random_ = random.Random(4)
    for i, (window, work) in enumerate(traffic(TRUE, 600)):
        calm.observe(window, work)
        if i > 60 and random_.random() < 0.03:
            window = msgspec.structs.replace(window, energy_j=window.energy_j * 6)
        wild.observe(window, work)
    assert worst(wild.physics(), calm.physics(), ENERGY) < 0.15


def test_a_few_per_cent_of_heat_are_not_taken_for_another_engine():
    learner = StepLearner(TRUE)
    for window, work in traffic(TRUE, 1200):
        heat = 1.025 if window.start_s > 900 else 1.0
        above_j = (window.energy_j - TRUE.idle_power_w * work.seconds) * heat
        warm = msgspec.structs.replace(window, energy_j=above_j + TRUE.idle_power_w * work.seconds)
        learner.observe(warm, work)
    assert learner.windows > 530  # nothing of it was dropped


def test_another_engine_version_starts_from_the_prior():
    learner = StepLearner(times(TRUE, 2.0))
    assert not learner.serves("vllm 0.32, llama-3.1-8b")
    for window, work in traffic(TRUE, 120):
        learner.observe(window, work)
    assert learner.physics() != times(TRUE, 2.0)
    assert not learner.serves("vllm 0.32, llama-3.1-8b")
    assert learner.serves("vllm 0.33, llama-3.1-8b")
    assert worst(learner.physics(), times(TRUE, 2.0)) < 1e-9


def test_it_survives_save_and_load():
    learner = StepLearner(times(TRUE, 1.5))
    learner.serves("vllm 0.33")
    windows = traffic(TRUE, 200)
    for window, work in windows[:150]:
        learner.observe(window, work)
    again = StepLearner.from_dict(json.loads(json.dumps(learner.as_dict())))
    for window, work in windows[150:]:
        learner.observe(window, work)
        again.observe(window, work)
    assert worst(again.physics(), learner.physics()) < 1e-9
    assert again.engine == "vllm 0.33"


def test_windows_out_of_order_or_without_sense_teach_nothing():
    learner = StepLearner(TRUE)
    (first, work), (second, _) = traffic(TRUE, 2)
    learner.observe(second, work)
    known = learner.physics()
    learner.observe(first, work)
    learner.observe(msgspec.structs.replace(second, end_s=9.0, energy_j=math.nan), work)
    learner.observe(msgspec.structs.replace(second, end_s=9.0), work._replace(steps=-1.0))
    assert learner.physics() == known


amounts = st.floats(0, 1e7, allow_nan=False, allow_subnormal=False)


@given(st.lists(st.tuples(amounts, amounts, amounts, amounts, amounts), max_size=12))
@settings(max_examples=25)
def test_coefficients_stay_finite_and_never_turn_negative(seen):
    learner = StepLearner(StepPhysics(**(ZERO | {"step_j": 1.0})))
    for i, (energy_j, *did) in enumerate(seen):
        window = Window(
            window_id=str(i), node="n", start_s=i * 1.0, end_s=i + 1.0, energy_j=energy_j
        )
        learner.observe(window, Regressors(1.0, 0.5, *did, 0.0))
    assert all(0 <= getattr(learner.physics(), name) < math.inf for name in NAMES)
