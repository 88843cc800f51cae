"""Published architectures that the numbers people usually give do not describe fully."""

from __future__ import annotations

import math
from typing import NamedTuple


class Architecture(NamedTuple):
    """One model's shape, as its maker publishes it. 0: not published, or not so built."""

    params_b: float
    active_b: float
    layers: int
    hidden: int
    vocabulary: int
    # One table both reads tokens in and chooses them; or the makers count only that of the output.
    tied: bool = False
    kv_heads: int = 0  # only where another model of that size and depth has others
    kv_bytes_per_token: float | None = None  # None: what layers, heads and their size give
    experts: int = 0
    experts_per_token: int = 0
    attention_layers: int = 0  # of a hybrid; 0: every layer attends
    window_tokens: int = 0
    window_kv_bytes_per_token: float = 0.0
    state_bytes: float = 0.0
    expert_layers: int = 0  # 0: all of a mixture's


def _dense(
    params_b: float,
    layers: int,
    hidden: int,
    vocabulary: int,
    tied: bool = False,
    kv_heads: int = 0,
) -> Architecture:
    return Architecture(params_b, params_b, layers, hidden, vocabulary, tied, kv_heads)


def _gemma3(
    params_b: float, layers: int, hidden: int, kept: float, in_windows: float
) -> Architecture:
    """Gemma 3: one layer in six sees everything, the others 1,024 tokens."""
    return _dense(params_b, layers, hidden, 262_208, True)._replace(
        kv_bytes_per_token=kept, window_tokens=1024, window_kv_bytes_per_token=in_windows
    )


def _mixture(
    params_b: float,
    active_b: float,
    layers: int,
    hidden: int,
    vocabulary: int,
    experts: int,
    per_token: int,
) -> Architecture:
    return Architecture(
        params_b,
        active_b,
        layers,
        hidden,
        vocabulary,
        experts=experts,
        experts_per_token=per_token,
    )


