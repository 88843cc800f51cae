"""Replaying a trace: what is counted, what moves, and that packing shows in the joules."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest

from estimators.types import Backend, Band, Estimate, Features, Load
from meters.simulated_physics import LLAMA_8B_BF16, LLAMA_8B_INT4
from meters.types import Evidence, StepPhysics
from policies.configured import Configured
from policies.fleet import Sleep
from policies.guarantee import Guarantee
from policies.language import read_policies
from policies.least_energy import LeastEnergy
from policies.pinned import Pinned
from policies.replay import Arrival, compared, replay
from policies.types import Limits

BIG = Backend(
    name="m@bf16",
    group="m",
    quality=0.8,
    intensity_g_per_kwh=400.0,
    pue=1.5,
    input_usd_per_mtok=1.0,
    output_usd_per_mtok=2.0,
)
SMALL = Backend(
    name="m@int4",
    group="m",
    quality=0.7,
    intensity_g_per_kwh=400.0,
    pue=1.5,
    input_usd_per_mtok=0.5,
    output_usd_per_mtok=1.0,
)
API = Backend(name="api", group="api", quality=0.9, provider="openai")


class Known:
    """An estimator that knows the two simulated engines, and an API's energy as 5 J."""

    def __init__(self, known: dict[str, StepPhysics] | None = None, loaded: bool = True) -> None:
        self.known = known or {"m@bf16": LLAMA_8B_BF16, "m@int4": LLAMA_8B_INT4}
        self.loaded = loaded  # whether its estimates look at the load
        self.outside_j = 5.0  # of what has no physics

    def physics(self, backend: Backend) -> StepPhysics | None:
        return self.known.get(backend.name)

    def estimate(
        self, features: Features, backends: Sequence[Backend], loads: Sequence[Load]
    ) -> list[Estimate]:
        return [self._one(b, load) for b, load in zip(backends, loads, strict=True)]

    def _one(self, backend: Backend, load: Load) -> Estimate:
        physics = self.physics(backend)
        joules = self.outside_j
        if physics is not None:
            sharers = load.running + 1.0 if self.loaded else 1.0
            joules = 200 * (physics.token_j + physics.step_j / sharers)
        return Estimate(
            backend=backend.name,
            energy_j=Band(joules / 2, joules, joules * 2),
            marginal_energy_j=Band(joules / 2, joules, joules * 2),
            ttft_s=Band(0.1, 0.2, 0.3),
            latency_s=Band(1.0, 2.0, 3.0),
            carbon_g=None,
            money_usd=None,
            quality=Band(*([backend.quality or 0.0] * 3)),
            output_tokens=None,
            evidence=Evidence.SIMULATED,
        )


def trace(requests: int = 300, gap_s: float = 0.2) -> list[Arrival]:
    rng = random.Random(2)
    return [
        Arrival(i * gap_s, 200, rng.randint(50, 300), "a" if i % 3 else "b", asked="m")
        for i in range(requests)
    ]


def test_every_request_is_served_and_counted_once() -> None:
    result, choices = replay(trace(), [BIG, SMALL], LeastEnergy(), Known())
    assert result.requests == 300
    assert result.refused == 0
    assert sum(result.backends.values()) == 300
    assert len(list(choices)) == 300
    assert result.quality is not None
    assert result.quality.mid == pytest.approx(0.7)
    assert result.ttft_s is not None
    assert 0.0 < result.ttft_s.p50 <= result.ttft_s.p95 <= result.ttft_s.p99


def test_energy_carbon_and_money_are_those_of_the_engines() -> None:
    result, _ = replay(trace(), [BIG, SMALL], Pinned(), Known())
    tokens = sum(a.output_tokens for a in trace())
    assert result.backends == {"m@bf16": 300}
    assert result.energy_j is not None
    assert result.active_energy_j is not None
    assert result.carbon_g == pytest.approx(result.energy_j / 3.6e6 * 1.5 * 400)
    assert result.money_usd == pytest.approx((300 * 200 * 1.0 + tokens * 2.0) / 1e6)
    idle_j = result.energy_j - result.active_energy_j
    assert idle_j == pytest.approx(2 * 100.0 * 60, rel=0.1)  # two engines for a minute
    per_request = result.energy_per_request_j
    assert per_request is not None
    assert per_request.mid == pytest.approx(result.active_energy_j / 300)
    assert per_request.low == pytest.approx(per_request.mid / 2)


