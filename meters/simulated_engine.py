"""Starts simulated engines, and reads their energy through the interface of every meter.

    python -m meters.simulated_engine --port 8000 --model llama-3.1-8b

In process, ``start(config)`` serves one from a thread of its own and returns its address. The
demonstration pair is one small model in two precisions.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import msgspec
import uvicorn

from meters.clock import Clock, ScaledClock
from meters.published_engines import PUBLISHED, published_engine
from meters.simulated_physics import LLAMA_8B_BF16, LLAMA_8B_INT4, EngineConfig
from meters.simulated_server import SimulatedServer
from meters.types import Evidence, MeterUnavailable, Reading

PRECISIONS = {"bf16": LLAMA_8B_BF16, "int4": LLAMA_8B_INT4}


def demonstration_pair(seed: int = 0) -> dict[str, EngineConfig]:
    """The two engines that ``make run`` serves when it finds no others, by backend name."""
    return {
        f"llama-3.1-8b@{precision}": EngineConfig(physics=physics, seed=seed + i)
        for i, (precision, physics) in enumerate(PRECISIONS.items())
    }


class SimulatedMeter:
    """Reads a simulated engine's cumulative energy, as the NVML meter reads a GPU's."""

    name = "simulated"
    evidence = Evidence.SIMULATED

    def __init__(
        self,
        read_j: Callable[[], float],
        *,
        device: str = "gpu0",
        resolution_j: float | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_j = read_j
        self._device = device
        self._now_s = now_s
        self.resolution_j = resolution_j

    @classmethod
    def of(cls, server: SimulatedServer) -> SimulatedMeter:
        """Reads an engine in this process, without HTTP, on the engine's clock."""
        resolution_j = _resolution_j(server.config.counter_period_s)
        return cls(server.energy_j, resolution_j=resolution_j, now_s=server.clock.now_s)

    @classmethod
    def at(cls, url: str, timeout_s: float = 2.0) -> SimulatedMeter:
        """Reads the engine at ``url``. Blocks for one HTTP exchange: call it from a thread."""

        def page() -> dict[str, float]:
            try:
                with urllib.request.urlopen(
                    f"{url.rstrip('/')}/simulated/energy", timeout=timeout_s
                ) as answer:
                    read: dict[str, float] = json.load(answer)
                    return read
            except (urllib.error.URLError, OSError, ValueError) as error:
                raise MeterUnavailable(
                    f"no simulated engine answers at {url} ({error}); start it, or name another "
                    "meter for this node"
                ) from None

        resolution_j = _resolution_j(float(page()["counter_period_s"]))
        return cls(lambda: float(page()["energy_j"]), resolution_j=resolution_j)

    def read(self) -> list[Reading]:
        """One reading. Raises MeterUnavailable."""
        before_s = self._now_s()
        energy_j = self._read_j()
        return [Reading(self._device, (before_s + self._now_s()) / 2, energy_j)]

    def close(self) -> None:
        """Nothing is held open."""


def _resolution_j(period_s: float) -> float:
    # Each of two readings is late by up to a period; a GPU of this kind draws up to 700 W.
    return 700.0 * period_s


class Started:
    """A simulated engine served from a thread; ``close`` ends it."""

    def __init__(self, server: SimulatedServer) -> None:
        self.server = server
        self.engine = server.engine
        self._socket = _listening("127.0.0.1", 0)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._uvicorn = uvicorn.Server(_uvicorn_config(server))
        ready = threading.Event()
        server.on_startup = ready.set
        self._thread = threading.Thread(
            target=self._uvicorn.run, args=([self._socket],), name=self.url, daemon=True
        )
        self._thread.start()
        if not ready.wait(30.0):
            raise RuntimeError(f"the simulated engine at {self.url} did not start in 30 s")

    def meter(self) -> SimulatedMeter:
        return SimulatedMeter.of(self.server)

    def close(self) -> None:
        """Stop serving; requests under way are cut off."""
        self._uvicorn.should_exit = True
        self._thread.join(10.0)
        self._socket.close()

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(config: EngineConfig, clock: Clock | None = None) -> Started:
    """Serve a simulated engine from a thread of its own on 127.0.0.1. Raises OSError."""
    return Started(SimulatedServer(config, clock))


def _listening(host: str, port: int) -> socket.socket:
    # Listening before uvicorn runs: whoever knows the port can connect at once.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(2048)
    return listening


def _uvicorn_config(server: SimulatedServer) -> uvicorn.Config:
    return uvicorn.Config(
        server,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
    )


def main(argv: list[str] | None = None) -> int:
    """Serve one engine in the foreground."""
    parser = argparse.ArgumentParser(
        prog="python -m meters.simulated_engine",
        description="A simulated inference engine with vLLM's API. Nothing it says is real.",
        epilog="example: python -m meters.simulated_engine --port 8000 --precision int4",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--model", default="llama-3.1-8b", help="the name it serves under")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="bf16")
    parser.add_argument("--speed", type=float, default=1.0, help="times as fast as real time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--published",
        choices=sorted(PUBLISHED),
        metavar="NAME",
        help="use what was measured of that one: " + ", ".join(sorted(PUBLISHED)),
    )
    parser.add_argument(
        "--config", metavar="FILE", help="an EngineConfig as JSON; wins over the options above"
    )
    args = parser.parse_args(argv)
    config = EngineConfig(model=args.model, physics=PRECISIONS[args.precision], seed=args.seed)
    if args.published:
        config = published_engine(args.published, seed=args.seed)
    if args.config:
        with open(args.config, "rb") as file:
            config = msgspec.json.decode(file.read(), type=EngineConfig)
    server = SimulatedServer(config, ScaledClock(args.speed))
    listening = _listening(args.host, args.port)
    port = listening.getsockname()[1]

    def say_ready() -> None:
        print(f"simulated engine {config.model} on http://{args.host}:{port}", flush=True)

    server.on_startup = say_ready
    uvicorn.Server(_uvicorn_config(server)).run([listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
