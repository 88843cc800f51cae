"""What a gateway costs a request, side by side in one run against one fast upstream.

``make bench-gateway`` or ``python -m benchmarks.gateway [--quick] [--litellm]``. Prints Markdown.
CPU is that of the gateway's own processes; latencies are what it adds to calling the upstream
directly, in the same run. Where the upstream answers at once, 64 in flight saturate a gateway and
its latency is only its queue: read the added latency where the upstream takes 100 ms. Rounds
alternate between gateways, and the median round counts: on a shared machine only ratios within
one run mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contestants import CONTESTANTS, KEY, MOCK, ROOT, Missing, Running, started
from benchmarks.load import Measured
from benchmarks.mock_upstream import EVENTS

# (scenario, requests in flight)
WORKLOADS = (
    ("1 KB", 1),
    ("1 KB", 64),
    ("1 KB after 100 ms", 64),
    ("stream", 1),
    ("stream", 64),
    ("100k tokens", 1),
    ("100k tokens", 64),
)


@dataclass
class Cell:
    """One gateway under one workload: a value for each round."""

    cpu_ms: list[float] = field(default_factory=list)  # a request
    requests_per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)  # median time to the first byte
    errors: int = 0
    first_error: str = ""


def generate(url: str, scenario: str, in_flight: int, seconds: float) -> Measured:
    """Run the load generator in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", url, scenario, str(in_flight)]
    done = subprocess.run(
        [*command, str(seconds), KEY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return Measured(**json.loads(done.stdout))


def measure(gateway: Running, cell: Cell, scenario: str, in_flight: int, seconds: float) -> None:
    """One round of one gateway under one workload."""
    before_s = gateway.cpu_s()
    seen = generate(gateway.url, scenario, in_flight, seconds)
    cpu_s = gateway.cpu_s() - before_s
    cell.errors += seen.errors
    cell.first_error = cell.first_error or seen.first_error
    if seen.p50_s is None or seen.p99_s is None or seen.first_s is None:
        return
    cell.cpu_ms.append(cpu_s / seen.requests * 1e3)
    cell.requests_per_s.append(seen.requests / seen.elapsed_s)
    cell.p50_ms.append(seen.p50_s * 1e3)
    cell.p99_ms.append(seen.p99_s * 1e3)
    cell.first_ms.append(seen.first_s * 1e3)


def median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def shown(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def minus(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def table(gateways: list[Running], cells: dict[tuple[str, str, int], Cell]) -> str:
    """The Markdown that is printed."""
    lines: list[str] = []
    for scenario, in_flight in WORKLOADS:
        title = {
            "1 KB": "1 KB request, 1 KB answer at once",
            "1 KB after 100 ms": "1 KB request, 1 KB answer after 100 ms",
            "stream": f"stream of {EVENTS} events",
            "100k tokens": "prompt of 100k tokens, 1 KB answer",
        }[scenario]
        base = cells[(MOCK.name, scenario, in_flight)]
        relay = cells.get(("bare relay", scenario, in_flight), Cell())
        lines += [f"\n{title}, {in_flight} in flight\n"]
        head = "gateway | CPU ms a request | × bare relay | requests/s a core | requests/s here"
        head += " | added p50 ms | added p99 ms | added first byte ms"
        if scenario == "stream":
            head += " | CPU µs an event"
        lines += [f"| {head} |", "|---" + "|--:" * head.count("|") + "|"]
        for gateway in gateways:
            cell = cells[(gateway.name, scenario, in_flight)]
            cpu = median(cell.cpu_ms)
            relay_cpu = median(relay.cpu_ms)
            row = [
                gateway.name,
                shown(cpu, 3),
                shown(cpu / relay_cpu if cpu and relay_cpu else None),
                shown(1e3 / cpu if cpu else None, 0),
                shown(median(cell.requests_per_s), 0),
            ]
            if gateway.name == MOCK.name:
                p50, p99 = shown(median(cell.p50_ms), 3), shown(median(cell.p99_ms), 3)
                first = shown(median(cell.first_ms), 3)
                row += [f"({p50})", f"({p99})", f"({first})"]
            else:
                row += [
                    shown(minus(median(cell.p50_ms), median(base.p50_ms)), 3),
                    shown(minus(median(cell.p99_ms), median(base.p99_ms)), 3),
                    shown(minus(median(cell.first_ms), median(base.first_ms)), 3),
                ]
            if scenario == "stream":
                row.append(shown(cpu * 1e3 / EVENTS if cpu else None, 1))
            lines.append("| " + " | ".join(row) + " |")
            if cell.errors:
                lines.append(f"\n{gateway.name}: {cell.errors} errors, first: {cell.first_error}\n")
    lines += ["\nat rest\n", "| gateway | start-up s | memory MB | after the run MB |"]
    lines += ["|---|--:|--:|--:|"]
    for gateway in gateways:
        rest = gateway.rest_bytes / 1e6 if gateway.rest_bytes else None
        after = gateway.rss_bytes() / 1e6
        lines.append(
            f"| {gateway.name} | {shown(gateway.start_s)} | {shown(rest, 0)} | {shown(after, 0)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure and print; 1 when a gateway that should be there is not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, one round")
    parser.add_argument("--litellm", action="store_true", help="also LiteLLM's proxy")
    parser.add_argument("--rounds", type=int, help="rounds of each (3; 1 when quick)")
    parser.add_argument("--seconds", type=float, help="length of a round (3; 1 when quick)")
    parser.add_argument("--only", default="", help=f"of {', '.join(CONTESTANTS)}; commas between")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    seconds = arguments.seconds or (1.0 if arguments.quick else 3.0)
    chosen = [name for name in arguments.only.split(",") if name] or [
        name for name in CONTESTANTS if name != "litellm" or arguments.litellm
    ]
    missing = 0
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gateway-")))
        engine = stack.enter_context(started(MOCK, scratch / "mock", ""))
        gateways = [engine]
        for name in chosen:
            print(f"starting {CONTESTANTS[name].name}", file=sys.stderr, flush=True)
            try:
                one = started(CONTESTANTS[name], scratch / name, engine.url)
                gateways.append(stack.enter_context(one))
            except Missing as reason:
                print(f"without {name}: {reason}", file=sys.stderr, flush=True)
                missing += name in ("relay", "joulegate")
        cells = {(g.name, s, n): Cell() for g in gateways for s, n in WORKLOADS}
        for number in range(rounds):
            for scenario, in_flight in WORKLOADS:
                print(
                    f"round {number + 1} of {rounds}: {scenario}, {in_flight} in flight",
                    file=sys.stderr,
                    flush=True,
                )
                for gateway in gateways:
                    cell = cells[(gateway.name, scenario, in_flight)]
                    measure(gateway, cell, scenario, in_flight, seconds)
        print(
            f"{os.cpu_count()} cores, Python {platform.python_version()}, "
            f"{rounds} round(s) of {seconds:g} s, medians of rounds"
        )
        print(table(gateways, cells))
        if arguments.json:
            figures = {" | ".join(map(str, key)): vars(cell) for key, cell in cells.items()}
            Path(arguments.json).write_text(json.dumps(figures, indent=1))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
