"""A model's facts from its Hugging Face ``config.json``.

Families name the same things differently and leave out what their class in transformers assumes:
both are known here by ``model_type``. Sizes are those of the language model; the towers that look
at images are not read by a step. What tells of a structure that is not known here is refused: a
wrong figure would look like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from estimators.architectures import PUBLISHED, Architecture
from estimators.layer_kinds import Kind, layer_kinds
from estimators.model_families import (
    ASSUMED,
    FALCON,
    FOUR_TIMES,
    MULTI_QUERY,
    NAMES,
    NESTED,
    NOT_COUNTED,
    PLAIN_ACTIVATIONS,
    PLAIN_FF,
    TIED,
)
from estimators.types import ModelFacts

_KV_VALUE_BYTES = 2.0  # bf16 cache, vLLM's default
_STATE_VALUE_BYTES = 4.0  # as model cards of Mamba models ask


class NotCounted(ValueError):
    """A config that tells of a structure whose parameters are not known how to count."""


class _Sizes(NamedTuple):
    """What a config says, whatever its family calls it; 0 where there is none."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    matrices: int  # of a feed-forward layer
    vocabulary: int
    tied: bool
    experts: int
    per_token: int
    expert_ff: int
    shared_ff: int  # of all experts that every token uses
    kinds: list[Kind]


class Counted(NamedTuple):
    """Parameters: all of them, and those that one token uses."""

    total: float
    active: float


