"""Money of a predicted request, from prices per token: the config's, else LiteLLM's price map.

The map is a JSON file inside the litellm package; it is read without importing litellm, which
takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

import importlib.util
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from estimators.types import Backend, Band, Lengths

PER_MTOK = 1e6
_MAP_NAMES = (
    "model_prices_and_context_window_backup.json",
    "model_prices_and_context_window.json",
)


class Price(NamedTuple):
    """US dollars a token, and where they come from. What has no price of its own costs as other
    tokens of its direction do."""

    input_usd: float
    output_usd: float
    cached_input_usd: float
    source: str
    written_usd: float | None = None  # into the provider's prompt cache
    written_1h_usd: float | None = None  # likewise, to be kept for an hour
    audio_input_usd: float | None = None
    audio_output_usd: float | None = None
    image_input_usd: float | None = None
    image_output_usd: float | None = None
    long_tokens: int = 0  # prompts over this many tokens have another price, output included
    long: Price | None = None
    # What OpenAI, Google and others sell the same model as.
    flex: Price | None = None  # slower and cheaper
    priority: Price | None = None  # faster and dearer

    def sold_as(self, tier: str | None) -> Price:
        """The price in a service tier, as an answer names it; the usual one for any other."""
        found = {"flex": self.flex, "priority": self.priority}.get(tier or "")
        return found or self

    def of(self, prompt_tokens: float) -> Price:
        """The price for a prompt of that length."""
        return self if self.long is None or prompt_tokens <= self.long_tokens else self.long


class Counted(NamedTuple):
    """Tokens of one request; those from ``cached`` on are among the first two."""

    prompt: int
    output: int
    cached: int = 0
    written: int = 0  # into the provider's prompt cache
    written_1h: int = 0  # of these, to be kept for an hour
    audio_input: int = 0
    audio_output: int = 0
    image_input: int = 0
    image_output: int = 0
    tier: str | None = None  # the service tier that the answer names


def price_of(backend: Backend) -> Price | None:
    """The price of a backend's tokens; None where neither config nor map has one."""
    if backend.input_usd_per_mtok is not None and backend.output_usd_per_mtok is not None:
        given = backend.input_usd_per_mtok
        cached = backend.cached_input_usd_per_mtok
        return Price(
            given / PER_MTOK,
            backend.output_usd_per_mtok / PER_MTOK,
            (given if cached is None else cached) / PER_MTOK,
            "config",
        )
    if backend.provider_model is None or backend.provider is None:
        return None  # one's own engine has no price, whatever its model is called
    model = backend.provider_model
    # A model that several sell has a price with each; the plain name is often its maker's.
    for name in (f"{backend.provider}/{model}", model):
        entry = litellm_prices().get(name)
        if entry is not None:
            return entry
    return None


def money(
    price: Price | None, prompt_tokens: float, cached_tokens: float, output: Lengths
) -> Band | None:
    """Dollars of one request; the middle at the mean length, the ends at its 80 % interval."""
    if price is None:
        return None
    price = price.of(prompt_tokens)
    fixed = max(0.0, prompt_tokens - cached_tokens) * price.input_usd
    fixed += min(cached_tokens, prompt_tokens) * price.cached_input_usd
    each = price.output_usd
    mean = output.mean
    return Band(
        fixed + min(output.q10, mean) * each,
        fixed + mean * each,
        fixed + max(output.q90, mean) * each,
    )


def paid(price: Price, counted: Counted) -> float:
    """Dollars of tokens that were counted."""
    price = price.sold_as(counted.tier).of(counted.prompt)
    left, usd = counted.prompt, 0.0
    long_kept = min(counted.written_1h, counted.written)
    short_kept = counted.written - long_kept
    parts = (
        (counted.cached, price.cached_input_usd),
        (long_kept, price.written_usd if price.written_1h_usd is None else price.written_1h_usd),
        (short_kept, price.written_usd),
        (counted.audio_input, price.audio_input_usd),
        (counted.image_input, price.image_input_usd),
    )
    for tokens, each in parts:
        tokens = min(tokens, left)
        left -= tokens
        usd += tokens * (price.input_usd if each is None else each)
    usd += left * price.input_usd
    left = counted.output
    for tokens, each in (
        (counted.audio_output, price.audio_output_usd),
        (counted.image_output, price.image_output_usd),
    ):
        tokens = min(tokens, left)
        left -= tokens
        usd += tokens * (price.output_usd if each is None else each)
    return usd + left * price.output_usd


@lru_cache(maxsize=1)
def litellm_prices() -> dict[str, Price]:
    """LiteLLM's price map by model name; empty where litellm is not installed. Reads one file."""
    found = importlib.util.find_spec("litellm")
    if found is None or found.origin is None:
        return {}
    for name in _MAP_NAMES:
        file = Path(found.origin).with_name(name)
        if file.exists():
            entries = json.loads(file.read_text())
            break
    else:
        return {}
    prices = {}
    for name, entry in entries.items():
        price = _price_in(entry, f"litellm {file.name}")
        if price is not None:
            prices[name] = price
    return prices


_LONG = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")
# What is paid for where tokens are said to cost nothing.
_NOT_BY_TOKENS = ("input_cost_per_query", "output_cost_per_image", "output_cost_per_second")
# What all of an answer is made of, by the kind of model.
_OUTPUT = {
    "image_generation": "output_cost_per_image_token",
    "audio_speech": "output_cost_per_audio_token",
}


def _price_in(entry: dict[str, Any], source: str, above: str = "", tier: str = "") -> Price | None:
    """The price in an entry of the map; ``above`` names that of prompts over a length, ``tier``
    that of a service tier."""

    def cost(name: str, other: float | None = None) -> float | None:
        for key in (f"{name}{above}{tier}", f"{name}{above}", f"{name}{tier}", name):
            found = entry.get(key)
            if isinstance(found, int | float):
                return float(found)
        return other

    read, written = cost("input_cost_per_token"), cost("output_cost_per_token")
    written = cost(_OUTPUT.get(str(entry.get("mode")), ""), written)
    if read is None or written is None:
        return None
    otherwise = (entry.get(name) for name in _NOT_BY_TOKENS)
    if not read and not written and any(otherwise):
        return None
    price = Price(
        read,
        written,
        cost("cache_read_input_token_cost", read) or 0.0,
        source,
        cost("cache_creation_input_token_cost"),
        cost("cache_creation_input_token_cost_above_1hr"),
        cost("input_cost_per_audio_token"),
        cost("output_cost_per_audio_token"),
        cost("input_cost_per_image_token"),
        cost("output_cost_per_image_token"),
    )
    found = next(filter(None, map(_LONG.fullmatch, entry)), None) if not above else None
    if found is not None:
        long = _price_in(entry, source, f"_above_{found[1]}k_tokens", tier)
        price = price._replace(long_tokens=int(found[1]) * 1000, long=long)
    if above or tier:
        return price
    sold = {
        name: _price_in(entry, source, tier=f"_{name}")
        for name in ("flex", "priority")
        if f"input_cost_per_token_{name}" in entry
    }
    return price._replace(flex=sold.get("flex"), priority=sold.get("priority"))
