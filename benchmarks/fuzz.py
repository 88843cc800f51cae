"""Whether any request makes Joulegate fail, hang, or answer in a shape of its own.

``python -m benchmarks.fuzz --cases 10000``: generated requests (tests/fuzzing.py), each on a socket
of its own, to ``joulegate serve`` in a process in front of a fake engine. Prints cases, statuses,
failures, hangs, and what the log said; the exit status is 1 where there was anything wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests import fuzzing
from tests.fakes.upstream import Upstream
from tests.joulegate_server import in_process

SHOWN = 5  # wrong answers that are printed


def main() -> int:
    """Send, count and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="requests to send (10000)")
    parser.add_argument("--seed", type=int, default=1, help="of the generator (1)")
    arguments = parser.parse_args()
    statuses: Counter[int | None] = Counter()
    wrong: list[tuple[str, fuzzing.Case]] = []
    slowest_s = 0.0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch, Upstream() as upstream:
        upstream.play(fuzzing.any_answer)
        running = in_process(fuzzing.config(upstream.base_url), Path(scratch))
        assert running.process is not None
        assert running.log is not None

        @seed(arguments.seed)
        @settings(
            max_examples=arguments.cases,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(fuzzing.cases())
        def try_one(case: fuzzing.Case) -> None:
            nonlocal slowest_s
            begun_s = time.perf_counter()
            answer = fuzzing.verdict(running.port, case)
            slowest_s = max(slowest_s, time.perf_counter() - begun_s)
            statuses[answer.status] += 1
            if answer.wrong is not None:
                wrong.append((answer.wrong, case))

        begun_s = time.perf_counter()
        try_one()
        took_s = time.perf_counter() - begun_s
        alive = running.process.poll() is None
        running.process.terminate()
        running.process.wait(30)
        log = running.log.read_text(encoding="utf-8", errors="replace")
    hangs = sum(text.startswith("hang") for text, _ in wrong)
    ours = sum(count for status, count in statuses.items() if status is not None and status >= 500)
    print(f"cases {sum(statuses.values())} in {took_s:.0f} s, slowest {slowest_s * 1e3:.0f} ms")
    for status, count in sorted(statuses.items(), key=lambda item: item[0] or 0):
        print(f"  {status or 'closed (the request was never complete)'}: {count}")
    tracebacks = log.count("Traceback")
    print(f"5xx {ours}, hangs {hangs}, other wrong answers {len(wrong) - hangs - ours}")
    print(f"tracebacks in the log {tracebacks}, still serving {'yes' if alive else 'NO'}")
    for text, case in wrong[:SHOWN]:
        print(f"{text}\n  {case}", file=sys.stderr)
    return 0 if alive and not wrong and not tracebacks else 1


if __name__ == "__main__":
    sys.exit(main())
