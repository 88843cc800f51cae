"""Serve simulated engines with sample traffic, to look at the dashboard.

Everything that is shown is simulated, and labelled so.
"""

from __future__ import annotations

import argparse
import sys
import time

from proxy import sample_traffic, serving

EXAMPLE = "joulegate demo --port 4000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="H", help="address to listen on")
    parser.add_argument("--port", metavar="P", type=int, help="port to listen on")
    parser.add_argument(
        "--rate", metavar="R", type=float, default=2.0, help="requests a second (default 2)"
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open the dashboard")


def run(args: argparse.Namespace) -> int:
    written = sample_traffic.write_history(sample_traffic.STATE_DIR, time.time())
    if written:
        print(f"{written} simulated requests written", file=sys.stderr, flush=True)
    return serving.serve(
        host=args.host,
        port=args.port,
        simulated=True,
        beside=sample_traffic.of_rate(args.rate, open_dashboard=not args.no_browser),
    )
