"""Records, windows and attributions to keep books of, for tests."""

from __future__ import annotations

from typing import Any

from meters.types import Attribution, Evidence, Share, UsageRecord, Window

NOON_S = 1_790_000_000.0 // 3600 * 3600  # some full hour


def record(number: int | str = 1, **fields: Any) -> UsageRecord:
    values: dict[str, Any] = {
        "request_id": f"req-{number}",
        "start_s": NOON_S + 10.0,
        "sent_s": NOON_S + 10.0,
        "end_s": NOON_S + 12.0,
        "team": "search",
        "backend": "llama@bf16",
        "group": "llama",
        "node": "gpu-1",
        "policy": "least_energy",
        "prompt_tokens": 100,
        "output_tokens": 50,
        "energy_j": 12.5,
        "energy_low_j": 8.0,
        "energy_high_j": 20.0,
        "evidence": Evidence.BENCHMARK,
    }
    return UsageRecord(**values | fields)


def window(number: int | str = 1, **fields: Any) -> Window:
    values: dict[str, Any] = {
        "window_id": f"win-{number}",
        "node": "gpu-1",
        "start_s": NOON_S + 10.0,
        "end_s": NOON_S + 11.0,
        "energy_j": 300.0,
        "meter": "nvml",
    }
    return Window(**values | fields)


def attribution(
    number: int | str, shares: dict[str, float], *, idle_j: float = 60.0, **fields: Any
) -> Attribution:
    """A window whose ``shares`` and idle energy leave 1 J unattributed unless told otherwise."""
    window_id = f"win-{number}"
    values: dict[str, Any] = {
        "window_id": window_id,
        "node": "gpu-1",
        "start_s": NOON_S + 10.0,
        "end_s": NOON_S + 11.0,
        "metered_j": sum(shares.values()) + idle_j + 1.0,
        "idle_j": idle_j,
        "external_j": 0.0,
        "unattributed_j": 1.0,
        "shares": tuple(Share(window_id, r, energy_j) for r, energy_j in shares.items()),
        "evidence": Evidence.METERED,
        "meter": "nvml",
    }
    return Attribution(**values | fields)