def test_policies_are_compared_and_the_moves_named() -> None:
    first, pinned = replay(trace(), [BIG, SMALL], Pinned(), Known())
    second, thrifty = replay(trace(), [BIG, SMALL], LeastEnergy(), Known())
    result = compared(pinned, thrifty, second)
    assert result.moved == 300
    assert result.moves == {"m@bf16 -> m@int4": 300}
    assert compared(pinned, pinned, first).moved == 0
    assert second.active_energy_j is not None
    assert first.active_energy_j is not None
    assert second.active_energy_j < first.active_energy_j


def test_packing_shows_in_the_joules() -> None:
    twins = [BIG, Backend(name="m@twin", group="m", quality=0.8, intensity_g_per_kwh=400.0)]

    known = Known({"m@bf16": LLAMA_8B_BF16, "m@twin": LLAMA_8B_BF16})

    class Spread(LeastEnergy):
        """The other way round: the idlest first."""

        def score(self, request: object, of: object) -> float:
            return -of.energy_j  # type: ignore[attr-defined,no-any-return]

    packed, _ = replay(trace(), twins, LeastEnergy(), known)
    spread, _ = replay(trace(), twins, Spread(), known)
    assert packed.active_energy_j is not None
    assert spread.active_energy_j is not None
    assert packed.active_energy_j < 0.8 * spread.active_energy_j
    asleep, _ = replay(trace(), twins, LeastEnergy(), known, sleep=Sleep(after_s=5))
    assert asleep.energy_j is not None
    assert packed.energy_j is not None
    assert asleep.energy_j < packed.energy_j


def test_a_backend_without_physics_is_taken_as_estimated_and_unknown_stays_unknown() -> None:
    asked = [a._replace(asked="auto") for a in trace(10)]
    result, _ = replay(asked, [SMALL, API], Pinned(), Known())
    assert result.backends == {"api": 10}
    assert result.active_energy_j == pytest.approx(50.0)
    assert result.carbon_g is None
    assert result.money_usd is None


def test_refused_requests_are_counted_with_their_reasons() -> None:
    result, choices = replay(
        trace(30),
        [BIG, SMALL],
        LeastEnergy(),
        Known(),
        team_limits={"b": Limits(min_quality=0.95)},
    )
    assert result.refused == 10
    assert result.refusals == {"quality_below_limit": 20}
    assert next(iter(choices)) is None


def test_a_replay_is_the_same_again_and_hears_of_progress() -> None:
    policy = read_policies({"p": {"exploration": {"share": 0.5, "extra_energy": 1}}}).policies["p"]
    heard: list[int] = []
    one, first = replay(trace(), [BIG, SMALL], policy, Known(), seed=4, progress=heard.append)
    two, second = replay(trace(), [BIG, SMALL], policy, Known(), seed=4)
    assert one == two
    assert list(first) == list(second)
    assert len(one.backends) == 2
    assert heard == [0]


def test_the_debt_of_a_guarantee_is_kept_over_the_trace() -> None:
    policy = Configured("g", Guarantee(0.75))
    result, _ = replay(trace(1000, 0.05), [BIG, SMALL], policy, Known(loaded=False))
    assert result.quality is not None
    assert 0.75 <= result.quality.mid < 0.78
    assert set(result.backends) == {"m@bf16", "m@int4"}


