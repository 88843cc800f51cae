"""When prompts were computed and tokens generated, from what the proxy saw."""

import numpy as np
import pytest

from meters.phases import phases
from meters.types import Activity


def activity(start_s, first_s, end_s, prompt=1_000.0, output=101.0, cached=0.0):
    return Activity(
        request_id=f"{start_s}",
        node="n",
        start_s=start_s,
        first_token_s=first_s,
        end_s=end_s,
        prompt_tokens=prompt,
        cached_prompt_tokens=cached,
        output_tokens=output,
    )


def one_after_another(n=20, token_s=5e-5, prompt=2_000.0):
    """Prompts that queue for an engine that computes one at a time."""
    return [
        activity(0.0, (i + 1) * prompt * token_s, (i + 1) * prompt * token_s + 1.0, prompt)
        for i in range(n)
    ]


def test_a_prompt_is_computed_just_before_its_first_token_not_while_it_queued():
    found = phases(one_after_another(), 100.0)
    length_s = found.first - found.prefill
    assert np.allclose(length_s[2:-1], 0.1, rtol=0.15)


def test_prompts_of_one_step_share_its_time():
    pairs = []
    for i in range(20):
        pairs += [activity(0.2 * i, 0.2 * i + 0.1, 0.2 * i + 1.1)] * 2
    found = phases(pairs, 100.0)
    assert np.allclose(found.first - found.prefill, 0.1, rtol=0.1)
    assert np.all(found.together == 2_000.0)


def test_cached_tokens_are_not_computed_but_the_last_prompt_token_always_is():
    found = phases(
        [activity(0, 1, 2, 100.0, cached=60.0), activity(0, 1, 2, 100.0, cached=100.0)], 9
    )
    assert found.computed.tolist() == [40.0, 1.0]


def test_without_streaming_the_first_token_is_placed_by_how_others_went():
    streamed = [activity(float(i), i + 0.1, i + 2.1) for i in range(20)]
    whole = activity(50.0, None, 52.1)
    found = phases([*streamed, whole], 100.0)
    assert found.first[-1] == pytest.approx(50.1, abs=0.1)


def test_a_request_cancelled_in_its_prompt_is_charged_for_part_of_it():
    normal = one_after_another()
    cancelled = activity(10.0, None, 10.05, 2_000.0, output=0.0)
    found = phases([*normal, cancelled], 100.0)
    assert 0 <= found.computed[-1] < 2_000.0
    assert not found.started[-1]


def test_absurd_counts_are_taken_as_none():
    found = phases([activity(0.0, 0.5, 1.0, prompt=1e300, output=-5.0)], 2.0)
    assert found.prompt.tolist() == [0.0]
    assert found.decoded.tolist() == [0.0]


def test_of_a_request_in_flight_only_the_tokens_seen_so_far_are_placed():
    watched = Activity(
        request_id="r",
        node="n",
        start_s=0.0,
        first_token_s=0.5,
        prompt_tokens=10.0,
        output_tokens=41.0,
        progress=((1.0, 11.0), (2.5, 41.0)),
    )
    found = phases([watched], 1.0)
    assert found.end.tolist() == [2.5]
    assert found.decoded.tolist() == [40.0]


def test_a_request_that_waits_for_its_first_token_has_computed_nothing_yet():
    waiting = Activity(request_id="r", node="n", start_s=0.0, prompt_tokens=500.0)
    assert phases([waiting], 9.0).computed.tolist() == [0.0]
