"""The parts that are killed: each can be, and comes back on the same port with the same data."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import yaml

from meters import simulated_engine
from meters.simulated_physics import LLAMA_8B_INT4, EngineConfig
from tests.servers import free_port, start_postgres, start_redis

KEY = "sk-chaos-0123456789abcdef"
NODE = "gpu-1"
TOKEN = "chaos-meter-token"
START_S = 150.0  # machines of continuous integration can be very busy


class Part(Protocol):
    """Something that can be killed and started again."""

    def kill(self) -> None: ...

    def start(self) -> None: ...


class Program:
    """``joulegate COMMAND`` in a process of its own."""

    def __init__(
        self, name: str, arguments: list[str], folder: Path, ready: Callable[[], bool]
    ) -> None:
        self.log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "proxy", *arguments]
        self._folder = folder
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        root = Path(__file__).resolve().parents[2]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={**os.environ, "PYTHONPATH": str(root)},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        end_s = time.monotonic() + START_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(
                    f"{self._command} did not start:\n{self.log.read_text()[-3000:]}"
                )
            time.sleep(0.05)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and wait."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()


class Cluster:
    """Everything, running."""

    def __init__(self, replicas: int = 3) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="joulegate-chaos-"))
        self.redis = start_redis()
        self.postgres = start_postgres()
        self.engine = simulated_engine.start(EngineConfig(physics=LLAMA_8B_INT4))
        self.ports = [free_port() for _ in range(replicas)]
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self._config()))
        (self.folder / "meter.yaml").write_text(yaml.safe_dump(self._meter()))
        self.replicas = [self._replica(port) for port in self.ports]
        self.agent = Program(
            "meter", ["meter", "--config", "meter.yaml"], self.folder, lambda: True
        )
        self.parts: dict[str, Part] = {
            **{f"replica {number}": part for number, part in enumerate(self.replicas)},
            "Redis": self.redis,
            "PostgreSQL": self.postgres,
            "meter agent": self.agent,
        }

    @property
    def ledger_url(self) -> str:
        return self.postgres.url

    def stop_replicas(self) -> None:
        """In order: the agent sends what it has, the replicas drain what they have."""
        self.agent.stop()
        for replica in self.replicas:
            replica.stop()

    def close(self) -> None:
        self.agent.kill()
        for replica in self.replicas:
            replica.kill()
        self.engine.close()
        self.redis.close()
        self.postgres.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _replica(self, port: int) -> Program:
        def ready() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=1):
                    return True
            except (urllib.error.URLError, OSError):
                return False

        arguments = ["serve", "--config", "config.yaml", "--port", str(port)]
        return Program(f"replica-{port}", arguments, self.folder, ready)

    def _config(self) -> dict[str, object]:
        budgets = [{"per": "month", "energy_j": 1e12}, {"per": "minute", "requests": 1_000_000}]
        return {
            "backends": [
                {
                    "model": "llama-3.1-8b",
                    "precision": "int4",
                    "url": f"{self.engine.url}/v1",
                    "gpu": "H100-SXM",
                    "params_b": 8.03,
                    "node": NODE,
                    "simulated": True,
                }
            ],
            "teams": {"chaos": {"keys": [KEY], "budgets": budgets}},
            "redis": {"url": self.redis.url},
            "ledger": {"url": self.postgres.url},
            "meters": {"tokens": {NODE: TOKEN}},
            "state_dir": str(self.folder / "state"),
            "server": {"stop_deadline_s": 5.0},
        }

    def _meter(self) -> dict[str, object]:
        return {
            "node": NODE,
            "proxy_url": f"http://127.0.0.1:{self.ports[0]}",
            "token": TOKEN,
            "meter": "simulated",
            "source_url": self.engine.url,
            "engine_url": f"{self.engine.url}/metrics",
            "spool_dir": str(self.folder / "spool"),
            "window_s": 0.5,
            "send_s": 0.5,
        }
