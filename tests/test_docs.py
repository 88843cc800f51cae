"""What a user can set, send, read or run is in the docs; what the docs generate is up to date."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from proxy import settings_page
from proxy.__main__ import main
from proxy.commands import COMMANDS, load
from proxy.front import ENDPOINTS
from proxy.telemetry import Telemetry

ROOT = Path(__file__).resolve().parent.parent
DOCS = "\n".join(
    path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
)
CODE = [
    path
    for folder in ("proxy", "policies", "estimators", "meters")
    for path in (ROOT / folder).rglob("*.py")
]


def in_code(pattern: str) -> set[str]:
    found: set[str] = set()
    for path in CODE:
        found.update(re.findall(pattern, path.read_text(encoding="utf-8")))
    return found


def test_the_page_of_settings_is_up_to_date() -> None:
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == settings_page.markdown()


@pytest.mark.parametrize("package", [p for p in CODE if p.name == "__init__.py"], ids=str)
def test_every_file_that_a_packages_map_names_is_there(package: Path) -> None:
    for name in re.findall(r"\w+\.py\b", package.read_text(encoding="utf-8")):
        assert (package.parent / name).exists(), name


def test_every_setting_has_its_help() -> None:
    assert [name for name, _, _, text in settings_page.table() if not text] == []


@pytest.mark.parametrize("header", sorted(in_code(r"x-joulegate-[a-z0-9-]+[a-z0-9]")))
def test_every_header_is_named(header: str) -> None:
    assert f"`{header}`" in DOCS


@pytest.mark.parametrize(
    "name",
    sorted(metric.name for metric in Telemetry().registry.collect() if metric.name != "joulegate"),
)
def test_every_metric_is_named(name: str) -> None:
    assert f"`{name}`" in DOCS or f"`{name}_total`" in DOCS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_is_named_and_has_an_example(command: str) -> None:
    assert re.search(rf"`(joulegate )?{command}[ `]", DOCS)
    module = load(command)
    assert module.EXAMPLE.startswith(f"joulegate {command}")
    assert module.__doc__


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_every_endpoint_is_named(path: str) -> None:
    assert f"{path}`" in DOCS


@pytest.mark.parametrize(
    "code",
    sorted(
        set(
            re.findall(
                r'^\s+(?:\d{3}, |code=)?"([a-z]+_[a-z_]+)",?$',
                (ROOT / "proxy/errors.py").read_text(encoding="utf-8"),
                re.MULTILINE,
            )
        )
        - {"invalid_request_error"}
    ),
)
def test_every_error_code_is_named(code: str) -> None:
    assert f"`{code}`" in DOCS


def test_every_link_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *ROOT.glob("docs/*.md")]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
        if not target.startswith("http")
    ]
    assert len(links) > 5
    assert [f"{p.name}: {t}" for p, t in links if not (p.parent / t).exists()] == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_example_of_every_command_can_be_typed(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(command)
    monkeypatch.setattr(module, "run", lambda args: 0)
    assert main(shlex.split(module.EXAMPLE)[1:]) == 0


@pytest.mark.parametrize("command", ["accounts", "keys", "ledger", "organisations", "teams"])
def test_every_action_of_a_command_has_an_example_that_can_be_typed(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def helped(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([command, *arguments, "--help"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    monkeypatch.setattr(load(command), "run", lambda args: 0)
    actions = re.findall(r"^    (\w+)  ", helped(), re.MULTILINE)
    assert len(actions) > 2
    for action in actions:
        example = helped(action).rpartition("example: joulegate ")[2]
        assert example.startswith(f"{command} {action}")
        assert main(shlex.split(example)) == 0
