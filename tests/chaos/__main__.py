"""``python -m tests.chaos --seconds N``: kill for so long, then say what was killed and found."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.chaos.run import as_json, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--every", type=float, default=1.0, help="mean seconds between two kills")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = asyncio.run(run(args.seconds, args.seed, args.clients, args.every))
    print(as_json(found) if args.json else found)
    return 0 if found.well else 1


if __name__ == "__main__":
    sys.exit(main())
