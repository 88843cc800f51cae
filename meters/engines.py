"""What inference engines call their counters: one table, one row a dialect.

Pure. ``parse`` turns a metrics page into EngineCounters; ``difference`` turns two of them into
what the engine did in between, and notices a restart. What an engine does not say is None.

The rows were written from vLLM 0.32's own page (tests/recordings/engines) and 0.33's list, from
llama.cpp's own page, and, where no such engine was at hand, from their sources and manuals:
SGLang docs/references/production_metrics and srt metrics collector; TensorRT-LLM
tensorrt_llm/metrics/collector.py; TGI docs/reference/metrics; vLLM 0.5-0.8
docs/serving/metrics. Names drift between versions, so each field has alternatives, best first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from meters.prometheus import Series, Wanted
from meters.types import EngineCounters

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

_COUNTERS = ("prompt_tokens", "cached_prompt_tokens", "generated_tokens", "steps")
_WORK = ("flops", "read_bytes")
_GAUGES = ("running", "waiting")
# Ranks of one engine that each tell of the same requests; the other labels are other engines.
_SAME_WORK = frozenset({"tp_rank", "pp_rank", "moe_ep_rank"})
_STARTED = "process_start_time_seconds"


class UnknownPage(ValueError):
    """Not a metrics page of an engine in the table; the message says what to do."""


class EngineDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine did between two looks at it. None where it does not say."""

    seconds: float
    prompt_tokens: float | None = None
    cached_prompt_tokens: float | None = None
    generated_tokens: float | None = None
    steps: float | None = None
    flops: float | None = None
    read_bytes: float | None = None
    running: float | None = None  # mean of the two looks
    waiting: float | None = None


def detect(page: str | bytes) -> str | None:
    """The dialect a page is written in, or None."""
    data = page.encode() if isinstance(page, str) else page
    for dialect in sorted(DIALECTS.values(), key=lambda d: not d.marks):
        if not _begins(dialect.prefix).search(data):
            continue
        if not dialect.marks or any(_begins(mark).search(data) for mark in dialect.marks):
            return dialect.name
    return None


def parse(page: str | bytes, dialect: str = "auto", *, at_s: float = 0.0) -> EngineCounters:
    """The counters on an engine's metrics page, added up over its label sets.

    ``at_s`` is the reader's monotonic clock. Raises UnknownPage where ``dialect`` is "auto" and
    no engine of the table wrote this page, or where ``dialect`` is not in the table.
    """
    data = page.encode() if isinstance(page, str) else page
    name = detect(data) if dialect == "auto" else dialect
    if name is None:
        raise UnknownPage(_advice(data))
    reader = _READERS.get(name)
    if reader is None:
        raise UnknownPage(f"No engine dialect {name!r}; known: auto, {', '.join(DIALECTS)}.")
    return reader.read(data, at_s)


def difference(before: EngineCounters, after: EngineCounters) -> EngineDelta | None:
    """What the engine did between two looks; None when it restarted in between.

    A restart is a later process start, or any counter that went down: what was counted before
    it is then unknowable, and is not guessed. Late counters give None.
    """
    if restarted(before, after):
        return None
    changes: dict[str, float | None] = {}
    for field in (*_COUNTERS, *_WORK):
        old, new = getattr(before, field), getattr(after, field)
        late = field in before.late or field in after.late
        changes[field] = None if late or old is None or new is None else new - old
    for field in _GAUGES:
        seen = [v for v in (getattr(before, field), getattr(after, field)) if v is not None]
        changes[field] = sum(seen) / len(seen) if seen else None
    return EngineDelta(seconds=after.at_s - before.at_s, **changes)


def restarted(before: EngineCounters, after: EngineCounters) -> bool:
    """Whether another process answered the second time."""
    known = before.started_s is not None and after.started_s is not None
    # llama.cpp gives whole seconds, prometheus_client hundredths
    if known and abs(after.started_s - before.started_s) > 1.0:  # type: ignore[operator]
        return True
    if before.version and after.version and before.version != after.version:
        return True
    for field in (*_COUNTERS, *_WORK):
        old, new = getattr(before, field), getattr(after, field)
        if old is not None and new is not None and new < old:
            return True
    return False


