"""From a model's architecture to what the hardware must read and calculate for it.

Works from as little as the number of parameters (shapes of well-known model families fill the
gaps) and from as much as a Hugging Face ``config.json`` says (model_config.py): dense,
grouped-query, multi-head latent attention (MLA) and mixtures of experts.
"""

from __future__ import annotations

import math

import msgspec

from estimators.architectures import Architecture, architecture_of
from estimators.types import ModelFacts

# Bytes read for one weight, scales and zero points of the quantised kinds included:
# AWQ and GPTQ keep an fp16 scale and a zero point for each group of 128 (4.25 bits); MXFP4 an
# 8-bit scale for 32 (OCP Microscaling Formats 1.0: 4.25 bits); NVFP4 one for 16 (4.5 bits);
# GGUF block layouts as in llama.cpp's ggml-common.h.
WEIGHT_BYTES = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.53,
    "nvfp4": 0.5625,
    "mxfp4": 0.53125,
    "int2": 0.33,
    "int3": 0.43,
    "int5": 0.69,
    "int6": 0.82,
}
_PRECISION_ALIASES = {
    "bfloat16": "bf16",
    "half": "fp16",
    "float16": "fp16",
    "f16": "fp16",
    "float32": "fp32",
    "f32": "fp32",
    "float8": "fp8",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "fp8-dynamic": "fp8",
    "w8a8-fp8": "fp8",
    "w8a8": "int8",
    "w8a16": "int8",
    "q8": "int8",
    "int8-gptq": "int8",
    "gptq-int8": "int8",
    "bnb-8bit": "int8",
    "q8_0": "int8",
    "awq": "int4",
    "gptq": "int4",
    "w4a16": "int4",
    "int4-awq": "int4",
    "int4-gptq": "int4",
    "awq-int4": "int4",
    "gptq-int4": "int4",
    "nf4": "int4",
    "bnb-4bit": "int4",
    "q4": "int4",
    "q4_0": "int4",
    "q4_k_m": "int4",
    "q4_k_s": "int4",
    "fp4": "nvfp4",
    "mxfp4": "mxfp4",
    "q2_k": "int2",
    "q3_k_m": "int3",
    "q5_k_m": "int5",
    "q6_k": "int6",
}

# A mixture's attention, shared experts, embeddings and router: the part of the active parameters
# that every token uses. .1 (Mixtral) to .8 (Llama 4 Maverick); the middle of nine public
# architectures. Only used where the experts are not given.
_ALWAYS_USED_SHARE = 0.4
_KV_VALUE_BYTES = 2.0  # bf16 cache, vLLM's default
_USUAL_VOCABULARY = 100_000  # where nobody says: between Llama 2's 32,000 and Gemma's 256,000
_MLA_VALUES_PER_LAYER = 576  # 512 latent + 64 rotary values (DeepSeek-V2, arXiv 2405.04434)


class UnknownPrecision(ValueError):
    """A precision that none of the known names matches."""


class Shape(msgspec.Struct, frozen=True):
    """What an engine must read and calculate; sizes in parameters, not billions."""

    params: float
    active: float  # used by one token
    always: float  # read in every step, whatever the tokens are
    expert_share: float  # of the other parameters, the part one token uses; 1 where dense
    layers: float
    hidden: float
    kv_bytes_per_token: float
    given: float  # 0..1: how much of the shape was given rather than guessed
    experts_per_token: float = 0.0  # 0 where dense
    hybrid: bool = False  # most layers keep a state instead of a cache (Mamba)
    window_tokens: float = 0.0  # some layers keep only so many tokens
    window_kv_bytes_per_token: float = 0.0  # ... and so much of each; not in kv_bytes_per_token
    state_bytes: float = 0.0  # of one sequence, whatever its length
    expert_layers: float = 0.0  # layers that choose among experts
    unread: float = 0.0  # of ``always``, what no step reads: a table that only reads tokens in
    head: float = 0.0  # of ``always``, what tokens are chosen by
    cache_layers: float = 0.0  # layers that keep a cache

    def cache_bytes(self, context: float) -> float:
        """What a step reads of one sequence's cache and state; the state is written again too."""
        kept = context * self.kv_bytes_per_token + 2.0 * self.state_bytes
        return kept + min(context, self.window_tokens) * self.window_kv_bytes_per_token

    def touched(self, tokens: float) -> float:
        """Parameters read by a step over ``tokens`` tokens that choose experts independently."""
        if self.expert_share >= 1.0:
            return self.params
        missed: float = (1.0 - self.expert_share) ** max(tokens, 1.0)
        return self.always + (self.params - self.always) * (1.0 - missed)


def precision_named(name: str) -> str:
    """One of the keys of WEIGHT_BYTES. Raises UnknownPrecision."""
    short = name.strip().lower()
    short = _PRECISION_ALIASES.get(short, short)
    if short not in WEIGHT_BYTES:
        raise UnknownPrecision(
            f"unknown precision {name!r}. Known: {', '.join(WEIGHT_BYTES)}, awq, gptq, w4a16."
        )
    return short


