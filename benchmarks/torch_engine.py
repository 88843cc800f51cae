"""A small inference engine on PyTorch with continuous batching, for recordings of real hardware.

Real shapes, random weights: energy and time of a step do not depend on what the weights say. Each
step is either one prompt's prefill or one decode step of the whole batch, and is counted as it is
done. Decode steps are captured as CUDA graphs where that works, else launched one kernel at a
time (which leaves small batches waiting for the host; the recording's header says which).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # as everybody calls it

BUCKET = 256  # KV caches are read in lengths of so many tokens
GROUP = 128  # weights that share an int4 scale


class Shape(NamedTuple):
    """A decoder-only architecture (from the models' config.json)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int


SHAPES = {
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 128, 14336, 128256),
    "qwen2.5-7b": Shape(3584, 28, 28, 4, 128, 18944, 152064),
    "tiny": Shape(256, 2, 4, 2, 64, 512, 1024),
}


class TorchEngine:
    """Serves synthetic requests of fixed length; ``counts`` says what was done so far."""

    def __init__(
        self,
        model: str,
        precision: str = "bf16",
        *,
        device: str = "cuda",
        graphs: bool = True,
        seed: int = 0,
    ) -> None:
        if precision not in ("bf16", "int4"):
            raise ValueError(f"precision is bf16 or int4, not {precision}")
        torch.manual_seed(seed)
        self.shape, self.device, self.precision = SHAPES[model], torch.device(device), precision
        self.name = f"{model} {precision}, random weights, torch {torch.__version__}"
        self.graphs = graphs and self.device.type == "cuda"
        self._layers = [self._layer() for _ in range(self.shape.layers)]
        self._embedding = self._random(self.shape.vocab, self.shape.hidden)
        self._head = self._random(self.shape.vocab, self.shape.hidden)
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(
            ("steps", "generated_tokens", "prompt_tokens", "context_steps", "running"), 0
        )

    def counts(self) -> dict[str, int]:
        """Steps, generated and prefilled tokens, cached tokens read, sequences running."""
        with self._lock:
            return dict(self._counts)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def serve(
        self,
        concurrency: int,
        prompt_tokens: int,
        output_tokens: int,
        going_on: Callable[[], bool],
    ) -> None:
        """Keep so many requests in flight until told to stop; a finished one makes room at once."""
        s = self.shape
        room = -(-(prompt_tokens + output_tokens + 1) // BUCKET) * BUCKET
        cache = torch.zeros(
            s.layers,
            2,
            concurrency,
            s.kv_heads,
            room,
            s.head_dim,
            dtype=torch.bfloat16,
            device=self.device,
        )
        tokens = torch.zeros(concurrency, 1, dtype=torch.long, device=self.device)
        lengths = [0] * concurrency
        # spread over their lives, as requests that came at different times are
        left = [1 + output_tokens * (n + 1) // concurrency for n in range(concurrency)]
        decoders: dict[int, Callable[[list[int]], None]] = {}
        while going_on():
            for slot in range(concurrency):
                if lengths[slot] == 0 and going_on():
                    self._prefill(cache, tokens, slot, prompt_tokens)
                    lengths[slot] = prompt_tokens
                    self._count(steps=1, prompt_tokens=prompt_tokens, running=concurrency)
            if not going_on():
                break
            length = -(-(max(lengths) + 1) // BUCKET) * BUCKET
            if length not in decoders:
                decoders[length] = self._decoder(cache, tokens, length)
            decoders[length](lengths)
            self._count(
                steps=1,
                generated_tokens=concurrency,
                context_steps=sum(lengths),
                running=concurrency,
            )
            for slot in range(concurrency):
                lengths[slot] += 1
                left[slot] -= 1
                if left[slot] <= 0:
                    lengths[slot], left[slot] = 0, output_tokens
        with self._lock:
            self._counts["running"] = 0

    # --- one step

    def _prefill(self, cache: Any, tokens: Any, slot: int, prompt_tokens: int) -> None:
        prompt = torch.randint(self.shape.vocab, (1, prompt_tokens), device=self.device)
        at = torch.arange(prompt_tokens, device=self.device)[None]

        def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
            cache[layer, 0, slot, :, :prompt_tokens] = k[0]
            cache[layer, 1, slot, :, :prompt_tokens] = v[0]
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        last = self._forward(prompt, at, attend)[:, -1:]
        tokens[slot] = F.linear(last, self._head).argmax(-1)
        self._wait()

    def _decoder(self, cache: Any, tokens: Any, length: int) -> Callable[[list[int]], None]:
        """One decode step of the batch, reading ``length`` cached tokens of each sequence."""
        batch = tokens.shape[0]
        at = torch.zeros(batch, dtype=torch.long, device=self.device)
        rows = torch.arange(batch, device=self.device)
        columns = torch.arange(length, device=self.device)

        def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
            cache[layer, 0][rows, :, at] = k[:, :, 0]
            cache[layer, 1][rows, :, at] = v[:, :, 0]
            keys, values = cache[layer, 0, :, :, :length], cache[layer, 1, :, :, :length]
            mask = (columns[None] <= at[:, None])[:, None, None]
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)

        def step() -> None:
            hidden = self._forward(tokens, at[:, None], attend)
            tokens.copy_(F.linear(hidden, self._head).argmax(-1))

        run = self._captured(step) if self.graphs else step

        def decode(lengths: list[int]) -> None:
            at.copy_(torch.tensor(lengths, device=self.device))
            run()
            self._wait()

        return decode

    def _captured(self, step: Callable[[], None]) -> Callable[[], None]:
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
        except RuntimeError:
            self.graphs = False  # the header will say so
            return step
        replay: Callable[[], None] = graph.replay
        return replay

    def _forward(self, tokens: Any, at: Any, attend: Callable[[int, Any, Any, Any], Any]) -> Any:
        s = self.shape
        x = F.embedding(tokens, self._embedding)
        batch, length, _ = x.shape
        turn = _rotation(at, s.head_dim)
        for n, layer in enumerate(self._layers):
            h = F.rms_norm(x, (s.hidden,))
            q, k, v = layer["qkv"](h).split(
                [s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim], dim=-1
            )
            q = _rotate(q.view(batch, length, s.heads, s.head_dim).transpose(1, 2), turn)
            k = _rotate(k.view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2), turn)
            v = v.view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
            mixed = attend(n, q, k, v).transpose(1, 2).reshape(batch, length, -1)
            x = x + layer["out"](mixed)
            gate, up = layer["in"](F.rms_norm(x, (s.hidden,))).chunk(2, dim=-1)
            x = x + layer["down"](F.silu(gate) * up)
        return F.rms_norm(x, (s.hidden,))

    # --- weights

    def _layer(self) -> dict[str, Callable[[Any], Any]]:
        s = self.shape
        heads = (s.heads + 2 * s.kv_heads) * s.head_dim
        return {
            "qkv": self._linear(heads, s.hidden),
            "out": self._linear(s.hidden, s.heads * s.head_dim),
            "in": self._linear(2 * s.inner, s.hidden),
            "down": self._linear(s.hidden, s.inner),
        }

    def _linear(self, rows: int, columns: int) -> Callable[[Any], Any]:
        if self.precision == "bf16":
            weight = self._random(rows, columns)
            return lambda x: F.linear(x, weight)
        return self._int4(rows, columns)

    def _int4(self, rows: int, columns: int) -> Callable[[Any], Any]:
        """Weight-only int4 by PyTorch's own kernel; random bits, so nothing is quantised."""
        scales = torch.full(
            (columns // GROUP, rows, 2), 0.005, dtype=torch.bfloat16, device=self.device
        )
        if self.device.type == "cuda":
            bits = torch.randint(256, (rows, columns // 2), dtype=torch.uint8, device=self.device)
            packed = torch.ops.aten._convert_weight_to_int4pack(bits, 8)
            multiply = torch.ops.aten._weight_int4pack_mm
        else:
            whole = torch.randint(16, (rows, columns), dtype=torch.int32)
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
            multiply = torch.ops.aten._weight_int4pack_mm_for_cpu

        def linear(x: Any) -> Any:
            flat = x.reshape(-1, columns)
            return multiply(flat, packed, GROUP, scales).view(*x.shape[:-1], rows)

        return linear

    def _random(self, rows: int, columns: int) -> Any:
        weight = torch.empty(rows, columns, dtype=torch.bfloat16, device=self.device)
        return weight.normal_(0, 0.02)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _count(self, running: int, **more: int) -> None:
        with self._lock:
            self._counts["running"] = running
            for name, n in more.items():
                self._counts[name] += n


def _rotation(at: Any, head_dim: int) -> tuple[Any, Any]:
    half = torch.arange(0, head_dim, 2, device=at.device, dtype=torch.float32)
    angle = at[..., None].float() * (500_000.0 ** (-half / head_dim))
    angle = torch.cat((angle, angle), dim=-1)[:, None]
    return angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)


def _rotate(x: Any, turn: tuple[Any, Any]) -> Any:
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
