"""WattTime, v3. Needs an account; without a plan only CAISO_NORTH is answered.

Its signals are in pounds of CO2 per MWh and become g/kWh here. ``co2_moer`` is marginal: the
book keeps it apart from the averages that an inventory uses.
"""

from __future__ import annotations

import base64
import time
from typing import Any

from meters.intensity.hours import hour_of, iso, parse_hour
from meters.intensity.http import Refused, get_json
from meters.intensity.types import HOUR_S, Observation, SourceUnavailable

URL = "https://api.watttime.org"
# The international pound is 0.45359237 kg exactly; lb/MWh x 453.59237 g/lb / 1000 kWh/MWh.
G_PER_KWH_PER_LB_PER_MWH = 0.45359237
_TOKEN_S = 25 * 60.0  # tokens live for 30 minutes
_CHUNK_S = 32 * 24 * HOUR_S  # the longest range one call may span


class WattTime:
    """Hourly means of a five-minute signal. ``regions`` maps grid zones to WattTime's names."""

    name = "watttime"
    attribution = "WattTime (https://watttime.org), under the customer's licence"

    def __init__(
        self,
        username: str,
        password: str,
        signal: str = "co2_moer",
        regions: dict[str, str] | None = None,
        url: str = URL,
    ) -> None:
        self._login = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._signal = signal
        self._regions = regions or {"US-CAL-CISO": "CAISO_NORTH"}
        self._url = url.rstrip("/")
        self._token = ""
        self._token_until_s = 0.0

    def covers(self, zone: str) -> bool:
        """Whether a region is known for the zone."""
        return zone in self._regions

    def fetch(self, zone: str, start_s: int, end_s: int) -> list[Observation]:
        """See Source. Raises SourceUnavailable for a zone that is not in ``regions``."""
        region = self._regions.get(zone)
        if region is None:
            raise SourceUnavailable(f"No WattTime region is set for zone {zone}.")
        points: dict[int, list[float]] = {}
        for from_s in range(start_s, end_s, _CHUNK_S):
            answer = self._ask(region, from_s, min(from_s + _CHUNK_S, end_s))
            self._collect(answer, points)
        fetched_s = time.time()
        return [
            Observation(
                zone=zone,
                hour_s=hour_s,
                g_per_kwh=sum(values) / len(values) * G_PER_KWH_PER_LB_PER_MWH,
                source=self.name,
                factor_type="marginal" if "moer" in self._signal else "direct",
                estimated=True,  # a model's output, also for past hours
                method=self._signal,
                fetched_s=fetched_s,
            )
            for hour_s, values in sorted(points.items())
            if start_s <= hour_s < end_s
        ]

    def _collect(self, answer: Any, points: dict[int, list[float]]) -> None:
        try:
            units = answer["meta"]["units"]
            if units not in ("lbs_co2_per_mwh", "lb_co2_per_mwh"):
                raise SourceUnavailable(f"WattTime answered in {units!r}, not pounds per MWh.")
            for point in answer["data"]:
                hour_s = hour_of(parse_hour(point["point_time"]))
                points.setdefault(hour_s, []).append(float(point["value"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SourceUnavailable(f"WattTime answered in a form not known: {error}.") from None

    def _ask(self, region: str, start_s: int, end_s: int) -> Any:
        query = {
            "region": region,
            "signal_type": self._signal,
            "start": iso(start_s),
            "end": iso(end_s),
        }
        try:
            return self._get("/v3/historical", query, self._bearer())
        except Refused as refused:
            if refused.status != 401:
                raise
        self._token_until_s = 0.0  # the token was taken back early: log in once more
        return self._get("/v3/historical", query, self._bearer())

    def _bearer(self) -> str:
        if time.monotonic() >= self._token_until_s:
            try:
                answer = self._get("/login", {}, f"Basic {self._login}")
            except Refused as refused:
                if refused.status not in (401, 403):
                    raise
                answer = None
            token = answer.get("token") if isinstance(answer, dict) else None
            if not token:
                raise SourceUnavailable("WattTime gave no token. Check user name and password.")
            self._token = str(token)
            self._token_until_s = time.monotonic() + _TOKEN_S
        return f"Bearer {self._token}"

    def _get(self, path: str, query: dict[str, str], authorization: str) -> Any:
        headers = {"authorization": authorization}
        return get_json(f"{self._url}{path}", query, headers)
