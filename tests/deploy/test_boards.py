"""What deploy/ ships for Grafana and Prometheus loads, and names only metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from meters.intake import WindowIntake
from meters.intensity import IntensityBook
from meters.intensity.table import AnnualTable
from proxy.carbon_metrics import CarbonMetrics
from proxy.dashboard.sites import Sites
from proxy.meter_metrics import MeterMetrics
from proxy.tallies import Spread, Tally
from proxy.telemetry import Telemetry
from tests.prepare import promtool

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BOARD = json.loads((DEPLOY / "grafana/joulegate.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus/joulegate.rules.yml").read_text())


def exported() -> dict[str, set[str]]:
    """Every sample name that /metrics can show, with its labels."""
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    carbon = CarbonMetrics(registry, IntensityBook(AnnualTable()), Sites())
    found: dict[str, set[str]] = {}
    for metric in (*vars(telemetry).values(), *vars(carbon).values()):
        parts = ("bucket", "sum", "count") if isinstance(metric, Spread) else ("total",)
        if isinstance(metric, Tally | Spread):
            for part in parts:
                found[f"{metric.name}_{part}"] = {*metric.labels, "le", "instance", "job"}
            continue
        if not hasattr(metric, "_labelnames"):
            continue
        names = {
            "counter": [f"{metric._name}_total"],
            "histogram": [f"{metric._name}_{part}" for part in ("bucket", "sum", "count")],
        }.get(metric._type, [metric._name])
        for name in names:
            found[name] = {*metric._labelnames, "le", "instance", "job"}
    for family in MeterMetrics(WindowIntake({}, set(), lambda: 0.0, print), list).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = {*family._labelnames, "instance", "job"}
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]


EXPRESSIONS = list(expressions())


@pytest.mark.parametrize(("title", "expr"), EXPRESSIONS, ids=[t for t, _ in EXPRESSIONS])
def test_only_metrics_and_labels_that_exist_are_named(title: str, expr: str) -> None:
    known = exported()
    used = re.findall(r"\b(joulegate_[a-z0-9_]+)(?:\{([^}]*)\})?", expr)
    assert used
    for name, selectors in used:
        assert name in known
        for label in re.findall(r"([a-z_]+)\s*[=!]~?", selectors):
            assert label in known[name], f"{name} has no label {label}"
    for labels in re.findall(r"by \(([^)]*)\)", expr):
        for label in labels.split(","):
            assert any(label.strip() in known[name] for name, _ in used), label


@pytest.mark.parametrize(("title", "expr"), EXPRESSIONS, ids=[t for t, _ in EXPRESSIONS])
def test_brackets_match(title: str, expr: str) -> None:
    open_: list[str] = []
    for letter in re.sub(r'"[^"]*"', "", expr):
        if letter in "([{":
            open_.append(letter)
        elif letter in ")]}":
            assert open_
            assert open_.pop() + letter in ("()", "[]", "{}")
    assert not open_


def test_the_board_needs_no_edits_to_load() -> None:
    assert BOARD["uid"]
    assert "__inputs" not in BOARD
    variables = {v["name"]: v for v in BOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        place: dict[str, Any] = panel["gridPos"]
        mine = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not mine & cells
        assert max(x for x, _ in mine) < 24
        cells |= mine


def test_rules_have_what_prometheus_asks_of_them() -> None:
    names = [rule.get("alert") or rule["record"] for g in RULES["groups"] for rule in g["rules"]]
    assert len(names) == len(set(names))
    for group in RULES["groups"]:
        for rule in group["rules"]:
            assert set(rule) <= {"alert", "record", "expr", "for", "labels", "annotations"}
            if "alert" in rule:
                assert {"summary", "description"} == set(rule["annotations"])
                assert re.fullmatch(r"\d+[smh]", rule["for"])
    scrape = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert scrape["rule_files"] == ["joulegate.rules.yml"]


PROMTOOL = promtool()
with_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool: python -m tests.prepare")


def checked(*arguments: str) -> str:
    """What promtool says; fails when it does not agree."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@with_promtool
