"""The grid's intensity for every backend, kept fresh off the request path."""

from __future__ import annotations

from pathlib import Path

import msgspec

from meters.intensity import IntensityBook, Source
from meters.intensity.electricity_maps import ElectricityMaps
from meters.intensity.file import File
from meters.intensity.gb import GreatBritain
from meters.intensity.keep import KeptObservations
from meters.intensity.refresh import IntensityRefresher
from meters.intensity.table import AnnualTable
from meters.intensity.watttime import WattTime
from proxy.backends import Pool
from proxy.settings import Settings

FIXED = "fixed"  # set by hand, on no step of the ladder
REFRESH_S = 60.0  # how often backends' facts take the hour's figure over


def kept_book(settings: Settings) -> IntensityBook:
    """The book as the server last kept it on disk, for commands beside it; fetches nothing."""
    book = IntensityBook(AnnualTable(regions=settings.carbon.regions))
    book.put(KeptObservations(kept_path(settings)).load())
    return book


def kept_path(settings: Settings) -> Path:
    """Where fetched figures are kept."""
    return Path(settings.state_dir) / "intensity.jsonl"


class Grid:
    """Holds the book of intensities; `refresh` writes the present hour's into the pool."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        carbon = settings.carbon
        self.table = AnnualTable(regions=carbon.regions)
        self.book = IntensityBook(self.table)
        self._pool = pool
        self._given = settings.carbon
        self._fix(settings)
        self.refresher = IntensityRefresher(
            self.book,
            sources_of(settings, pool),
            KeptObservations(kept_path(settings)),
        )

    def take(self, settings: Settings) -> None:
        """Use these settings' figures and sources from now on, for the backends of the pool."""
        self._fix(settings)
        changed = settings.carbon != self._given
        self._given = settings.carbon
        self.refresher.take(sources_of(settings, self._pool), anew=changed)

    def _fix(self, settings: Settings) -> None:
        carbon = settings.carbon
        self._fixed = {
            backend.full_name: (
                backend.intensity_g_per_kwh
                if backend.intensity_g_per_kwh is not None
                else carbon.intensity_g_per_kwh
            )
            for backend in settings.backends
        }
        self._zone = carbon.zone
        self._common = carbon.intensity_g_per_kwh
        self.common_g_per_kwh: float | None = None  # of the common zone, for policies
        self._due_s = 0.0
        self._version = ""  # of the figures that were brought last

    def refresh(self, unix_s: float) -> None:
        """Bring every backend's intensity up to this time; does nothing within the minute, unless
        a source has said something new."""
        version = self.book.version
        if unix_s < self._due_s and version == self._version:
            return
        self._due_s, self._version = unix_s + REFRESH_S, version
        common = self.book.at(self._zone, unix_s).g_per_kwh
        self.common_g_per_kwh = common if self._common is None else self._common
        for engine in self._pool.engines:
            fixed = self._fixed.get(engine.name)
            answer = self.book.at(engine.facts.zone, unix_s)
            value, tier = (answer.g_per_kwh, answer.tier.value) if fixed is None else (fixed, FIXED)
            facts = engine.facts
            if (value, tier) != (facts.intensity_g_per_kwh, facts.intensity_tier):
                engine.facts = msgspec.structs.replace(
                    facts, intensity_g_per_kwh=value, intensity_tier=tier
                )


def sources_of(settings: Settings, pool: Pool) -> dict[str, Source]:
    """The best configured source of each zone that a backend is in; none is asked otherwise."""
    carbon = settings.carbon
    zones = {engine.facts.zone for engine in pool.engines if engine.facts.zone}
    if carbon.zone:
        zones.add(carbon.zone)
    found: dict[str, Source] = {}
    account = carbon.watttime
    watttime = (
        WattTime(account.username, account.password, account.signal, account.regions, account.url)
        if account is not None
        else None
    )
    for zone in sorted(zones):
        if carbon.intensity_file is not None:
            found[zone] = File(carbon.intensity_file)
        elif carbon.electricity_maps_token is not None:
            found[zone] = ElectricityMaps(carbon.electricity_maps_token)
        elif carbon.gb_api and zone.startswith("GB"):
            found[zone] = GreatBritain()
        elif watttime is not None and watttime.covers(zone):
            found[zone] = watttime
    return found
