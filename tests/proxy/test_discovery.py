"""What is served without a config: engines that answer, providers whose keys are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meters import simulated_engine
from meters.simulated_physics import EngineConfig
from proxy import discovery, serving
from proxy.commands import CommandError
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Config, Joulegate, config_of

ENERGY = "x-joulegate-energy-j"


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


def test_each_model_of_a_provider_that_serves_any_has_its_own_energy_and_price(
    joulegate: Callable[[Config], Joulegate],
) -> None:
    with Upstream(answers.answer(answers.CHAT)) as upstream:
        anything = {"url": upstream.base_url, "model": "*", "engine": "api", "name": "openai:*"}
        running = joulegate(config_of(anything))

        def asked(model: str) -> dict[str, str]:
            body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
            reply = running.post({**body, "max_tokens": 9})
            return {name: reply.header(name) or "" for name in ("x-joulegate-evidence", ENERGY)}

        models = ("gpt-4o", "gpt-4o-mini", "no-such-model")
        end_s = time.monotonic() + 20
        for model in models[:2]:  # EcoLogits is asked in a thread
            while asked(model)["x-joulegate-evidence"] != "modelled":
                assert time.monotonic() < end_s
                time.sleep(0.05)
        found = {model: asked(model)[ENERGY] for model in models}
        assert float(found["gpt-4o"]) > 2 * float(found["gpt-4o-mini"]) > 0
        assert found["no-such-model"] == ""
        last = {record.model_asked: record for record in running.records()}
        assert last["no-such-model"].money_usd is None
        # of the twelve and three tokens that were counted, not of the nine expected
        assert last["gpt-4o"].money_usd == pytest.approx((12 * 2.5 + 3 * 10) / 1e6)
