"""Money of a predicted request, from prices per token: the config's, else LiteLLM's price map.

The map is a JSON file inside the litellm package; it is read without importing litellm, which
takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from estimators.types import Backend, Band, Lengths

PER_MTOK = 1e6
_MAP_NAMES = (
    "model_prices_and_context_window_backup.json",
    "model_prices_and_context_window.json",
)


class Price(NamedTuple):
    """US dollars a token, and where they come from."""

    input_usd: float
    output_usd: float
    cached_input_usd: float
    source: str


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
    if backend.provider_model is None:
        return None
    names = [backend.provider_model]
    if backend.provider:
        names.append(f"{backend.provider}/{backend.provider_model}")
    for name in names:
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
    fixed = max(0.0, prompt_tokens - cached_tokens) * price.input_usd
    fixed += min(cached_tokens, prompt_tokens) * price.cached_input_usd
    each = price.output_usd
    mean = output.mean
    return Band(
        fixed + min(output.q10, mean) * each,
        fixed + mean * each,
        fixed + max(output.q90, mean) * each,
    )


def paid(price: Price, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> float:
    """Dollars of tokens that were counted."""
    cached = min(cached_tokens, prompt_tokens)
    read = (prompt_tokens - cached) * price.input_usd + cached * price.cached_input_usd
    return read + output_tokens * price.output_usd


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
        cost_in, cost_out = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
        if isinstance(cost_in, int | float) and isinstance(cost_out, int | float):
            cached = entry.get("cache_read_input_token_cost")
            prices[name] = Price(
                float(cost_in),
                float(cost_out),
                float(cached) if isinstance(cached, int | float) else float(cost_in),
                f"litellm {file.name}",
            )
    return prices
