"""Counters for /metrics. Energy in joules, time in seconds; no user or key is ever a label."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from meters.types import Attribution, UsageRecord
from proxy.flight import Flight
from proxy.tallies import Spread, Tally

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Telemetry:
    """The metrics of one process. Implements accounts.Observer."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self.requests = Tally(
            "joulegate_requests",
            "Finished requests.",
            ["team", "backend", "status", "outcome", "cache"],
            registry,
        )
        self.tokens = Tally(
            "joulegate_tokens",
            "Tokens, as the upstream counted them.",
            ["team", "backend", "kind"],
            registry,
        )
        self.estimated = Tally(
            "joulegate_estimated_energy_joules",
            "Energy of finished requests as estimated when they were sent.",
            ["team", "backend", "evidence"],
            registry,
        )
        self.metered = Tally(
            "joulegate_window_energy_joules",
            "Energy of closed windows, by what became of it.",
            ["node", "part", "evidence"],
            registry,
        )
        self.latency = Spread(
            "joulegate_request_duration_seconds",
            "From a request's arrival to its last byte.",
            ["backend"],
            SECONDS,
            registry,
        )
        self.ttft = Spread(
            "joulegate_time_to_first_token_seconds",
            "From a request's arrival to the first event of its stream.",
            ["backend"],
            SECONDS,
            registry,
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

        self.thresholds = Tally(
            "joulegate_budget_thresholds",
            "Budgets that passed a threshold, each counted once a period by each replica.",
            ["holder", "metric", "per", "threshold"],
            registry,
        )
        self.failed_keys = Tally(
            "joulegate_failed_keys", "Keys that were looked up and not good.", [], registry
        )
        self.judged = Tally(
            "joulegate_judged",
            "Requests sampled for judging, by what became of them.",
            ["outcome"],
            registry,
        )
        self.of_batches = Tally(
            "joulegate_batch_requests",
            "Requests of batches with a result, by whether it is an answer.",
            ["outcome"],
            registry,
        )

    def request(self, flight: Flight, record: UsageRecord) -> None:
        """Count a finished request."""
        team, backend = record.team, record.backend or ""
        self.requests.add((team, backend, str(record.status), record.outcome, record.cache))
        if record.usage_source != "unknown":
            if record.prompt_tokens is not None:
                self.tokens.add((team, backend, "prompt"), record.prompt_tokens)
            if record.cached_prompt_tokens:
                self.tokens.add((team, backend, "cached"), record.cached_prompt_tokens)
            if record.output_tokens is not None:
                self.tokens.add((team, backend, "output"), record.output_tokens)
        if record.energy_j and record.backend:
            self.estimated.add((team, backend, record.evidence.value), record.energy_j)
        if record.latency_s is not None and record.backend:
            self.latency.observe((backend,), record.latency_s)
        if record.ttft_s is not None:
            self.ttft.observe((backend,), record.ttft_s)

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
                self.metered.add((node, part, evidence), energy_j)
