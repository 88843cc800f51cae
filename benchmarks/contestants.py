"""The gateways that are compared: how each is set up, started in front of one upstream, stopped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).parent / "uv"
KEY = "sk-benchmark-0123456789abcdef0123456789abcdef"
PROBE = b'{"model":"bench","messages":[{"role":"user","content":"ready?"}],"max_tokens":1}'
START_WITHIN_S = 90.0


class Missing(Exception):
    """This contestant cannot be had here; the message says why."""


@dataclass
class Running:
    """A started server and what starting it took."""

    name: str
    url: str
    processes: list[psutil.Process]
    start_s: float | None = None  # from the command to the first answered request
    rest_bytes: int | None = None  # resident memory at rest, after that request

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far."""
        return sum(_cpu_s(process) for process in self.processes)

    def rss_bytes(self) -> int:
        """Resident memory of all its processes now."""
        return sum(process.memory_info().rss for process in self.processes)


def _cpu_s(process: psutil.Process) -> float:
    """The scheduler's own count, in nanoseconds, where Linux gives it: a process's ordinary CPU
    times tick in hundredths of a second."""
    try:
        tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, IndexError):
        times = process.cpu_times()
        return float(times.user + times.system)


@dataclass(frozen=True)
class Contestant:
    """A gateway's name and the command that puts it on a port, before an upstream."""

    name: str
    command: Callable[[Path, int, str], list[str]]  # (scratch folder, port, upstream address)
    environment: dict[str, str] = field(default_factory=dict)


def free_port() -> int:
    """A port nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def started(contestant: Contestant, folder: Path, upstream: str) -> Iterator[Running]:
    """The contestant, serving; stopped at the end with all it started. Raises Missing."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = contestant.command(folder, port, upstream)
    log = folder / "log.txt"
    with log.open("wb") as output:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | contestant.environment,
        )
    url = f"http://127.0.0.1:{port}"
    family: list[psutil.Process] = []
    try:
        _wait_until_it_answers(contestant.name, url, process, log)
        took_s = time.perf_counter() - began_s
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        running = Running(contestant.name, url, family, took_s)
        running.rest_bytes = running.rss_bytes()
        yield running
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in family[1:]:
            if child.is_running():
                child.kill()


