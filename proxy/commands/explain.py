"""Say which backend a request would go to, and why not each other. Nothing is sent.

REQUEST.json is the body of a chat request. A batch file has one request a line with an "id".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxy import offline
from proxy.commands import CommandError
from proxy.commands.progress import progress
from proxy.config_file import ConfigError
from proxy.errors import ApiError
from proxy.jsonl import numbered_lines

EXAMPLE = "joulegate explain request.json --config config.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("request", metavar="REQUEST.json", nargs="?", help="a chat request")
    parser.add_argument("--batch", metavar="F.jsonl", help="many requests, one a line")
    parser.add_argument("--config", metavar="F", help="config file")
    parser.add_argument("--team", metavar="T", help="the team that asks")
    parser.add_argument("--policy", metavar="P", help="as the header x-joulegate-policy")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    if (args.request is None) == (args.batch is None):
        raise CommandError("Name either one REQUEST.json or --batch F.jsonl.")
    try:
        explainer = offline.Explainer(args.config, team=args.team, policy=args.policy)
    except ConfigError as error:
        raise CommandError(str(error)) from None
    try:
        if args.batch is not None:
            return _batch(explainer, args.batch)
        return _one(explainer, args.request, as_json=args.json)
    finally:
        explainer.close()


def _one(explainer: offline.Explainer, path: str, *, as_json: bool) -> int:
    try:
        body = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}. Name a readable file.") from None
    try:
        decision = explainer.explain(body)
    except ApiError as error:
        raise CommandError(f"{path}: {error.message}") from None
    if as_json:
        print(json.dumps(decision))
    else:
        print("\n".join(table(decision)))
    return 0 if decision["chosen"] else 1


def _batch(explainer: offline.Explainer, path: str) -> int:
    tell = progress("lines explained")
    for number, line in numbered_lines(path, dict):
        if "id" not in line:
            raise CommandError(f"{path}, line {number}: 'id' is missing. Give each line one.")
        identity = line.pop("id")
        line.setdefault("model", "auto")
        try:
            decision = explainer.explain(json.dumps(line).encode())
        except ApiError as error:
            raise CommandError(f"{path}, line {number}: {error.message}") from None
        print(json.dumps({"id": identity, **decision}), flush=True)
        tell(number)
    return 0


def table(decision: dict[str, Any]) -> Iterator[str]:
    """The decision for people."""
    yield f"{decision['chosen'] or 'nothing'} ({decision['policy'] or 'refused'})"
    yield f"  {decision['reason']}"
    counted = "counted" if decision["prompt_tokens_counted"] else "guessed"
    yield f"  {decision['prompt_tokens']} prompt tokens ({counted}), task: {decision['task']}"
    for entry in decision["candidates"]:
        mark = "→" if entry["backend"] == decision["chosen"] else " "
        made_up = "  SIMULATED" if entry["simulated"] else ""
        yield f"{mark} {entry['backend']}{made_up}"
        for name, unit in (
            ("energy_j", "J"),
            ("marginal_energy_j", "J marginal"),
            ("ttft_s", "s to first token"),
            ("latency_s", "s"),
            ("carbon_g", "g CO2e"),
            ("money_usd", "USD"),
            ("quality", "quality"),
        ):
            band = entry[name]
            if band is not None:
                yield f"    {band['mid']:.3g} ({band['low']:.3g}-{band['high']:.3g}) {unit}"
        yield f"    evidence: {entry['evidence']}"
        if "rejected" in entry:
            yield f"    not chosen: {entry['rejected']['message']}"
