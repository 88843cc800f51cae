"""llama.cpp's own C++ server on a tiny model with random weights, made on the spot.

An inference engine that we did not write: real templates, sampling, grammars, streams and
metrics, ready in a second on any CPU. What it says is noise.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

LAYERS, WIDTH, HEADS, FEED_FORWARD, CONTEXT = 2, 64, 2, 128, 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOL_CALL = "<tool_call>\n"
# A grammar lets a model talk before it calls a tool, and random weights would talk for long: a
# client that wants one call at once says ``logit_bias=CALL_AT_ONCE``.
CALL_AT_ONCE = {"258": 100, "259": 50}  # <|im_end|> where the grammar allows it, else TOOL_CALL
# Tools are shown and called as Hermes models do: llama.cpp learns the syntax from the template.
CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
Call functions so: <tool_call>
{"name": "...", "arguments": {}}
</tool_call>
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor -%}
</tools><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content or "" }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@dataclass(frozen=True)
class Engine:
    """A running engine: where it answers, and the model name it answers to."""

    address: str  # http://127.0.0.1:PORT
    model: str
    pid: int

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as ``base_url``."""
        return f"{self.address}/v1"


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """llama.cpp serving chat and plain completions, with tools, grammars and metrics."""
    yield from serve(tmp_path_factory.mktemp("llama_cpp"), embeddings=False)


@pytest.fixture(scope="session")
def llama_cpp_embeddings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """llama.cpp serving embeddings."""
    yield from serve(tmp_path_factory.mktemp("llama_cpp_embeddings"), embeddings=True)


def serve(folder: Path, *, embeddings: bool) -> Iterator[Engine]:
    """Start a server in a process of its own; it ends with this one, however this one ends."""
    model = folder / "tiny-random.gguf"
    write_model(model)
    command = [sys.executable, "-m", "tests.llama_cpp", str(model), *["embeddings"] * embeddings]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=Path(__file__).resolve().parent.parent,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = ""
        for line in process.stdout:  # the C++ side may print there before
            if line.startswith(b"listening "):
                address = line.split()[1].decode()
                break
        assert address, f"llama.cpp did not start:\n{(folder / 'log.txt').read_text()[-4000:]}"
        yield Engine(address, "tiny-random", process.pid)
    finally:
        process.kill()  # it has nothing to save
        process.wait()
        process.stdin.close()
        process.stdout.close()


def write_model(path: Path, seed: int = 7) -> None:
    """A llama of two layers with random weights and a byte-level vocabulary, as GGUF."""
    import gguf  # only where an engine is really started

    random = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return random.normal(0.0, 0.05, shape).astype(np.float32)

    tokens = [*byte_letters(), *SPECIAL, TOOL_CALL]
    kinds = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * len(SPECIAL)
    kinds += [gguf.TokenType.USER_DEFINED]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny-random")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])  # the loader insists on a list that is not empty
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_chat_template(CHAT_TEMPLATE)
    writer.add_tensor("token_embd.weight", weights(len(tokens), WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output.weight", weights(len(tokens), WIDTH))
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{norm}.weight", np.ones(WIDTH, np.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"{block}{part}.weight", weights(WIDTH, WIDTH))
        writer.add_tensor(f"{block}ffn_gate.weight", weights(FEED_FORWARD, WIDTH))
        writer.add_tensor(f"{block}ffn_up.weight", weights(FEED_FORWARD, WIDTH))
        writer.add_tensor(f"{block}ffn_down.weight", weights(WIDTH, FEED_FORWARD))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_letters() -> list[str]:
    """One printable letter for each byte, as byte-level BPE vocabularies write them."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(256, 512))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


def main() -> None:
    """Serve the model named first on a free port until standard input closes."""
    import xllamacpp  # a 34 MB library: only in the server's own process

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.model_alias = {"tiny-random"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = CONTEXT * 4
    params.n_parallel = 4
    params.n_threads_http = 8
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.use_jinja = True
    params.endpoint_metrics = True
    params.embedding = "embeddings" in sys.argv[2:]
    if params.embedding:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    print("listening", server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # the C++ threads have nothing to save


if __name__ == "__main__":
    main()
