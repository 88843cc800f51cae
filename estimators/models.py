"""From a model's architecture to what the hardware must read and calculate for it.

Works from as little as the number of parameters (shapes of well-known model families fill the
gaps) and from as much as a Hugging Face ``config.json``: dense, grouped-query, multi-head latent
attention (MLA) and mixtures of experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
    "q8_0": "int8",
    "awq": "int4",
    "gptq": "int4",
    "w4a16": "int4",
    "int4-awq": "int4",
    "int4-gptq": "int4",
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
        expert_layers=(
            float(published.expert_layers) if published and published.expert_layers else layers
        )
        if sparse
        else 0.0,
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
            kv_bytes_per_token=model.kv_bytes_per_token or known.kv_bytes_per_token,
            window_tokens=model.window_tokens or ((known.window_tokens or None) if apart else None),
            window_kv_bytes_per_token=model.window_kv_bytes_per_token
            or ((known.window_kv_bytes_per_token or None) if apart else None),
            state_bytes=model.state_bytes or known.state_bytes or None,
            experts=model.experts or known.experts or None,
            experts_per_token=model.experts_per_token or known.experts_per_token or None,
            vocabulary=model.vocabulary or known.vocabulary,
            tied_embeddings=known.tied if model.tied_embeddings is None else model.tied_embeddings,
        ),
        known,
    )


def typical_layers(size_b: float) -> float:
    """Layers of a model of that many billions: 16 at 1B, 32 at 8B, 80 at 70B (Llama 3)."""
    return float(min(140.0, max(4.0, 32.0 * (size_b / 8.0) ** 0.38)))


def facts_from_config(
    config: Mapping[str, Any], params_b: float | None = None, active_params_b: float | None = None
) -> ModelFacts:
    """A model's facts from its Hugging Face ``config.json``.

    The parameters are counted from the shape where they are not given: ``2 * h * (q + kv)`` for
    attention with ``q = heads * head_dim`` and ``kv = kv_heads * head_dim``, ``3 * h * ff`` for a
    gated feed-forward layer. Raises KeyError where the config has no sizes at all.
    """
    text = config.get("text_config") or config.get("llm_config") or config
    hidden = int(_first(text, "hidden_size", "n_embd", "d_model"))
    layers = int(_first(text, "num_hidden_layers", "n_layer", "num_layers"))
    heads = int(_first(text, "num_attention_heads", "n_head"))
    kv_heads = int(text.get("num_key_value_heads") or heads)
    head_dim = int(text.get("head_dim") or hidden // heads)
    experts = text.get("num_local_experts") or text.get("n_routed_experts")
    experts = experts or text.get("num_experts")
    per_token = text.get("num_experts_per_tok") or text.get("experts_per_token")
    kv = _config_kv_bytes(text, layers, kv_heads, head_dim)
    window = _config_window_bytes(text, kv_heads, head_dim)
    total, active = count_params(text)
    return ModelFacts(
        params_b=params_b or total / 1e9,
        active_params_b=active_params_b or (active / 1e9 if experts else None),
        layers=layers,
        hidden_size=hidden,
        kv_heads=kv_heads,
        head_dim=head_dim,
        kv_bytes_per_token=kv,
        window_tokens=int(text["sliding_window"]) if window is not None else None,
        window_kv_bytes_per_token=window,
        state_bytes=_config_state_bytes(text),
        experts=int(experts) if experts else None,
        experts_per_token=int(per_token) if experts and per_token else None,
        vocabulary=int(text["vocab_size"]) if text.get("vocab_size") else None,
        # Left out, it is the model's class that decides: Gemma's ties them, Llama's does not.
        tied_embeddings=text.get("tie_word_embeddings", config.get("tie_word_embeddings")),
    )


def count_params(config: Mapping[str, Any]) -> tuple[float, float]:
    """(all, active per token) parameters of the shape in a Hugging Face text config."""
    hidden = int(_first(config, "hidden_size", "n_embd", "d_model"))
    layers = int(_first(config, "num_hidden_layers", "n_layer", "num_layers"))
    heads = int(_first(config, "num_attention_heads", "n_head"))
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    rank = config.get("kv_lora_rank")
    if rank:
        rope = int(config.get("qk_rope_head_dim") or 64)
        nope = int(config.get("qk_nope_head_dim") or 128)
        value = int(config.get("v_head_dim") or 128)
        q_rank = config.get("q_lora_rank")
        queries = heads * (nope + rope)
        q_params = hidden * q_rank + q_rank * queries if q_rank else hidden * queries
        attention = (
            q_params
            + hidden * (rank + rope)
            + rank * heads * (nope + value)
            + heads * value * hidden
        )
    else:
        attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    ff = int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden)
    gated = config.get("hidden_act", config.get("hidden_activation", "silu")) in (
        "silu",
        "swiglu",
        "gelu_pytorch_tanh",
        "swish",
    ) and config.get("model_type") not in ("starcoder2", "gpt2", "gpt_neox", "opt", "bloom")
    matrices = 3 if gated else 2
    experts = (
        config.get("num_local_experts")
        or config.get("n_routed_experts")
        or config.get("num_experts")
        or 0
    )
    per_token = config.get("num_experts_per_tok") or config.get("experts_per_token") or 0
    vocabulary = int(config.get("vocab_size") or 0)
    ends = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    if not experts:
        total = float(layers * (attention + matrices * hidden * ff) + ends)
        return total, total
    expert_ff = int(config.get("moe_intermediate_size") or ff)
    dense_layers = int(config.get("first_k_dense_replace") or 0)
    shared = int(config.get("n_shared_experts") or 0) * expert_ff
    shared = int(config.get("shared_expert_intermediate_size") or shared)
    expert = matrices * hidden * expert_ff
    moe_layers = layers - dense_layers
    always = layers * attention + dense_layers * matrices * hidden * ff + ends
    always += moe_layers * (matrices * hidden * shared + hidden * experts)
    return (
        float(always + moe_layers * experts * expert),
        float(always + moe_layers * per_token * expert),
    )


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


def _config_kv_bytes(
    text: Mapping[str, Any], layers: int, kv_heads: int, head_dim: int
) -> float | None:
    """Bytes of cache a token keeps, where the four usual numbers would not give it."""
    if text.get("kv_lora_rank"):
        values = int(text["kv_lora_rank"]) + int(text.get("qk_rope_head_dim") or 64)
        return float(layers * values * _KV_VALUE_BYTES)
    kinds = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(kinds, list) and kinds:
        attending = sum(kind in ("full_attention", "attention") for kind in kinds)
        return float(2 * attending * kv_heads * head_dim * _KV_VALUE_BYTES)
    return None


def _config_window_bytes(text: Mapping[str, Any], kv_heads: int, head_dim: int) -> float | None:
    """Bytes of cache a token keeps in the layers with a sliding window; None: no such layers."""
    kinds = text.get("layer_types")
    if not isinstance(kinds, list) or not text.get("sliding_window"):
        return None
    sliding = sum(kind == "sliding_attention" for kind in kinds)
    return float(2 * sliding * kv_heads * head_dim * _KV_VALUE_BYTES) if sliding else None


def _config_state_bytes(text: Mapping[str, Any]) -> float | None:
    """Bytes of state that the Mamba layers keep of a sequence, in 4 bytes a value."""
    heads, size = text.get("mamba_num_heads"), text.get("mamba_head_dim")
    state = text.get("ssm_state_size") or text.get("mamba_d_state")
    pattern = text.get("hybrid_override_pattern")
    kinds = text.get("layers_block_type") or text.get("layer_types")
    layers = 0
    if isinstance(pattern, str):
        layers = pattern.count("M")
    elif isinstance(kinds, list):
        layers = sum(str(kind).startswith("mamba") for kind in kinds)
    if not (heads and size and state and layers):
        return None
    return float(layers * heads * size * state * 4)


def _first(config: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise KeyError(f"the model's config has none of {', '.join(names)}")
