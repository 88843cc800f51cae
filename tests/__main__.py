"""Runs the tests: ``python -m tests [pytest's arguments]``.

Most run side by side, as many files at once as there are cores. Those marked ``alone`` hold
something to a time, or fill the machine; they come after the others, one by one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

MOST_AT_ONCE = 4  # each starts servers of its own


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 when tests ran and all passed, else that of the first run that failed."""
    at_once = min(os.cpu_count() or 1, MOST_AT_ONCE)
    beside = ["-n", str(at_once), "--dist", "loadfile"] if at_once > 1 else []
    ended = []
    for marked, more in (("not alone", beside), ("alone", [])):
        ended.append(_run([*more, "-m", f"{marked} and not vllm", *arguments]))
        if ended[-1] == pytest.ExitCode.INTERRUPTED:
            break
    ran = [status for status in ended if status != pytest.ExitCode.NO_TESTS_COLLECTED]
    return next((status for status in ran if status), 0) if ran else ended[0]


def _run(arguments: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