# From the config.json that each maker publishes on Hugging Face; parameters as on the model card.
# Sliding-window layers stand apart in the cache bytes (gpt-oss: every second layer). A Mamba
# layer's state: heads * head size * state size, in 4 bytes as the model card asks.
PUBLISHED = (
    _dense(6.74, 32, 4096, 32_000, kv_heads=32),  # meta-llama/Llama-2-7b-hf
    _dense(13.02, 40, 5120, 32_000),  # -13b-hf
    _dense(33.74, 48, 8192, 32_000),  # codellama/CodeLlama-34b-hf
    _dense(68.98, 80, 8192, 32_000),  # meta-llama/Llama-2-70b-hf
    _dense(1.24, 16, 2048, 128_256, True),  # meta-llama/Llama-3.2-1B
    _dense(3.21, 28, 3072, 128_256, True),  # -3B
    _dense(8.03, 32, 4096, 128_256),  # meta-llama/Llama-3.1-8B
    _dense(70.6, 80, 8192, 128_256),  # -70B
    _dense(405.8, 126, 16_384, 128_256),  # -405B
    _dense(7.25, 32, 4096, 32_768, kv_heads=8),  # mistralai/Mistral-7B-v0.3
    _dense(12.25, 40, 5120, 131_072),  # mistralai/Mistral-Nemo-Base-2407
    _dense(23.6, 40, 5120, 131_072),  # mistralai/Mistral-Small-24B-Base-2501
    _dense(122.6, 88, 12_288, 32_768),  # mistralai/Mistral-Large-Instruct-2407
    _dense(2.51, 18, 2048, 256_000, True),  # google/gemma-2b
    _dense(8.54, 28, 3072, 256_000, True),  # google/gemma-7b
    _dense(2.61, 26, 2304, 256_000, True),  # google/gemma-2-2b
    _dense(9.24, 42, 3584, 256_000, True),  # google/gemma-2-9b
    _dense(27.2, 46, 4608, 256_000, True),  # google/gemma-2-27b
    _gemma3(4.3, 34, 2560, 20_480, 118_784),  # google/gemma-3-4b-it
    _gemma3(12.2, 48, 3840, 65_536, 327_680),  # -12b-it
    _gemma3(27.4, 62, 5376, 81_920, 425_984),  # -27b-it
    _dense(3.82, 32, 3072, 32_064, kv_heads=32),  # microsoft/Phi-3-mini-4k-instruct
    _dense(7.39, 32, 4096, 100_352, True, kv_heads=8),  # -small-8k-instruct
    _dense(13.96, 40, 5120, 32_064, kv_heads=10),  # -medium-4k-instruct
    _dense(14.7, 40, 5120, 100_352, kv_heads=10),  # microsoft/phi-4
    _dense(0.494, 24, 896, 151_936, True),  # Qwen/Qwen2.5-0.5B
    _dense(1.54, 28, 1536, 151_936, True),  # -1.5B
    _dense(3.09, 36, 2048, 151_936, True),  # -3B
    _dense(7.62, 28, 3584, 152_064),  # -7B
    _dense(14.8, 48, 5120, 152_064),  # -14B
    _dense(32.8, 64, 5120, 152_064),  # -32B; Qwen/Qwen3-32B
    _dense(72.7, 80, 8192, 152_064),  # -72B
    _dense(0.6, 28, 1024, 151_936, True),  # Qwen/Qwen3-0.6B
    _dense(1.72, 28, 2048, 151_936, True),  # -1.7B
    _dense(4.02, 36, 2560, 151_936, True),  # -4B
    _dense(8.2, 36, 4096, 151_936),  # -8B
    _dense(14.8, 40, 5120, 151_936, kv_heads=8),  # -14B
    _dense(3.03, 30, 3072, 49_152, True),  # bigcode/starcoder2-3b
    _dense(7.17, 32, 4608, 49_152, True, kv_heads=4),  # -7b
    _dense(15.96, 40, 6144, 49_152),  # -15b
    # openai/gpt-oss-20b, -120b; their active parameters are without the input's embeddings
    _mixture(20.9, 3.6, 24, 2880, 201_088, 32, 4)._replace(
        tied=True,
        kv_bytes_per_token=24_576,
        window_tokens=128,
        window_kv_bytes_per_token=24_576,
    ),
    _mixture(116.8, 5.1, 36, 2880, 201_088, 128, 4)._replace(
        tied=True,
        kv_bytes_per_token=36_864,
        window_tokens=128,
        window_kv_bytes_per_token=36_864,
    ),
    _mixture(30.5, 3.3, 48, 2048, 151_936, 128, 8),  # Qwen/Qwen3-30B-A3B
    _mixture(235.0, 22.0, 94, 4096, 151_936, 128, 8),  # Qwen/Qwen3-235B-A22B
    _mixture(480.0, 35.0, 62, 6144, 151_936, 160, 8),  # Qwen/Qwen3-Coder-480B-A35B
    # deepseek-ai/DeepSeek-V3, -V2-Lite
    _mixture(671.0, 37.0, 61, 7168, 129_280, 256, 8)._replace(
        kv_bytes_per_token=70_272, expert_layers=58
    ),
    _mixture(15.7, 2.4, 27, 2048, 102_400, 64, 6)._replace(
        kv_bytes_per_token=31_104, expert_layers=26
    ),
    # meta-llama/Llama-4-Maverick-17B-128E, -Scout-17B-16E
    _mixture(400.0, 17.0, 48, 5120, 202_048, 128, 1)._replace(expert_layers=24),
    _mixture(109.0, 17.0, 48, 5120, 202_048, 16, 1),
    _mixture(46.7, 12.9, 32, 4096, 32_000, 8, 2),  # mistralai/Mixtral-8x7B-v0.1
    _mixture(140.6, 39.1, 56, 6144, 32_768, 8, 2),  # mistralai/Mixtral-8x22B-v0.3
    # nvidia/Nemotron-Nano-12B-v2, -9B-v2: 28 and 27 Mamba layers
    _dense(12.3, 62, 5120, 131_072)._replace(
        kv_bytes_per_token=24_576, attention_layers=6, state_bytes=28 * 128 * 80 * 128 * 4
    ),
    _dense(8.9, 56, 4480, 131_072)._replace(
        kv_bytes_per_token=16_384, attention_layers=4, state_bytes=27 * 128 * 80 * 128 * 4
    ),
)


def architecture_of(
    params_b: float, active_b: float, layers: int | None, kv_heads: int | None
) -> Architecture | None:
    """The published architecture with these numbers, the nearest in size; None: there is none."""
    found = [
        known
        for known in PUBLISHED
        if abs(math.log(params_b / known.params_b)) < _near(known)
        and abs(math.log(active_b / known.active_b)) < 0.1
        # A dense model of that size may be any; two sizes, or the layers, say which it is.
        and (layers or (known.experts and known.layers))
        in (known.layers, known.attention_layers or known.layers)
        and (not known.kv_heads or kv_heads in (None, known.kv_heads))
    ]
    return min(found, key=lambda known: abs(math.log(params_b / known.params_b)), default=None)


def _near(known: Architecture) -> float:
    """How far the parameters may be off. Where they alone name it, they must do so exactly: a
    model between two of these is of neither's kind."""
    peculiar = known.experts or known.window_tokens or known.attention_layers
    return 0.04 if peculiar else 0.003