def _wait_until_it_answers(
    name: str, url: str, process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline_s = time.monotonic() + START_WITHIN_S
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    last = "nothing"
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise Missing(f"{name} ended: {log.read_text(errors='replace')[-1500:]}")
        request = urllib.request.Request(f"{url}/v1/chat/completions", PROBE, headers)
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except urllib.error.HTTPError as error:
            last = f"{error.code} {error.read()[:300]!r}"
        except OSError as error:
            last = str(error)
        time.sleep(0.02)
    raise Missing(f"{name} did not answer within {START_WITHIN_S:.0f} s; last: {last}")


# -- the commands ------------------------------------------------------------------------------


def mock(_: Path, port: int, __: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.mock_upstream", str(port)]


def nginx(folder: Path, port: int, upstream: str) -> list[str]:
    """One nginx worker that passes everything on over kept connections, unbuffered."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _run(["apt-get", "update", "-qq"])
        _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "nginx-light"])
        program = shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise Missing("nginx is not installed (apt-get install nginx-light)")
    user = "user root;" if os.geteuid() == 0 else ""
    address = upstream.removeprefix("http://")
    config = folder / "nginx.conf"
    config.write_text(f"""
        {user} worker_processes 1; daemon off; pid {folder}/nginx.pid;
        error_log {folder}/error.log;
        events {{ worker_connections 8192; }}
        http {{
          access_log off; client_max_body_size 64m; client_body_buffer_size 1m;
          client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
          fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
          keepalive_requests 100000000;
          upstream engine {{ server {address}; keepalive 256; keepalive_requests 100000000; }}
          server {{
            listen 127.0.0.1:{port};
            location / {{
              proxy_pass http://engine; proxy_http_version 1.1; proxy_buffering off;
              proxy_set_header Connection "";
            }}
          }}
        }}""")
    return [program, "-c", str(config), "-p", str(folder)]


def bare_relay(_: Path, port: int, upstream: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.bare_relay", str(port), upstream]


def vllm_router(_: Path, port: int, upstream: str) -> list[str]:
    """vLLM's router, written in Rust, in an environment of its own."""
    environment = ROOT / ".venv-vllm-router"
    python = environment / "bin" / "python"
    if not (environment / "bin" / "vllm-router").exists():
        _run([str(UV), "venv", "-q", "--clear", "--python", sys.executable, str(environment)])
        _run([str(UV), "pip", "install", "-q", "--python", str(python), "vllm-router==0.1.17"])
    return [
        str(environment / "bin" / "vllm-router"),
        f"--port={port}",
        "--host=127.0.0.1",
        "--worker-urls",
        upstream,
        "--policy=round_robin",
        "--log-level=error",
        f"--prometheus-port={free_port()}",
    ]


def litellm(folder: Path, port: int, upstream: str) -> list[str]:
    """LiteLLM's proxy without its database, in an environment of its own."""
    environment = ROOT / ".venv-litellm"
    python = environment / "bin" / "python"
    if not (environment / "bin" / "litellm").exists():
        install = [str(UV), "pip", "install", "-q", "--python", str(python)]
        _run([str(UV), "venv", "-q", "--clear", "--python", sys.executable, str(environment)])
        overrides = environment / "overrides.txt"
        overrides.write_text("certifi>=2026.5\n")
        # The newest release's own set of dependencies does not resolve; an older one's serves it.
        _run([*install, "--overrides", str(overrides), "litellm[proxy]==1.106.*"])
        _run([*install, "--no-deps", "litellm==1.109.1"])
    parameters = {"model": "openai/bench", "api_base": f"{upstream}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "model_list": [{"model_name": "bench", "litellm_params": parameters}],
                "general_settings": {"master_key": KEY},
                "litellm_settings": {"num_retries": 0, "telemetry": False},
            }
        )
    )
    return [
        str(environment / "bin" / "litellm"),
        *("--config", str(config), "--port", str(port), "--host", "127.0.0.1"),
        *("--num_workers", "1", "--telemetry", "False"),
    ]


def joulegate(folder: Path, port: int, upstream: str) -> list[str]:
    """Joulegate with everything on: keys, limits, budgets, counting, four candidates, cache,
    ledger."""
    shapes = [("bf16", 1, 8.0), ("fp8", 1, 8.0), ("bf16", 2, 70.0), ("int4", 1, 8.0)]
    backends = [
        {
            "model": "bench",
            "name": f"bench-{number}",
            "url": f"{upstream}/v1",
            "precision": precision,
            "gpu": "H100-SXM",
            "num_gpus": gpus,
            "params_b": params,
            "context_tokens": 131_072,
            "supports_images": True,
            "quality": 0.6 + number / 20,
        }
        for number, (precision, gpus, params) in enumerate(shapes)
    ]
    limits = {"max_energy_j": 1e9, "min_quality": 0.1}
    budgets = [{"per": "day", "energy_j": 1e12, "tokens": 10**13}]
    budgets.append({"per": "minute", "requests": 10**9})
    config = folder / "joulegate.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "server": {"port": port},
                "state_dir": str(folder / "state"),
                "default_policy": "least_energy",
                "backends": backends,
                "teams": {"bench": {"keys": [KEY], "limits": limits, "budgets": budgets}},
                "log": {"level": "warning"},
            }
        )
    )
    return [sys.executable, "-m", "proxy", "serve", "--config", str(config)]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"`{' '.join(command)}` failed: {done.stderr.strip()[-800:]}")


MOCK = Contestant("engine direct", mock)
CONTESTANTS = {
    "nginx": Contestant("nginx", nginx),
    "relay": Contestant("bare relay", bare_relay),
    "vllm-router": Contestant("vllm-router", vllm_router),
    "joulegate": Contestant("Joulegate", joulegate, {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}),
    "litellm": Contestant(
        "LiteLLM proxy", litellm, {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"}
    ),
}
