"""An agent beside an engine, and the proxy somewhere else: its windows become receipts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from meters import simulated_engine
from meters.simulated_physics import EngineConfig
from tests.joulegate_server import ADMIN, KEY, TEAMS, Joulegate, Start, in_thread
from tests.waiting import until

TOKEN = "jgm-0123456789abcdef"


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


def test_whatever_agents_send_the_books_balance(joulegate: Start) -> None:
    running = joulegate(
        {
            "backends": [{"model": "tiny", "url": "http://127.0.0.1:9/v1", "node": "gpu-7"}],
            "teams": TEAMS,
            "meters": {"tokens": {"gpu-7": TOKEN}},
            "log": {"level": "error"},
        }
    )
    rng = random.Random(5)
    now_s = time.time()

    def window(number: int, energy_j: float, off_s: float = 0.0, **more: Any) -> dict[str, Any]:
        start_s = now_s - 600 + number + off_s
        return {
            "window_id": f"gpu-7:r:{number}",
            "node": "gpu-7",
            "start_s": start_s,
            "end_s": start_s + 1,
            "energy_j": energy_j,
            "meter": "nvml",
            **more,
        }

    good = [window(n, rng.uniform(50, 700)) for n in range(60)]
    accepted_j = sum(w["energy_j"] for w in good)
    rng.shuffle(good)
    hour_off = [window(100 + n, 300.0, off_s=3600.0) for n in range(5)]
    accepted_j += 5 * 300.0
    bad = [
        window(200, -5.0),
        window(201, 100.0, off_s=-201 + 10.5),  # across two good ones
        window(202, 1e9),
        window(203, 100.0, node="gpu-8"),
        window(204, 100.0, end_s=now_s - 5000),
        window(205, 100.0, off_s=5000.0),
    ]
    headers = {"authorization": f"Bearer {TOKEN}"}

    def send(windows: list[dict[str, Any]], sent_s: float = now_s) -> dict[str, Any]:
        reply = running.post(
            {"windows": windows, "sent_s": sent_s}, path="/meters/windows", headers=headers
        )
        assert reply.status == 200
        answer: dict[str, Any] = reply.json()
        return answer

    for at in range(0, 60, 7):
        send(good[at : at + 7])
    assert send(hour_off, now_s + 3600)["repaired"] == {"clock": 5}
    assert send(good[:20])["duplicates"] == 20
    refused = {r["window_id"]: r["reason"] for r in send(bad)["refused"]}
    assert set(refused.values()) == {
        "negative",
        "overlapping",
        "implausible",
        "unknown_node",
        "interval",
        "future",
    }
    assert running.post({}, path="/meters/windows").status == 401

    assert running.proxy is not None
    ledger = until(lambda: running.proxy and running.proxy.ledger)
    until(lambda: ledger.check().windows == 65)
    balance = ledger.check()
    assert balance.problems == ()
    parts_uj = balance.attributed_uj + balance.idle_uj
    parts_uj += balance.external_uj + balance.unattributed_uj
    assert balance.metered_uj == parts_uj
    assert balance.metered_uj == pytest.approx(accepted_j * 1e6, abs=65)
    page = running.get("/metrics", x_api_key=ADMIN).body.decode()
    for outcome, reason, windows in (
        ("refused", "overlapping", 1),
        ("refused", "negative", 1),
        ("refused", "implausible", 1),
        ("refused", "unknown_node", 1),
        ("refused", "interval", 1),
        ("refused", "future", 1),
        ("refused", "wrong_token", 1),
        ("repaired", "clock", 5),
        ("duplicate", "", 20),
    ):
        line = f'joulegate_meter_windows_total{{outcome="{outcome}",reason="{reason}"}} {windows}.0'
        assert line in page, line
    shuffled = 'joulegate_meter_windows_total{outcome="accepted",reason="out_of_order"}'
    assert float(page.split(shuffled)[1].split()[0]) > 10
    assert 'joulegate_meter_refused_joules_total{reason="implausible"} 1e+09' in page


def test_windows_of_before_a_restart_are_known_again(tmp_path: Path) -> None:
    """Also by their interval: another id does not make the same second count twice."""
    now_s = time.time() - 60
    config = {
        "backends": [{"model": "tiny", "url": "http://127.0.0.1:9/v1", "node": "gpu-7"}],
        "teams": TEAMS,
        "meters": {"tokens": {"gpu-7": TOKEN}},
        "retries": {"health_check_s": 0},
    }
    window = {"node": "gpu-7", "start_s": now_s, "end_s": now_s + 1, "energy_j": 100.0}
    headers = {"authorization": f"Bearer {TOKEN}"}

    def send(running: Joulegate, window_id: str) -> dict[str, Any]:
        body = {"windows": [window | {"window_id": window_id}], "sent_s": time.time()}
        answer: dict[str, Any] = running.post(body, path="/meters/windows", headers=headers).json()
        return answer

    running, stop = in_thread(config, tmp_path)
    assert send(running, "run:1")["accepted"] == 1
    stop()
    running, stop = in_thread(config, tmp_path)
    try:
        assert send(running, "run:1")["duplicates"] == 1
        assert [r["reason"] for r in send(running, "other:1")["refused"]] == ["overlapping"]
    finally:
        stop()
