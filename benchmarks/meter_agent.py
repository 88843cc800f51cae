"""What the agent on a GPU node costs that node: memory and processor time.

``python -m benchmarks.meter_agent [--gpus 8] [--seconds 30]``. Runs ``joulegate meter`` as a
process of its own with its usual settings, against a C stand-in for NVIDIA's library (compiled on
the spot), a metrics page as large as vLLM's own, and a proxy side that takes the windows. Real
drivers take longer to answer than the stand-in: ``--read-us`` adds that much busy time a read.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from meters.intake import WindowIntake
from meters.types import Window
from tests.fakes.nvml import build_library

PAGE = Path(__file__).parent.parent / "tests/recordings/engines/vllm-0.32-metrics-busy.txt"


class Side(BaseHTTPRequestHandler):
    """The engine's metrics page and the proxy's two routes for agents."""

    protocol_version = "HTTP/1.1"
    page = b""
    windows: list[Window] = []  # noqa: RUF012  # one server a run
    intake = WindowIntake({"t": None}, {"bench"}, time.time, windows.append)

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._answer(200, self.page)
        elif self.path == "/meters/clock":
            self._answer(*self.intake.time("t"))
        else:
            self._answer(200, b'{"version":"0.32.0"}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self._answer(*self.intake.accept("t", body))

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--read-us", type=int, default=0)
    args = parser.parse_args()
    Side.page = PAGE.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Side)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    print("| GPUs | windows | memory MB | CPU, % of a core | of it, per window ms |")
    print("|--:|--:|--:|--:|--:|")
    for gpus in args.gpus:
        with tempfile.TemporaryDirectory() as folder:
            print(_measure(Path(folder), url, gpus, args.seconds, args.read_us), flush=True)
    server.shutdown()
    return 0


def _measure(folder: Path, url: str, gpus: int, seconds: float, read_us: int) -> str:
    if build_library(folder) is None:
        sys.exit("meter_agent: this benchmark needs a C compiler (gcc).")
    config = folder / "meter.yaml"
    config.write_text(
        f"node: bench\nproxy_url: {url}\ntoken: t\nhost: none\n"
        f"engine_url: {url}/metrics\nspool_dir: {folder / 'spool'}\n"
    )
    fake = {"FAKE_NVML_COUNT": str(gpus), "FAKE_NVML_READ_US": str(read_us)}
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "meter", "--config", str(config)],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), **fake},
        stderr=subprocess.DEVNULL,
    )
    try:
        before = len(Side.windows)
        while len(Side.windows) < before + 3:
            time.sleep(0.1)
        seen = psutil.Process(process.pid)
        began_s, began, first = time.monotonic(), seen.cpu_times(), len(Side.windows)
        time.sleep(seconds)
        used, took_s = seen.cpu_times(), time.monotonic() - began_s
        cpu_s = used.user + used.system - began.user - began.system
        windows = len(Side.windows) - first
        memory_mb = seen.memory_info().rss / 1e6
    finally:
        process.terminate()
        process.wait(15)
    each_ms = 1000 * cpu_s / max(1, windows)
    return f"| {gpus} | {windows} | {memory_mb:.1f} | {100 * cpu_s / took_s:.2f} | {each_ms:.1f} |"


if __name__ == "__main__":
    sys.exit(main())
