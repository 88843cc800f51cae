"""The traffic driver: windows, activities and truth tell one story."""

import pytest

from meters.simulated_physics import EngineConfig, Job
from meters.simulated_traffic import simulate


def jobs():
    return [
        Job(request_id="a", prompt_tokens=3_000, output_tokens=200, arrival_s=0.3),
        Job(request_id="b", prompt_tokens=50, output_tokens=400, arrival_s=0.5),
        Job(request_id="c", prompt_tokens=50, output_tokens=900, arrival_s=0.5, cancel_s=2.0),
        Job(request_id="x", prompt_tokens=90, output_tokens=90, arrival_s=6.0, external=True),
    ]


def test_windows_hold_idle_and_what_requests_caused_and_nothing_else():
    run = simulate(EngineConfig(), jobs(), window_s=0.7, idle_tail_s=2.0)
    for window in run.windows:
        caused_j = sum(run.truth_j[window.window_id].values())
        idle_j = 100.0 * (window.end_s - window.start_s)
        assert window.energy_j == pytest.approx(caused_j + idle_j)
    assert run.windows[-1].generated_tokens == 0
    ends = [window.end_s for window in run.windows]
    assert [window.start_s for window in run.windows] == [0.0, *ends[:-1]]


def test_counters_add_up_to_the_requests():
    run = simulate(EngineConfig(), jobs())
    by_id = {a.request_id: a for a in run.activities}
    assert set(by_id) == {"a", "b", "c"}
    assert 0 < by_id["c"].output_tokens < 900
    generated = sum(window.generated_tokens for window in run.windows)
    assert generated == sum(a.output_tokens for a in run.activities) + 90
    assert sum(window.prompt_tokens for window in run.windows) == 3_190


def test_the_same_seed_gives_the_same_run_and_another_another():
    one, two, three = (simulate(EngineConfig(seed=seed), jobs()) for seed in (1, 1, 2))
    assert one.windows == two.windows != three.windows


def test_whoever_ends_may_send_another():
    sent = []

    def again(seq):
        if len(sent) < 5:
            sent.append(seq)
            yield Job(
                request_id=f"again-{len(sent)}",
                prompt_tokens=10,
                output_tokens=10,
                arrival_s=seq.end_s + 0.5,
            )

    first = Job(request_id="first", prompt_tokens=10, output_tokens=10)
    run = simulate(EngineConfig(), [first], on_end=again)
    assert len(run.activities) == 6


def test_progress_is_noted_when_asked_for():
    run = simulate(EngineConfig(), jobs(), progress_tokens=50)
    progress = {a.request_id: a.progress for a in run.activities}
    assert [tokens for _, tokens in progress["a"]] == [50, 100, 150]
