"""On an engine that is always full coefficients blur; what requests are given is right anyway."""

import random

from benchmarks.attribution import ENGINES, Scenario, play
from estimators.steps import StepLearner
from meters.attribution import Divider
from meters.types import StepPhysics


def test_on_a_saturated_engine_requests_get_their_energy_from_a_prior_that_is_off():
    true, random_ = ENGINES["8b"], random.Random(1)
    seen = play(Scenario("full", "8b", 64, 900), 1)
    prior = {n: getattr(true, n) * random_.lognormvariate(0, 0.3) for n in true.__struct_fields__}
    learner, divider = StepLearner(StepPhysics(**prior)), Divider()
    found = {a.request_id: 0.0 for a in seen.activities}
    for window in seen.windows:
        active = [a for a in seen.activities if a.start_s < window.end_s]
        active = [a for a in active if a.end_s is None or a.end_s >= window.start_s]
        divided, work = divider.divide(window, active, learner.physics())
        learner.observe(window, work)
        for share in divided.shares:
            found[share.request_id] += share.energy_j
    off = sorted(abs(found[i] - true_j) / true_j for i, true_j in seen.truth_j.items())
    assert off[len(off) // 2] < 0.05
    assert off[int(len(off) * 0.95)] < 0.15