def test_each_team_has_an_account_of_its_own_of_what_was_promised() -> None:
    policy = Configured("g", Guarantee(0.75))
    one = [arrival._replace(team="one") for arrival in trace(300, 0.05)]
    both = [teamed for a in one for teamed in (a, a._replace(team="two"))]
    _, alone = replay(one, [BIG, SMALL], policy, Known(loaded=False))
    _, shared = replay(both, [BIG, SMALL], policy, Known(loaded=False))
    assert list(shared)[::2] == list(shared)[1::2] == list(alone)


def test_the_arms_of_a_split_that_a_rule_uses_do_not_hold_each_other() -> None:
    policies = {
        "thrifty": {"objective": "energy", "hysteresis": 0.95},
        "good": {"objective": "quality", "hysteresis": 0.95},
        "trial": {"split": {"thrifty": 0.5, "good": 0.5}},
        "all": {"rules": [{"when": {"prompt_tokens": ">= 0"}, "use": "trial"}]},
    }
    book = read_policies(policies)
    chosen = [
        list(replay(trace(), [BIG, SMALL], book.policies[name], Known(loaded=False))[1])
        for name in ("trial", "all")
    ]
    assert chosen[0] == chosen[1]


def test_an_empty_trace_gives_nothing_and_does_not_fail() -> None:
    result, choices = replay([], [BIG], Pinned(), Known())
    assert (result.requests, result.latency_s, list(choices)) == (0, None, [])


def test_a_policy_that_stays_with_the_model_asked_for_is_given_only_that_model() -> None:
    seen: set[tuple[str, ...]] = set()

    class Watched(Known):
        def estimate(
            self, features: Features, backends: Sequence[Backend], loads: Sequence[Load]
        ) -> list[Estimate]:
            seen.add(tuple(b.name for b in backends))
            return super().estimate(features, backends, loads)

    backends = [Backend(name=f"{g}@{p}", group=g, precision=p) for g in "ab" for p in ("x", "y")]
    trace = [Arrival(0.0, 10, 10, asked="a"), Arrival(1.0, 10, 10, asked="nobody")]
    policy = Pinned()
    result, choices = replay(trace, backends, policy, Watched(), beyond=False)
    assert seen == {("a@x", "a@y"), tuple(b.name for b in backends)}
    assert list(choices)[1] is None
    assert result.refusals == {"not_asked_for": 4}


@pytest.mark.parametrize("second", ["m@bf16", "api"])
def test_a_cascade_s_second_answers_are_in_its_figures(second: str) -> None:
    better = {"m@bf16": BIG, "api": msgspec.structs.replace(API, group="m")}[second]
    known = Known({"m@int4": LLAMA_8B_INT4, "m@bf16": LLAMA_8B_BF16}, loaded=False)
    known.outside_j = 5_000.0  # dear enough for a first try to be worthwhile
    floor = (better.quality or 0.0) - 0.01
    policies = read_policies(
        {
            "direct": {"limits": {"min_quality": floor}},
            "never": {"limits": {"min_quality": floor}, "cascade": {"pass_rate": "100 %"}},
            "half": {"limits": {"min_quality": floor}, "cascade": {"pass_rate": "50 %"}},
        }
    ).policies
    found = {
        name: replay(trace(400, gap_s=9.0), [SMALL, better], policies[name], known)[0]
        for name in ("direct", "never", "half")
    }
    half = found["half"]
    assert found["direct"].backends == {second: 400}
    assert found["never"].backends == {"m@int4": 400}
    assert half.backends[second] == pytest.approx(200, abs=40)
    assert half.requests == 400
    share = half.backends[second] / 400
    for figure in ("active_energy_j", "money_usd")[: 2 if second == "m@bf16" else 1]:
        first, direct, both = (
            getattr(found[name], figure) or 0.0 for name in ("never", "direct", "half")
        )
        assert both == pytest.approx(first + share * direct, rel=0.1), figure
    assert half.quality is not None
    assert half.quality.mid == pytest.approx(0.7 + share * ((better.quality or 0.0) - 0.7))
    assert half.latency_s is not None
    assert found["direct"].latency_s is not None
    assert half.latency_s.p95 > found["direct"].latency_s.p95  # after both answers
