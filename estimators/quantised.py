"""What precision a Hugging Face config says that its weights have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from estimators.model_config import text_config


def quantised_as(config: Mapping[str, Any]) -> str | None:
    """The precision that a config's ``quantization_config`` tells of; None: none, or not known."""
    said = config.get("quantization_config") or text_config(config).get("quantization_config")
    if not isinstance(said, Mapping):
        return None
    method = str(said.get("quant_method", "")).lower()
    bits = said.get("bits") or said.get("w_bit") or said.get("weight_bits")
    if method in ("awq", "gptq", "auto-round", "hqq", "autoround"):
        return {2: "int2", 3: "int3", 4: "int4", 8: "int8"}.get(int(bits or 4))
    if method in ("bitsandbytes", "bnb"):
        return "int4" if said.get("load_in_4bit") else "int8" if said.get("load_in_8bit") else None
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8"
    if method == "mxfp4":
        return "mxfp4"
    if method == "modelopt":
        name = str(said.get("quant_algo", "")).lower()
        return "nvfp4" if "nvfp4" in name else "fp8" if "fp8" in name else None
    if method in ("compressed-tensors", "compressed_tensors"):
        return _compressed(said)
    return None


def _compressed(said: Mapping[str, Any]) -> str | None:
    groups = said.get("config_groups")
    kinds: set[str | None] = set()
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        names = {8: "fp8", 4: "nvfp4"} if weights.get("type") == "float" else {4: "int4", 8: "int8"}
        kinds.add(names.get(int(weights.get("num_bits") or 0)))
    return kinds.pop() if len(kinds) == 1 else None
