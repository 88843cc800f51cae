"""An agent beside an engine, and the proxy somewhere else: its windows become receipts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meters import simulated_engine
from meters.simulated_physics import EngineConfig
from tests.joulegate_server import ADMIN, KEY, TEAMS, Config, Joulegate

Start = Callable[[Config], Joulegate]
TOKEN = "jgm-0123456789abcdef"


def until(what: Callable[[], Any], within_s: float = 30.0) -> Any:
    deadline_s = time.monotonic() + within_s
    while not (value := what()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)
    return value


def test_windows_of_a_node_elsewhere_turn_estimates_into_metered_receipts(
    joulegate: Start, tmp_path: Path
) -> None:
    engine = simulated_engine.start(EngineConfig())
    running = joulegate(
        {
            "backends": [
                {
                    "model": "llama-3.1-8b",
                    "gpu": "H100-SXM",
                    "params_b": 8.03,
                    "url": f"{engine.url}/v1",
                    "node": "gpu-7",
                    "simulated": True,
                }
            ],
            "teams": TEAMS,
            "meters": {"tokens": {"gpu-7": TOKEN}},
        }
    )
    config = tmp_path / "meter.yaml"
    config.write_text(
        f"node: gpu-7\nproxy_url: {running.address}\ntoken: {TOKEN}\nmeter: simulated\n"
        f"source_url: {engine.url}\nengine_url: {engine.url}/metrics\nhost: none\n"
        f"window_s: 0.5\nsend_s: 0.2\nspool_dir: {tmp_path / 'spool'}\n"
    )
    agent = subprocess.Popen(
        [sys.executable, "-m", "proxy", "meter", "--config", str(config)], env=dict(os.environ)
    )
    try:
        until(lambda: b'outcome="accepted"' in running.get("/metrics", x_api_key=ADMIN).body)
        reply = running.post(
            {
                "model": "llama-3.1-8b",
                "max_tokens": 100,
                "messages": [{"role": "user", "content": "Tell me something."}],
            },
            headers={"x-api-key": KEY},
        )
        assert reply.status == 200
        request_id = reply.header("x-request-id")

        def metered() -> Any:
            receipt = running.get(f"/v1/usage/{request_id}", x_api_key=KEY).json()
            return receipt if receipt["status"] == "metered (simulated)" else None

        receipt = until(metered)
    finally:
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(20) == 0
        engine.close()
    assert receipt["energy"]["attributed_j"] > 0
    windows = receipt["energy"]["windows"]
    assert all(window["window_id"].startswith("gpu-7:") for window in windows)
    wrong = running.post({}, path="/meters/windows", headers={"authorization": "Bearer wrong"})
    assert wrong.status == 401
