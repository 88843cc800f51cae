"""Check a config file, ours or LiteLLM's, and print what would be used.

Every mistake is reported with its line, key and the nearest known key.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import msgspec

from proxy import checking
from proxy.config_file import ConfigError

EXAMPLE = "joulegate check config.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="F", help="config file")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    try:
        report = checking.check(args.file)
    except ConfigError as error:
        if args.json:
            problems = [msgspec.to_builtins(p) for p in error.problems]
            print(json.dumps({"ok": False, "problems": problems}))
        print(f"joulegate: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(report))
        return 0
    show(report)
    return 0


def show(report: dict[str, Any]) -> None:
    print(f"{report['file']} is fine ({report['format']}).")
    for line in report["honoured"]:
        print(f"  honoured      {line}")
    for line in report["not_honoured"]:
        print(f"  NOT honoured  {line}")
    for line in report["warnings"]:
        print(f"  warning       {line}")
    width = max((len(row["name"]) for row in report["settings"]), default=0)
    for row in report["settings"]:
        print(f"  {row['name']:{width}}  {row['value']}  ({row['source']})")
