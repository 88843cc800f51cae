"""Published measurements as backends: the policies find what their authors recommend.

Figures: M. Buis, "Walking the Tightrope", master's thesis, Utrecht University 2024, tables 5.29 and
5.40 (BigCodeBench, one L40S, kWh for 1,140 tasks); D. Wetzel, "Green Tech or Digital Polluter?",
master's thesis, TU Berlin 2024, tables 10 and 11 (Arena-Hard with 95 % intervals, NVIDIA L4, Wh
for 1,000 prompts).
"""

from __future__ import annotations

from math import sqrt

import pytest

from estimators.types import Z_80, Backend, Band, Estimate, Load
from meters.types import Evidence
from policies.language import read_policies
from policies.replay import Arrival, replay
from policies.types import Candidate, Limits
from tests.policies.candidates import request
from tests.policies.test_replay import Known

TASKS = 1140

# variant: pass@1, kWh (tables 5.29 and 5.40; int4-awq from 5.34)
BIGCODEBENCH = {
    "qwen-14b@bf16": (0.51, 1.35),
    "qwen-14b@int8-gptq": (0.52, 0.79),
    "qwen-14b@int4-gptq": (0.49, 0.46),
    "qwen-14b@int4-awq": (0.27, 0.66),
    "qwen-7b@bf16": (0.45, 0.82),
    "qwen-7b@int8-gptq": (0.46, 0.49),
    "qwen-7b@int4-gptq": (0.44, 0.30),
    "qwen-3b@bf16": (0.39, 0.40),
    "qwen-3b@int4-gptq": (0.34, 0.16),
    "qwen-1.5b@int4-gptq": (0.20, 0.11),
}
# variant: score, 95 % interval, Wh (8 GPUs, then 4); guided runs left out
ARENA_70B = {
    "llama-70b@bf16": (68.05, -2.15, 2.23, 624.59),
    "llama-70b@fp8": (68.79, -2.00, 2.46, 318.25),
    "llama-70b@int4": (63.82, -2.36, 2.34, 232.03),
    "llama-70b@fp8-4gpus": (68.79, -2.00, 2.46, 250.20),
    "llama-70b@int4-4gpus": (63.82, -2.36, 2.34, 199.09),
}
ARENA_12B = {
    "nemo@bf16": (44.90, -2.45, 2.38, 61.23),
    "nemo@fp8": (42.73, -2.38, 2.36, 39.19),
    "nemo@int4": (37.74, -2.18, 2.45, 38.42),
}


def published(name: str, quality: Band, energy_j: float) -> Candidate:
    joules = Band(energy_j, energy_j, energy_j)
    estimate = Estimate(
        backend=name,
        energy_j=joules,
        marginal_energy_j=joules,  # batch size 1: a request's energy is what it adds
        ttft_s=None,
        latency_s=None,
        carbon_g=None,
        money_usd=None,
        quality=quality,
        output_tokens=None,
        evidence=Evidence.BENCHMARK,
    )
    return Candidate(Backend(name=name, group=name.split("@")[0]), estimate, Load(known=True))


def code_fleet(sampled: bool) -> list[Candidate]:
    """BigCodeBench rows; ``sampled`` with the sampling error of a pass rate over 1,140 tasks."""
    fleet = []
    for name, (passed, kwh) in BIGCODEBENCH.items():
        half = Z_80 * sqrt(passed * (1 - passed) / TASKS) if sampled else 0.0
        quality = Band(passed - half, passed, passed + half)
        fleet.append(published(name, quality, kwh * 3.6e6 / TASKS))
    return fleet


def arena_fleet(rows: dict[str, tuple[float, float, float, float]]) -> list[Candidate]:
    fleet = []
    for name, (score, low, high, wh) in rows.items():
        to_80 = Z_80 / 1.96
        quality = Band((score + to_80 * low) / 100, score / 100, (score + to_80 * high) / 100)
        fleet.append(published(name, quality, wh * 3600 / 1000))
    return fleet


def chosen(fleet: list[Candidate], keys: dict[str, object], asked: str) -> tuple[str, float]:
    """The choice, and by which share its energy is below that of the bf16 variant asked for."""
    policy = read_policies({"p": keys}).policies["p"]
    decision = policy.choose(request(asked, task="code"), fleet, Limits())
    joules = {c.backend.name: c.estimate.energy_j.mid for c in fleet if c.estimate.energy_j}
    return decision.chosen, 1 - joules[decision.chosen] / joules[f"{asked}@bf16"]


