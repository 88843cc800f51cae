"""The meter the proxy starts itself, on engines that really serve: a simulated one whose true
energy is known, and llama.cpp."""

from __future__ import annotations

import json
import threading
import urllib.request

import pytest

from meters.engine_reader import EngineReader
from meters.local import LocalMeter
from meters.settings import MeterSettings
from meters.simulated_engine import start
from meters.simulated_physics import LLAMA_8B_BF16, EngineConfig
from meters.types import Evidence, Window
from tests.llama_cpp import Engine
from tests.waiting import until


def complete(url: str, model: str, tokens: int) -> dict[str, int]:
    body = {"model": model, "prompt": "Say something.", "max_tokens": tokens, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        usage: dict[str, int] = json.load(answer)["usage"]
        return usage


def test_windows_of_a_simulated_engine_add_up_to_its_true_energy_and_tokens() -> None:
    engine = start(EngineConfig())
    windows: list[Window] = []
    settings = MeterSettings(
        node="sim",
        meter="simulated",
        source_url=engine.url,
        engine_url=f"{engine.url}/metrics",
        host="none",
        window_s=0.5,
    )
    local = LocalMeter(settings)
    local.start(windows.append)
    try:
        until(lambda: len(windows) >= 2)
        clients = [
            threading.Thread(target=complete, args=(engine.url, "llama-3.1-8b", 60))
            for _ in range(4)
        ]
        began = len(windows)
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        until(lambda: len(windows) >= began + 5)
    finally:
        local.stop()
        engine.close()
    counted = [w for w in windows if w.generated_tokens is not None]
    assert sum(w.generated_tokens or 0 for w in counted) == 240
    assert all(w.evidence is Evidence.SIMULATED and w.meter == "simulated" for w in windows)
    assert windows[-1].engine_version == EngineConfig().version
    seconds = sum(w.end_s - w.start_s for w in windows)
    above_j = sum(w.energy_j for w in windows) - LLAMA_8B_BF16.idle_power_w * seconds
    steps = sum(w.steps or 0 for w in counted)
    work_j = LLAMA_8B_BF16.step_j * steps + LLAMA_8B_BF16.token_j * 240
    # contexts and prompts are short, the engine's own noise is 2 %
    assert above_j == pytest.approx(work_j, rel=0.08)
    # and idle power was learnt from the windows before
    assert windows[-1].idle_power_w == pytest.approx(LLAMA_8B_BF16.idle_power_w, rel=0.05)


def test_each_of_two_engines_on_the_same_devices_is_counted_for_itself() -> None:
    engines = {"one": start(EngineConfig()), "other": start(EngineConfig())}
    windows: list[Window] = []
    settings = MeterSettings(
        node="gpu",
        meter="simulated",
        source_url=engines["one"].url,
        engines={name: f"{engine.url}/metrics" for name, engine in engines.items()},
        host="none",
        window_s=0.5,
    )
    local = LocalMeter(settings)
    local.start(windows.append)
    try:
        until(lambda: len(windows) >= 2)
        complete(engines["one"].url, "llama-3.1-8b", 40)
        complete(engines["other"].url, "llama-3.1-8b", 25)
        began = len(windows)
        until(lambda: len(windows) >= began + 3)
        engines["other"].close()  # one that is gone leaves the other's counts known
        until(lambda: [did.engine for did in windows[-1].engines] == ["one"])
    finally:
        local.stop()
        for engine in engines.values():
            engine.close()
    counted: dict[str, float] = {}
    for window in windows:
        for did in window.engines:
            counted[did.engine] = counted.get(did.engine, 0.0) + (did.generated_tokens or 0.0)
    assert counted == {"one": 40, "other": 25}
    assert sum(w.generated_tokens or 0 for w in windows) == 65
    assert windows[-1].generated_tokens is None  # of both together nobody knows now


def test_llama_cpps_own_counters_are_read(llama_cpp: Engine) -> None:
    reader = EngineReader(f"{llama_cpp.address}/metrics", timeout_s=5.0)
    before = reader.read()
    usage = complete(llama_cpp.address, llama_cpp.model, 20)
    until(lambda: reader.read().steps != before.steps)
    after = reader.read()
    assert (after.steps or 0) - (before.steps or 0) >= 19
    assert (after.prompt_tokens or 0) - (before.prompt_tokens or 0) == usage["prompt_tokens"]
    generated = (after.generated_tokens or 0) - (before.generated_tokens or 0)
    assert generated == usage["completion_tokens"]
    assert after.late == ("generated_tokens",)
    assert after.started_s is not None
    reader.close()
