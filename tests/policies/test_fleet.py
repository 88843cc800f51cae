"""The fluid fleet against the engine that does every step."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from meters.simulated_physics import LLAMA_8B_BF16, Engine, EngineConfig, Job
from policies.fleet import FluidEngine, Served, Sleep


def poisson(rate: float, requests: int, seed: int = 1) -> list[tuple[float, int, int]]:
    rng, at_s, jobs = random.Random(seed), 0.0, []
    for _ in range(requests):
        at_s += rng.expovariate(rate)
        prompt = min(8000, int(rng.lognormvariate(6.5, 1.0)) + 1)
        jobs.append((at_s, prompt, min(1500, int(rng.lognormvariate(5.0, 0.7)) + 1)))
    return jobs


def fluid(jobs: list[tuple[float, int, int]], seqs: int = 256) -> tuple[FluidEngine, list[Served]]:
    engine, served = FluidEngine(LLAMA_8B_BF16, seqs), []
    for key, (at_s, prompt, output) in enumerate(jobs):
        served += engine.advance(at_s)
        engine.submit(key, prompt, output)
    served += engine.advance(jobs[-1][0] + 3600.0)
    return engine, served


def stepwise(jobs: list[tuple[float, int, int]], seqs: int = 256) -> tuple[Engine, list[Served]]:
    config = EngineConfig(
        max_num_seqs=seqs, energy_noise=0, time_noise=0, energy_drift=0, kv_tokens=10**9
    )
    engine, now_s, arrived = Engine(config), 0.0, 0
    served: list[Served] = []
    while arrived < len(jobs) or engine.running or engine.waiting:
        while arrived < len(jobs) and jobs[arrived][0] <= now_s:
            at_s, prompt, output = jobs[arrived]
            engine.submit(
                Job(
                    request_id=str(arrived),
                    prompt_tokens=prompt,
                    output_tokens=output,
                    arrival_s=at_s,
                )
            )
            arrived += 1
        end_s = engine.begin(now_s)
        if end_s is None:
            now_s = jobs[arrived][0]
            continue
        now_s = end_s
        for seq in engine.finish():
            assert seq.first_token_s is not None
            served.append(
                Served(int(seq.job.request_id), seq.job.arrival_s, seq.first_token_s, now_s)
            )
    return engine, served


@pytest.mark.parametrize("rate", [0.05, 2.0, 15.0])
def test_energy_and_latency_are_those_of_the_engine_that_does_every_step(rate: float) -> None:
    jobs = poisson(rate, 300)
    fast, served = fluid(jobs)
    slow, truth = stepwise(jobs)
    assert len(served) == len(truth) == 300
    assert fast.active_j == pytest.approx(slow.totals.active_energy_j, rel=0.05)
    assert fast.busy_s == pytest.approx(slow.totals.busy_s, rel=0.05)
    latency_s = mean(s.end_s - s.arrival_s for s in served)
    assert latency_s == pytest.approx(mean(s.end_s - s.arrival_s for s in truth), rel=0.08)


def test_a_full_batch_makes_the_others_wait_as_it_does_there() -> None:
    jobs = poisson(30.0, 300)
    _, served = fluid(jobs, seqs=16)
    _, truth = stepwise(jobs, seqs=16)
    ttft_s = mean(s.first_token_s - s.arrival_s for s in served)
    assert ttft_s == pytest.approx(mean(s.first_token_s - s.arrival_s for s in truth), rel=0.15)
    assert ttft_s > 2.0


def test_how_often_it_is_moved_on_does_not_matter() -> None:
    jobs = poisson(3.0, 60)
    once, served = fluid(jobs)
    often, again = FluidEngine(LLAMA_8B_BF16), []
    at_s = 0.0
    for key, (arrival_s, prompt, output) in enumerate(jobs):
        while at_s < arrival_s:
            at_s = min(arrival_s, at_s + 0.037)
            again += often.advance(at_s)
        often.submit(key, prompt, output)
    again += often.advance(jobs[-1][0] + 3600.0)
    assert often.active_j == pytest.approx(once.active_j, rel=1e-9)
    ends = {s.key: s.end_s for s in served}
    assert {s.key: pytest.approx(s.end_s) for s in again} == ends


def test_an_engine_nobody_uses_falls_asleep_and_wakes_late() -> None:
    sleep = Sleep(after_s=60, power_w=40, wake_s=10)
    engine = FluidEngine(LLAMA_8B_BF16, sleep=sleep)
    engine.advance(50.0)
    assert not engine.asleep_at(50.0)
    engine.advance(1000.0)
    assert engine.asleep_at(1000.0)
    assert engine.energy_j(1000.0) == pytest.approx(60 * 100 + 940 * 40)
    engine.submit(0, 100, 1)
    assert not engine.asleep_at(1000.0)
    [served] = engine.advance(2000.0)
    assert 10.0 < served.first_token_s - 1000.0 < 10.1
    awake_s = 60 + (served.end_s - 1000) + 60
    expected = awake_s * 100 + (2000 - awake_s) * 40 + engine.active_j
    assert engine.energy_j(2000.0) == pytest.approx(expected)
    assert FluidEngine(LLAMA_8B_BF16).energy_j(1000.0) == pytest.approx(100_000)


def test_its_load_is_what_it_holds() -> None:
    engine = FluidEngine(LLAMA_8B_BF16, max_num_seqs=2)
    for key in range(3):
        engine.submit(key, 100, 500)
    assert (engine.load.running, engine.load.waiting) == (2.0, 1.0)
    engine.advance(0.5)
    assert engine.load.context_tokens > 200
    assert engine.next_event_s > 0.5
    engine.advance(100.0)
    assert (engine.load.running, engine.load.context_tokens) == (0.0, 0.0)
