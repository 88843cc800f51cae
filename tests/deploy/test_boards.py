"""What deploy/ ships for Grafana and Prometheus loads, and names only metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from meters.intensity import IntensityBook
from meters.intensity.table import AnnualTable
from proxy.carbon_metrics import CarbonMetrics
from proxy.dashboard.sites import Sites
from proxy.telemetry import Telemetry

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
        if not hasattr(metric, "_labelnames"):
            continue
        names = {
            "counter": [f"{metric._name}_total"],
            "histogram": [f"{metric._name}_{part}" for part in ("bucket", "sum", "count")],
        }.get(metric._type, [metric._name])
        for name in names:
            found[name] = {*metric._labelnames, "le", "instance", "job"}
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
