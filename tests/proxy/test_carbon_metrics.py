from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from meters.carbon import HOST_PER_GPU_J
from meters.intensity import IntensityBook, Observation
from meters.intensity.table import AnnualTable
from meters.types import Attribution, Evidence, Share, UsageRecord
from proxy import carbon_metrics
from proxy.carbon_metrics import CarbonMetrics
from proxy.dashboard.sites import Site, Sites

HOUR_S = 1_790_000_000 // 3600 * 3600


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> CarbonMetrics:
    book = IntensityBook(AnnualTable(zones={"FR": 100.0}))
    sites = Sites(nodes={"n": Site(node="n", zone="FR", pue=1.5)})
    return CarbonMetrics(registry, book, sites)


def record(**more: object) -> UsageRecord:
    values: dict[str, object] = {
        "request_id": "r",
        "start_s": HOUR_S + 1.0,
        "end_s": HOUR_S + 2.0,
        "team": "t",
        "backend": "b@fp8",
        "group": "b",
        "node": "n",
        "zone": "FR",
        "pue": 1.5,
        "energy_j": 10.0,
        "evidence": Evidence.CALIBRATED,
    }
    return UsageRecord(**{**values, **more})  # type: ignore[arg-type]


def window(energy_j: float = 3.6e6, evidence: Evidence = Evidence.METERED) -> Attribution:
    return Attribution(
        window_id="w",
        node="n",
        start_s=HOUR_S + 0.0,
        end_s=HOUR_S + 3.0,
        metered_j=energy_j + 7,
        idle_j=5.0,
        external_j=0.0,
        unattributed_j=2.0,
        shares=(Share("w", "r", energy_j),),
        evidence=evidence,
    )


def energy(registry: CollectorRegistry, component: str, evidence: str, team: str = "t") -> float:
    labels = {
        "team": team,
        "model": "b" if team else "",
        "backend": "b@fp8" if team else "n",
        "component": component,
        "evidence": evidence,
    }
    return registry.get_sample_value("joulegate_energy_joules_total", labels) or 0.0


@pytest.mark.parametrize("window_first", [True, False])
def test_a_share_is_counted_once_whichever_comes_first(
    metrics: CarbonMetrics, registry: CollectorRegistry, window_first: bool
) -> None:
    if window_first:
        metrics.divided(window())
        metrics.finished(record())
    else:
        metrics.finished(record())
        metrics.divided(window())
    assert energy(registry, "gpu_active", "metered") == 3.6e6
    assert energy(registry, "gpu_active", "calibrated") == 0.0
    whole_kwh = (1 + HOST_PER_GPU_J) * 1.5
    grams = registry.get_sample_value(
        "joulegate_co2e_grams_total",
        {"team": "t", "backend": "b@fp8", "zone": "FR", "method": "location"},
    )
    assert grams == pytest.approx(whole_kwh * 100.0)
    assert energy(registry, "overhead", "metered") == pytest.approx(whole_kwh / 3 * 3.6e6)


def test_where_no_meter_reads_the_estimate_is_counted(
    metrics: CarbonMetrics, registry: CollectorRegistry
) -> None:
    metrics.divided(window(1.0))  # the node was metered, and its meter went away
    for number in range(3):
        metrics.finished(record(request_id=f"r{number}", end_s=HOUR_S + 20.0 * number))
    due = metrics.late(HOUR_S + 20.0 + carbon_metrics.WAIT_S)
    assert due == ["r0", "r1"]
    metrics.count_late(due, {"r1": 7.0})  # whose windows another replica divided
    assert energy(registry, "gpu_active", "calibrated") == 10.0
    assert energy(registry, "gpu_active", "metered") == 7.0
    late = msgspec.structs.replace(window(), shares=(Share("w", "r0", 5.0), Share("w", "r2", 6.0)))
    metrics.divided(late)
    assert metrics.late(HOUR_S + 1000.0) == []
    assert energy(registry, "gpu_active", "calibrated") == 10.0
    assert energy(registry, "gpu_active", "metered") == 13.0


def test_hosted_apis_get_no_host_of_their_own(
    metrics: CarbonMetrics, registry: CollectorRegistry
) -> None:
    metrics.finished(record(node=None, evidence=Evidence.MODELLED))
    assert energy(registry, "host", "modelled") == 0.0
    assert energy(registry, "gpu_active", "modelled") == 10.0


def test_an_intensity_set_by_hand_and_what_is_ours_hold_in_metrics_too(
    registry: CollectorRegistry,
) -> None:
    site = Site(node="n", zone="FR", pue=1.0, g_per_kwh=25.0)
    sites = Sites(nodes={"n": site}, hosted=frozenset(), own=frozenset({"b@fp8"}))
    metrics = CarbonMetrics(registry, IntensityBook(AnnualTable(zones={"FR": 100.0})), sites)
    metrics.finished(record(pue=1.0, energy_j=3.6e6, evidence=Evidence.MODELLED))
    metrics.count_late(metrics.late(HOUR_S + 100.0), {})
    assert energy(registry, "host", "modelled") == pytest.approx(3.6e6 * HOST_PER_GPU_J)
    labels = {"team": "t", "backend": "b@fp8", "zone": "FR", "method": "location"}
    grams = registry.get_sample_value("joulegate_co2e_grams_total", labels)
    assert grams == pytest.approx((1 + HOST_PER_GPU_J) * 25.0)


