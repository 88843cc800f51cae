"""Running code that a model wrote, with tests after it, in a process that can do little.

A fresh Python without site packages and environment, in an empty folder that is deleted: limited
CPU time, memory, file size, processes and open files, no core dump, and where the kernel lets us
(Linux, user namespaces) no network. This keeps mistakes and ordinary mischief in; it is no wall
against an attacker: evaluate models that you would not trust with a shell in a container.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

CPU_S = 10
WALL_S = 20.0
MEMORY_BYTES = 512 * 1024 * 1024
FILE_BYTES = 1024 * 1024
OPEN_FILES = 32
SUCCESS = "tests passed"


def passes(code: str, tests: str) -> bool:
    """Whether the tests run to their end after the code."""
    folder = tempfile.mkdtemp(prefix="joulegate-eval-")
    try:
        marker = Path(folder) / "passed"
        # Its own last line says so: a program that ends early, with status 0, has passed nothing.
        last = f"\n\nopen({str(marker)!r}, 'w').write({SUCCESS!r})\n"
        program = Path(folder) / "program.py"
        program.write_text(f"{code}\n\n{tests}{last}", encoding="utf-8")
        process = subprocess.Popen(
            [*_alone(), sys.executable, "-I", "-S", str(program)],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_limit,
        )
        try:
            status = process.wait(WALL_S)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            _end(process)
        return status == 0 and marker.is_file() and marker.read_text() == SUCCESS
    except OSError:
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _limit() -> None:
    for what, most in (
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it with everything that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


@cache
def _alone() -> tuple[str, ...]:
    """What to put before a command so that it has no network and sees no other process."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = (unshare, "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
    try:
        tried = subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return command if tried.returncode == 0 else ()
