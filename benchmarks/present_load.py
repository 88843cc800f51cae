"""One more request on an engine as busy as it is now: what it adds, and how long it takes.

From step physics, closed form. A step costs the same however many share it, so the new request adds
only the steps in which nobody else is there. In going traffic the number running is Poisson about
its present B, so that is a share ``exp(-B)`` of its steps: nearly all on an idle engine, none on a
busy one. There its own work, its prompt above all, takes time in which the others' steps are not
done, and those joules are not spent: a saturated engine draws hardly more for one more request.

Times: each sequence that ends is replaced after some ``output`` steps, so prompts of others hold up
every step by ``B/output`` of a prefill, and the new one waits for those before it like a customer
in an M/M/1 queue. Without the first half nothing is packed, without the second it is packed too
much; ``make bench-fleet`` shows what comes of both.
"""

from __future__ import annotations

from math import exp, inf
from typing import NamedTuple

from estimators.types import Load
from meters.types import StepPhysics

# The 90 % quantile of an exponential waiting time is 2.3 of its mean.
LONG_WAIT = 2.3


class OneMore(NamedTuple):
    """What one more request means. Infinite times: the engine is past what it can serve."""

    added_j: float  # above idle, by all GPUs of the engine
    average_j: float  # its part of everything, idle power included
    ttft_s: float
    ttft_high_s: float  # nine in ten are sooner
    latency_s: float
    latency_high_s: float
    token_s: float  # between two tokens, prompts of others included


def one_more(
    physics: StepPhysics,
    load: Load,
    prompt_tokens: float,
    output_tokens: float,
    *,
    cached_prompt_tokens: float = 0.0,
    max_num_seqs: float = inf,
) -> OneMore:
    """What a request of that size adds to an engine with that load, and what it meets there."""
    output = max(1.0, output_tokens)
    fresh = max(0.0, prompt_tokens - cached_prompt_tokens)
    batch = load.running + 1.0
    own_context = prompt_tokens + 0.5 * output
    alone = exp(-load.running)
    others_step_s = (
        physics.step_s + physics.token_s * load.running + physics.context_s * load.context_tokens
    )
    # Joules of the shared steps that others would have done in a second of this request's work.
    displaced_w = (1.0 - alone) * physics.step_j / others_step_s
    own_s = fresh * physics.prefill_s
    prefill_j = _net(fresh * physics.prefill_j, own_s * displaced_w)
    decode_j = _net(output * physics.token_j, output * physics.token_s * displaced_w)
    context_j = output * physics.context_j * own_context
    added_j = prefill_j + decode_j + context_j + output * physics.step_j * alone
    step_s = (
        physics.step_s
        + physics.token_s * batch
        + physics.context_s * (load.context_tokens + own_context)
    )
    # The others' prompts: what is in the cache less what was answered so far, half of it each.
    others_prompt = prompt_tokens
    if load.running >= 1.0 and load.context_tokens > 0.0:
        others_prompt = max(1.0, load.context_tokens / load.running - 0.5 * output)
    others_s = others_prompt * physics.prefill_s
    held_up_s = load.running / output * others_s
    token_s = step_s + held_up_s
    busy = held_up_s / token_s
    wait_s = busy / (1.0 - busy) * others_s if busy < 1.0 else inf
    queue_s = load.waiting * others_s
    if batch + load.waiting > max_num_seqs:
        # A place in the batch comes free every so often.
        queue_s += (batch + load.waiting - max_num_seqs) * output * token_s / max_num_seqs
    ttft_s = queue_s + wait_s + own_s + token_s
    ttft_high_s = queue_s + LONG_WAIT * wait_s + own_s + token_s
    answer_s = (output - 1.0) * token_s
    average_j = fresh * physics.prefill_j + output * (
        physics.step_j / batch + physics.token_j + physics.context_j * own_context
    )
    average_j += physics.idle_power_w * (own_s + output * token_s / batch)
    return OneMore(
        added_j=added_j,
        average_j=max(added_j, average_j),
        ttft_s=ttft_s,
        ttft_high_s=ttft_high_s,
        latency_s=ttft_s + answer_s,
        latency_high_s=ttft_high_s + answer_s,
        token_s=token_s,
    )


def _net(own_j: float, displaced_j: float) -> float:
    # A line through a curve can promise more than it holds: work is never free.
    return max(0.1 * own_j, own_j - displaced_j)
