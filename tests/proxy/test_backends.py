"""Which engines a model name stands for, how busy they are, and when they are left alone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from estimators.energy import EnergyEstimator
from estimators.types import Features, Load
from meters.carbon import operational_g
from proxy import backends, facts
from proxy.backends import Engine, Pool
from proxy.config_file import ConfigError
from proxy.settings import BackendSettings, Carbon, Retries, Settings

RULES = Retries(failures=2, cooldown_s=10.0)


def pool_of(*given: BackendSettings, fallbacks: dict[str, list[str]] | None = None) -> Pool:
    settings = Settings(backends=list(given), fallbacks=fallbacks or {})
    return backends.of_settings(settings, facts.all_facts(settings))


def backend(model: str, **more: object) -> BackendSettings:
    return BackendSettings(model=model, url="http://127.0.0.1:9/v1", **more)  # type: ignore[arg-type]


@pytest.fixture
def pool() -> Pool:
    return pool_of(
        backend("llama", precision="bf16"),
        backend("llama", precision="int4"),
        backend("org/model:7b", name="org/model:7b"),
        backend("openai/*", name="openai", upstream_model="*"),
        backend("claude-*", name="claude", upstream_model="claude-*"),
        fallbacks={"llama": ["org/model:7b"]},
    )


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("llama", ["llama@bf16", "llama@int4"]),
        ("llama@int4", ["llama@int4"]),
        ("org/model:7b", ["org/model:7b"]),
        ("auto", ["llama@bf16", "llama@int4", "org/model:7b"]),
        ("auto:thrifty", ["llama@bf16", "llama@int4", "org/model:7b"]),
        ("openai/gpt-4o", ["openai"]),
        ("claude-3-haiku", ["claude"]),
        ("gpt-4o", []),
    ],
)
def test_a_name_stands_for_a_group_a_variant_a_wildcard_or_everything(
    pool: Pool, model: str, names: list[str]
) -> None:
    assert [engine.name for engine in pool.serving(model)] == names


@pytest.mark.parametrize(
    ("name", "asked", "sent"),
    [
        ("llama@int4", "llama", "llama"),
        ("llama@int4", "llama@int4", "llama"),
        ("openai", "openai/gpt-4o", "gpt-4o"),
        ("claude", "claude-3-haiku", "claude-3-haiku"),
    ],
)
def test_the_upstream_gets_the_name_it_knows(pool: Pool, name: str, asked: str, sent: str) -> None:
    assert backends.upstream_model(pool.by_name[name], asked) == sent


def test_the_closest_of_several_patterns_is_meant() -> None:
    pool = pool_of(
        backend("*", name="any"),
        backend("claude-*", name="claude-a"),
        backend("claude-*", name="claude-b"),
    )
    assert [engine.name for engine in pool.serving("claude-3-haiku")] == ["claude-a", "claude-b"]
    assert [engine.name for engine in pool.serving("gpt-4o")] == ["any"]


def test_fallbacks_are_of_the_group_also_for_a_pinned_variant(pool: Pool) -> None:
    assert [e.name for e in pool.fallback_for("llama@int4")] == ["org/model:7b"]
    assert pool.fallback_for("org/model:7b") == []


def test_a_failing_backend_is_left_alone_then_probed_by_one_request(pool: Pool) -> None:
    engine = pool.by_name["llama@int4"]
    engine.failed(0.0, RULES)
    assert engine.available(0.0)  # one failure is an accident
    engine.failed(1.0, RULES)
    assert not engine.available(10.9)
    assert engine.available(11.0)
    engine.probing = True
    assert not engine.available(11.0)  # one at a time
    engine.failed(12.0, RULES)
    assert not engine.available(21.9)
    assert engine.available(22.0)
    engine.succeeded()
    assert engine.available(22.0)
    assert engine.healthy


def test_load_is_what_is_in_flight_and_what_the_engine_says_while_it_is_fresh(pool: Pool) -> None:
    engine: Engine = pool.by_name["llama@bf16"]
    engine.started(100)
    engine.started(50)
    assert (engine.load(0.0).running, engine.load(0.0).context_tokens) == (2.0, 150.0)
    engine.reports(running=7.0, waiting=3.0, now_s=0.0)
    assert (engine.load(1.0).running, engine.load(1.0).waiting) == (7.0, 3.0)
    assert engine.load(60.0).running == 2.0  # said too long ago
    engine.ended(100)
    engine.ended(50)
    assert engine.load(60.0).running == 0.0


def test_a_request_of_ours_that_has_ended_does_not_make_an_engine_look_busy(pool: Pool) -> None:
    engine: Engine = pool.by_name["llama@bf16"]
    for second in range(3):  # one client, one request after another, each seen by the engine
        engine.started(100)
        engine.ended(100)
        engine.reports(running=1.0, waiting=0.0, now_s=second)
        assert engine.load(second).running == 0.0
    engine.reports(running=40.0, waiting=5.0, now_s=3.0)  # others' came
    engine.started(100)
    assert (engine.load(3.5).running, engine.load(3.5).waiting) == (41.0, 5.0)
    engine.reports(running=41.0, waiting=5.0, now_s=4.0)
    engine.ended(100)
    assert engine.load(4.5).running == pytest.approx(40.0, abs=1.0)


def test_engines_that_did_not_change_go_on_over_a_reload(pool: Pool) -> None:
    old = pool.by_name["llama@bf16"]
    old.started(10)
    settings = Settings(backends=[old.settings, backend("llama", precision="fp8")])
    engines = backends.engines_of(settings, facts.all_facts(settings), pool.by_name)
    assert engines[0] is old
    assert engines[1].in_flight == 0


@pytest.mark.parametrize(
    ("config", "provider", "engine"),
    [
        ({"url": "https://api.mistral.ai/v1"}, "mistral", "api"),
        ({"url": "https://api.openai.com/v1", "upstream_model": "gpt-4o"}, "openai", "api"),
        ({"url": "https://llm.example.com/v1", "engine": "api"}, "openai", "api"),
        ({"provider": "anthropic"}, "anthropic", "api"),
        ({"url": "http://127.0.0.1:8000/v1"}, None, "vllm"),
    ],
)
def test_a_closed_api_is_known_by_its_host(
    config: dict[str, str], provider: str | None, engine: str
) -> None:
    settings = Settings(backends=[msgspec.convert({"model": "m", **config}, BackendSettings)])
    (found,) = facts.all_facts(settings).values()
    assert (found.provider, found.engine) == (provider, engine)
    expected = config.get("upstream_model", "m")
    assert found.provider_model == (None if provider is None else expected)


@pytest.mark.parametrize(
    ("declared", "pue"),
    [
        (None, 1.0),  # EcoLogits' joules hold the building's overhead
        ({"j_per_request": 100.0}, 1.0),
        ({"j_per_request": 100.0, "whole": False}, 1.4),
        ({"whole": False}, 1.0),  # nothing is declared: EcoLogits' again
    ],
)
def test_a_building_is_not_counted_twice_where_an_apis_joules_hold_it(
    declared: dict[str, object] | None, pue: float
) -> None:
    given = {"model": "gpt-4o", "url": "https://api.openai.com/v1", "declared_energy": declared}
    settings = Settings(
        backends=[msgspec.convert(given, BackendSettings), backend("llama")],
        carbon=Carbon(pue=1.4),
    )
    api, engine = facts.all_facts(settings).values()
    assert (api.pue, engine.pue) == (pue, 1.4)
    estimator = EnergyEstimator()
    known = msgspec.structs.replace(api, intensity_g_per_kwh=400.0)
    estimator.prepare([known])
    (found,) = estimator.estimate(Features(prompt_tokens=100), [known], [Load()])
    assert found.energy_j is not None
    assert found.carbon_g is not None
    # what answers say of it is what its record comes to on every page
    assert found.carbon_g.mid == pytest.approx(operational_g(found.energy_j.mid, pue, 400.0))


def test_a_key_that_was_changed_in_its_file_is_used_after_the_config_was_read_again(
    tmp_path: Path,
) -> None:
    held = tmp_path / "key"
    held.write_text("sk-old\n")
    settings = Settings(backends=[backend("m", api_key_file=str(held))])
    known = facts.all_facts(settings)
    pool = backends.of_settings(settings, known)
    (engine,) = pool.engines
    engine.in_flight = 3
    held.write_text("sk-new\n")
    again = backends.engines_of(settings, known, pool.by_name)
    assert again == [engine]
    assert (engine.headers["authorization"], engine.in_flight) == ("Bearer sk-new", 3)
    held.unlink()
    with pytest.raises(ConfigError, match=r"backends\[0\]\.api_key_file: .*cannot be read"):
        facts.all_facts(settings)
