"""Architectures as their makers publish them, read from a ``config.json``.

``model_configs.jsonl``: the keys of each model's config on Hugging Face that tell of its shape, its
parameters (of the language model) as published, and the bytes of cache that a short prompt's token
keeps. Active parameters count the tables that tokens are read in and chosen by, except where the
maker's own count is what measurements were fitted with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from estimators.model_config import NotCounted, facts_from_config
from estimators.models import shape_of
from estimators.quantised import quantised_as

PUBLISHED = [
    json.loads(line)
    for line in Path(__file__).with_name("model_configs.jsonl").read_text().splitlines()
]
BY_NAME = {model["name"]: model["config"] for model in PUBLISHED}
LLAMA = BY_NAME["llama-3.1-8b"]


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda model: model["name"])
def test_a_config_gives_the_published_parameters_and_cache(model: dict[str, Any]) -> None:
    facts = facts_from_config(model["config"])
    assert facts.params_b == pytest.approx(model["params_b"], rel=0.02)
    if model["active_params_b"] is None:
        assert facts.active_params_b is None
    else:
        assert facts.active_params_b == pytest.approx(model["active_params_b"], rel=0.03)
    if model["kv_bytes_per_token"] is not None:
        shape = shape_of(facts)
        each = (shape.cache_bytes(100) - shape.cache_bytes(0)) / 100
        assert each == pytest.approx(model["kv_bytes_per_token"])


@pytest.mark.parametrize(
    ("name", "full_layers", "window", "bytes_a_layer"),
    [
        ("gemma-2-9b", 21, 4096, 8192),
        ("gemma-3-4b", 5, 1024, 4096),
        ("gemma-3-12b", 8, 1024, 8192),
        ("command-r7b", 8, 4096, 4096),
        ("llama-4-scout", 12, 8192, 4096),
        ("mistral-7b-v0.1", 0, 4096, 4096),
        ("gpt-oss-20b", 12, 128, 2048),
        ("qwen2.5-7b", 28, 0, 2048),
        ("phi-4-mini", 0, 262_144, 4096),
    ],
)
def test_layers_with_windows_stop_growing_at_their_length(
    name: str, full_layers: int, window: int, bytes_a_layer: int
) -> None:
    shape = shape_of(facts_from_config(BY_NAME[name]))
    grown = shape.cache_bytes(2_000_000) - shape.cache_bytes(1_000_000)
    assert grown == full_layers * bytes_a_layer * 1_000_000
    assert shape.window_tokens == window


def test_a_hybrid_keeps_a_state_and_the_cache_of_few_layers() -> None:
    shape = shape_of(facts_from_config(BY_NAME["qwen3-next-80b"]))
    assert shape.hybrid
    assert shape.layers == 48
    assert shape.cache_layers == 12
    assert shape.state_bytes == 36 * 32 * 128 * 128 * 4


def test_a_latent_cache_is_one_of_every_layer() -> None:
    shape = shape_of(facts_from_config(BY_NAME["deepseek-v3"]))
    assert shape.cache_layers == 61
    assert shape.expert_layers == 58


def test_sizes_that_are_given_go_before_those_that_are_counted() -> None:
    facts = facts_from_config(BY_NAME["mixtral-8x7b"], 47.0, 13.0)
    assert (facts.params_b, facts.active_params_b) == (47.0, 13.0)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (LLAMA | {"expert_number": 64, "experts_chosen": 4}, "expert_number"),
        (LLAMA | {"num_experts": 64}, "how many a token uses"),
        (LLAMA | {"block_configs": [{}]}, "block_configs"),
        (LLAMA | {"is_encoder_decoder": True}, "encoder"),
        (LLAMA | {"layer_types": ["conv", "full_attention"] * 16}, "conv"),
        (LLAMA | {"layer_types": ["full_attention"]}, "lists 1 layers"),
        (LLAMA | {"mamba_d_state": 16}, "Mamba"),
        (LLAMA | {"linear_attn_config": {"kda_layers": [1]}}, "linear_attn_config"),
        (LLAMA | {"num_key_value_heads": [1, 8] * 16}, "layer to layer"),
        (LLAMA | {"hidden_size": -1}, "no size"),
    ],
)
def test_a_structure_that_is_not_known_is_refused_and_not_counted_as_another(
    config: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        facts_from_config(config)


def test_a_config_without_sizes_names_what_is_missing() -> None:
    with pytest.raises(KeyError, match="num_attention_heads"):
        facts_from_config({"model_type": "mamba", "hidden_size": 2560, "n_layer": 64})
    assert issubclass(NotCounted, ValueError)


@pytest.mark.parametrize(
    ("said", "precision"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            "int4",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
        ({"quant_method": "heard of nowhere"}, None),
        (None, None),
    ],
)
def test_a_config_tells_what_precision_its_weights_have(
    said: dict[str, Any] | None, precision: str | None
) -> None:
    assert quantised_as(LLAMA | {"quantization_config": said}) == precision
