"""The simulated engine's metrics page, with the names of vLLM's v1 engine (0.32, 0.33)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from meters.simulated_physics import Engine, Running, Step

# Bucket bounds as on vLLM 0.32's page (recorded, see tests/recordings).
ITERATION_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
REQUEST_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
BETWEEN_TOKENS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
LATENCY_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
# The model's work as vLLM estimates it for a dense 8-billion-parameter bf16 model.
PARAMETERS = 8.03e9  # Llama-3.1-8B, model card
WEIGHT_BYTES = 2 * PARAMETERS
CONTEXT_BYTES = 131_072  # key and value of one token: 2 · 32 layers · 8 heads · 128 · 2 bytes


class Histogram:
    """Counts in buckets, as Prometheus has them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def lines(self, name: str, labels: str) -> Iterable[str]:
        total = 0
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        for bound, count in zip(names, self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {float(total)}'
        yield f"{name}_count{{{labels}}} {float(total)}"
        yield f"{name}_sum{{{labels}}} {self.sum}"


class Metrics:
    """Watches an engine's steps and renders its page."""

    def __init__(self) -> None:
        self.iteration_tokens = Histogram(ITERATION_TOKENS)
        self.first_token_s = Histogram(FIRST_TOKEN_S)
        self.between_tokens_s = Histogram(BETWEEN_TOKENS_S)
        self.latency_s = Histogram(LATENCY_S)
        self.queue_s = Histogram(LATENCY_S)
        self.prefill_s = Histogram(LATENCY_S)
        self.decode_s = Histogram(LATENCY_S)
        self.request_prompt_tokens = Histogram(REQUEST_TOKENS)
        self.request_generation_tokens = Histogram(REQUEST_TOKENS)
        self.finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self.flops = 0.0
        self.read_bytes = 0.0

    def stepped(self, step: Step) -> None:
        """Count one step that has ended."""
        tokens = step.prefilled + step.decodes + len(step.first_tokens)
        self.iteration_tokens.observe(tokens)
        if step.decodes:
            self.between_tokens_s.observe(step.end_s - step.start_s, step.decodes)
        for seq in step.first_tokens:
            self.first_token_s.observe(step.end_s - seq.job.arrival_s)
        self.flops += 2 * PARAMETERS * (step.prefilled + step.decodes)
        self.read_bytes += WEIGHT_BYTES + CONTEXT_BYTES * step.context_tokens

    def ended(self, seq: Running, reason: str) -> None:
        """Count one request that has ended for ``reason`` (stop, length, abort)."""
        self.finished[reason] += 1
        if reason == "abort" or seq.end_s is None:
            return
        job = seq.job
        self.latency_s.observe(seq.end_s - job.arrival_s)
        self.request_prompt_tokens.observe(job.prompt_tokens)
        self.request_generation_tokens.observe(seq.output_tokens)
        if seq.scheduled_s is not None and seq.first_token_s is not None:
            self.queue_s.observe(max(0.0, seq.scheduled_s - job.arrival_s))
            self.prefill_s.observe(seq.first_token_s - seq.scheduled_s)
            self.decode_s.observe(seq.end_s - seq.first_token_s)

    def page(self, engine: Engine, asleep: bool) -> str:
        """The whole page in the text exposition format."""
        config, totals = engine.config, engine.totals
        labels = f'engine="0",model_name="{config.model}"'
        waiting = float(len(engine.waiting))
        cached = float(totals.cached_prompt_tokens)
        computed = totals.prompt_tokens - cached
        queried = float(totals.prompt_tokens)
        lines = ["# This engine is simulated: no figure on this page was measured."]

        def put(name: str, kind: str, help_: str, *values: tuple[str, float]) -> None:
            lines.append(f"# HELP {name} {help_}")
            lines.append(f"# TYPE {name} {kind}")
            for extra, value in values:
                comma = "," if extra else ""
                lines.append(f"{name}{{{labels}{comma}{extra}}} {float(value)}")

        def histogram(name: str, help_: str, values: Histogram) -> None:
            lines.append(f"# HELP {name} {help_}")
            lines.append(f"# TYPE {name} histogram")
            lines.extend(values.lines(name, labels))

        put("vllm:num_requests_running", "gauge", "Requests in the batch.", ("", engine.running))
        put("vllm:num_requests_waiting", "gauge", "Requests in the queue.", ("", waiting))
        put(
            "vllm:engine_sleep_state", "gauge", "Sleep state.",
            ('sleep_state="awake"', not asleep),
            ('sleep_state="weights_offloaded"', asleep),
            ('sleep_state="discard_all"', 0),
        )  # fmt: skip
        put("vllm:kv_cache_usage_perc", "gauge", "1 means full.", ("", engine.kv_usage))
        put("vllm:prefix_cache_queries_total", "counter", "Tokens looked up.", ("", queried))
        put("vllm:prefix_cache_hits_total", "counter", "Tokens found.", ("", cached))
        put("vllm:num_preemptions_total", "counter", "Preemptions; none here.", ("", 0))
        put("vllm:prompt_tokens_total", "counter", "Prompt tokens.", ("", totals.prompt_tokens))
        put(
            "vllm:prompt_tokens_by_source_total", "counter", "Prompt tokens by source.",
            ('source="local_compute"', computed),
            ('source="local_cache_hit"', cached),
            ('source="external_kv_transfer"', 0),
        )  # fmt: skip
        put("vllm:prompt_tokens_cached_total", "counter", "Cached prompt tokens.", ("", cached))
        put(
            "vllm:generation_tokens_total", "counter", "Tokens generated.",
            ("", totals.generated_tokens),
        )  # fmt: skip
        put(
            "vllm:request_success_total", "counter", "Requests finished, by reason.",
            *((f'finished_reason="{reason}"', n) for reason, n in self.finished.items()),
        )  # fmt: skip
        put(
            "vllm:estimated_flops_per_gpu_total", "counter", "Floating point operations.",
            ("", self.flops),
        )  # fmt: skip
        put(
            "vllm:estimated_read_bytes_per_gpu_total", "counter", "Bytes read.",
            ("", self.read_bytes),
        )  # fmt: skip
        histogram("vllm:iteration_tokens_total", "Tokens per step.", self.iteration_tokens)
        histogram("vllm:time_to_first_token_seconds", "First token.", self.first_token_s)
        histogram("vllm:inter_token_latency_seconds", "Between tokens.", self.between_tokens_s)
        histogram("vllm:e2e_request_latency_seconds", "Whole request.", self.latency_s)
        histogram("vllm:request_queue_time_seconds", "In the queue.", self.queue_s)
        histogram("vllm:request_prefill_time_seconds", "In prefill.", self.prefill_s)
        histogram("vllm:request_decode_time_seconds", "In decode.", self.decode_s)
        histogram("vllm:request_prompt_tokens", "Prompt tokens.", self.request_prompt_tokens)
        histogram(
            "vllm:request_generation_tokens", "Output tokens.", self.request_generation_tokens
        )
        return "\n".join(lines) + "\n"
