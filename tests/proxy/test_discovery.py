"""What is served without a config: engines that answer, providers whose keys are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from meters import simulated_engine
from meters.simulated_physics import EngineConfig
from proxy import discovery, serving
from proxy.commands import CommandError


@pytest.fixture(scope="module")
def engine() -> Iterator[simulated_engine.Started]:
    with simulated_engine.start(EngineConfig(model="tiny", max_model_len=2048)) as started:
        yield started


def test_an_engine_is_known_by_what_it_says(engine: simulated_engine.Started) -> None:
    (found,) = discovery.engines_at(f"{engine.url}/v1", "vllm")
    assert (found.model, found.full_name, found.context_tokens) == ("tiny", "tiny", 2048)
    assert found.simulated  # it says that it is, and is believed


def test_nobody_at_a_port_is_no_engine() -> None:
    assert discovery.engines_at("http://127.0.0.1:9/v1", "vllm") == []


def test_usual_ports_are_looked_at(
    engine: simulated_engine.Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "USUAL_PORTS", ((engine.port, "vllm"),))
    assert [b.model for b in discovery.discovered({})] == ["tiny"]


def test_provider_keys_serve_their_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "USUAL_PORTS", ())
    found = discovery.discovered({"OPENAI_API_KEY": "sk-o", "ANTHROPIC_API_KEY": "sk-a"})
    assert [(b.model, b.provider, b.engine) for b in found] == [
        ("*", "openai", "api"),
        ("claude-*", "anthropic", "api"),
    ]
    assert found[0].url == "https://api.openai.com/v1"


def test_with_nothing_found_a_simulated_pair_is_served_and_said_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(discovery, "USUAL_PORTS", ())
    monkeypatch.chdir(tmp_path)
    prepared = serving.prepare(None, environment={})
    try:
        names = [b.full_name for b in prepared.settings.backends]
        assert names == ["llama-3.1-8b@bf16", "llama-3.1-8b@int4"]
        assert all(facts.simulated for facts in prepared.facts.values())
        assert "SIMULATED" in capsys.readouterr().err
    finally:
        prepared.close()


def test_without_keys_only_loopback_is_listened_on(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("backends: [{model: m, url: 'http://127.0.0.1:9/v1'}]\n")
    with pytest.raises(CommandError, match="No keys are configured"):
        serving.prepare(str(config), host="0.0.0.0", environment={})
    config.write_text(config.read_text() + "teams: {a: {keys: [k]}}\n")
    assert serving.prepare(str(config), host="0.0.0.0", environment={}).settings.keys_configured


def test_a_config_without_backends_does_not_start(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("carbon: {zone: DE}\n")
    with pytest.raises(CommandError, match="has no backends"):
        serving.prepare(str(config), environment={})
