from __future__ import annotations

import msgspec
import numpy as np
import pytest

from meters.attribution import attribute_all
from meters.phases import phases
from meters.simulated_physics import LLAMA_8B_BF16
from meters.timed_hits import timed_hits
from meters.types import Activity
from tests.meters.test_untold_hits import shared_beginnings, untold

STEP_S, TOKEN_S = 0.01, 2e-5


def one_a_second(cached: list[float], *, later_s: float = 0.0) -> list[Activity]:
    """Prompts of 2,000 tokens beside a stream that gets a token every 10 ms.

    ``later_s``: how much later than its step's end a first token is seen, in turn and not.
    """
    found = []
    for i, hit in enumerate(cached):
        first_s = i + 0.5 + STEP_S + TOKEN_S * (2_000 - hit) + (later_s if i % 2 else 0.0)
        found.append(
            Activity(
                request_id=f"r{i}", node="n", start_s=i + 0.499, first_token_s=first_s,
                end_s=i + 0.9, prompt_tokens=2_000.0,
                output_tokens=1 + round((i + 0.9 - first_s) / STEP_S),
            )
        )  # fmt: skip
        found.append(  # ends with a step, when that with the prompt begins
            Activity(
                request_id=f"s{i}", node="n", start_s=i + 0.0001, first_token_s=i + 0.1,
                end_s=i + 0.5, output_tokens=41.0,
            )
        )  # fmt: skip
    return found


def found(activities: list[Activity], cached: list[float]) -> list[float] | None:
    """By times, and by what the engine counted in ten prompts together."""
    n = len(cached)
    requests = phases(activities, float(n))
    mean = np.array(cached).reshape(-1, 10).mean(axis=1)
    window = np.minimum(requests.first / 10, n // 10 - 1).astype(np.int64)
    prompts = requests.prompt > 0
    hits = timed_hits(
        requests,
        window,
        prompts,
        np.where(prompts, mean[window], 0.0),
        np.full(n // 10, 20_000.0),
        np.full(n // 10, 10.0),
        (10 - TOKEN_S * 10 * (2_000 - mean)) / STEP_S,
    )
    return None if hits is None else hits[::2].tolist()


# Which of ten prompts were found only their times say.
HITS = [float(1_500 * (i % (2 + i // 20) == 0)) for i in range(100)]


def test_a_prompt_whose_first_token_comes_sooner_was_in_the_cache() -> None:
    hits = found(one_a_second(HITS), HITS)
    assert hits is not None
    assert np.corrcoef(hits, HITS)[0, 1] > 0.9


def test_times_that_say_nothing_leave_everyone_what_is_usual() -> None:
    same = [600.0] * 100
    hits = found(one_a_second(same), same)
    assert hits is None or hits == pytest.approx(same, rel=0.3)


def test_a_few_prompts_do_not_tell_how_long_a_token_takes() -> None:
    assert found(one_a_second([1_500.0, 0.0] * 5), [1_500.0, 0.0] * 5) is None


def test_requests_whose_prompts_nobody_saw_get_what_they_used() -> None:
    run = shared_beginnings()
    truth = run.request_j()
    physics = {"simulated": LLAMA_8B_BF16}

    def worst(activities: list[Activity], *, counted: bool = True) -> float:
        windows = run.windows
        if not counted:  # then which prompts had hits cannot be told, nor that there were any
            windows = [msgspec.structs.replace(w, cached_prompt_tokens=None) for w in windows]
        given = attribute_all(windows, activities, physics)
        got = given.request_j(a.request_id for a in activities)
        return float(np.quantile([abs(got[i] - truth[i]) / truth[i] for i in got], 0.95))

    unseen = worst(untold(run, seen=False))
    assert unseen < 0.15
    assert unseen < 0.6 * worst(untold(run, seen=False), counted=False)


def test_clocks_that_jitter_only_say_less() -> None:
    sharp, blurred = (found(one_a_second(HITS, later_s=s), HITS) for s in (0.0, 0.02))
    assert sharp is not None
    assert blurred is not None

    def off(hits: list[float]) -> float:
        return float(np.mean(np.abs(np.subtract(hits, HITS))))

    usual = [sum(HITS[i // 10 * 10 :][:10]) / 10 for i in range(100)]
    assert off(sharp) < 0.3 * off(usual)
    assert off(blurred) < off(usual)


def test_where_the_engine_counted_no_hits_times_make_none_up() -> None:
    none = [0.0] * 100
    assert found(one_a_second(HITS), none) is None
