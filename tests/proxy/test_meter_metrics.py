"""What /metrics says of meters."""

from __future__ import annotations

from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, generate_latest

from meters.intake import Submission, WindowIntake
from meters.local import LocalMeter
from meters.rapl import RaplMeter
from meters.settings import MeterSettings
from meters.types import Window
from proxy.meter_metrics import MeterMetrics
from proxy.own_energy import OwnMeter
from tests.waiting import until

NOW_S = 1_700_000_000.0


def window(number: int, energy_j: float) -> Window:
    return Window(
        window_id=f"gpu-1:r:{number}",
        node="gpu-1",
        start_s=NOW_S - 20 + number,
        end_s=NOW_S - 19 + number,
        energy_j=energy_j,
    )


def page_of(metrics: MeterMetrics) -> str:
    registry = CollectorRegistry()
    registry.register(metrics)
    return generate_latest(registry).decode()


def test_windows_refusals_and_clocks_are_on_the_page() -> None:
    intake = WindowIntake({"t": None}, {"gpu-1"}, lambda: NOW_S, lambda _: None)
    sent = Submission(
        # 1 and 2 never come; 4 is refused, which is told by itself
        windows=[window(n, energy_j) for n, energy_j in ((0, 5.0), (3, 5.0), (3, 5.0), (4, 1e9))],
        sent_s=NOW_S + 1,
    )
    intake.accept("t", msgspec.json.encode(sent))
    later = Submission(windows=[window(4, 1e9), window(5, 5.0)], sent_s=NOW_S)
    intake.accept("t", msgspec.json.encode(later))
    intake.accept("wrong", b"{}")
    own = OwnMeter(host=lambda: RaplMeter("/nowhere"), cpu_s=lambda: 2.0)
    page = page_of(MeterMetrics(intake, list, lambda: NOW_S, own))
    for line in (
        'joulegate_meter_windows_total{outcome="accepted",reason=""} 3.0',
        'joulegate_meter_windows_total{outcome="duplicate",reason=""} 1.0',
        'joulegate_meter_windows_total{outcome="refused",reason="implausible"} 2.0',
        'joulegate_meter_windows_total{outcome="refused",reason="wrong_token"} 1.0',
        'joulegate_meter_refused_joules_total{reason="implausible"} 2e+09',
        'joulegate_meter_age_seconds{node="gpu-1"} 14.0',
        'joulegate_meter_clock_offset_seconds{node="gpu-1"} 0.0',
        'joulegate_meter_missing_windows{node="gpu-1"} 2.0',
        'joulegate_own_energy_joules_total{evidence="modelled"} 10.0',
        'joulegate_own_energy_joules_total{evidence="metered"} 0.0',
    ):
        assert line in page, line
    # Another replica may have got what is missing here.
    assert "missing" not in page_of(MeterMetrics(intake, list, lambda: NOW_S, own, alone=False))


def test_an_agent_that_was_never_heard_of_is_as_old_as_the_start_or_its_last_window() -> None:
    nodes = {"gpu-1", "gpu-2", "gone"}
    intake = WindowIntake({"t": nodes}, {"gpu-1", "gpu-2", "local"}, lambda: NOW_S, lambda _: None)
    remembered = window(0, 5.0)
    intake.remember(remembered)
    now_s = NOW_S
    metrics = MeterMetrics(intake, list, lambda: now_s)
    now_s += 100.0
    page = page_of(metrics)
    age_s = now_s - remembered.end_s
    assert f'joulegate_meter_age_seconds{{node="gpu-1"}} {age_s}' in page
    assert 'joulegate_meter_age_seconds{node="gpu-2"} 100.0' in page
    assert "gone" not in page
    assert "local" not in page


def test_a_meter_here_that_cannot_read_is_a_problem() -> None:
    intake = WindowIntake({}, set(), lambda: NOW_S, lambda _: None)
    local = LocalMeter(MeterSettings(node="here", meter="none", host="none"))
    local.start(lambda _: None)
    until(lambda: local.status().problems)
    page = page_of(MeterMetrics(intake, lambda: [local]))
    local.stop()
    assert 'joulegate_meter_problems{node="here"} 1.0' in page


def test_every_one_of_them_is_in_the_documents() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "metrics.md").read_text()
    intake = WindowIntake({}, set(), lambda: NOW_S, lambda _: None)
    for metric in MeterMetrics(intake, list).collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        assert f"`{name}`" in page, name
