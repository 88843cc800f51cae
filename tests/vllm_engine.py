"""vLLM itself, on the CPU, with a tiny llama of random weights made on the spot.

Needs ``.venv-vllm`` (``python -m tests.prepare --vllm``) and one to two minutes to start, so its
tests are marked ``vllm`` and run apart: ``make test-vllm``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.llama_cpp import CHAT_TEMPLATE, Engine, byte_letters
from tests.prepare import vllm_python

LAYERS, WIDTH, HEADS, FEED_FORWARD, CONTEXT = 2, 128, 2, 256, 1024
HEAD_WIDTH = 64  # smaller ones end vLLM's CPU attention
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL)
START_WITHIN_S = 300
FLAGS = (
    "--dtype=bfloat16",
    f"--max-model-len={CONTEXT}",
    "--max-num-seqs=16",
    "--enforce-eager",
    "--enable-per-request-metrics",
    "--enable-prompt-tokens-details",
    "--enable-force-include-usage",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
)


@pytest.fixture(scope="session")
def vllm_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """vLLM serving chat and plain completions as ``tiny-random``."""
    python = vllm_python()
    if python is None:
        pytest.skip("needs .venv-vllm: python -m tests.prepare --vllm")
    yield from serve(tmp_path_factory.mktemp("vllm"), python)


def serve(folder: Path, python: Path) -> Iterator[Engine]:
    """Start vLLM in a session of its own; everything it started ends with it."""
    model = folder / "tiny-random"
    write_model(model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", f"--model={model}"]
    command += ["--served-model-name=tiny-random", "--host=127.0.0.1", f"--port={port}", *FLAGS]
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,  # its engine core is a process too: both end together
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_healthy(address, process, log)
        yield Engine(address, "tiny-random", process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def _wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, f"vLLM ended:\n{log.read_text()[-6000:]}"
            assert time.monotonic() < deadline_s, f"vLLM is not ready:\n{log.read_text()[-6000:]}"
            time.sleep(0.2)  # between two looks at another process that cannot call us


def write_model(folder: Path, seed: int = 7) -> None:
    """A folder as model hubs have them: weights, configuration, tokenizer, chat template."""
    folder.mkdir()
    _write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": WIDTH,
            "intermediate_size": FEED_FORWARD,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "head_dim": HEAD_WIDTH,
            "hidden_act": "silu",
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "vocab_size": VOCABULARY,
            "bos_token_id": 256,
            "eos_token_id": 258,
            "torch_dtype": "bfloat16",
        },
    )
    special = [
        {
            "id": 256 + index,
            "content": content,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for index, content in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    _write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": special,
            "pre_tokenizer": byte_level | {"use_regex": True},
            "decoder": byte_level | {"use_regex": True},
            "model": {
                "type": "BPE",
                "vocab": {t: i for i, t in enumerate((*byte_letters(), *SPECIAL))},
                "merges": [],
            },
        },
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[2],
            "model_max_length": CONTEXT,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write_weights(folder / "model.safetensors", seed)


def _write_weights(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }
    for layer in range(LAYERS):
        block = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}{norm}.weight"] = (WIDTH,)
        for part in "qkvo":
            shapes[f"{block}self_attn.{part}_proj.weight"] = (WIDTH, WIDTH)
        shapes[f"{block}mlp.gate_proj.weight"] = (FEED_FORWARD, WIDTH)
        shapes[f"{block}mlp.up_proj.weight"] = (FEED_FORWARD, WIDTH)
        shapes[f"{block}mlp.down_proj.weight"] = (WIDTH, FEED_FORWARD)
    header: dict[str, object] = {}
    body = bytearray()
    for name, shape in shapes.items():
        values = np.ones(shape) if len(shape) == 1 else random.normal(0.0, 0.05, shape)
        start = len(body)
        body += values.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(body)]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1))
