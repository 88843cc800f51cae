"""Electricity Maps, v3. Needs a token; its free tier is for non-commercial use.

Asks by zone only. Without a matching zone the service would answer for the place the caller's
address is in; ``shouldUseFallbackCallerLookup=false`` forbids that, and an answer for another
zone than the one asked for is refused.
"""

from __future__ import annotations

import time
from typing import Any

from meters.intensity.hours import hour_of, parse_hour
from meters.intensity.http import Refused, get_json
from meters.intensity.types import HOUR_S, Observation, SourceUnavailable

URL = "https://api.electricitymaps.com"
_CHUNK_S = 10 * 24 * HOUR_S  # the longest range of hours one past-range call may span
_HISTORY_S = 24 * HOUR_S
FACTOR_TYPE = "lifecycle"  # or "direct": without building power stations and mining


class ElectricityMaps:
    """Hourly average intensity over the life cycle of power stations."""

    name = "electricity_maps"
    attribution = "Electricity Maps (https://www.electricitymaps.com), under the customer's licence"

    def __init__(self, token: str, url: str = URL) -> None:
        self._token = token
        self._url = url.rstrip("/")

    def fetch(self, zone: str, start_s: int, end_s: int) -> list[Observation]:
        """See Source. A plan without the range endpoint still gives the last 24 hours."""
        if end_s - start_s <= _HISTORY_S:
            return self._history(zone, start_s, end_s)
        found: list[Observation] = []
        try:
            for from_s in range(start_s, end_s, _CHUNK_S):
                to_s = min(from_s + _CHUNK_S, end_s)
                query = {"start": _stamp(from_s), "end": _stamp(to_s)}
                found += self._rows(self._ask("past-range", zone, query), "data", zone)
        except Refused as refused:
            if refused.status not in (401, 403):
                raise
            return self._history(zone, start_s, end_s)
        return [f for f in found if start_s <= f.hour_s < end_s]

    def _history(self, zone: str, start_s: int, end_s: int) -> list[Observation]:
        rows = self._rows(self._ask("history", zone, {}), "history", zone)
        return [row for row in rows if start_s <= row.hour_s < end_s]

    def _ask(self, what: str, zone: str, query: dict[str, str]) -> Any:
        return get_json(
            f"{self._url}/v3/carbon-intensity/{what}",
            {
                "zone": zone,
                "emissionFactorType": FACTOR_TYPE,
                "temporalGranularity": "hourly",
                "shouldUseFallbackCallerLookup": "false",
                **query,
            },
            {"auth-token": self._token},
        )

    def _rows(self, answer: Any, key: str, zone: str) -> list[Observation]:
        fetched_s = time.time()
        try:
            return [self._row(row, zone, fetched_s) for row in answer[key] if _has_value(row)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceUnavailable(f"{self.name} answered in a form not known: {error}.") from None

    def _row(self, row: dict[str, Any], zone: str, fetched_s: float) -> Observation:
        if row.get("zone", zone) != zone:
            raise SourceUnavailable(f"{self.name} answered for another zone than {zone}.")
        updated = row.get("updatedAt")
        return Observation(
            zone=zone,
            hour_s=hour_of(parse_hour(row["datetime"])),
            g_per_kwh=float(row["carbonIntensity"]),
            source=self.name,
            factor_type=str(row.get("emissionFactorType", FACTOR_TYPE)),
            estimated=bool(row.get("isEstimated", False)),
            method=row.get("estimationMethod"),
            updated_s=float(parse_hour(updated)) if updated else None,
            fetched_s=fetched_s,
        )


def _has_value(row: dict[str, Any]) -> bool:
    return row.get("carbonIntensity") is not None


def _stamp(unix_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))
