"""What each layer of a model does, from its Hugging Face config: how it looks back at other tokens
and what it calculates of one token alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_SPELT = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
    "linear_attention": "delta",
    "mamba": "mamba",
    "mamba2": "mamba",
}
_PATTERN = {  # Nemotron-H: a layer either looks back or calculates
    "M": ("mamba", "none"),
    "*": ("full", "none"),
    "-": ("none", "dense"),
    "E": ("none", "experts"),
}
# Every so many layers one sees everything, unless the config says otherwise.
_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6, "gpt_oss": 2, "cohere2": 4, "llama4_text": 4}
_ALL_SLIDE = frozenset({"mistral", "mixtral", "phi3", "phimoe", "starcoder2"})


class Kind(NamedTuple):
    """One layer."""

    mixer: str  # full, sliding (keeps only so many tokens), delta, lightning, mamba, none
    ff: str  # dense, experts, none


class UnknownLayers(ValueError):
    """Layers of a kind that is not known here."""


def layer_kinds(text: Mapping[str, Any], family: str, layers: int, sparse: bool) -> list[Kind]:
    """One kind a layer. ``sparse``: some layers choose among experts. Raises UnknownLayers."""
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        if len(pattern) != layers or set(pattern) - set(_PATTERN):
            raise UnknownLayers(f"hybrid_override_pattern is not understood: {pattern!r}")
        return [Kind(*_PATTERN[letter]) for letter in pattern]
    mixers = _mixers(text, family, layers)
    if len(mixers) != layers:
        raise UnknownLayers(f"it lists {len(mixers)} layers, and says it has {layers}")
    return [
        Kind(mixer, "experts" if sparse and _chooses(text, layer) else "dense")
        for layer, mixer in enumerate(mixers)
    ]


def _mixers(text: Mapping[str, Any], family: str, layers: int) -> list[str]:
    listed = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(listed, list) and listed:
        unknown = {str(kind) for kind in listed} - set(_SPELT)
        if unknown:
            raise UnknownLayers(f"layers of the kind {', '.join(sorted(unknown))} are not known")
        found = [_SPELT[str(kind)] for kind in listed]
        slides = text.get("sliding_window") or text.get("attention_chunk_size")
        return found if slides else ["full" if kind == "sliding" else kind for kind in found]
    if isinstance(text.get("attn_type_list"), list):  # MiniMax
        return ["full" if kind == 1 else "lightning" for kind in text["attn_type_list"]]
    if text.get("full_attention_interval"):  # Qwen3-Next
        every = int(text["full_attention_interval"])
        return ["full" if layer % every == every - 1 else "delta" for layer in range(layers)]
    if text.get("attn_layer_period"):  # Jamba
        every, first = int(text["attn_layer_period"]), int(text.get("attn_layer_offset") or 0)
        return ["full" if layer % every == first else "mamba" for layer in range(layers)]
    if isinstance(text.get("attn_layer_indices"), list):  # Bamba
        attending = set(text["attn_layer_indices"])
        return ["full" if layer in attending else "mamba" for layer in range(layers)]
    if any("mamba" in key or key.startswith("ssm_") for key, value in text.items() if value):
        raise UnknownLayers("it has Mamba layers, and does not say which")
    return _windows(text, family, layers)


def _windows(text: Mapping[str, Any], family: str, layers: int) -> list[str]:
    chunk = text.get("attention_chunk_size") if family == "llama4_text" else None
    if not (text.get("sliding_window") or chunk):
        return ["full"] * layers
    if family.startswith("qwen"):  # says it has a window, and that it does not use it
        seen = int(text.get("max_window_layers") or layers)
        used = bool(text.get("use_sliding_window"))
        return ["sliding" if used and layer >= seen else "full" for layer in range(layers)]
    if chunk and text.get("no_rope_layers"):
        return ["sliding" if chunked else "full" for chunked in text["no_rope_layers"]]
    pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern")
    if isinstance(pattern, str) and pattern:  # EXAONE: "LLLG"
        return [
            "full" if pattern[layer % len(pattern)] == "G" else "sliding" for layer in range(layers)
        ]
    every = int(pattern or _FULL_EVERY.get(family) or 0)
    if every:
        return ["full" if layer % every == every - 1 else "sliding" for layer in range(layers)]
    return ["sliding" if family in _ALL_SLIDE else "full"] * layers


def _chooses(text: Mapping[str, Any], layer: int) -> bool:
    """Whether that layer of a mixture chooses among experts."""
    dense = text.get("mlp_only_layers") or ()
    first = int(text.get("first_k_dense_replace") or text.get("moe_layer_start_index") or 0)
    if layer in dense or layer < first:
        return False
    listed = text.get("moe_layers")
    if isinstance(listed, list) and listed:
        return layer in listed
    frequency = text.get("moe_layer_freq")
    if isinstance(frequency, list):
        return bool(frequency[layer])
    if text.get("expert_layer_period"):  # Jamba
        offset = int(text.get("expert_layer_offset") or 0)
        return layer % int(text["expert_layer_period"]) == offset
    every = text.get("decoder_sparse_step") or text.get("interleave_moe_layer_step")
    every = int(every or text.get("moe_layer_interval") or frequency or 1)
    return (layer + 1) % every == 0 if every > 1 else True
