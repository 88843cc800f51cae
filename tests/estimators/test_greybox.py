"""The physics with free constants: what must hold whatever the constants are."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from estimators.greybox import MIDDLES, cases, physics, static_row
from estimators.hardware import GPUS
from estimators.types import Backend, ModelFacts

QWEN_8B = ModelFacts(params_b=8.2, layers=36, kv_heads=8, head_dim=128)


def prefill_s(backend: Backend, *prompts: float) -> list[float]:
    """Seconds to calculate prompts of these lengths."""
    static = static_row(backend)
    assert static is not None
    lengths = np.array(prompts)
    some = cases(
        [static] * len(prompts), np.ones(len(prompts)), lengths, np.full(len(prompts), 9.0)
    )
    return [float(value) for value in physics(MIDDLES, some).prefill_s]


def test_a_prompts_attention_gains_nothing_from_faster_products_of_weights() -> None:
    gpu = GPUS["RTX-5090"]
    faster = msgspec.structs.replace(gpu, fp4_tflops=10.0 * (gpu.fp4_tflops or 0.0))
    beyond = []
    linear = []
    for card in (gpu, faster):
        backend = Backend(name="b", group="b", precision="nvfp4", gpu=card, model=QWEN_8B)
        none, short, long = prefill_s(backend, 0.0, 16_000.0, 32_000.0)
        square = (long - 2.0 * short + none) / 2.0  # of 16,000 tokens, what grows quadratically
        beyond.append(square)
        linear.append(short - none - square)
    assert beyond[0] == pytest.approx(beyond[1], rel=1e-6)
    assert beyond[0] > 0.0
    assert linear[1] == pytest.approx(linear[0] / 10.0, rel=1e-6)
