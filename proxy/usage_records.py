"""What a finished request becomes in the books: its usage record."""

from __future__ import annotations

import msgspec

from estimators.types import Backend, Estimate
from meters.types import CACHE_HITS, Evidence, UsageRecord
from policies.records import decision_to_json, record
from proxy.attempts import Recount, as_counted, hosted_part, tokens_counted, whole
from proxy.costs import paid_usd
from proxy.flight import Flight

_Other = tuple[str | None, float | None, float | None]  # a backend, its joules and its grams


def record_of(flight: Flight, replica: str, recount: Recount | None = None) -> UsageRecord:
    """The usage record of a finished request. Carries no prompt, answer or key. ``recount`` says
    what the tokens that were counted take, where that is the last word on it."""
    took = None if recount is None else _counted(flight)
    again = None if took is None or recount is None else as_counted(flight, took, recount)
    usage, told, estimate = flight.usage, flight.features, whole(flight, again)
    engine, decision, caller = flight.engine, flight.decision, flight.caller
    facts: Backend | None = engine.facts if engine else None
    end_s = flight.end_s if flight.end_s is not None else flight.start_s
    ran = flight.sent_s is not None or bool(flight.earlier)
    prompt = usage.prompt_tokens if usage else None
    output = usage.completion_tokens if usage else None
    source = "upstream" if usage is not None else "unknown"
    if output is None and ran and flight.events:
        output, source = flight.events, "counted"
    counted = prompt is not None or bool(told and told.prompt_tokens_counted)
    if prompt is None and told is not None:
        prompt = told.prompt_tokens
    energy = estimate.energy_j if estimate else None
    hosted = hosted_part(flight, again or flight.estimate) if flight.earlier and energy else None
    hit = flight.cache in CACHE_HITS
    # What runs nowhere avoids nothing, and neither does an answer that nobody got.
    other: _Other = None, None, None
    if (ran or hit) and flight.outcome == "ok":
        other = _counterfactual(flight, took, recount)
    served = flight.sent_s is not None or hit
    load = flight.load_of(engine.name) if engine is not None and ran else None
    cached = usage.cached_tokens if usage else None
    # Nothing ran: it was refused there, or never arrived. That is known, and no unknown.
    spared = 0.0 if hit or (engine is not None and not ran) else None
    return UsageRecord(
        request_id=flight.request_id,
        start_s=flight.start_wall_s,
        end_s=flight.wall(end_s),
        team=caller.team if caller else "",
        key_id=caller.key_id if caller else None,
        project=caller.project if caller else None,
        tags=flight.tags,
        endpoint=flight.endpoint,
        model_asked=flight.asked,
        backend=engine.name if engine else None,
        group=engine.group if engine else None,
        node=engine.node if engine else None,
        policy=flight.policy,
        policy_version=decision.version if decision else "",
        status=flight.status,
        error_code=flight.error.code if flight.error else None,
        outcome=flight.outcome,
        stream=flight.stream,
        cache=flight.cache,
        attempts=flight.attempts + flight.tried,
        answer_budget=flight.budget.name if flight.budget is not None else None,
        running=load.running if load is not None and load.known else None,
        earlier=earlier_in(flight) if flight.earlier else None,
        hosted_j=hosted.mid if hosted else None,
        hosted_low_j=hosted.low if hosted else None,
        hosted_high_j=hosted.high if hosted else None,
        task=told.task if told else None,
        prompt_tokens=prompt,
        prompt_tokens_counted=counted,
        cached_prompt_tokens=cached,
        likely_cached_tokens=_likely_cached(flight) if ran and cached is None else None,
        output_tokens=output,
        reasoning_tokens=usage.reasoning_tokens if usage else None,
        usage_source=source,
        sent_s=flight.wall(flight.sent_s) if flight.sent_s is not None else None,
        first_token_s=(
            flight.wall(flight.first_token_s) if flight.first_token_s is not None else None
        ),
        ttft_s=(
            flight.first_token_s - flight.start_s if flight.first_token_s is not None else None
        ),
        latency_s=end_s - flight.start_s if served else None,
        energy_j=energy.mid if energy and ran else spared,
        energy_low_j=energy.low if energy and ran else spared,
        energy_high_j=energy.high if energy and ran else spared,
        marginal_energy_j=(
            estimate.marginal_energy_j.mid if estimate and estimate.marginal_energy_j else None
        ),
        carbon_g=estimate.carbon_g.mid if estimate and estimate.carbon_g and ran else spared,
        money_usd=_money_usd(flight, estimate) if ran else spared,
        quality=estimate.quality.mid if estimate and estimate.quality else None,
        evidence=estimate.evidence if estimate and ran else flight.hit or Evidence.UNKNOWN,
        estimator_version=estimate.version if estimate else "",
        zone=facts.zone if facts else None,
        pue=facts.pue if facts else None,
        intensity_g_per_kwh=facts.intensity_g_per_kwh if facts else None,
        intensity_tier=facts.intensity_tier if facts else "",
        counterfactual_backend=other[0],
        counterfactual_energy_j=other[1],
        counterfactual_carbon_g=other[2],
        simulated=facts.simulated if facts else flight.hit is Evidence.SIMULATED,
        arm=decision.arm if decision else None,
        replica=replica,
        user_hash=flight.user_hash,
        session=flight.conversation if flight.turn or flight.session else None,
        decision=decision_in(flight),
    )


