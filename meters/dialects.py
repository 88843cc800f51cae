"""What inference engines call their counters: one table, one row a dialect. Pure.

The rows were written from vLLM 0.32's own page (tests/recordings/engines) and 0.33's list, from
llama.cpp's own page, and, where no such engine was at hand, from their sources and manuals:
SGLang docs/references/production_metrics and srt metrics collector; TensorRT-LLM
tensorrt_llm/metrics/collector.py; TGI docs/reference/metrics; vLLM 0.5-0.8
docs/serving/metrics. Names drift between versions, so each field has alternatives, best first.
"""

from __future__ import annotations

from typing import NamedTuple

# One alternative: series to add up, "name" or "name{label=value}". A field is a tuple of them.
Alternatives = tuple[str, ...]


class Dialect(NamedTuple):
    """One engine's names. ``late`` fields move only when a request ends: no use in windows."""

    name: str
    prefix: str  # what its series begin with
    prompt_tokens: Alternatives = ()  # cached ones included
    cached_prompt_tokens: Alternatives = ()
    generated_tokens: Alternatives = ()
    steps: Alternatives = ()
    running: Alternatives = ()
    waiting: Alternatives = ()
    kv_usage: Alternatives = ()
    awake: Alternatives = ()
    flops: Alternatives = ()
    read_bytes: Alternatives = ()
    late: tuple[str, ...] = ()
    marks: Alternatives = ()  # names that only this dialect has, where a prefix is shared
    metrics_path: str = "/metrics"
    version_path: str | None = None  # answers JSON
    version_key: str = "version"


DIALECTS: dict[str, Dialect] = {
    d.name: d
    for d in (
        # Counts as it goes. prefix_cache_hits counts a waiting request again each time it is
        # looked at, so it comes last.
        Dialect(
            name="vllm",
            prefix="vllm:",
            prompt_tokens=("vllm:prompt_tokens", "vllm:prompt_tokens_by_source"),
            cached_prompt_tokens=(
                "vllm:prompt_tokens_by_source{source=local_cache_hit}"
                "+vllm:prompt_tokens_by_source{source=external_kv_transfer}",
                "vllm:prompt_tokens_cached",
                "vllm:prefix_cache_hits",
                "vllm:gpu_prefix_cache_hits",
            ),
            generated_tokens=("vllm:generation_tokens",),
            # a histogram whose name ends in _total
            steps=("vllm:iteration_tokens_total_count", "vllm:iteration_tokens_count"),
            running=("vllm:num_requests_running",),
            waiting=("vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason"),
            kv_usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
            awake=("vllm:engine_sleep_state{sleep_state=awake}",),
            flops=("vllm:estimated_flops_per_gpu",),
            read_bytes=("vllm:estimated_read_bytes_per_gpu",),
            version_path="/version",
        ),
        # Swapped-out requests wait too. Prefix-cache hits were a rate only: unknown here.
        Dialect(
            name="vllm-v0",
            prefix="vllm:",
            prompt_tokens=("vllm:prompt_tokens",),
            generated_tokens=("vllm:generation_tokens",),
            steps=("vllm:iteration_tokens_total_count", "vllm:iteration_tokens_count"),
            running=("vllm:num_requests_running",),
            waiting=("vllm:num_requests_waiting+vllm:num_requests_swapped",),
            kv_usage=("vllm:gpu_cache_usage_perc",),
            marks=("vllm:num_requests_swapped", "vllm:cpu_cache_usage_perc"),
            version_path="/version",
        ),
        # prompt_ and generation_tokens_total wait for a request's end; realtime_tokens_total
        # moves with each log interval (--decode-log-interval, 40 decode steps).
        Dialect(
            name="sglang",
            prefix="sglang:",
            prompt_tokens=(
                "sglang:realtime_tokens{mode=prefill_compute}"
                "+sglang:realtime_tokens{mode=prefill_cache}",
                "sglang:prompt_tokens",
            ),
            cached_prompt_tokens=(
                "sglang:realtime_tokens{mode=prefill_cache}",
                "sglang:cached_tokens",
            ),
            generated_tokens=("sglang:realtime_tokens{mode=decode}", "sglang:generation_tokens"),
            running=("sglang:num_running_reqs",),
            waiting=("sglang:num_queue_reqs",),
            kv_usage=("sglang:token_usage",),
            flops=("sglang:estimated_flops_per_gpu",),
            read_bytes=("sglang:estimated_read_bytes_per_gpu",),
            late=("sglang:prompt_tokens", "sglang:cached_tokens", "sglang:generation_tokens"),
            version_path="/get_server_info",
        ),
        # Needs return_perf_metrics: true. Its plain /metrics is JSON, not a Prometheus page.
        # The colon is what NVIDIA Dynamo writes, the underscore what trtllm-serve does.
        Dialect(
            name="tensorrt-llm",
            prefix="trtllm:",
            prompt_tokens=("trtllm:prompt_tokens",),
            cached_prompt_tokens=("trtllm:prompt_cached_tokens",),
            generated_tokens=("trtllm:generation_tokens",),
            running=("trtllm:num_requests_running",),
            waiting=("trtllm:num_requests_waiting",),
            kv_usage=("trtllm:kv_cache_utilization",),
            late=(
                "trtllm:prompt_tokens",
                "trtllm:prompt_cached_tokens",
                "trtllm:generation_tokens",
            ),
            metrics_path="/prometheus/metrics",
            version_path="/version",
        ),
        # Token counts exist only as sums of per-request histograms.
        Dialect(
            name="tgi",
            prefix="tgi_",
            prompt_tokens=("tgi_request_input_length_sum",),
            generated_tokens=("tgi_request_generated_tokens_sum",),
            steps=("tgi_batch_inference_count",),
            running=("tgi_batch_current_size",),
            waiting=("tgi_queue_size",),
            late=("tgi_request_generated_tokens_sum", "tgi_request_input_length_sum"),
            version_path="/info",
        ),
        # Its prompt counter leaves cached tokens out; tokens_predicted moves at a request's end.
        Dialect(
            name="llama.cpp",
            prefix="llamacpp:",
            prompt_tokens=("llamacpp:prompt_tokens+llamacpp:prompt_tokens_cached",),
            cached_prompt_tokens=("llamacpp:prompt_tokens_cached",),
            generated_tokens=("llamacpp:tokens_predicted",),
            steps=("llamacpp:n_decode",),
            running=("llamacpp:requests_processing",),
            waiting=("llamacpp:requests_deferred",),
            kv_usage=("llamacpp:kv_cache_usage_ratio",),
            late=("llamacpp:tokens_predicted",),
            version_path="/props",
            version_key="build_info",
        ),
    )
}