@pytest.mark.parametrize("sampled", [False, True], ids=["as printed", "with sampling error"])
def test_code_at_97_percent_of_the_14b_goes_to_its_int8_variant(sampled: bool) -> None:
    keys = {
        "among": "any",
        "limits": {"min_quality": "97 % of qwen-14b@bf16", "judge": "cautious"},
    }
    name, saved = chosen(code_fleet(sampled), keys, "qwen-14b")
    assert name == "qwen-14b@int8-gptq"
    assert saved == pytest.approx(0.415, abs=0.001)


def test_code_at_96_percent_goes_to_the_int4_variant_and_saves_two_thirds() -> None:
    keys = {"among": "any", "limits": {"min_quality": "96 % of qwen-14b@bf16"}}
    name, saved = chosen(code_fleet(sampled=False), keys, "qwen-14b")
    assert name == "qwen-14b@int4-gptq"
    assert saved == pytest.approx(0.659, abs=0.001)


def test_what_the_thesis_found_worse_in_everything_is_named_as_dominated() -> None:
    policy = read_policies({"p": {"among": "any"}}).policies["p"]
    decision = policy.choose(request("qwen-14b"), code_fleet(False), Limits())
    dominated = {r.backend for r in decision.rejections if r.code == "dominated"}
    assert dominated == {
        "qwen-14b@bf16",
        "qwen-14b@int4-awq",
        "qwen-7b@bf16",
        "qwen-7b@int8-gptq",
        "qwen-3b@bf16",
    }


def test_the_70b_goes_to_fp8_within_the_arena_tolerance() -> None:
    keys = {"limits": {"min_quality": "97 % of llama-70b@bf16"}}
    eight = {n: row for n, row in ARENA_70B.items() if "4gpus" not in n}
    name, saved = chosen(arena_fleet(eight), keys, "llama-70b")
    assert name == "llama-70b@fp8"
    assert saved == pytest.approx(0.490, abs=0.001)
    # Precision and number of GPUs are two effects: fewer GPUs give the rest of the published .40.
    name, saved = chosen(arena_fleet(ARENA_70B), keys, "llama-70b")
    assert name == "llama-70b@fp8-4gpus"
    assert saved == pytest.approx(0.599, abs=0.001)


def test_int4_of_the_70b_is_taken_only_where_a_tenth_of_the_score_may_be_lost() -> None:
    fleet = arena_fleet(ARENA_70B)
    lenient = {"limits": {"min_quality": "90 % of llama-70b@bf16"}}
    assert chosen(fleet, lenient, "llama-70b")[0] == "llama-70b@int4-4gpus"


def test_the_12b_stays_in_bf16_at_97_percent_and_moves_at_95_as_expected() -> None:
    fleet = arena_fleet(ARENA_12B)
    strict = {"limits": {"min_quality": "97 % of nemo@bf16"}}
    assert chosen(fleet, strict, "nemo") == ("nemo@bf16", 0.0)
    cautious = {"limits": {"min_quality": "95 % of nemo@bf16"}}
    assert chosen(fleet, cautious, "nemo")[0] == "nemo@bf16"
    expected = {"limits": {"min_quality": "95 % of nemo@bf16", "judge": "expected"}}
    assert chosen(fleet, expected, "nemo")[0] == "nemo@fp8"


def test_a_whole_trace_saves_what_one_request_does() -> None:
    fleet = code_fleet(sampled=False)

    class Published(Known):
        def physics(self, backend: Backend) -> None:
            return None

        def estimate(self, features: object, backends: object, loads: object) -> list[Estimate]:
            return [c.estimate for c in fleet]

    trace = [Arrival(float(i), 100, 100, task="code", asked="qwen-14b") for i in range(50)]
    policies = read_policies(
        {
            "asked": {"objective": "pinned"},
            "saving": {"among": "any", "limits": {"min_quality": "97 % of qwen-14b@bf16"}},
        }
    ).policies
    backends = [c.backend for c in fleet]
    # The best variant of what was asked for is int8, so the published baseline is named.
    base, _ = replay(
        [a._replace(asked="qwen-14b@bf16") for a in trace], backends, policies["asked"], Published()
    )
    saving, _ = replay(trace, backends, policies["saving"], Published())
    assert base.backends == {"qwen-14b@bf16": 50}
    assert saving.backends == {"qwen-14b@int8-gptq": 50}
    assert base.energy_j is not None
    assert saving.energy_j is not None
    assert 1 - saving.energy_j / base.energy_j == pytest.approx(0.415, abs=0.001)
