"""One line in the log for each finished request: who, where to, what became of it. No content."""

from __future__ import annotations

import logging

from meters.types import UsageRecord

log = logging.getLogger("joulegate.requests")


def line_of(record: UsageRecord) -> str:
    """A record as ``name=value`` pairs; what is unknown is left out. Nothing in it breaks lines,
    although clients choose model names and tags."""
    told: dict[str, object] = {
        "team": record.team,
        "endpoint": record.endpoint,
        "model": record.model_asked,
        "backend": record.backend,
        "policy": record.policy,
        "status": record.status,
        "outcome": record.outcome,
        "error": record.error_code,
        "cache": record.cache,
        "attempts": record.attempts,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "ttft_s": _short(record.ttft_s),
        "latency_s": _short(record.latency_s),
        "estimated_energy_j": _short(record.energy_j),
        "evidence": record.evidence.value,
    }
    pairs = [f"{name}={_one_word(value)}" for name, value in told.items() if value is not None]
    return f"{record.request_id} {' '.join(pairs)}"


def write(record: UsageRecord) -> None:
    """Put the line into the log."""
    log.info("%s", line_of(record))


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _one_word(value: object) -> str:
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text else repr(text)
