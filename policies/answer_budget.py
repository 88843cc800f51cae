"""Answer budgets: shorter or less thought-over answers as candidates of their own.

Output tokens are most of a request's energy, so reasoning effort, a cap on tokens and a word about
brevity are levers as strong as the choice of model. A budget makes a variant of a backend, named
``backend+budget``, which estimators learn length and quality of as of any backend. Only teams
that allow it get such candidates, since a budget changes the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from estimators.types import Backend, Band, Estimate, Lengths

# A prompt token's energy as a share of an output token's, in a running batch: Qwen3-8B-NVFP4 on an
# RTX 5090 takes 14-28 J at 256/256 tokens and 424 J at 8192/493 (consumer GPU measurements with
# vLLM), so about 0.05 J against 0.08 J and less for shorter prompts.
PROMPT_WEIGHT = 0.5
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")  # that OpenAI's API knows
Factor = Annotated[float, msgspec.Meta(gt=0, le=10)]  # 60 for 60 % cannot be meant


class AnswerBudget(msgspec.Struct, frozen=True, kw_only=True):
    """One way to ask for less. Factors are what is expected before anything was learnt."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    reasoning_effort: str | None = None  # one of EFFORTS
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    directive: str | None = None  # put before the conversation as a system message
    # expected length against the same backend without it
    output_factor: Factor = 1.0
    quality_factor: Factor = 1.0


def variant(backend: Backend, budget: AnswerBudget) -> Backend:
    """The backend as a candidate of its own under that budget; quality as far as configured."""
    scale = budget.quality_factor
    return msgspec.structs.replace(
        backend,
        name=f"{backend.name}+{budget.name}",
        answer_budget=budget.name,
        quality=None if backend.quality is None else backend.quality * scale,
        quality_by_task={task: q * scale for task, q in backend.quality_by_task.items()},
    )


def expected(estimate: Estimate, budget: AnswerBudget, prompt_tokens: int) -> Estimate:
    """The variant's estimate from its backend's, for as long as nothing was learnt of it.

    Only the part of energy, money and latency that output causes gets smaller.
    """
    name = f"{estimate.backend}+{budget.name}"
    lengths = estimate.output_tokens
    if lengths is None or lengths.mean <= 0:
        return msgspec.structs.replace(estimate, backend=name)
    cap = float(budget.max_tokens or 1e9)
    scaled = Lengths(*(min(cap, tokens * budget.output_factor) for tokens in lengths))
    ratio = scaled.mean / lengths.mean
    output_share = lengths.mean / (lengths.mean + PROMPT_WEIGHT * prompt_tokens)
    factor = 1.0 - output_share * (1.0 - ratio)
    return msgspec.structs.replace(
        estimate,
        backend=name,
        output_tokens=scaled,
        energy_j=_scaled(estimate.energy_j, factor),
        marginal_energy_j=_scaled(estimate.marginal_energy_j, factor),
        carbon_g=_scaled(estimate.carbon_g, factor),
        money_usd=_scaled(estimate.money_usd, factor),
        latency_s=_latency(estimate, ratio),
        quality=_scaled(estimate.quality, budget.quality_factor),
        why=f"{estimate.why}, with the answer budget {budget.name}".lstrip(", "),
    )


def applied(body: Mapping[str, Any], budget: AnswerBudget) -> dict[str, Any]:
    """A chat request with the budget in it. A caller's own tighter setting stays."""
    asked = dict(body)
    if budget.reasoning_effort is not None:
        asked.setdefault("reasoning_effort", budget.reasoning_effort)
    if budget.max_tokens is not None:
        key = "max_tokens" if "max_tokens" in asked else "max_completion_tokens"
        own = asked.get(key)
        asked[key] = budget.max_tokens if own is None else min(own, budget.max_tokens)
    if budget.directive is not None:
        brief = {"role": "system", "content": budget.directive}
        asked["messages"] = [brief, *asked.get("messages", [])]
    return asked


def _scaled(band: Band | None, factor: float) -> Band | None:
    return None if band is None else Band(*(value * factor for value in band))


def _latency(estimate: Estimate, ratio: float) -> Band | None:
    """Time to the first token stays; the time of the tokens after it scales."""
    latency, ttft = estimate.latency_s, estimate.ttft_s
    if latency is None or ttft is None:
        return _scaled(latency, ratio)
    low, mid, high = (
        min(whole, first) + max(0.0, whole - first) * ratio
        for whole, first in zip(latency, ttft, strict=True)
    )
    return Band(min(low, mid), mid, max(mid, high))
