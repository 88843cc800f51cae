"""Meter a GPU node: read its energy counters and send closed windows to the proxy.

Runs beside the engine until it is stopped. The file's keys are in docs/meters.md; the least it
needs is node, proxy_url and token.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
import time

import msgspec

from meters.agent import Agent
from meters.engine_reader import EngineUnavailable
from meters.local import LocalMeter
from meters.settings import AgentSettings, BadSettings, load
from meters.spool import SpoolUnusable
from meters.types import Window
from proxy.commands import CommandError

EXAMPLE = "joulegate meter --config /etc/joulegate/meter.yaml"
PROBE_S = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="F", help="the meter's YAML file")
    parser.add_argument(
        "--probe",
        action="store_true",
        help="read for some seconds, print what was found, and send nothing",
    )
    parser.add_argument("--json", action="store_true", help="with --probe: print JSON")


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="joulegate meter: %(message)s"
    )
    try:
        settings = load(args.config, AgentSettings)
        if args.probe:
            return _probe(settings, args.json)
        agent = Agent(settings)
    except (BadSettings, EngineUnavailable, SpoolUnusable) as error:
        raise CommandError(str(error)) from None
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    print(
        f"joulegate meter: reading {settings.meter} as node {settings.node_name!r}, "
        f"sending to {settings.proxy_url}",
        file=sys.stderr,
    )
    agent.run(stopping)
    print(f"joulegate meter: stopped; {agent.sent} windows sent", file=sys.stderr)
    return 0


def _probe(settings: AgentSettings, as_json: bool) -> int:
    """What can be read here; 1 when nothing can."""
    windows: list[Window] = []
    local = LocalMeter(settings)
    local.start(windows.append)
    print("joulegate meter: looking for a few seconds ...", file=sys.stderr)
    until_s = time.monotonic() + max(PROBE_S, 3 * settings.window_s)
    status = local.status()
    while time.monotonic() < until_s and not (status.problems and status.meter is None):
        time.sleep(0.05)
        status = local.status()
    local.stop()
    last = windows[-1] if windows else None
    power_w = last.energy_j / (last.end_s - last.start_s) if last else None
    if as_json:
        said = {"status": msgspec.to_builtins(status), "power_w": power_w}
        said["window"] = msgspec.to_builtins(last) if last else None
        print(json.dumps(said))
    else:
        period = "unknown" if status.update_period_s is None else f"{status.update_period_s:.3f} s"
        print(f"meter           {status.meter or 'none'}")
        print(f"devices         {', '.join(status.devices) or 'none'}")
        print(f"update period   {period}")
        print(f"power           {'unknown' if power_w is None else f'{power_w:.1f} W'}")
        for problem in status.problems:
            print(f"problem         {problem}")
    return 0 if windows else 1
