"""The meter that reads nothing, and says so."""

from __future__ import annotations

from meters.types import Evidence, MeterUnavailable, Reading


class NoMeter:
    """For nodes whose energy nobody can read: every figure there stays an estimate."""

    name = "none"
    evidence = Evidence.UNKNOWN
    resolution_j: float | None = None

    def __init__(self, why: str = "") -> None:
        self._why = why

    def read(self) -> list[Reading]:
        """Always raises MeterUnavailable."""
        raise MeterUnavailable(
            self._why
            or "The meter is 'none': no energy is read here, and figures stay estimates. "
            "Set meter to nvml, dcgm, rapl or zeus where there is something to read."
        )

    def close(self) -> None:
        """Nothing to close."""