def test_an_apis_part_is_counted_once_beside_what_an_engine_drew(
    metrics: CarbonMetrics, registry: CollectorRegistry
) -> None:
    metrics.finished(record(energy_j=10.0, hosted_j=4.0, evidence=Evidence.MODELLED))
    metrics.divided(window(5.0))
    assert metrics.late(HOUR_S + 100.0) == []
    assert energy(registry, "gpu_active", "modelled") == 4.0
    assert energy(registry, "gpu_active", "metered") == 5.0
    assert energy(registry, "host", "modelled") == pytest.approx(5.0 * HOST_PER_GPU_J)


def test_simulated_grams_are_never_counted_as_location_based(
    metrics: CarbonMetrics, registry: CollectorRegistry
) -> None:
    metrics.divided(window(evidence=Evidence.SIMULATED))
    metrics.finished(record(simulated=True, evidence=Evidence.SIMULATED))
    labels = {"team": "t", "backend": "b@fp8", "zone": "FR", "method": "location"}
    assert registry.get_sample_value("joulegate_co2e_grams_total", labels) is None
    assert energy(registry, "gpu_active", "simulated") == 3.6e6


def test_idle_belongs_to_the_node_and_the_rest_to_nobody(
    metrics: CarbonMetrics, registry: CollectorRegistry
) -> None:
    metrics.divided(window())
    assert energy(registry, "idle", "metered", team="") == 5.0
    assert registry.get_sample_value("joulegate_energy_unattributed_joules_total") == 2.0


def test_shares_of_requests_that_never_end_do_not_pile_up(
    metrics: CarbonMetrics, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carbon_metrics, "REMEMBERED", 1)
    metrics.divided(window(1.0))
    other = Attribution(
        window_id="v", node="n", start_s=0.0, end_s=1.0, metered_j=3.0, idle_j=0.0,
        external_j=0.0, unattributed_j=0.0, shares=(Share("v", "s", 3.0),),
        evidence=Evidence.METERED,
    )  # fmt: skip
    metrics.divided(other)
    assert registry.get_sample_value("joulegate_energy_unattributed_joules_total") == 3.0


def test_avoided_is_counted_with_its_bounds_and_never_negative(
    metrics: CarbonMetrics, registry: CollectorRegistry
) -> None:
    known = {"energy_low_j": 8.0, "energy_high_j": 12.0, "carbon_g": 3.0}
    metrics.finished(record(counterfactual_carbon_g=13.0, **known))
    metrics.finished(record(request_id="s", counterfactual_carbon_g=1.0, **known))

    def avoided(bound: str) -> float | None:
        labels = {"team": "t", "lever": "route", "bound": bound}
        return registry.get_sample_value("joulegate_avoided_co2e_grams_total", labels)

    assert avoided("mid") == 10.0
    assert (avoided("low") or 0) < 10.0 < (avoided("high") or 0)


def test_gauges_show_the_zones_in_use_and_the_age_of_their_figures() -> None:
    registry = CollectorRegistry()
    book = IntensityBook(AnnualTable())
    book.put([Observation(zone="DE", hour_s=HOUR_S, g_per_kwh=321.0, source="gb")])
    metrics = CarbonMetrics(registry, book, Sites(nodes={"n": Site(node="n", zone="FR")}))
    metrics.refresh(HOUR_S + 5400.0)
    value = registry.get_sample_value
    assert value("joulegate_grid_intensity_grams_per_kwh", {"zone": "DE", "source": "gb"}) == 321.0
    assert value("joulegate_grid_intensity_age_seconds", {"zone": "DE"}) == 5400.0
    assert value("joulegate_grid_intensity_age_seconds", {"zone": "FR"}) is None


def test_a_source_that_never_gave_an_hour_grows_old_from_the_start_on() -> None:
    registry = CollectorRegistry()
    sites = Sites(nodes={"n": Site(node="n", zone="FR")})
    metrics = CarbonMetrics(registry, IntensityBook(AnnualTable()), sites)
    metrics.fetched = lambda: ["DE"]  # with a token that is wrong
    metrics.refresh(time.time() + 7200.0)
    value = registry.get_sample_value
    age_s = value("joulegate_grid_intensity_age_seconds", {"zone": "DE"})
    assert age_s is not None
    assert 7200.0 <= age_s < 7300.0
    assert value("joulegate_grid_intensity_age_seconds", {"zone": "FR"}) is None


def test_gauges_forget_a_source_and_a_zone_that_are_not_used_any_more() -> None:
    registry, book = CollectorRegistry(), IntensityBook(AnnualTable())
    book.put([Observation(zone="DE", hour_s=HOUR_S, g_per_kwh=321.0, source="gb")])
    metrics = CarbonMetrics(registry, book, Sites(nodes={"n": Site(node="n", zone="DE")}))
    metrics.refresh(HOUR_S + 60.0)
    metrics.fetched = tuple  # as after a move: what is kept of DE only gets older
    metrics.refresh(HOUR_S + 60 * 86_400.0)
    shown = [s.labels for m in registry.collect() for s in m.samples if "grid_intensity" in s.name]
    assert [labels for labels in shown if labels.get("source") == "gb"] == []
    assert [labels["zone"] for labels in shown] == ["DE"]  # by its annual figure


def test_every_metric_is_in_the_docs(registry: CollectorRegistry, metrics: CarbonMetrics) -> None:
    docs = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text()
    for metric in registry.collect():
        assert f"`{metric.name}" in docs, metric.name
