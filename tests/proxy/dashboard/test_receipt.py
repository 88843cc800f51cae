from __future__ import annotations

from pathlib import Path

import pytest

from meters.carbon import HOST_PER_GPU_J
from meters.intensity import IntensityBook, Tier
from meters.intensity.table import AnnualTable
from meters.ledger import Ledger
from meters.types import Attribution, Evidence, Window
from proxy.dashboard.receipt import Shown, shown
from proxy.dashboard.sites import Site, Sites
from tests.proxy.dashboard.test_account import divided, record

SITES = Sites(nodes={"n": Site(node="n", zone="FR", pue=1.5, gpus=4)}, hosted=frozenset({"api"}))


def receipt(
    folder: Path, sites: Sites = SITES, divided_as: Attribution | None = None, **more: object
) -> Shown:
    ledger = Ledger(str(folder / "ledger.db"))
    ledger.write([record(1, 1, **more)], [divided_as] if divided_as else [])
    found = ledger.receipt("r1")
    ledger.close()
    assert found is not None
    return shown(found, IntensityBook(AnnualTable()), sites)


def test_parts_sum_and_idle_is_shared_by_what_each_request_caused(tmp_path: Path) -> None:
    found = receipt(tmp_path, divided_as=divided(1, {"r1": 90.0, "r2": 270.0}, idle_j=400.0))
    gpu, host, idle = (c.device_j for c in found.components)
    assert gpu == pytest.approx(90.0)
    assert host == pytest.approx(90.0 * HOST_PER_GPU_J)
    assert idle == pytest.approx(100.0)  # a quarter of what was caused
    assert found.active.facility_j == pytest.approx(1.5 * 90.0 * (1 + HOST_PER_GPU_J))
    assert found.active.carbon_g is not None
    assert found.with_idle.carbon_g == pytest.approx(
        sum(c.carbon_g for c in found.components if c.carbon_g is not None)
    )
    assert found.range is not None
    assert found.range.low_ug < found.active.carbon_g * 1e6 < found.range.high_ug
    assert found.embodied_g == pytest.approx(4 * SITES.site("n").embodied.mid * 90.0 / 760.0)


def test_an_estimate_has_its_own_range_and_no_idle_share(tmp_path: Path) -> None:
    found = receipt(tmp_path)
    assert [c.device_j for c in found.components][2] is None
    assert found.with_idle.device_j is None
    assert found.range is not None
    assert found.range.mid_ug - found.range.low_ug > 0.2 * found.range.mid_ug


def test_a_hosted_api_has_no_host_and_no_hardware_of_ours(tmp_path: Path) -> None:
    found = receipt(tmp_path, backend="api", node=None, evidence=Evidence.MODELLED)
    assert found.hosted
    assert found.embodied_g is None
    assert found.components[1].device_j is None
    assert found.active.device_j == 100.0


def test_an_engine_of_ours_has_its_host_however_its_energy_was_predicted(tmp_path: Path) -> None:
    ours = Sites(nodes={"n": SITES.site("n")}, hosted=frozenset({"api"}), own=frozenset({"b@fp8"}))
    found = receipt(tmp_path, ours, evidence=Evidence.MODELLED)
    assert not found.hosted
    assert found.components[1].device_j == pytest.approx(100.0 * HOST_PER_GPU_J)


def test_unknown_energy_stays_unknown(tmp_path: Path) -> None:
    found = receipt(tmp_path, energy_j=None, energy_low_j=None, energy_high_j=None)
    assert found.active.carbon_g is None
    assert found.range is None


def test_an_intensity_set_by_hand_is_the_receipts_too(tmp_path: Path) -> None:
    sites = Sites(nodes={"n": Site(node="n", zone="FR", g_per_kwh=10.0)})
    found = receipt(tmp_path, sites)
    assert (found.intensity.g_per_kwh, found.intensity.tier) == (10.0, Tier.ANNUAL_ZONE)
    assert found.intensity.method == "set by hand"


def test_a_host_that_was_read_is_metered_and_not_modelled(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    attribution = divided(1, {"r1": 90.0, "r2": 110.0}, idle_j=200.0)
    window = Window(
        window_id=attribution.window_id,
        node="n",
        start_s=attribution.start_s,
        end_s=attribution.end_s,
        energy_j=attribution.metered_j,
        host_energy_j=80.0,
    )
    ledger.write([record(1, 1)], [attribution], [window])
    receipt = ledger.receipt("r1")
    ledger.close()
    assert receipt is not None
    host = shown(receipt, IntensityBook(AnnualTable()), SITES).components[1]
    assert host.device_j == pytest.approx(80.0 * 90.0 / 400.0)
    assert "metered" in host.source
