"""What is in deploy/ loads, and says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from proxy import __version__, checking
from proxy.settings import Server

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
VARIABLES = (
    "OPENAI_API_KEY",
    "SEARCH_KEY",
    "RESEARCH_KEY",
    "ADMIN_KEY",
    "METER_TOKEN_1",
    "METER_TOKEN_2",
)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda p: p.name)
def test_every_file_is_yaml(path: Path) -> None:
    assert all(document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_the_example_config_has_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"sk-{name.lower()}")
    monkeypatch.setenv("LEDGER_URL", "postgresql://u:p@h/db")
    report = checking.check(str(DEPLOY / "config.example.yaml"))
    assert report["ok"]
    assert [w for w in report["warnings"] if "no gpu" not in w] == []


def test_compose_hands_over_every_variable_of_the_example() -> None:
    wanted = set(re.findall(r"os\.environ/(\w+)", (DEPLOY / "config.example.yaml").read_text()))
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert wanted == set(compose["services"]["joulegate"]["environment"])


def test_ports_and_probes_are_those_of_the_proxy() -> None:
    port = Server().port
    assert f"EXPOSE {port}" in (DEPLOY / "Containerfile").read_text()
    _, stateful = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    assert container["ports"][0]["containerPort"] == port
    routes = (DEPLOY.parent / "proxy/routes.py").read_text()
    for probe in ("readinessProbe", "livenessProbe"):
        assert f'"{container[probe]["httpGet"]["path"]}"' in routes
    grace_s = stateful["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > Server().stop_deadline_s


def test_the_image_that_is_built_is_the_one_that_is_deployed() -> None:
    _, stateful = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"joulegate:{__version__}"
    assert f"-t {container['image']} ." in (DEPLOY / "Containerfile").read_text()
