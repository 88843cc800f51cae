"""Closed APIs: what the provider declares where that is configured, else EcoLogits' parametric
model for providers and models it knows, else nothing.

EcoLogits has no term for the prompt and assumes a batch; its figures are ``modelled``, with its own
ranges, and cover the whole server and the building's overhead. Worked out once a model: energy is
linear in the answer's tokens.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from estimators.types import Backend, Band
from meters.carbon import J_PER_KWH

_FEW, _MANY = 100, 1000
_TOKENS_PER_S = 50.0  # a usual pace of closed APIs; EcoLogits bounds its own by it
_PROVIDERS = {
    "gemini": "google_genai",
    "google": "google_genai",
    "vertex_ai": "google_genai",
    "mistral": "mistralai",
    "hf": "huggingface_hub",
    "huggingface": "huggingface_hub",
}


NOTHING = Band(0.0, 0.0, 0.0)
# A declared mean says nothing of how requests differ. EcoLogits' own ranges for models whose
# architecture is not published span a factor of about four.
_DECLARED_REACH = 2.0


class ApiEnergy(NamedTuple):
    """Joules of an answer: a part of its own, and parts for each token, each as a range."""

    fixed: Band
    per_token: Band  # of the answer, reasoning included
    per_prompt_token: Band = NOTHING  # of those that are not cached
    source: str = "ecologits"
    whole: bool = True  # the building's overhead is in it

    def at(self, output_tokens: float, fresh_prompt_tokens: float = 0.0) -> Band:
        """The whole server's joules of an answer of that many tokens."""
        return Band(
            *(
                a + b * output_tokens + c * fresh_prompt_tokens
                for a, b, c in zip(self.fixed, self.per_token, self.per_prompt_token, strict=True)
            )
        )


def declared_energy(backend: Backend) -> ApiEnergy | None:
    """What the provider declares, where that is configured; None otherwise.

    A figure is what it is declared to be: parts that are not declared count nothing, and the band
    is a factor of two each way.
    """
    said = backend.declared
    if said is None:
        return None
    parts = (said.j_per_request, said.j_per_output_token, said.j_per_input_token)
    if not any(parts):
        return None
    fixed, each, prompt = (
        Band((part or 0.0) / _DECLARED_REACH, part or 0.0, (part or 0.0) * _DECLARED_REACH)
        for part in parts
    )
    source = f"declared, {said.source}" if said.source else "declared"
    return ApiEnergy(fixed, each, prompt, source, said.whole)


def api_energy(backend: Backend) -> ApiEnergy | None:
    """What EcoLogits says of a closed API; None where it does not know the model.

    Imports EcoLogits (about a second): never call it on the request path.
    """
    if backend.provider is None or backend.provider_model is None:
        return None
    from ecologits.tracers.utils import llm_impacts  # heavy, and only where an API is configured

    provider = _PROVIDERS.get(backend.provider, backend.provider)
    quiet = logging.getLogger("ecologits")
    level, disabled = quiet.level, quiet.disabled
    quiet.disabled = True  # it warns of every model whose architecture is not published
    try:
        few, many = (
            _range_j(llm_impacts(provider, backend.provider_model, tokens, tokens / _TOKENS_PER_S))
            for tokens in (_FEW, _MANY)
        )
    finally:
        quiet.setLevel(level)
        quiet.disabled = disabled
    if few is None or many is None:
        return None
    slopes = [(b - a) / (_MANY - _FEW) for a, b in zip(few, many, strict=True)]
    fixed = [max(0.0, a - slope * _FEW) for a, slope in zip(few, slopes, strict=True)]
    return ApiEnergy(
        Band(fixed[0], 0.5 * (fixed[0] + fixed[1]), fixed[1]),
        Band(slopes[0], 0.5 * (slopes[0] + slopes[1]), slopes[1]),
    )


def _range_j(impacts: object) -> tuple[float, float] | None:
    energy = getattr(impacts, "energy", None)
    if energy is None:
        return None
    value = energy.value
    low = float(getattr(value, "min", value)) * J_PER_KWH
    high = float(getattr(value, "max", value)) * J_PER_KWH
    return (low, high) if 0.0 < low <= high else None
