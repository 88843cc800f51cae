"""What is served without a config: engines that answer, providers whose keys are there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from estimators.energy import EnergyEstimator
from estimators.types import Features, Load
from meters import simulated_engine
from meters.simulated_physics import EngineConfig
from proxy import discovery, facts, loading, serving
from proxy.__main__ import main
from proxy.commands import CommandError
from proxy.settings import MeterSource, Settings
from tests.fakes import answers
from tests.fakes.nvml import FakeGpu, FakeNvml, driver
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Config, Joulegate, config_of
from tests.waiting import until

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


H100 = "NVIDIA H100 80GB HBM3"


@contextmanager
def this_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: list[str], models: list[str], engines: int = 1
) -> Iterator[None]:
    """With GPUs of those names, and engines of vLLM's that list those models."""
    listed = [{"id": model, "owned_by": "vllm", "max_model_len": 8192} for model in models]
    pages = {"/v1/models": lambda _: answers.answer({"object": "list", "data": listed})}
    boards = [FakeGpu(name=name, uuid=f"GPU-{n}") for n, name in enumerate(gpus)]
    with ExitStack() as stack:
        upstreams = [stack.enter_context(Upstream(pages=pages)) for _ in range(engines)]
        monkeypatch.setattr(discovery, "USUAL_PORTS", [(u.port, "vllm") for u in upstreams])
        stack.enter_context(driver(FakeNvml(boards, time.monotonic)))
        yield


def test_the_one_gpu_here_is_metered_for_the_one_engine_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ["meta-llama/Llama-3.1-8B-Instruct", "my-adapter"]
    with this_machine(monkeypatch, [H100], names):
        engine, adapter = discovery.discovered({})
        path = tmp_path / "config.yaml"
        assert main(["init", "--out", str(path)]) == 0
    assert (engine.gpu, engine.params_b, engine.precision) == ("H100-SXM", 8.0, "bf16")
    assert engine.meter == MeterSource(kind="nvml")
    assert (adapter.gpu, adapter.meter) == (None, None)
    assert engine.node == adapter.node  # whose joules it shares
    assert loading.load(str(path), {}).backends == [engine, adapter]
    (facts_, _) = facts.all_facts(Settings(backends=[engine, adapter])).values()
    (found,) = EnergyEstimator().estimate(Features(prompt_tokens=100), [facts_], [Load()])
    assert found.energy_j is not None


@pytest.mark.parametrize(("gpus", "engines"), [([H100, H100], 1), ([H100], 2), ([], 1)])
def test_whose_a_gpu_is_is_never_guessed(
    monkeypatch: pytest.MonkeyPatch, gpus: list[str], engines: int
) -> None:
    with this_machine(monkeypatch, gpus, ["llama-8b"], engines):
        found = discovery.discovered({})
    assert len(found) == engines
    assert {(b.gpu, b.meter, b.node) for b in found} == {(None, None, None)}


def test_what_init_finds_can_be_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for key in discovery.PROVIDER_KEYS:
        monkeypatch.setenv(key, "one for both")
    with this_machine(monkeypatch, [], ["llama-8b", 'C:\\models\\"x".gguf'], engines=2):
        found = discovery.discovered(os.environ)
        assert main(["init", "--out", str(path)]) == 0
    assert "os.environ/GROQ_API_KEY" in path.read_text()
    assert [engine.model for engine in found[:4]] == ["llama-8b", 'C:\\models\\"x".gguf'] * 2
    assert len({engine.full_name for engine in found}) == len(found)
    assert loading.load(str(path), os.environ).backends == found


@pytest.mark.parametrize(
    ("model", "size", "precision"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", (8.0, None), "bf16"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507-FP8", (30.0, 3.0), "fp8"),
        ("Qwen2.5-0.5B-Instruct-GPTQ-Int8", (0.5, None), "int8"),
        ("TheBloke/Llama-2-13B-AWQ", (13.0, None), "int4"),
        ("llama3.2:3b-instruct-q4_K_M", (3.0, None), "int4"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", (None, None), "bf16"),
        ("microsoft/Phi-3-mini-4k-instruct", (None, None), "bf16"),
    ],
)
def test_size_and_precision_are_read_from_a_model_s_name(
    model: str, size: tuple[float | None, float | None], precision: str
) -> None:
    assert discovery.size_in(model) == size
    assert discovery.precision_in(model) == precision


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
        for model in models[:2]:  # EcoLogits is asked in a thread
            until(lambda m=model: asked(m)["x-joulegate-evidence"] == "modelled")  # type: ignore[misc]
        found = {model: asked(model)[ENERGY] for model in models}
        assert float(found["gpt-4o"]) > 2 * float(found["gpt-4o-mini"]) > 0
        assert found["no-such-model"] == ""
        last = {record.model_asked: record for record in running.records()}
        assert last["no-such-model"].money_usd is None
        # of the twelve and three tokens that were counted, not of the nine expected
        assert last["gpt-4o"].money_usd == pytest.approx((12 * 2.5 + 3 * 10) / 1e6)
        took_j = last["gpt-4o"].energy_j
        assert took_j is not None
        assert 0.0 < took_j < float(found["gpt-4o"])