def facts_from_config(
    config: Mapping[str, Any], params_b: float | None = None, active_params_b: float | None = None
) -> ModelFacts:
    """A model's facts from its Hugging Face ``config.json``.

    The parameters are counted from the shape where they are not given: ``2 * h * (q + kv)`` for
    attention with ``q = heads * head_dim`` and ``kv = kv_heads * head_dim``, ``3 * h * ff`` for a
    gated feed-forward layer. Raises KeyError where the config has no sizes at all, NotCounted (a
    ValueError) where it has a structure that is not known here.
    """
    text = text_config(config)
    sizes = _sizes(text)
    counted = _counted(text, sizes)
    active, tied = counted.active / 1e9, sizes.tied
    published = _published(counted.total / 1e9, sizes)
    if published is not None:  # measurements were fitted with its maker's own count
        active, tied = published.active_b, published.tied
    latent = bool(text.get("kv_lora_rank"))
    each = 2.0 * sizes.kv_heads * sizes.head_dim * _KV_VALUE_BYTES
    if latent:
        values = int(text["kv_lora_rank"]) + int(text.get("qk_rope_head_dim") or 64)
        each = values * _KV_VALUE_BYTES
    full, sliding = (
        sum(kind.mixer == name for kind in sizes.kinds) for name in ("full", "sliding")
    )
    states = sum(_state_values(text, sizes, kind) for kind in sizes.kinds)
    usual = full == sizes.layers and not latent
    return ModelFacts(
        params_b=params_b or counted.total / 1e9,
        active_params_b=active_params_b or (active if sizes.experts else None),
        layers=sizes.layers,
        hidden_size=sizes.hidden,
        kv_heads=0 if latent else sizes.kv_heads,  # a latent has no heads
        head_dim=0 if latent else sizes.head_dim,
        kv_bytes_per_token=None if usual else full * each,
        window_tokens=_window(text) if sliding else None,
        window_kv_bytes_per_token=sliding * each if sliding else None,
        state_bytes=states * _STATE_VALUE_BYTES or None,
        experts=sizes.experts or None,
        experts_per_token=sizes.per_token or None,
        expert_layers=sum(kind.ff == "experts" for kind in sizes.kinds) or None,
        vocabulary=sizes.vocabulary or None,
        tied_embeddings=tied,
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config, with what its family assumes filled in."""
    text = config
    for name in NESTED:
        inner = text.get(name)
        if isinstance(inner, Mapping) and inner:
            tied = inner.get("tie_word_embeddings", text.get("tie_word_embeddings"))
            text = dict(inner) if tied is None else {**inner, "tie_word_embeddings": tied}
            return text_config(text)
    # DBRX and MPT keep some sizes a level deeper.
    for name in ("attn_config", "ffn_config"):
        inner = text.get(name)
        if isinstance(inner, Mapping):
            text = {**text, **inner}
    given = {name: value for name, value in text.items() if value is not None}
    return {**ASSUMED.get(_family(text), {}), **given}


def _published(params_b: float, sizes: _Sizes) -> Architecture | None:
    """The published mixture of this very shape."""
    shape = (sizes.experts, sizes.per_token, sizes.layers, sizes.hidden)
    for known in PUBLISHED:
        same = (known.experts, known.experts_per_token, known.layers, known.hidden) == shape
        if known.experts and same and abs(params_b / known.params_b - 1.0) < 0.02:
            return known
    return None


def _family(text: Mapping[str, Any]) -> str:
    return str(text.get("model_type") or "").lower()


def _sizes(text: Mapping[str, Any]) -> _Sizes:
    _refuse(text)
    family = _family(text)
    hidden, layers = _needed(text, "hidden"), _needed(text, "layers")
    heads = _needed(text, "heads")
    head_dim = _size(text, "head_dim") or hidden // heads
    experts, per_token = _size(text, "experts") or 0, _size(text, "per_token") or 0
    if experts <= 1:
        experts = per_token = 0
    if experts and not 0 < per_token <= experts:
        raise NotCounted(f"it has {experts} experts, and does not say how many a token uses")
    ff = _feed_forward(text, family, hidden)
    expert_ff = (experts and _size(text, "expert_ff")) or ff
    if family == "llama4_text":  # the plain width is the experts'
        expert_ff, ff = ff, int(text.get("intermediate_size_mlp") or ff)
    shared_ff = _size(text, "shared_ff") or (_size(text, "shared") or 0) * expert_ff
    if family == "llama4_text":
        shared_ff = expert_ff
    if not experts:
        ff = shared_ff if family == "granitemoehybrid" else ff
        shared_ff = 0
    activation = text.get("hidden_act") or text.get("mlp_hidden_act") or ""
    plain = family in PLAIN_FF or activation in PLAIN_ACTIVATIONS
    tied = text.get("tie_word_embeddings")
    kinds = layer_kinds(text, family, layers, bool(experts))
    return _Sizes(
        family=family,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=_kv_heads(text, family, heads),
        head_dim=head_dim,
        ff=ff,
        matrices=2 if plain else 3,
        vocabulary=_size(text, "vocabulary") or 0,
        tied=family in TIED if tied is None else bool(tied),
        experts=experts,
        per_token=per_token,
        expert_ff=expert_ff,
        shared_ff=shared_ff,
        kinds=kinds,
    )


def _refuse(text: Mapping[str, Any]) -> None:
    for key, what in NOT_COUNTED.items():
        if text.get(key):
            raise NotCounted(f"{key} tells of {what}, which is not counted here")
    if text.get("is_encoder_decoder"):
        raise NotCounted("an encoder and a decoder are not counted here")
    known = {name for names in NAMES.values() for name in names}
    if any(isinstance(text.get(name), int) for name in NAMES["experts"]):
        return
    for key, value in text.items():
        many = isinstance(value, int) and not isinstance(value, bool) and value > 1
        if "expert" in key and many and key not in known:
            raise NotCounted(f"{key} tells of experts, which are not counted under that name")


def _feed_forward(text: Mapping[str, Any], family: str, hidden: int) -> int:
    ff = _size(text, "ff")
    if ff is None and (family in FOUR_TIMES or text.get("expansion_ratio")):
        return int(text.get("expansion_ratio") or 4) * hidden
    if ff is None:
        raise KeyError(f"the model's config has none of {', '.join(NAMES['ff'])}")
    return ff // 2 if family == "qwen" else ff  # the first Qwen gives both halves' width


def _kv_heads(text: Mapping[str, Any], family: str, heads: int) -> int:
    if family in FALCON and not text.get("new_decoder_architecture"):
        # num_kv_heads is the number of heads here, whatever is kept
        return 1 if text.get("multi_query", True) else heads
    if family in MULTI_QUERY:
        return 1 if text.get("multi_query", True) else heads
    if text.get("multi_query_attention"):
        return int(text.get("multi_query_group_num") or 1)
    return _size(text, "kv_heads") or heads


def _counted(text: Mapping[str, Any], sizes: _Sizes) -> Counted:
    hidden = sizes.hidden
    always = float(sizes.vocabulary * hidden * (1 if sizes.tied else 2))
    chosen = held = 0.0
    for kind in sizes.kinds:
        always += _mixer_params(text, sizes, kind)
        if kind.ff == "dense":
            always += sizes.matrices * hidden * sizes.ff
        elif kind.ff == "experts":
            always += sizes.matrices * hidden * sizes.shared_ff + hidden * sizes.experts
            expert = sizes.matrices * hidden * sizes.expert_ff
            held += sizes.experts * expert
            chosen += sizes.per_token * expert
    return Counted(always + held, always + chosen)


def _mixer_params(text: Mapping[str, Any], sizes: _Sizes, kind: Kind) -> float:
    hidden, heads, dim = sizes.hidden, sizes.heads, sizes.head_dim
    if kind.mixer in ("full", "sliding"):
        if text.get("kv_lora_rank"):
            return _latent_params(text, hidden, heads)
        gate = heads * dim if sizes.family.startswith(("qwen3_next", "qwen3_5")) else 0
        return float(hidden * (2 * heads * dim + 2 * sizes.kv_heads * dim + gate))
    if kind.mixer == "lightning":  # queries, keys, values, gate and output are all as wide
        return float(5 * hidden * heads * dim)
    if kind.mixer == "delta":
        keys, values, value_heads = _delta(text)
        taps = int(text.get("linear_conv_kernel_dim") or 4)
        wide = 2 * keys + 2 * values + 2 * value_heads + values  # the last is the output's
        return float(hidden * wide + (2 * keys + values) * taps)
    if kind.mixer == "mamba":
        return _mamba_params(text, sizes)
    return 0.0


def _latent_params(text: Mapping[str, Any], hidden: int, heads: int) -> float:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)."""
    rank = int(text["kv_lora_rank"])
    rope = int(text.get("qk_rope_head_dim") or 64)
    nope = int(text.get("qk_nope_head_dim") or 128)
    value = int(text.get("v_head_dim") or 128)
    q_rank = int(text.get("q_lora_rank") or 0)
    queries = heads * (nope + rope)
    asked = hidden * q_rank + q_rank * queries if q_rank else hidden * queries
    kept = hidden * (rank + rope) + rank * heads * (nope + value)
    return float(asked + kept + heads * value * hidden)


def _delta(text: Mapping[str, Any]) -> tuple[int, int, int]:
    """Widths of keys and values, and the values' heads, of a gated delta net."""
    try:
        keys = int(text["linear_num_key_heads"]) * int(text["linear_key_head_dim"])
        heads = int(text["linear_num_value_heads"])
        return keys, heads * int(text["linear_value_head_dim"]), heads
    except KeyError as error:
        raise NotCounted(f"its linear attention has no {error.args[0]}") from None


def _mamba(text: Mapping[str, Any], hidden: int) -> tuple[int, int, int, int]:
    """(width, heads, state of a head's value, groups); no heads: the first Mamba."""
    heads = int(text.get("mamba_num_heads") or text.get("mamba_n_heads") or 0)
    size = text.get("mamba_head_dim") or text.get("mamba_d_head")
    wide = int(text.get("mamba_expand") or text.get("expand") or 2) * hidden
    if heads and isinstance(size, int):
        wide = heads * size
    state = int(text.get("ssm_state_size") or text.get("mamba_d_state") or 0)
    if not state:
        raise NotCounted("its Mamba layers have no ssm_state_size or mamba_d_state")
    return wide, heads, state, int(text.get("n_groups") or text.get("mamba_n_groups") or 1)


def _mamba_params(text: Mapping[str, Any], sizes: _Sizes) -> float:
    hidden = sizes.hidden
    wide, heads, state, groups = _mamba(text, hidden)
    taps = int(text.get("conv_kernel") or text.get("mamba_d_conv") or 4)
    if heads:  # Mamba 2 (arXiv 2405.21060)
        passed = wide + 2 * groups * state
        return float(hidden * (wide + passed + heads) + taps * passed + wide * hidden)
    rank = text.get("mamba_dt_rank")
    rank = rank if isinstance(rank, int) else -(-hidden // 16)
    own = wide * (rank + 2 * state) + rank * wide + wide * state
    return float(3 * hidden * wide + taps * wide + own)


def _state_values(text: Mapping[str, Any], sizes: _Sizes, kind: Kind) -> float:
    """Values that such a layer keeps of a sequence, whatever its length."""
    if kind.mixer == "mamba":
        wide, _, state, _ = _mamba(text, sizes.hidden)
        return float(wide * state)
    if kind.mixer == "delta":
        _, values, _ = _delta(text)
        return float(values * int(text["linear_key_head_dim"]))
    if kind.mixer == "lightning":
        return float(sizes.heads * sizes.head_dim * sizes.head_dim)
    return 0.0


def _window(text: Mapping[str, Any]) -> int:
    return int(text.get("sliding_window") or text["attention_chunk_size"])


def _size(text: Mapping[str, Any], what: str) -> int | None:
    """A size under any of its names; a list of it, one for each layer, must be all alike."""
    for name in NAMES[what]:
        value = text.get(name)
        if isinstance(value, list) and value:
            if any(one != value[0] for one in value) or len(value) < _needed(text, "layers"):
                raise NotCounted(f"{name} differs from layer to layer")
            value = value[0]
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise NotCounted(f"{name} is no size: {value!r}")
        return int(value)
    return None


def _needed(text: Mapping[str, Any], what: str) -> int:
    value = _size(text, what)
    if not value:
        raise KeyError(f"the model's config has none of {', '.join(NAMES[what])}")
    return value
