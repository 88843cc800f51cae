"""How families of models name their sizes in a Hugging Face config, and what they leave out."""

from __future__ import annotations

from typing import Any

# Where the language model stands in a config of a model that also sees or hears.
NESTED = ("text_config", "llm_config", "language_config", "thinker_config")

# The same size under the names that families give it.
NAMES: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv", "kv_n_heads"),
    "head_dim": ("head_dim", "attention_head_dim", "kv_channels", "d_head"),
    "ff": ("intermediate_size", "ff_intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner"),
    "vocabulary": ("padded_vocab_size", "vocab_size"),
    "experts": (
        "num_local_experts",
        "n_routed_experts",
        "num_experts",
        "moe_num_experts",
        "num_routed_experts",
    ),
    "per_token": (
        "num_experts_per_tok",
        "experts_per_token",
        "num_experts_per_token",
        "moe_topk",
        "moe_top_k",
        "moe_k",
    ),
    "expert_ff": ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size"),
    "shared_ff": (
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
    ),
    "shared": (
        "n_shared_experts",
        "num_shared_experts",
        "num_shared_expert",
        "moe_num_shared_experts",
    ),
}

# What transformers' classes assume where a config does not say (configuration_<family>.py).
_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
ASSUMED: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8},
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256, "sliding_window": 4096},
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "sliding_window": 4096,
    },
    "qwen3": {"head_dim": 128},
    "llama4_text": {"head_dim": 128, "num_local_experts": 16, "num_experts_per_tok": 1},
}
# One table both reads tokens in and chooses them, unless the config says otherwise.
TIED = frozenset(
    {
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "falcon",
        "refinedweb",
        "refinedwebmodel",
        "bloom",
        "opt",
        "mpt",
        "cohere",
        "cohere2",
        "starcoder2",
        "phi3small",
        "bert",
        "roberta",
        "xlm-roberta",
        "distilbert",
        "nomic_bert",
        "modernbert",
        "camembert",
        "electra",
    }
)
# Two matrices in a feed-forward layer, not three.
PLAIN_FF = frozenset(
    {
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "gpt_bigcode",
        "opt",
        "bloom",
        "mpt",
        "falcon",
        "refinedweb",
        "refinedwebmodel",
        "phi",
        "starcoder2",
        "codegen",
        "nemotron",
        "nemotron_h",
        "arcee",
        "apertus",
        "bert",
        "roberta",
        "xlm-roberta",
        "distilbert",
        "camembert",
        "electra",
        "persimmon",
        "biogpt",
        "xglm",
    }
)
PLAIN_ACTIVATIONS = frozenset({"relu", "relu2", "relu_squared", "xielu"})
# Four times as wide inside, unless the config says otherwise.
FOUR_TIMES = frozenset(
    {
        "gpt2",
        "gpt_neo",
        "gptj",
        "gpt_bigcode",
        "bloom",
        "falcon",
        "refinedweb",
        "refinedwebmodel",
        "mpt",
        "codegen",
        "phi",
    }
)
MULTI_QUERY = frozenset({"gpt_bigcode"})  # unless the config says otherwise
FALCON = frozenset({"falcon", "refinedweb", "refinedwebmodel"})

# Structures that would be counted wrongly, by the keys that tell of them.
NOT_COUNTED = {
    "block_configs": "layers of different shapes",
    "num_kv_shared_layers": "layers that share a cache",
    "linear_attn_config": "linear attention",
    "num_key_value_heads_per_layer": "layers of different shapes",
    "zero_expert_num": "experts that do nothing",
}
