"""Money of the tokens that were counted, by what each kind of them costs."""

from __future__ import annotations

from estimators.price import Counted, paid, price_of
from estimators.types import Backend
from proxy.attempts import tokens_counted
from proxy.backends import Engine
from proxy.flight import Flight


def paid_usd(flight: Flight) -> float | None:
    """US dollars that the attempt that answered cost: its upstream's count of tokens, or of a
    stream that broke off what was seen of it. None where nobody counted, or no price is known."""
    engine = flight.engine
    if engine is None or flight.sent_s is None:
        return None
    price = price_of(facts_of(flight, engine))
    tokens = None if price is None else _counted(flight)
    return None if price is None or tokens is None else paid(price, tokens)


def facts_of(flight: Flight, engine: Engine) -> Backend:
    """What is known of what served; of the model where the engine serves many."""
    if engine.wildcard:
        for candidate in flight.candidates:
            if candidate.backend.name == engine.name:
                return candidate.backend
    return engine.facts


def _counted(flight: Flight) -> Counted | None:
    seen, usage = tokens_counted(flight), flight.usage
    if seen is None:
        return None
    prompt, output = seen
    if usage is None:
        return Counted(prompt, output)
    told = usage.completion_tokens is not None or flight.endpoint == "embeddings"
    if not told and not flight.events:
        return None  # what a request to rerank costs, say, is not told by tokens
    read, wrote = usage.prompt_tokens_details, usage.completion_tokens_details
    kept = usage.cache_creation
    return Counted(
        prompt,
        output,
        usage.cached_tokens or 0,
        usage.written_tokens,
        (kept.ephemeral_1h_input_tokens if kept else None) or 0,
        (read.audio_tokens if read else None) or 0,
        (wrote.audio_tokens if wrote else None) or 0,
        (read.image_tokens if read else None) or 0,
        (wrote.image_tokens if wrote else None) or 0,
        usage.service_tier,
    )
