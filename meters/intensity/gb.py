"""The Carbon Intensity API of Great Britain's system operator. No key; CC BY 4.0.

Half-hours become hours. Zone "GB" is the nation; "GB-1" ... "GB-17" are its regions, for which
the operator publishes forecasts only.
"""

from __future__ import annotations

import time
from typing import Any

from meters.intensity.hours import hour_of, parse_hour
from meters.intensity.http import get_json
from meters.intensity.types import HOUR_S, Observation, SourceUnavailable

URL = "https://api.carbonintensity.org.uk"
_CHUNK_S = 13 * 24 * HOUR_S  # one call may span 14 days
REGIONS = range(1, 18)


class GreatBritain:
    """Hourly average intensity of Great Britain or one of its 17 regions."""

    name = "gb"
    attribution = "Carbon Intensity API, NESO (https://carbonintensity.org.uk), CC BY 4.0"

    def __init__(self, url: str = URL) -> None:
        self._url = url.rstrip("/")

    def fetch(self, zone: str, start_s: int, end_s: int) -> list[Observation]:
        """See Source. Raises SourceUnavailable for a zone outside Great Britain."""
        region = _region(zone)
        halves: dict[int, list[tuple[float, bool]]] = {}
        for from_s in range(start_s, end_s, _CHUNK_S):
            to_s = min(from_s + _CHUNK_S, end_s)
            # A period is answered when it ends after `from`: ask from a minute into the first.
            span = f"{_stamp(from_s + 60)}/{_stamp(to_s)}"
            path = (
                f"/regional/intensity/{span}/regionid/{region}" if region else f"/intensity/{span}"
            )
            self._collect(get_json(self._url + path), halves)
        fetched_s = time.time()
        return [
            Observation(
                zone=zone,
                hour_s=hour_s,
                g_per_kwh=sum(value for value, _ in found) / len(found),
                source=self.name,
                factor_type="direct",
                estimated=len(found) < 2 or any(forecast for _, forecast in found),
                method="forecast" if any(forecast for _, forecast in found) else None,
                fetched_s=fetched_s,
            )
            for hour_s, found in sorted(halves.items())
            if start_s <= hour_s < end_s
        ]

    def _collect(self, answer: Any, halves: dict[int, list[tuple[float, bool]]]) -> None:
        try:
            data = answer["data"]
            for row in data["data"] if isinstance(data, dict) else data:
                actual = row["intensity"].get("actual")
                value = actual if actual is not None else row["intensity"].get("forecast")
                if value is None:
                    continue
                hour_s = hour_of(parse_hour(row["from"]))
                halves.setdefault(hour_s, []).append((float(value), actual is None))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceUnavailable(f"{self.name} answered in a form not known: {error}.") from None


def _region(zone: str) -> int | None:
    if zone == "GB":
        return None
    head, _, number = zone.partition("-")
    if head == "GB" and number.isdigit() and int(number) in REGIONS:
        return int(number)
    raise SourceUnavailable(f"{zone} is no zone of Great Britain; use GB or GB-1 to GB-17.")


def _stamp(unix_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(unix_s))
