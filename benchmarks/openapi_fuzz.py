"""Requests that schemathesis makes from docs/openapi.json: zero 5xx of our own, zero hangs.

Good ones and bad ones of every operation, sent to ``joulegate serve`` in a process in front of a
fake engine that takes anything. The exit status is 1 where anything was wrong.

    python -m benchmarks.openapi_fuzz --cases 10000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests import fuzzing, openapi_fuzzing
from tests.fakes.upstream import Upstream
from tests.joulegate_server import in_process

SHOWN = 5  # wrong answers that are printed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="requests to send (10000)")
    parser.add_argument("--seed", type=int, default=1, help="of the generator (1)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch, Upstream() as upstream:
        upstream.play(fuzzing.any_answer)
        running = in_process(fuzzing.config(upstream.base_url), Path(scratch))
        assert running.process is not None
        assert running.log is not None
        try:
            began_s = time.perf_counter()
            tally = openapi_fuzzing.run(running.address, args.cases, seed_of=args.seed)
            took_s = time.perf_counter() - began_s
            alive = running.process.poll() is None
            log = running.log.read_text()
        finally:
            running.process.kill()
            running.process.wait()
    told = ", ".join(f"{status}: {n:,}" for status, n in sorted(tally.statuses.items()))
    print(
        f"{tally.cases:,} cases in {took_s:.0f} s, slowest {tally.slowest_s * 1e3:.0f} ms; {told}"
    )
    print(f"{len(tally.wrong)} failures and hangs; {log.count('Traceback')} tracebacks in the log")
    for one in tally.wrong[:SHOWN]:
        print(f"  {one}")
    return 0 if alive and not tally.wrong and "Traceback" not in log else 1


if __name__ == "__main__":
    sys.exit(main())