def _likely_cached(flight: Flight) -> int | None:
    """What was expected to be cached of the prompt, where it went to the engine of the turn before;
    None where it did not, or nothing was."""
    told, turn, engine = flight.features, flight.turn, flight.engine
    stayed = turn is not None and engine is not None and turn.backend == engine.name
    return told.cached_prompt_tokens or None if told is not None and stayed else None


def _money_usd(flight: Flight, estimate: Estimate | None) -> float | None:
    """What the tokens that were counted cost, and what attempts before that were expected to;
    all as expected where nobody counted."""
    expected = estimate.money_usd.mid if estimate and estimate.money_usd else None
    counted = paid_usd(flight)
    if counted is None:
        return expected
    if not flight.earlier:
        return counted
    last = flight.estimate.money_usd if flight.estimate else None
    return None if expected is None or last is None else expected - last.mid + counted


def earlier_in(flight: Flight) -> str:
    """The answers that the client did not get, as JSON: who gave them, what was wrong, and what
    part they have in the estimate."""
    told = [
        {
            "kind": attempt.kind,
            "backend": attempt.backend,
            "node": attempt.node,
            "against": attempt.against,
            "latency_s": attempt.end_s - attempt.sent_s,
            "prompt_tokens": attempt.prompt_tokens,
            "output_tokens": attempt.output_tokens,
            "expected_output_tokens": (  # what budgets are charged where nobody counted
                round(attempt.estimate.output_tokens.mean)
                if attempt.output_tokens is None
                and attempt.estimate
                and attempt.estimate.output_tokens
                else None
            ),
            "energy_j": (
                attempt.estimate.energy_j.mid
                if attempt.estimate and attempt.estimate.energy_j
                else None
            ),
        }
        for attempt in flight.earlier
    ]
    return msgspec.json.encode(told).decode()


def decision_in(flight: Flight) -> str | None:
    """The decision with all that it was made from, so that it can be explained and replayed;
    None where there was nothing to decide."""
    routed = flight.routed
    if routed is None or len(routed.candidates) < 2:
        return None
    return decision_to_json(
        record(routed.policy, routed.request, routed.candidates, routed.limits, routed.decision)
    )


def _counted(flight: Flight) -> tuple[int, int] | None:
    """The tokens that were counted, where what was expected is never judged by a meter: others'
    APIs have none, and answers that did not come to their end say nothing of expectations."""
    engine = flight.engine
    if engine is None or flight.sent_s is None:
        return None
    if flight.outcome == "ok" and (engine.facts.engine != "api" or flight.budget is not None):
        return None  # what an answer budget saves is a shorter answer than the other one's
    return tokens_counted(flight)


def _counterfactual(
    flight: Flight, counted: tuple[int, int] | None, recount: Recount | None
) -> _Other:
    """What the model asked for would have used, by the same estimator and for as many tokens; for
    an answer from the cache what the request that it spared would have used."""
    if flight.decision is None:
        return None, None, None
    name: str | None = flight.decision.counterfactual
    if flight.cache in CACHE_HITS:
        name = flight.decision.chosen
    for candidate in flight.candidates:
        if candidate.backend.name == name:
            estimate = candidate.estimate
            if counted is not None and recount is not None:
                estimate = as_counted(flight, counted, recount, candidate.backend) or estimate
            return (
                name,
                estimate.energy_j.mid if estimate.energy_j else None,
                estimate.carbon_g.mid if estimate.carbon_g else None,
            )
    return None, None, None