class _Term(NamedTuple):
    name: str
    label: str | None
    value: str | None


class _Reader:
    """One dialect's row, compiled."""

    def __init__(self, dialect: Dialect) -> None:
        self._fields: dict[str, list[list[_Term]]] = {}
        for field in (*_COUNTERS, *_WORK, *_GAUGES, "kv_usage", "awake"):
            alternatives: Alternatives = getattr(dialect, field)
            self._fields[field] = [[_term(t) for t in a.split("+")] for a in alternatives]
        self._late = frozenset(dialect.late)
        names = {t.name for a in self._fields.values() for terms in a for t in terms}
        # a counter's _total comes and goes with the exporter's version
        self._spelt = {name: name for name in names} | {f"{name}_total": name for name in names}
        self._wanted = Wanted([*self._spelt, _STARTED])

    def read(self, page: bytes, at_s: float) -> EngineCounters:
        found: dict[str, list[Series]] = defaultdict(list)
        started: float | None = None
        for series in self._wanted.read(page):
            if series.name == _STARTED:
                started = series.value
            else:
                found[self._spelt[series.name]].append(series)
        values: dict[str, Any] = {}
        late: list[str] = []
        for field, alternatives in self._fields.items():
            values[field] = None
            for terms in alternatives:
                total = _total(found, terms, mean=field in ("kv_usage", "awake"))
                if total is not None:
                    values[field] = total
                    if any(t.name in self._late for t in terms):
                        late.append(field)
                    break
        awake = values.pop("awake")
        for field in _WORK:
            if values[field] == 0 and values["generated_tokens"]:
                values[field] = None  # exported, but not counted (vLLM: --enable-mfu-metrics)
        return EngineCounters(
            at_s=at_s,
            asleep=None if awake is None else awake == 0,
            started_s=started,
            late=tuple(late),
            **values,
        )


def _total(found: dict[str, list[Series]], terms: Iterable[_Term], mean: bool) -> float | None:
    """The terms added up; None when none of them is on the page."""
    values: list[float] = []
    for term in terms:
        groups: dict[tuple[tuple[str, str], ...], float] = {}
        for series in found.get(term.name, ()):
            if term.label is not None and series.labels.get(term.label) != term.value:
                continue
            group = tuple(sorted((k, v) for k, v in series.labels.items() if k not in _SAME_WORK))
            groups[group] = max(series.value, groups.get(group, series.value))
        values.extend(groups.values())
    if not values:
        return None
    return sum(values) / len(values) if mean else sum(values)


def _term(text: str) -> _Term:
    name, _, condition = text.partition("{")
    if not condition:
        return _Term(name, None, None)
    label, _, value = condition.rstrip("}").partition("=")
    return _Term(name, label, value)


def _begins(name: str) -> re.Pattern[bytes]:
    return re.compile(b"^" + re.escape(name.encode()).replace(b":", b"[:_]"), re.MULTILINE)


def _advice(page: bytes) -> str:
    if page.lstrip()[:1] in (b"[", b"{"):
        return (
            "This page is JSON, not Prometheus text. TensorRT-LLM serves its Prometheus page at "
            "/prometheus/metrics, when started with return_perf_metrics: true."
        )
    known = ", ".join(DIALECTS)
    return (
        f"No engine of the table ({known}) wrote this page. Check the metrics URL; SGLang needs "
        "--enable-metrics and llama.cpp needs --metrics."
    )


_READERS: dict[str, _Reader] = {name: _Reader(dialect) for name, dialect in DIALECTS.items()}


def names(dialect: str) -> Sequence[str]:
    """The series a dialect looks for, for messages and documents."""
    row = DIALECTS[dialect]
    fields = (*_COUNTERS, *_WORK, *_GAUGES, "kv_usage", "awake")
    return [a for field in fields for a in getattr(row, field)]
