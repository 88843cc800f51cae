"""Counters for /metrics. Energy in joules, time in seconds; no user or key is ever a label."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from meters.types import Attribution, UsageRecord
from proxy.flight import Flight

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Telemetry:
    """The metrics of one process. Implements accounts.Observer."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self.requests = Counter(
            "joulegate_requests",
            "Finished requests.",
            ["team", "backend", "status", "outcome", "cache"],
            registry=registry,
        )
        self.tokens = Counter(
            "joulegate_tokens",
            "Tokens, as the upstream counted them.",
            ["team", "backend", "kind"],
            registry=registry,
        )
        self.estimated = Counter(
            "joulegate_estimated_energy_joules",
            "Energy of finished requests as estimated when they were sent.",
            ["team", "backend", "evidence"],
            registry=registry,
        )
        self.metered = Counter(
            "joulegate_window_energy_joules",
            "Energy of closed windows, by what became of it.",
            ["node", "part", "evidence"],
            registry=registry,
        )
        self.latency = Histogram(
            "joulegate_request_duration_seconds",
            "From a request's arrival to its last byte.",
            ["backend"],
            buckets=SECONDS,
            registry=registry,
        )
        self.ttft = Histogram(
            "joulegate_time_to_first_token_seconds",
            "From a request's arrival to the first event of its stream.",
            ["backend"],
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "joulegate_requests_in_flight", "Requests being served now.", registry=registry
        )
        self.healthy = Gauge(
            "joulegate_backend_healthy",
            "1 where a backend answers, 0 while it is left alone.",
            ["backend"],
            registry=registry,
        )
        self.backlog = Gauge(
            "joulegate_journal_backlog_bytes",
            "Finished requests that are in the journal and not yet in the ledger.",
            registry=registry,
        )
        self.imbalance = Gauge(
            "joulegate_ledger_imbalance_joules",
            "Metered energy less all that it was divided into; reads zero.",
            registry=registry,
        )
        self.simulated = Gauge(
            "joulegate_simulated_backends", "Backends whose energy is made up.", registry=registry
        )
        self.degraded = Gauge(
            "joulegate_degraded",
            "1 while something Joulegate can live without is gone.",
            ["part"],
            registry=registry,
        )

        self.failed_keys = Counter(
            "joulegate_failed_keys", "Keys that were looked up and not good.", registry=registry
        )

        # prometheus_client looks children up under a lock, by texts made anew each time
        self._requests_of = lru_cache(4096)(self.requests.labels)
        self._tokens_of = lru_cache(4096)(self.tokens.labels)
        self._estimated_of = lru_cache(4096)(self.estimated.labels)
        self._latency_of = lru_cache(4096)(self.latency.labels)
        self._ttft_of = lru_cache(4096)(self.ttft.labels)

    def request(self, flight: Flight, record: UsageRecord) -> None:
        """Count a finished request."""
        backend = record.backend or ""
        self._requests_of(
            record.team, backend, str(record.status), record.outcome, record.cache
        ).inc()
        if record.usage_source != "unknown":
            if record.prompt_tokens is not None:
                self._tokens_of(record.team, backend, "prompt").inc(record.prompt_tokens)
            if record.cached_prompt_tokens:
                self._tokens_of(record.team, backend, "cached").inc(record.cached_prompt_tokens)
            if record.output_tokens is not None:
                self._tokens_of(record.team, backend, "output").inc(record.output_tokens)
        if record.energy_j and record.backend:
            self._estimated_of(record.team, backend, record.evidence.value).inc(record.energy_j)
        if record.latency_s is not None and record.backend:
            self._latency_of(backend).observe(record.latency_s)
        if record.ttft_s is not None:
            self._ttft_of(backend).observe(record.ttft_s)

    def divided(self, attribution: Attribution) -> None:
        """Count a divided window."""
        node, evidence = attribution.node, attribution.evidence.value
        parts = {
            "requests": sum(share.energy_j for share in attribution.shares),
            "idle": attribution.idle_j,
            "external": attribution.external_j,
            "unattributed": attribution.unattributed_j,
        }
        for part, energy_j in parts.items():
            if energy_j > 0:
                self.metered.labels(node, part, evidence).inc(energy_j)
