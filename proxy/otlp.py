"""Sends spans and ``hw.energy`` to an OpenTelemetry collector, over OTLP/HTTP in JSON.

Off the request path: the event loop puts a record into a list, a thread makes spans of those that
are old enough to have been metered and posts them together. A collector that is away costs spans,
never requests: what does not fit into the waiting list is dropped and counted.
"""

from __future__ import annotations

import logging
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, NamedTuple, Protocol

import msgspec

from estimators.types import Backend
from meters.types import Attribution, Evidence, UsageRecord
from proxy.flight import Flight
from proxy.spans import Metered, energy_metric, span, traces

log = logging.getLogger("joulegate.otlp")

WAITING = 20_000  # spans, while the collector is away
BATCH = 512
TIMEOUT_S = 10.0
LONGEST_PAUSE_S = 60.0


class Observer(Protocol):
    """Who else is told of finished requests and divided windows."""

    def request(self, flight: Flight, record: UsageRecord) -> None: ...

    def divided(self, attribution: Attribution) -> None: ...


class _Waiting(NamedTuple):
    record: UsageRecord
    parent: str | None
    due_s: float  # monotonic


class Otlp:
    """Stands before another Observer and hands everything on to it.

    ``hold_s`` is how long a span waits for the windows that meter it. ``facts`` gives what is known
    of a backend by its name.
    """

    def __init__(
        self,
        url: str,
        after: Observer,
        facts: Callable[[str], Backend | None],
        headers: Mapping[str, str] | None = None,
        hold_s: float = 10.0,
        every_s: float = 5.0,
        replica: str = "",
    ) -> None:
        self._url = url.rstrip("/")
        self._after = after
        self._facts = facts
        self._headers = {"content-type": "application/json", **(headers or {})}
        self._hold_s = hold_s
        self._every_s = every_s
        self._resource = {"service.name": "joulegate", "service.instance.id": replica or None}
        self._waiting: deque[_Waiting] = deque()
        self._metered: OrderedDict[str, Metered] = OrderedDict()
        self._joules: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._metered_s: dict[str, float] = {}  # by node: the end of its last window
        self._since_s = time.time()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failures = 0
        self.sent = 0
        self.dropped = 0

    def request(self, flight: Flight, record: UsageRecord) -> None:
        """A finished request; called in the event loop."""
        self._after.request(flight, record)
        if len(self._waiting) >= WAITING:
            self.dropped += 1
            if self.dropped == 1:
                log.warning("spans wait for the collector; the newest are not kept from now on")
            return
        parent = flight.traceparent.decode("latin-1") if flight.traceparent else None
        self._waiting.append(_Waiting(record, parent, time.monotonic() + self._hold_s))

    def divided(self, attribution: Attribution) -> None:
        """A divided window; called in the event loop."""
        self._after.divided(attribution)
        self._joules[attribution.node, attribution.evidence.value] += max(
            0.0, attribution.metered_j
        )
        last_s = self._metered_s.get(attribution.node, 0.0)
        self._metered_s[attribution.node] = max(last_s, attribution.end_s)
        for share in attribution.shares:
            before = self._metered.get(share.request_id, _NOTHING)
            self._metered[share.request_id] = Metered(
                before.energy_j + share.energy_j, attribution.evidence
            )
        while len(self._metered) > WAITING:
            self._metered.popitem(last=False)

    def start(self) -> None:
        """Begin to send."""
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send what waits, once, and end. May take a time limit's length."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(TIMEOUT_S * 2)

    def _run(self) -> None:
        while not self._stopping.wait(self._pause_s()):
            self._send(time.monotonic())
        self._send(float("inf"))

    def _pause_s(self) -> float:
        """Longer after each failure, up to a minute."""
        return min(self._every_s * 2.0 ** min(self._failures, 10), max(LONGEST_PAUSE_S, 1e-3))

    def _send(self, now_s: float) -> None:
        while self._waiting and self._waiting[0].due_s <= now_s:
            some: list[_Waiting] = []
            while self._waiting and self._waiting[0].due_s <= now_s and len(some) < BATCH:
                some.append(self._waiting.popleft())
            spans = [self._span(each) for each in some]
            if not self._post("/v1/traces", traces(spans, self._resource)):
                self.dropped += len(spans) if self._stopping.is_set() else 0
                if not self._stopping.is_set():
                    self._waiting.extendleft(reversed(some))
                return
            self.sent += len(spans)
            for each in some:
                self._metered.pop(each.record.request_id, None)
        joules = dict(self._joules)
        if joules:
            body = energy_metric(joules, self._since_s, time.time(), self._resource)
            self._post("/v1/metrics", body)

    def _span(self, each: _Waiting) -> dict[str, Any]:
        record = each.record
        facts = self._facts(record.backend) if record.backend else None
        # with a window missing its shares would be half a figure
        complete = self._metered_s.get(record.node or "", 0.0) >= record.end_s
        metered = self._metered.get(record.request_id) if complete else None
        return span(record, each.parent, facts, metered)

    def _post(self, path: str, body: dict[str, Any]) -> bool:
        """Whether it need not be sent again. What the collector refuses is not sent again."""
        request = urllib.request.Request(
            self._url + path, msgspec.json.encode(body), self._headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                answer.read(65_536)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (429, 502, 503, 504):  # those that OTLP says to try again
                return self._failed(f"status {error.code}")
            log.warning("%s: the collector refused it with status %d", path, error.code)
        except (OSError, HTTPException, ValueError) as error:
            return self._failed(type(error).__name__)
        self._failures = 0
        return True

    def _failed(self, why: str) -> bool:
        self._failures += 1
        if self._failures == 1:
            log.warning("the collector does not take spans (%s); trying again", why)
        return False


_NOTHING = Metered(0.0, Evidence.UNKNOWN)
