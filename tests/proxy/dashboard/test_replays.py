from __future__ import annotations

import pytest

from estimators.energy import EnergyEstimator
from estimators.hardware import GPUS
from estimators.types import Backend, ModelFacts
from meters.ledger import Ledger
from policies.least_energy import LeastEnergy
from policies.pinned import Pinned
from policies.types import Limits
from proxy.dashboard.replays import MOST_REQUESTS, TeamReplay
from tests.seed_ledger import MONTH


def backend(group: str, params_b: float, zone: str, intensity: float) -> Backend:
    return Backend(
        name=f"{group}@fp8",
        group=group,
        precision="fp8",
        gpu=GPUS["H100-SXM"],
        num_gpus=2 if params_b > 20 else 1,
        model=ModelFacts(params_b=params_b),
        zone=zone,
        intensity_g_per_kwh=intensity,
        pue=1.2,
    )


BACKENDS = [backend("llama-3.3-70b", 70.0, "DE", 330.0), backend("llama-3.1-8b", 8.0, "FR", 45.0)]


@pytest.fixture(scope="module")
def replayed(ledger: Ledger) -> TeamReplay:
    return TeamReplay(
        ledger,
        lambda: BACKENDS,
        lambda: {"pinned": Pinned(), "least_energy": LeastEnergy()},
        lambda: "least_energy",
        EnergyEstimator(),
        lambda team: Limits(),
    )


def test_each_policy_is_run_over_the_teams_own_traffic(replayed: TeamReplay) -> None:
    pinned, least = replayed("search", MONTH.start_s, MONTH.end_s)
    assert (pinned.policy, least.policy) == ("pinned", "least_energy")
    assert 0 < pinned.low_g <= pinned.carbon_g <= pinned.high_g
    assert pinned.refused == least.refused == 0
    assert "as they asked" in pinned.note
    assert least.replayed == MOST_REQUESTS < least.requests
    assert "as if each had asked for auto" in least.note
    assert least.energy_j < pinned.energy_j / 2  # all on the small model


def test_a_team_without_traffic_has_nothing_to_replay(replayed: TeamReplay) -> None:
    assert replayed("nobody", MONTH.start_s, MONTH.end_s) == []


def test_what_was_replayed_is_kept_for_a_while(replayed: TeamReplay) -> None:
    once = replayed("search", MONTH.start_s, MONTH.end_s)
    assert replayed("search", MONTH.start_s, MONTH.end_s) is once


def test_hours_are_of_the_teams_day(ledger: Ledger) -> None:
    hours = []
    for zone in ("UTC", "Asia/Kolkata"):
        replays = TeamReplay(
            ledger,
            lambda: BACKENDS,
            lambda: {"pinned": Pinned()},
            lambda: "pinned",
            EnergyEstimator(),
            lambda team: Limits(),
            lambda team, zone=zone: zone,
        )
        trace, _ = replays.trace("search", MONTH.start_s, MONTH.end_s)
        hours.append([arrival.hour or 0 for arrival in trace])
    assert {(there - here) % 24 for here, there in zip(*hours, strict=True)} == {5, 6}
