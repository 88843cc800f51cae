"""Architectures: from a number of parameters to a config.json."""

from __future__ import annotations

import pytest

from estimators.model_config import facts_from_config
from estimators.models import UnknownPrecision, precision_named, shape_of
from estimators.types import ModelFacts

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "hidden_act": "silu",
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "hidden_act": "silu",
}


def test_llamas_parameters_are_counted_from_its_config() -> None:
    facts = facts_from_config(LLAMA_8B)
    assert facts.params_b == pytest.approx(8.03, rel=0.01)
    assert shape_of(facts).kv_bytes_per_token == 131072


def test_deepseeks_parameters_experts_and_latent_cache_are_counted_from_its_config() -> None:
    facts = facts_from_config(DEEPSEEK_V3)
    assert facts.params_b == pytest.approx(671, rel=0.02)
    assert facts.active_params_b == pytest.approx(37, rel=0.05)
    shape = shape_of(facts)
    assert shape.kv_bytes_per_token == 70_272
    assert shape.expert_share == pytest.approx(8 / 256)


def test_a_model_without_cache_heads_is_taken_for_a_latent_one() -> None:
    shape = shape_of(ModelFacts(params_b=200.0, active_params_b=20, layers=60, kv_heads=0))
    assert shape.kv_bytes_per_token == 60 * 576 * 2


def test_attention_layers_alone_are_not_taken_for_all_of_a_hybrid() -> None:
    shape = shape_of(ModelFacts(params_b=12.3, layers=6, kv_heads=8, head_dim=128))
    assert shape.layers == 62
    assert shape.hybrid
    assert shape.kv_bytes_per_token == 24_576


def test_precisions_have_many_names_and_typos_are_told() -> None:
    assert precision_named("bfloat16") == "bf16"
    assert precision_named("AWQ") == "int4"
    with pytest.raises(UnknownPrecision, match="bf16"):
        precision_named("bf61")


def test_a_sliding_window_keeps_no_more_than_its_tokens() -> None:
    # Gemma 3 12B: 8 of 48 layers see everything, 40 see 1024 tokens; 8192 bytes a layer and token.
    shape = shape_of(ModelFacts(params_b=12.2, layers=48, kv_heads=8, head_dim=256))
    assert shape.cache_bytes(500) == 500 * 48 * 8192
    assert shape.cache_bytes(10_000) == 10_000 * 8 * 8192 + 1024 * 40 * 8192


def test_windows_are_read_from_a_config() -> None:
    config = LLAMA_8B | {
        "layer_types": ["sliding_attention"] * 24 + ["full_attention"] * 8,
        "sliding_window": 128,
    }
    shape = shape_of(facts_from_config(config))
    assert shape.cache_bytes(1000) == (1000 * 8 + 128 * 24) * 4096


def test_bytes_given_for_all_layers_are_not_counted_again_as_windows() -> None:
    facts = ModelFacts(params_b=12.2, layers=48, kv_bytes_per_token=48 * 8192.0)
    assert shape_of(facts).cache_bytes(500) == 500 * 48 * 8192


def test_a_mamba_state_is_read_and_written_whatever_the_length() -> None:
    config = LLAMA_8B | {
        "num_hidden_layers": 8,
        "hybrid_override_pattern": "M-M-M*-M",
        "mamba_num_heads": 128,
        "mamba_head_dim": 80,
        "ssm_state_size": 128,
    }
    shape = shape_of(facts_from_config(config))
    assert shape.cache_bytes(0) == 2 * 4 * 128 * 80 * 128 * 4


def test_only_the_layers_that_have_experts_are_counted_as_such() -> None:
    maverick = ModelFacts(params_b=400, active_params_b=17, layers=48, kv_heads=8, head_dim=128)
    assert shape_of(maverick).expert_layers == 24
    assert shape_of(ModelFacts(params_b=8.03, layers=32)).expert_layers == 0


def test_a_table_that_only_reads_tokens_in_is_not_read_in_a_step() -> None:
    llama = shape_of(ModelFacts(params_b=8.03, layers=32, kv_heads=8, head_dim=128))
    assert llama.unread == llama.head == 128_256 * 4096
    gemma = shape_of(ModelFacts(params_b=2.51, layers=18, kv_heads=1, head_dim=256))
    assert gemma.unread == 0.0
    assert gemma.head == 256_000 * 2048


def test_vocabulary_and_tied_embeddings_are_read_from_a_config() -> None:
    facts = facts_from_config({**LLAMA_8B, "vocab_size": 50_000, "tie_word_embeddings": True})
    assert facts.vocabulary == 50_000
    assert facts.tied_embeddings is True
    assert shape_of(facts).head == 50_000 * 4096
    assert facts_from_config(LLAMA_8B).tied_embeddings is False, "the model's class decides"
    around = {"text_config": LLAMA_8B, "tie_word_embeddings": True}
    assert facts_from_config(around).tied_embeddings is True


def test_two_models_of_one_size_and_depth_are_told_apart_by_their_cache_heads() -> None:
    mistral = shape_of(ModelFacts(params_b=7.25, layers=32, kv_heads=8, head_dim=128))
    starcoder = shape_of(ModelFacts(params_b=7.17, layers=32, kv_heads=4, head_dim=128))
    assert (mistral.hidden, starcoder.hidden) == (4096.0, 4608.0)


def test_only_the_attending_layers_of_a_hybrid_keep_a_cache() -> None:
    assert (
        shape_of(ModelFacts(params_b=12.3, layers=62, kv_heads=8, head_dim=128)).cache_layers == 6
    )
    assert (
        shape_of(ModelFacts(params_b=12.2, layers=48, kv_heads=8, head_dim=256)).cache_layers == 48
    )
