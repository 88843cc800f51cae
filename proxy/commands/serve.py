"""Serve the proxy.

Without --config it takes config.yaml where there is one, else the engines and provider keys it
finds, else two simulated engines.
"""

from __future__ import annotations

import argparse

from proxy import serving

EXAMPLE = "joulegate serve --config config.yaml --port 4000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", help="config file (ours, or LiteLLM's)")
    parser.add_argument("--host", metavar="H", help="address to listen on")
    parser.add_argument("--port", metavar="P", type=int, help="port to listen on; 0: a free one")
    parser.add_argument("--workers", metavar="N", type=int, help="processes")


def run(args: argparse.Namespace) -> int:
    return serving.serve(config=args.config, host=args.host, port=args.port, workers=args.workers)