def test_prometheus_itself_takes_the_rules_and_the_scrape() -> None:
    assert "13 rules found" in checked(
        "check", "rules", str(DEPLOY / "prometheus/joulegate.rules.yml")
    )
    checked("check", "config", str(DEPLOY / "prometheus/prometheus.yml"))


@with_promtool
def test_every_expression_of_the_board_is_promql(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"board:{place}",
            "expr": expr.replace("$__rate_interval", "5m").replace("$__range", "1h"),
        }
        for place, (_, expr) in enumerate(EXPRESSIONS)
    ]
    path = tmp_path / "board.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    assert f"{len(rules)} rules found" in checked("check", "rules", str(path))


@with_promtool
def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    def case(alert: str, series: dict[str, str], quiet: str, loud: str) -> dict[str, Any]:
        inputs = [{"series": name, "values": values} for name, values in series.items()]
        return {
            "interval": "1m",
            "input_series": inputs,
            "promql_expr_test": [
                {"expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})', **rest}
                for rest in (
                    {"eval_time": quiet, "exp_samples": []},
                    {"eval_time": loud, "exp_samples": [{"labels": "{}", "value": 1}]},
                )
            ],
        }

    tests = [
        case(
            "JoulegateBooksDoNotBalance",
            {"joulegate_ledger_imbalance_joules": "0x10 5x20"},
            "9m",
            "20m",
        ),
        case(
            "JoulegateMuchUnattributed",
            {
                "joulegate_energy_unattributed_joules_total": "0+10x240",
                'joulegate_window_energy_joules_total{node="n"}': "0+100x240",
            },
            "30m",
            "200m",
        ),
        case(
            "JoulegateIntensityIsOld",
            {'joulegate_grid_intensity_age_seconds{zone="DE"}': "0x60 30000x60"},
            "60m",
            "100m",
        ),
        case(
            "JoulegateServesSimulatedEngines", {"joulegate_simulated_backends": "1x30"}, "5m", "15m"
        ),
        case(
            "JoulegateIsNotScraped",
            {'joulegate_requests_in_flight{instance="a"}': "0x10 stale"},
            "10m",
            "20m",
        ),
        case(
            "JoulegateBackendDoesNotAnswer",
            {
                'joulegate_backend_healthy{backend="a",instance="1"}': "1x30",
                'joulegate_backend_healthy{backend="b",instance="1"}': "1x30",
                'joulegate_backend_healthy{backend="b",instance="2"}': "1x5 0 1x3 0x20",
            },
            "12m",
            "20m",
        ),
        case(
            "JoulegateManyRequestsFail",
            {
                'joulegate_requests_total{outcome="ok"}': "0+100x60",
                'joulegate_requests_total{outcome="failed"}': "0+1x20 30+10x40",
            },
            "20m",
            "50m",
        ),
        case(
            "JoulegateMeterIsSilent",
            {
                'joulegate_meter_age_seconds{node="gpu-1"}': "2x30",
                'joulegate_meter_age_seconds{node="gpu-2"}': "2x10 60+60x20",
            },
            "14m",
            "25m",
        ),
        case(
            "JoulegateMeterHasProblems",
            {'joulegate_meter_problems{node="gpu-1"}': "0x5 1x30"},
            "14m",
            "20m",
        ),
        case(
            "JoulegateWindowsAreRefused",
            {'joulegate_meter_refused_joules_total{reason="overlap"}': "0x15 0+5x40"},
            "20m",
            "40m",
        ),
        case("JoulegateDegraded", {'joulegate_degraded{part="redis"}': "0x10 1x20"}, "10m", "20m"),
    ]
    alerts = {rule["alert"] for g in RULES["groups"] for rule in g["rules"] if "alert" in rule}
    tried = {re.findall(r'alertname="(\w+)"', str(test))[0] for test in tests}
    assert tried == alerts
    path = tmp_path / "alerts.yml"
    rules = str(DEPLOY / "prometheus/joulegate.rules.yml")
    path.write_text(yaml.safe_dump({"rule_files": [rules], "tests": tests}))
    checked("test", "rules", str(path))
