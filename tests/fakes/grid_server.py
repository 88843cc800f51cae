"""A real HTTP server that answers like the grid-intensity services, and misbehaves on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.http import Handler, HttpServer

Answer = tuple[int, Any]


class Asked:
    """One request as it arrived."""

    def __init__(self, path: str, headers: dict[str, str]) -> None:
        parts = urlsplit(path)
        self.path = parts.path
        self.query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        self.headers = headers


class GridServer:
    """``answer(asked) -> (status, JSON value or bytes)`` decides; ``asked`` keeps what came."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.drip = threading.Event()  # set: send the body a byte at a time until cleared
        self.url = ""


@contextmanager
def grid_server(answer: Callable[[Asked], Answer]) -> Iterator[GridServer]:
    """Serve on a free port for the length of the block."""
    state = GridServer(answer)

    class Answers(Handler):
        def get(self) -> None:
            asked = Asked(self.path, {k.lower(): v for k, v in self.headers.items()})
            state.asked.append(asked)
            status, value = state.answer(asked)
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            if not state.drip.is_set():
                elsewhere = {"location": f"{state.url}/elsewhere"} if 300 <= status < 400 else {}
                self.answer(status, body, elsewhere)
                return
            self.answer(status, b"", {"content-length": str(len(body))})
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if not state.drip.wait(0) or stop.wait(0.02):
                    return

    stop = threading.Event()
    server = HttpServer(Answers)
    state.url = server.url
    try:
        yield state
    finally:
        stop.set()
        server.close()
