"""A real headless Chromium for tests, and the dashboard served over a real socket.

``path()`` finds a browser on this machine; tests/prepare.py installs one where it may.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from playwright.sync_api import Browser, Locator, sync_playwright

from tests.prepare import browser


def path() -> str | None:
    """The browser's executable, or None."""
    return browser()


def click_through(where: Locator) -> None:
    """Click, and wait until the page that it leads to is there."""
    with where.page.expect_navigation():
        where.click()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for the length of the block. Raises RuntimeError when there is none."""
    executable = path()
    if executable is None:
        raise RuntimeError("No Chromium found: run python -m tests.prepare as root.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The app on a free port, in a thread; gives its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="off", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline_s:
        threading.Event().wait(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
