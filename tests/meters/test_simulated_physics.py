"""The simulated engine's physics: what it gives out adds up to what it spends."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from meters.simulated_physics import (
    BLOCK_TOKENS,
    LLAMA_8B_BF16,
    Engine,
    EngineConfig,
    Job,
    prefix_blocks,
)

EXACT = EngineConfig(energy_noise=0.0, time_noise=0.0, energy_drift=0.0)
P = LLAMA_8B_BF16


def drain(engine, now_s=0.0, until_steps=1_000_000):
    while until_steps and (end_s := engine.begin(now_s)) is not None:
        engine.finish()
        now_s = end_s
        until_steps -= 1
    return now_s


def test_one_request_alone_costs_what_the_formula_says():
    engine = Engine(EXACT)
    seq = engine.submit(Job(request_id="a", prompt_tokens=100, output_tokens=3))
    drain(engine)
    context_steps = 101 + 102
    expected = 3 * P.step_j + 3 * P.token_j + 100 * P.prefill_j + context_steps * P.context_j
    assert abs(seq.energy_j - expected) < 1e-9
    assert engine.totals.context_steps == context_steps
    assert engine.totals.steps == 3


def test_a_step_is_shared_equally_so_company_makes_tokens_cheaper():
    engine = Engine(EXACT)
    pair = [
        engine.submit(Job(request_id=str(i), prompt_tokens=10, output_tokens=50)) for i in (0, 1)
    ]
    drain(engine)
    alone = Engine(EXACT)
    one = alone.submit(Job(request_id="a", prompt_tokens=10, output_tokens=50))
    drain(alone)
    assert abs(pair[0].energy_j - pair[1].energy_j) < 1e-9
    assert abs((one.energy_j - pair[0].energy_j) - 25 * P.step_j) < 1e-6


def test_a_long_prompt_is_prefilled_in_chunks_that_fit_the_budget():
    engine = Engine(EngineConfig(max_batched_tokens=512))
    seq = engine.submit(Job(request_id="a", prompt_tokens=1200, output_tokens=1))
    drain(engine)
    assert engine.totals.steps == 3
    assert engine.totals.prefilled_tokens == 1200
    assert seq.first_token_s == seq.end_s


def test_a_shared_prefix_is_computed_once():
    engine = Engine(EXACT)
    blocks = prefix_blocks("system prompt", 640)
    first = engine.submit(Job(request_id="a", prompt_tokens=700, output_tokens=2, blocks=blocks))
    now_s = drain(engine)
    second = engine.submit(Job(request_id="b", prompt_tokens=700, output_tokens=2, blocks=blocks))
    drain(engine, now_s)
    assert (first.cached_tokens, second.cached_tokens) == (0, 640)
    assert abs((first.energy_j - second.energy_j) - 640 * P.prefill_j) < 1e-6
    assert 640 % BLOCK_TOKENS == 0


def test_no_more_run_at_once_than_max_num_seqs():
    engine = Engine(EngineConfig(max_num_seqs=2))
    for i in range(5):
        engine.submit(Job(request_id=str(i), prompt_tokens=8, output_tokens=4))
    engine.begin(0.0)
    assert (engine.running, len(engine.waiting)) == (2, 3)
    engine.finish()
    drain(engine)
    assert engine.totals.finished == 5


def test_what_does_not_fit_in_the_cache_waits():
    engine = Engine(EngineConfig(kv_tokens=100))
    for i in range(2):
        engine.submit(Job(request_id=str(i), prompt_tokens=40, output_tokens=20))
    engine.begin(0.0)
    assert (engine.running, len(engine.waiting)) == (1, 1)
    engine.finish()
    drain(engine)
    assert engine.totals.finished == 2


def test_energy_runs_evenly_through_a_step():
    engine = Engine(EXACT)
    engine.submit(Job(request_id="a", prompt_tokens=10, output_tokens=1))
    end_s = engine.begin(0.0)
    assert end_s is not None
    half = engine.energy_at(end_s / 2)
    engine.finish()
    assert abs(half - engine.energy_at(end_s) / 2) < 1e-12


jobs = st.lists(
    st.tuples(
        st.integers(1, 3000),  # prompt
        st.integers(1, 60),  # output
        st.floats(0, 1),  # arrival
        st.one_of(st.none(), st.floats(0, 1)),  # cancelled after
    ),
    min_size=1,
    max_size=20,
)


@given(jobs, st.integers(0, 2**16), st.floats(0, 2))
@settings(max_examples=60)
def test_requests_and_engine_agree_on_every_joule(asked, seed, look_s):
    config = EngineConfig(max_num_seqs=6, max_batched_tokens=700, seed=seed)
    engine = Engine(config)
    order = random.Random(seed)
    pending = sorted(
        (arrival, i, prompt, output, cancel)
        for i, (prompt, output, arrival, cancel) in enumerate(asked)
    )
    seqs = []
    cancels = []
    now_s = 0.0
    looked = False
    while True:
        while pending and pending[0][0] <= now_s:
            arrival, i, prompt, output, cancel = pending.pop(0)
            blocks = prefix_blocks(order.choice("ab"), min(prompt, 320))
            job = Job(request_id=str(i), prompt_tokens=prompt, output_tokens=output, blocks=blocks)
            seqs.append(engine.submit(job))
            if cancel is not None:
                cancels.append((arrival + cancel, seqs[-1]))
        end_s = engine.begin(now_s)
        if end_s is None:
            if not pending:
                break
            now_s = pending[0][0]
            continue
        for at_s, seq in cancels:
            if at_s <= end_s:
                engine.cancel(seq, end_s)
        if not looked and end_s >= look_s:
            looked = True
            at_s = (now_s + end_s) / 2
            total = sum(engine.energy_of(seq, at_s) for seq in seqs)
            assert abs(total - engine.energy_at(at_s)) <= 1e-6 * max(1.0, total)
        engine.finish()
        now_s = end_s
    total_j = engine.totals.active_energy_j
    assert all(seq.end_s is not None for seq in seqs)
    assert abs(sum(seq.energy_j for seq in seqs) - total_j) <= 1e-6 * max(1.0, total_j)
    assert sum(seq.output_tokens for seq in seqs) == engine.totals.generated_tokens
    assert engine.running == 0
    assert engine.context_tokens == 0
    assert engine.kv_usage == 0.0
