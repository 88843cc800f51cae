"""An OpenTelemetry collector's OTLP/HTTP receiver on a real socket, which keeps what it is sent."""

from __future__ import annotations

import json
import threading
from typing import Any

from tests.fakes.http import Handler, HttpServer


class Collector:
    """Answers with the next of ``statuses``, then always 200."""

    def __init__(self, statuses: tuple[int, ...] = ()) -> None:
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self._statuses = list(statuses)
        self._came = threading.Condition()
        ours = self

        class Asked(Handler):
            def post(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with ours._came:
                    status = ours._statuses.pop(0) if ours._statuses else 200
                    if status == 200:
                        ours.bodies.append((self.path, body))
                        ours.headers.append({k.lower(): v for k, v in self.headers.items()})
                    ours._came.notify_all()
                self.answer(status, b"{}", {"content-type": "application/json"})

        server = HttpServer(Asked)
        self.url, self.close = server.url, server.close

    def spans(self, count: int, within_s: float = 20.0) -> list[dict[str, Any]]:
        """The first ``count`` spans; fails when they do not come."""
        with self._came:
            assert self._came.wait_for(lambda: len(self._spans()) >= count, within_s), self.bodies
            return self._spans()

    def _spans(self) -> list[dict[str, Any]]:
        return [
            span
            for path, body in self.bodies
            if path == "/v1/traces"
            for resource in body["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]

    def metric(self, name: str, within_s: float = 20.0) -> dict[str, Any]:
        """The newest of a metric; fails when none comes."""
        with self._came:
            assert self._came.wait_for(lambda: bool(self._metrics(name)), within_s), self.bodies
            return self._metrics(name)[-1]

    def _metrics(self, name: str) -> list[dict[str, Any]]:
        return [
            metric
            for path, body in self.bodies
            if path == "/v1/metrics"
            for resource in body["resourceMetrics"]
            for scope in resource["scopeMetrics"]
            for metric in scope["metrics"]
            if metric["name"] == name
        ]


def attributes(item: dict[str, Any]) -> dict[str, Any]:
    """A span's or a point's attributes as plain values."""
    found: dict[str, Any] = {}
    for each in item["attributes"]:
        ((kind, value),) = each["value"].items()
        found[each["key"]] = int(value) if kind == "intValue" else value
    return found
