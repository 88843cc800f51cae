"""What sources say of an hour, and what the book answers."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import msgspec

HOUR_S = 3600


class Tier(StrEnum):
    """How near an answer is to the hour and place asked for; the first is the best."""

    HOURLY = "hourly"  # this hour, this zone, said by the source to be actual
    ESTIMATED = "hourly_estimated"  # this hour, but estimated, forecast or provisional
    LIVE = "live"  # an hour at most two hours older
    LAST_VALUE = "last_value"  # an hour at most six hours older
    CLIMATOLOGY = "climatology"  # mean of that hour of the day over the trailing 28 days
    ANNUAL_ZONE = "annual_zone"  # the zone's annual figure
    ANNUAL_COUNTRY = "annual_country"  # the annual figure of the zone's country
    WORLD = "world"  # the world's annual figure

    @property
    def rank(self) -> int:
        """0 for the best; each step down the ladder adds one."""
        return list(Tier).index(self)

    @property
    def is_hourly(self) -> bool:
        """Whether the figure knows the time of day from this zone's own recent hours."""
        return self in (Tier.HOURLY, Tier.ESTIMATED, Tier.LIVE)


class Observation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One hour of one zone, as a source gave it."""

    zone: str  # "DE", "US-CAL-CISO"
    hour_s: int  # Unix time at which the hour starts
    g_per_kwh: float  # grams CO2e per kWh, >= 0
    source: str  # "electricity_maps", "gb", "watttime", "file"
    factor_type: str = "lifecycle"  # lifecycle | direct | marginal
    estimated: bool = False
    method: str | None = None  # the source's word for how it was estimated
    updated_s: float | None = None  # when the source last changed it
    fetched_s: float | None = None


class Intensity(msgspec.Struct, frozen=True, kw_only=True):
    """The answer for one zone and moment, with everything a reader needs to judge it."""

    zone: str
    hour_s: int  # the hour asked for
    g_per_kwh: float
    source: str
    tier: Tier
    estimated: bool
    of_hour_s: int | None = None  # the hour the figure is really of; None for annual figures
    factor_type: str = "lifecycle"
    method: str | None = None
    fetched_s: float | None = None
    set_version: str = ""  # names the whole set of factors this answer belongs to


class SourceUnavailable(Exception):
    """A source gave no usable figures. The message says why, and never holds a credential."""


class Source(Protocol):
    """Fetches hourly figures. May block; only the refresher's thread calls it."""

    name: str
    attribution: str  # licence and credit, printed in every export that used it

    def fetch(self, zone: str, start_s: int, end_s: int) -> list[Observation]:
        """Hours of ``zone`` that start in [start_s, end_s). Raises SourceUnavailable."""
        ...
