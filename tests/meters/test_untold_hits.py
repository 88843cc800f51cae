from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest

from meters.attribution import attribute_all
from meters.phases import phases
from meters.prefixes import Prefixes
from meters.simulated_physics import BLOCK_TOKENS, EngineConfig, Job, prefix_blocks
from meters.simulated_traffic import Run, simulate
from meters.types import Activity
from meters.untold_hits import untold_hits


def shared_beginnings(seed: int = 5, requests: int = 500) -> Run:
    """Traffic of which every other prompt begins as those of its team do."""
    random_ = random.Random(seed)
    jobs, at_s = [], 0.0
    for i in range(requests):
        team = random_.choice("ab")
        prompt = 200 + int(random_.lognormvariate(6.5, 0.8))
        blocks = prefix_blocks(team, prompt * 7 // 10) if random_.random() < 0.5 else ()
        jobs.append(
            Job(
                request_id=f"r{i}",
                prompt_tokens=prompt,
                output_tokens=1 + int(random_.lognormvariate(4, 0.7)),
                blocks=blocks,
                arrival_s=at_s,
            )
        )
        at_s += random_.expovariate(6 + 5 * np.sin(at_s / 20))
    return simulate(EngineConfig(seed=seed, kv_tokens=10**6), jobs)


def untold(run: Run, *, seen: bool = True) -> list[Activity]:
    """What is known of them when the engine tells no request what it found in its cache."""
    prefixes = Prefixes()
    sent = {a.request_id: prefixes.sent(run.jobs[a.request_id].blocks) for a in run.activities}
    for activity in run.activities:
        sent[activity.request_id].first_token(activity.first_token_s or 0.0)
    return [
        msgspec.structs.replace(
            a,
            cached_prompt_tokens=0.0,
            likely_cached_tokens=float(BLOCK_TOKENS * sent[a.request_id].cached())
            if seen
            else None,
        )
        for a in run.activities
    ]


def off(run: Run, activities: list[Activity]) -> list[float]:
    books = attribute_all(run.windows, activities)
    truth, found = run.request_j(), books.request_j(a.request_id for a in activities)
    return sorted(abs(found[i] - truth[i]) / truth[i] for i in found)


def test_hits_that_the_engine_tells_nobody_are_found_by_how_prompts_begin() -> None:
    run = shared_beginnings()
    assert sum(a.cached_prompt_tokens > 0 for a in run.activities) > 200
    told, seen, unseen = (
        off(run, activities)
        for activities in (run.activities, untold(run), untold(run, seen=False))
    )
    assert seen[len(seen) // 2] < 0.02
    assert seen[int(0.95 * len(seen))] < min(0.1, 1.3 * told[int(0.95 * len(told))])
    assert unseen[len(unseen) // 2] > 1.5 * seen[len(seen) // 2]  # so that this test can fail


def hits(
    cached: list[float],
    likely: list[float | None],
    told: float = 0.0,
    beside: Activity | None = None,
) -> list[float] | None:
    """Two prompts of 1,000 tokens, one in each of two windows."""
    activities = [
        Activity(
            request_id=str(i), node="n", start_s=i + 0.1, first_token_s=i + 0.5, end_s=i + 0.9,
            prompt_tokens=1_000.0, output_tokens=9.0, likely_cached_tokens=tokens,
            cached_prompt_tokens=told if tokens is None else 0.0,
        )
        for i, tokens in enumerate(likely)
    ]  # fmt: skip
    if beside is not None:
        activities.append(beside)
        likely = [*likely, None]
    found = untold_hits(
        np.array([0.0, 1.0]),
        np.array([1.0, 2.0]),
        phases(activities, 2.0),
        np.array([np.nan if tokens is None else tokens for tokens in likely]),
        np.array([1_000.0, 1_000.0]),
        np.array(cached),
        np.array([50.0, 50.0]),
    )
    return None if found is None else [float(x) for x in found]


def test_the_engine_is_believed_in_how_many_there_were_in_all() -> None:
    assert hits([0.0, 400.0], [0.0, 800.0]) == pytest.approx([0, 400])  # it had forgotten half
    assert hits([0.0, 800.0], [0.0, 800.0]) == pytest.approx([0, 800])
    assert hits([0.0, 0.0], [0.0, 800.0]) == pytest.approx([0, 0])  # it keeps no cache


def test_hits_that_no_beginning_explains_are_everyones_by_length() -> None:
    assert hits([0.0, 400.0], [0.0, 0.0]) == pytest.approx([0, 400])
    found = hits([200.0, 800.0], [0.0, 800.0])
    assert found is not None
    assert found[0] > 100
    assert found[1] > 800
    assert sum(found) == pytest.approx(1_000)


def test_a_prompt_that_waits_says_nothing_of_what_the_engine_tells() -> None:
    waits = Activity(request_id="w", node="n", start_s=1.8, prompt_tokens=1_000.0)
    gone = msgspec.structs.replace(waits, request_id="g", end_s=1.81)
    for other in (waits, gone):
        assert hits([0.0, 400.0], [0.0, 0.0], beside=other) == pytest.approx([0, 400, 0])


def test_what_the_engine_tells_of_a_request_is_kept() -> None:
    assert hits([700.0, 800.0], [None, None], told=700.0) is None
    assert hits([700.0, 800.0], [None, 300.0], told=700.0) == pytest.approx([700, 300])


def test_without_a_count_nobody_is_said_to_have_hits() -> None:
    assert hits([np.nan, np.nan], [0.0, 800.0]) is None
