"""Annual intensities by zone, country and world; and which grid zone a cloud region is in.

Countries come from the data file of the installed ``ecologits`` package (MPL-2.0), read once
when a table is made and without importing the package. Sub-national zones and cloud regions
are in annual_zones.csv and cloud_regions.csv beside this file, each row with its source.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import msgspec
from babel.core import get_global

from meters.intensity.types import Tier

# Ember, latest year, as republished in npm @tgwf/co2 0.19.0 ("WORLD"): 472.94, rounded.
WORLD_G_PER_KWH = 473.0
WORLD_SOURCE = "Ember world average (2024/25)"
G_PER_KG = 1000.0
_HERE = Path(__file__).parent


class Annual(msgspec.Struct, frozen=True, kw_only=True):
    """A zone's annual mean, with the step of the ladder that it stands on."""

    g_per_kwh: float
    tier: Tier
    source: str


class Country(msgspec.Struct, frozen=True, kw_only=True):
    """A country's electricity mix."""

    code: str  # ISO 3166-1 alpha-2
    g_per_kwh: float
    water_l_per_kwh: float | None  # off site, at the power stations


class CloudRegion(msgspec.Struct, frozen=True, kw_only=True):
    """A cloud provider's region and the grid zone it is taken to be in."""

    provider: str  # gcp | aws | azure
    region: str
    place: str
    zone: str
    g_per_kwh: float | None = None  # the provider's own published annual figure
    source: str = "our reading of the provider's region list"
    edited: bool = False  # changed by the organisation's own settings

    @property
    def name(self) -> str:
        """As used in a config: "gcp:europe-west3"."""
        return f"{self.provider}:{self.region}"


class AnnualTable:
    """Annual figures; built at start, then read-only.

    ``zones`` adds or replaces annual figures (g/kWh by zone) and ``regions`` zones of cloud
    regions ({"gcp:europe-west3": "DE"}): both are an organisation's to decide, and both are
    shown in the dashboard.
    """

    def __init__(
        self,
        zones: Mapping[str, float] | None = None,
        regions: Mapping[str, str] | None = None,
    ) -> None:
        self.countries = _countries()
        self._zones = _annual_zones()
        for zone, g_per_kwh in (zones or {}).items():
            self._zones[zone] = (float(g_per_kwh), "this organisation's settings")
        self.regions = _cloud_regions(regions or {})
        self.source = f"ecologits {_ecologits_version()} electricity mixes (MPL-2.0)"
        self.version = self._name_version()

    def annual(self, zone: str | None) -> Annual:
        """The annual figure of ``zone``, else of its country, else of the world."""
        if zone:
            region = self.regions.get(zone)
            if region is not None:
                if region.g_per_kwh is not None and not region.edited:
                    return Annual(
                        g_per_kwh=region.g_per_kwh, tier=Tier.ANNUAL_ZONE, source=region.source
                    )
                zone = region.zone
            own = self._zones.get(zone)
            if own is not None:
                return Annual(g_per_kwh=own[0], tier=Tier.ANNUAL_ZONE, source=own[1])
            country = self.countries.get(country_of(zone))
            if country is not None:
                whole = zone.upper() in (country.code, country.code + "A")
                tier = Tier.ANNUAL_ZONE if whole else Tier.ANNUAL_COUNTRY
                return Annual(g_per_kwh=country.g_per_kwh, tier=tier, source=self.source)
        return Annual(g_per_kwh=WORLD_G_PER_KWH, tier=Tier.WORLD, source=WORLD_SOURCE)

    @property
    def names(self) -> list[str]:
        """Everything that may be named as a zone: zones, countries and cloud regions."""
        return [*self._zones, *self.countries, *self.regions]

    def water_l_per_kwh(self, zone: str | None) -> float | None:
        """Water used at power stations, litres per kWh of the zone's country; None: not known."""
        country = self.countries.get(country_of(zone)) if zone else None
        return country.water_l_per_kwh if country else None

    def _name_version(self) -> str:
        text = repr(sorted(self._zones.items()))
        text += repr(sorted((c.code, c.g_per_kwh) for c in self.countries.values()))
        text += repr(sorted((r.name, r.zone, r.g_per_kwh) for r in self.regions.values()))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def country_of(zone: str) -> str:
    """ISO alpha-2 code of a grid zone's country: "US-CAL-CISO" -> "US", "DEU" -> "DE"."""
    head = zone.split("-", 1)[0].upper()
    if len(head) == 3:
        aliases = get_global("territory_aliases").get(head)
        return str(aliases[0]) if aliases else head
    return "GB" if head == "UK" else head


def _data_file() -> Path | None:
    spec = importlib.util.find_spec("ecologits")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "electricity_mixes.json"
    return path if path.is_file() else None


def _countries() -> dict[str, Country]:
    path = _data_file()
    if path is None:
        return {}
    found: dict[str, Country] = {}
    for mix in msgspec.json.decode(path.read_bytes())["electricity_mixes"]:
        aliases = get_global("territory_aliases").get(mix["name"])
        if not aliases:  # "WOR" and "EEE" are regions, not countries
            continue
        code = str(aliases[0])
        found[code] = Country(
            code=code,
            g_per_kwh=float(mix["gwp"]) * G_PER_KG,
            water_l_per_kwh=None if mix.get("wue") is None else float(mix["wue"]),
        )
    return found


def _ecologits_version() -> str:
    try:
        return metadata.version("ecologits")
    except metadata.PackageNotFoundError:
        return "not installed"


def _annual_zones() -> dict[str, tuple[float, str]]:
    with (_HERE / "annual_zones.csv").open(newline="") as file:
        return {r["zone"]: (float(r["g_per_kwh"]), r["source"]) for r in csv.DictReader(file)}


def _cloud_regions(edits: Mapping[str, str]) -> dict[str, CloudRegion]:
    found: dict[str, CloudRegion] = {}
    with (_HERE / "cloud_regions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            region = CloudRegion(
                provider=row["provider"],
                region=row["region"],
                place=row["place"],
                zone=row["zone"],
                g_per_kwh=float(row["g_per_kwh"]) if row["g_per_kwh"] else None,
                source=row["source"],
            )
            found[region.name] = region
    for name, zone in edits.items():
        provider, _, short = name.partition(":")
        known = found.get(name)
        found[name] = CloudRegion(
            provider=provider,
            region=short,
            place=known.place if known else "",
            zone=zone,
            source="this organisation's settings",
            edited=True,
        )
    return found
