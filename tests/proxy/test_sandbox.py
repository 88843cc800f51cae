"""Code that a model wrote runs with its tests, and can do little beside."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from proxy import sandbox


def test_tests_pass_or_fail() -> None:
    assert sandbox.passes("def f(x):\n    return 2 * x", "assert f(2) == 4")
    assert not sandbox.passes("def f(x):\n    return x", "assert f(2) == 4")


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",  # an end before the tests is no success
        "import os; os._exit(0)",
        "x = 'a' * 10**10",  # memory
        "open('big', 'wb').write(b'x' * 10**8)",  # file size
        "this is no Python",
    ],
)
def test_code_that_does_not_reach_the_end_of_its_tests_has_not_passed(code: str) -> None:
    assert not sandbox.passes(code, "assert True")


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALL_S", 0.5)
    assert not sandbox.passes("while True: pass", "")


def test_neither_environment_nor_folder_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "x")
    assert sandbox.passes("import os", "assert 'SECRET_KEY' not in os.environ")
    assert sandbox.passes("import os", f"assert os.getcwd() != {os.getcwd()!r}")


def test_a_process_it_leaves_behind_is_ended(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    code = (
        "import os, subprocess, sys\n"
        f"write = os.open({str(pipe)!r}, os.O_WRONLY)\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "subprocess.Popen(sleep, pass_fds=[write])\n"
    )
    try:
        assert sandbox.passes(code, "")
        assert os.read(read, 1) == b""  # would block while anybody could still write
    finally:
        os.close(read)


@pytest.mark.skipif(not sandbox._alone(), reason="this kernel gives no namespaces to this user")
def test_has_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (
            "import socket\n"
            "try:\n"
            f"    socket.create_connection(('127.0.0.1', {port}), 2)\n"
            "    reached = True\n"
            "except OSError:\n"
            "    reached = False\n"
        )
        assert sandbox.passes(code, "assert not reached")
