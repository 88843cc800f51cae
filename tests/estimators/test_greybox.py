"""The physics with free constants: what must hold whatever the constants are."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import pytest

from estimators.greybox import MIDDLES, NAMES, Array, Physics, cases, physics, static_row
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


def busy_step(backend: Backend, constants: Array = MIDDLES) -> Physics:
    """A step of 64 sequences; times in seconds."""
    static = static_row(backend)
    assert static is not None
    return physics(
        constants, cases([static], np.array([64.0]), np.array([200.0]), np.array([400.0]))
    )


def test_attention_heads_are_dealt_out_to_the_gpus() -> None:
    one = Backend(name="b", group="b", gpu=GPUS["H100-SXM"], model=QWEN_8B)
    constants = MIDDLES.copy()
    constants[NAMES.index("worker_part")] = -50.0  # host code, which only grows
    held_s = [
        float(busy_step(msgspec.structs.replace(one, num_gpus=gpus), constants).held_s[0])
        for gpus in (1, 2, 4)
    ]
    assert held_s[0] - held_s[1] == pytest.approx(2.0 * (held_s[1] - held_s[2]), rel=1e-6)
    assert held_s[0] > held_s[1]


def test_the_table_that_reads_tokens_in_is_not_read_again_in_a_step() -> None:
    tied = msgspec.structs.replace(QWEN_8B, tied_embeddings=True)
    memory_s = [
        float(
            busy_step(Backend(name="b", group="b", gpu=GPUS["H100-SXM"], model=model)).memory_s[0]
        )
        for model in (QWEN_8B, tied)
    ]
    spared = (memory_s[1] - memory_s[0]) * 3.35e12 * np.exp(MIDDLES[0])
    assert spared == pytest.approx(2.0 * 151_936 * 4096, rel=1e-6)


def test_while_the_first_engines_host_launches_layers_its_gpu_waits() -> None:
    slower = MIDDLES.copy()
    slower[NAMES.index("layer_s")] += np.log(2.0)
    drawn = []
    for version in ("0.5.4", "0.11.1"):
        backend = Backend(
            name="b",
            group="b",
            engine="vllm",
            engine_version=version,
            gpu=GPUS["H100-SXM"],
            model=QWEN_8B,
        )
        one, two = busy_step(backend), busy_step(backend, slower)
        joules = np.exp(two.log_energy) - np.exp(one.log_energy)
        drawn.append(float((joules / (np.exp(two.log_time) - np.exp(one.log_time)))[0]) / 700.0)
    assert drawn[0] == pytest.approx(np.exp(MIDDLES[NAMES.index("wait_share")]), rel=0.05)
    assert drawn[1] == pytest.approx(np.exp(MIDDLES[NAMES.index("busy_share")]), rel=0.05)


def test_the_first_engines_host_takes_longer_with_every_doubling_of_the_gpus() -> None:
    held_s = []
    for gpus in (1, 2, 4, 8):
        backend = Backend(
            name="b",
            group="b",
            engine="vllm",
            engine_version="0.5.4",
            gpu=GPUS["H100-SXM"],
            num_gpus=gpus,
            model=QWEN_8B,
        )
        # Attention's heads are dealt out to the GPUs; without them only host code is left to grow.
        constants = MIDDLES.copy()
        constants[NAMES.index("head_s")] = -50.0
        held_s.append(float(busy_step(backend, constants).held_s[0]))
    more = [b - a for a, b in pairwise(held_s)]
    assert more == pytest.approx([more[0]] * 3, rel=1e-6)
    host_s = np.exp(MIDDLES[NAMES.index("host_s")]) + 64.0 * np.exp(
        MIDDLES[NAMES.index("sequence_s")]
    )
    assert more[0] == pytest.approx(np.exp(MIDDLES[NAMES.index("worker_part")]) * host_s, rel=1e-6)


def test_weights_of_fewer_bits_are_still_worked_with() -> None:
    # Constants under which only reading, and working with what is read, draws power.
    constants = MIDDLES.copy()
    for name in NAMES:
        if name.endswith("_share") and name != "memory_share":
            constants[NAMES.index(name)] = -50.0
    read = constants.copy()
    read[NAMES.index("operand_part")] = -50.0
    joules = {}
    for precision in ("bf16", "int4-awq"):
        one = Backend(
            name="b", group="b", precision=precision, gpu=GPUS["A100-80GB-SXM"], model=QWEN_8B
        )
        for name, values in (("worked", constants), ("read", read)):
            joules[precision, name] = float(np.exp(busy_step(one, values).log_energy[0]))
    more = [joules[p, "worked"] - joules[p, "read"] for p in ("bf16", "int4-awq")]
    assert more[0] == pytest.approx(more[1], rel=1e-3)
    assert joules["int4-awq", "read"] < 0.5 * joules["bf16", "read"]
    part = np.exp(MIDDLES[NAMES.index("operand_part")])
    assert more[0] == pytest.approx(part * joules["bf16", "read"], rel=0.1)
