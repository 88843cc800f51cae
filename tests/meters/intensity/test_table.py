from __future__ import annotations

from meters.intensity.table import AnnualTable, country_of
from meters.intensity.types import Tier


def test_countries_come_from_the_package_made_for_it() -> None:
    table = AnnualTable()
    assert len(table.countries) > 200
    germany = table.annual("DE")
    assert germany.g_per_kwh == 329.65  # ecologits 0.11.3, "DEU": gwp 0.32965 kg/kWh
    assert "ecologits" in germany.source


def test_zone_names_lead_to_their_country() -> None:
    assert [country_of(z) for z in ("DE", "DEU", "US-CAL-CISO", "UK", "gb-13")] == [
        "DE",
        "DE",
        "US",
        "GB",
        "GB",
    ]


def test_the_region_map_can_be_edited_and_says_that_it_was() -> None:
    table = AnnualTable(regions={"gcp:europe-west3": "AT", "own:cellar": "FR"})
    edited = table.regions["gcp:europe-west3"]
    assert (edited.zone, edited.edited, edited.place) == ("AT", True, "Frankfurt")
    # the provider's figure was for the zone that is no longer believed
    assert table.annual("gcp:europe-west3").g_per_kwh == table.annual("AT").g_per_kwh
    assert table.annual("own:cellar").g_per_kwh == table.annual("FR").g_per_kwh


def test_every_mapped_region_has_an_annual_figure_better_than_the_worlds() -> None:
    table = AnnualTable()
    assert len(table.regions) > 100
    lost = [name for name in table.regions if table.annual(name).tier is Tier.WORLD]
    assert lost == []


def test_an_edit_changes_the_version() -> None:
    assert AnnualTable(zones={"DE": 1.0}).version != AnnualTable().version
    assert AnnualTable(zones={"DE": 1.0}).annual("DE").g_per_kwh == 1.0


def test_water_at_power_stations_is_known_by_country() -> None:
    table = AnnualTable()
    assert table.water_l_per_kwh("DE") == 1.947
    assert table.water_l_per_kwh("QQ") is None
    assert table.water_l_per_kwh(None) is None