def shape_of(model: ModelFacts) -> Shape:
    """The shape of a model, gaps filled with what well-known families of that size have."""
    model, published = _filled(model)
    params = model.params_b * 1e9
    active = min(params, (model.active_params_b or model.params_b) * 1e9)
    typical = typical_layers(math.sqrt(params * active) / 1e9)
    hybrid = bool(model.layers) and float(model.layers or 0) < 0.45 * typical
    if published is not None:
        layers, hybrid = float(published.layers), published.attention_layers > 0
    elif model.layers and model.state_bytes:  # from a config, which lists every layer
        layers, hybrid = float(model.layers), True
    elif model.layers:
        # Some publishers of hybrid models count only the attention layers: those are right for
        # the cache, and far too few for the work of a step.
        layers = typical if hybrid else float(model.layers)
    else:
        layers = typical
    sparse = active < 0.9 * params
    vocabulary = float(model.vocabulary or _USUAL_VOCABULARY)
    untied = _untied(model.tied_embeddings, params)
    hidden = float(model.hidden_size or _hidden(active, layers, vocabulary * (1.0 + untied)))
    per_token = 0.0
    always, share = params, 1.0
    if sparse:
        always, share = _experts(params, active, model.experts, model.experts_per_token)
        per_token = float(model.experts_per_token or 4.0)
    head = min(vocabulary * hidden, 0.25 * always)
    given = [model.layers, model.hidden_size, model.kv_heads, model.head_dim]
    return Shape(
        params=params,
        active=active,
        always=always,
        expert_share=share,
        layers=layers,
        hidden=hidden,
        kv_bytes_per_token=_kv_bytes(model, typical, params),
        given=sum(value is not None for value in given) / len(given),
        experts_per_token=per_token,
        hybrid=hybrid,
        window_tokens=float(model.window_tokens or 0),
        window_kv_bytes_per_token=float(model.window_kv_bytes_per_token or 0.0),
        state_bytes=float(model.state_bytes or 0.0),
        expert_layers=float(model.expert_layers or layers) if sparse else 0.0,
        unread=head * untied,
        head=head,
        cache_layers=_cache_layers(model, layers),
    )


def _filled(model: ModelFacts) -> tuple[ModelFacts, Architecture | None]:
    """A published architecture recognised by its numbers fills what was not given."""
    active = model.active_params_b or model.params_b
    known = architecture_of(model.params_b, active, model.layers, model.kv_heads)
    if known is None:
        return model, None
    # Bytes given as those of all layers hold the windows' already.
    given, whole = model.kv_bytes_per_token, known.kv_bytes_per_token
    apart = given is None or whole is None or given < 1.1 * whole
    return (
        msgspec.structs.replace(
            model,
            hidden_size=model.hidden_size or known.hidden,
            kv_bytes_per_token=whole if given is None else given,
            window_tokens=model.window_tokens or ((known.window_tokens or None) if apart else None),
            window_kv_bytes_per_token=model.window_kv_bytes_per_token
            or ((known.window_kv_bytes_per_token or None) if apart else None),
            state_bytes=model.state_bytes or known.state_bytes or None,
            experts=model.experts or known.experts or None,
            experts_per_token=model.experts_per_token or known.experts_per_token or None,
            expert_layers=model.expert_layers or known.expert_layers or None,
            vocabulary=model.vocabulary or known.vocabulary,
            tied_embeddings=known.tied if model.tied_embeddings is None else model.tied_embeddings,
        ),
        known,
    )


def typical_layers(size_b: float) -> float:
    """Layers of a model of that many billions: 16 at 1B, 32 at 8B, 80 at 70B (Llama 3)."""
    return float(min(140.0, max(4.0, 32.0 * (size_b / 8.0) ** 0.38)))


def _experts(
    params: float, active: float, experts: int | None, per_token: int | None
) -> tuple[float, float]:
    """(parameters every token uses, share of the others one token uses)."""
    if experts and per_token and per_token < experts:
        share = per_token / experts
        # active = always + share * (params - always)
        always = max(0.0, (active - share * params) / (1.0 - share))
        return min(always, active), share
    always = _ALWAYS_USED_SHARE * active
    return always, (active - always) / (params - always)


def _kv_bytes(model: ModelFacts, typical: float, params: float) -> float:
    if model.kv_bytes_per_token is not None:
        return model.kv_bytes_per_token
    layers = float(model.layers or typical)
    if model.kv_heads and model.head_dim:
        return 2.0 * layers * model.kv_heads * model.head_dim * _KV_VALUE_BYTES
    if model.kv_heads == 0 or model.head_dim == 0:  # no heads in the cache: a latent (MLA)
        return layers * _MLA_VALUES_PER_LAYER * _KV_VALUE_BYTES
    heads = 8.0 if params >= 3e9 else 4.0
    return 2.0 * layers * (model.kv_heads or heads) * (model.head_dim or 128.0) * _KV_VALUE_BYTES


def _hidden(active: float, layers: float, tokens: float) -> float:
    """The width whose layers, of 12 squares of it, and tables of so many tokens make ``active``."""
    squares = 12.0 * layers
    return (math.sqrt(tokens * tokens + 4.0 * squares * active) - tokens) / (2.0 * squares)


def _untied(tied: bool | None, params: float) -> float:
    """How likely it has a table of its own for reading tokens in: 2B have none, 8B have one."""
    if tied is not None:
        return 0.0 if tied else 1.0
    return min(1.0, max(0.0, math.log(params / 2e9) / math.log(4.0)))


def _cache_layers(model: ModelFacts, layers: float) -> float:
    """Layers that keep a cache: all but those of a hybrid that keep a state instead."""
    if not (model.kv_heads and model.head_dim) or model.kv_bytes_per_token is None:
        return float(model.layers or layers)
    kept = model.kv_bytes_per_token + (model.window_kv_bytes_per_token or 0.0)
    return min(layers, kept / (2.0 * model.kv_heads * model.head_dim * _KV_VALUE_BYTES))
