"""What to do next, from a replay of the team's own traffic."""

from __future__ import annotations

import msgspec
import pytest

from estimators.types import Backend
from meters.ledger import Ledger
from policies.least_energy import LeastEnergy
from policies.pinned import Pinned
from policies.types import Limits, Policy
from proxy.dashboard.advice import Study
from proxy.dashboard.feasible import Studies
from proxy.dashboard.replays import TeamReplay
from proxy.predicting import Predictors
from tests.proxy.dashboard.test_replays import BACKENDS
from tests.seed_ledger import MONTH

POLICIES: dict[str, Policy] = {"pinned": Pinned(), "least_energy": LeastEnergy()}


def study(ledger: Ledger, backends: list[Backend], limits: Limits | None = None) -> Study:
    known = [msgspec.structs.replace(b, quality=b.quality or 0.6) for b in backends]
    estimator = Predictors()
    estimator.know(known)
    studies = Studies(
        TeamReplay(
            ledger,
            lambda: known,
            lambda: POLICIES,
            lambda: "least_energy",
            estimator,
            lambda team: limits or Limits(),
        )
    )
    assert studies.of("search", MONTH.start_s, MONTH.end_s) is None  # nobody waits
    studies.wait(60)
    found = studies.of("search", MONTH.start_s, MONTH.end_s)
    assert found is not None
    return found


def kinds(found: Study) -> set[str]:
    return {option.kind for option in found.options}


def test_routes_and_lengths_are_found_each_with_a_range(ledger: Ledger) -> None:
    found = study(ledger, BACKENDS)
    assert found.replayed == 250 < found.requests
    assert {"route", "output", "prompt"} <= kinds(found)
    assert all(0.0 < o.low < o.high <= 1.0 for o in found.options)
    route = next(o for o in found.options if o.kind == "route")
    assert route.low > 0.3  # most of the work on a model a tenth of the size, and a cleaner grid


def test_a_policy_whose_answers_are_worse_is_no_saving(ledger: Ledger) -> None:
    large, small = BACKENDS
    found = study(
        ledger,
        [
            msgspec.structs.replace(large, quality=0.9),
            msgspec.structs.replace(small, quality=0.4),
        ],
    )
    assert "route" not in kinds(found)
    assert "output" in kinds(found)


def test_what_limits_refuse_is_no_saving(ledger: Ledger) -> None:
    found = study(ledger, BACKENDS, Limits(max_energy_j=1e-9))
    assert found.options == ()


def test_a_lighter_precision_is_tried_where_there_is_one(ledger: Ledger) -> None:
    heavy = [msgspec.structs.replace(b, precision="bf16") for b in BACKENDS]
    (option,) = [o for o in study(ledger, heavy).options if o.kind == "precision"]
    assert "fp8" in option.title
    assert 0.0 < option.low < option.high
    assert "precision" not in kinds(study(ledger, BACKENDS))


@pytest.mark.parametrize("team", ["nobody"])
def test_no_traffic_is_no_study(ledger: Ledger, team: str) -> None:
    replays = TeamReplay(
        ledger, lambda: BACKENDS, lambda: POLICIES, lambda: "x", Predictors(), Limits
    )
    studies = Studies(replays)
    studies.of(team, MONTH.start_s, MONTH.end_s)
    studies.wait(30)
    found = studies.of(team, MONTH.start_s, MONTH.end_s)
    assert found is not None
    assert found.options == ()
