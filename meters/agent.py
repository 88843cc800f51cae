"""The meter beside an engine on a GPU node: closes windows, keeps them, sends them once in effect.

One small process, the standard library and msgspec only, no CUDA context. Windows go to disk
before anything else; the proxy may be away for days. Each batch is sent again until the proxy has
answered for it, and window ids make repeats harmless.
"""

from __future__ import annotations

import http.client
import logging
import random
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from meters.intake import Submission, Verdict
from meters.local import LocalMeter
from meters.offset import ClockOffset
from meters.settings import AgentSettings, BadSettings
from meters.spool import Batch, Spool
from meters.types import Meter, Window
from meters.unreadable import UNREADABLE

log = logging.getLogger("joulegate.meters")

CLOCK_EVERY_S = 60.0
CLOCK_SOON_S = 1.0  # while clocks drift apart, as they do while one of them is being set right
CLOCK_SAMPLES = 5
BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
# Nobody but a person can mend these; ask rarely.
_PERSON = {401, 403, 404}
_USELESS = {400, 413, 422}


class Agent:
    """Runs until told to stop. ``meter`` replaces what the settings name, in tests."""

    def __init__(
        self, settings: AgentSettings, *, meter: Callable[[], Meter] | None = None
    ) -> None:
        """Raises BadSettings, SpoolUnusable, EngineUnavailable for what a person can mend."""
        self._settings = settings
        self._token = settings.read_token()
        # one anchor for the whole run: a step of the wall clock may not tear windows apart
        self._unix_offset_s = time.time() - time.monotonic()
        self.local = LocalMeter(settings, unix_offset_s=self._unix_offset_s, meter=meter)
        self.spool = Spool(settings.spool_dir, settings.spool_max_mb * 1e6)
        self._proxy = _Proxy(settings.proxy_url, self._token)
        self._offset = ClockOffset()
        self._clock_asked_s = float("-inf")
        self._failures = 0
        self._said: str | None = None
        self.sent = 0
        self.refused = 0

    def run(self, stopping: threading.Event) -> None:
        """Meter and send until ``stopping`` is set; then try once more to send what is left."""
        self.local.start(self.spool.append)
        try:
            while not stopping.wait(self._pause_s()):
                self.send()
            self.local.stop()
            self.send()
        finally:
            self.local.stop()
            self.spool.close()
            self._proxy.close()

    def send(self) -> None:
        """Send everything that is kept, until it is gone or the proxy is."""
        while (batch := self.spool.batch()) is not None:
            try:
                self._measure_clock()
                self._send(batch)
            except _NotSent as why:
                self._failures += 1
                self._say(str(why))
                self._read_token_again()
                return
            self._failures = 0
        if self._failures == 0:
            self._say(None)

    def _send(self, batch: Batch) -> None:
        now_s = self._now_s()
        submission = Submission(
            windows=[self._in_the_proxys_time(window) for window in batch.windows],
            sent_s=now_s + (self._offset.offset_s or 0.0),
            clock_error_s=self._offset.error_s(now_s, batch.windows[0].start_s),
        )
        status, body = self._proxy.post("/meters/windows", msgspec.json.encode(submission))
        if status in _USELESS:
            log.error("the proxy cannot read a batch (%d): kept as .bad beside the others", status)
            self.spool.set_aside(batch)
            return
        if status != 200:
            raise _NotSent(_advice(status, body))
        try:
            verdict = msgspec.json.decode(body, type=Verdict)
        except UNREADABLE:
            raise _NotSent("The answer is no verdict. Is proxy_url a Joulegate?") from None
        for refused in verdict.refused:
            log.warning("window %s was refused: %s", refused.window_id, refused.reason)
        self.sent += verdict.accepted
        self.refused += len(verdict.refused)
        self.spool.done(batch)

    def _in_the_proxys_time(self, window: Window) -> Window:
        """The window by the proxy's clock as it was then: it may have waited for days."""
        start_s = window.start_s + (self._offset.at(window.start_s) or 0.0)
        end_s = window.end_s + (self._offset.at(window.end_s) or 0.0)
        return msgspec.structs.replace(window, start_s=start_s, end_s=end_s)

    def _measure_clock(self) -> None:
        every_s = CLOCK_SOON_S if self._offset.drifts else CLOCK_EVERY_S
        if self._now_s() - self._clock_asked_s < every_s:
            return
        for _ in range(CLOCK_SAMPLES):
            before_s = self._now_s()
            status, body = self._proxy.get("/meters/clock")
            after_s = self._now_s()
            if status != 200:
                raise _NotSent(_advice(status, body))
            try:
                said: dict[str, float] = msgspec.json.decode(body, type=dict[str, float])
                self._offset.add(before_s, said["unix_s"], after_s)
            except (*UNREADABLE, KeyError):
                raise _NotSent("/meters/clock gives no time. Is proxy_url a Joulegate?") from None
        self._clock_asked_s = self._now_s()

    def _read_token_again(self) -> None:
        """It may have been replaced in its file; while that cannot be read, the old one stays."""
        try:
            self._proxy.take(self._settings.read_token())
        except (BadSettings, *UNREADABLE):
            pass

    def _now_s(self) -> float:
        """Unix time as this run knows it: never set back, whatever happens to the wall clock."""
        return time.monotonic() + self._unix_offset_s

    def _pause_s(self) -> float:
        if not self._failures:
            return self._settings.send_s
        longest_s = BACKOFF_S[min(self._failures, len(BACKOFF_S)) - 1]
        return longest_s * random.uniform(0.5, 1.0)  # many nodes must not come back at once

    def _say(self, why: str | None) -> None:
        if why == self._said:
            return
        self._said = why
        if why is None:
            log.warning("the proxy takes windows again")
        else:
            log.warning("windows wait in the spool: %s", why)


class _NotSent(Exception):
    """The proxy has not answered for the batch."""


class _Proxy:
    """One kept-open connection to the proxy."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else None
        self._make = kind or http.client.HTTPConnection
        self._host, self._port = parts.hostname or "", parts.port
        self._prefix, self._url = parts.path.rstrip("/"), url
        self._connection: http.client.HTTPConnection | None = None
        self.take(token)

    def take(self, token: str) -> None:
        """Use this token from now on."""
        self._headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}

    def get(self, path: str) -> tuple[int, bytes]:
        return self._ask("GET", path, None)

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        return self._ask("POST", path, body)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        for fresh in (self._connection is None, True):
            try:
                if self._connection is None:
                    self._connection = self._make(self._host, self._port, timeout=10.0)
                self._connection.request(method, self._prefix + path, body, self._headers)
                answer = self._connection.getresponse()
                return answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if fresh:
                    why = error or type(error).__name__
                    raise _NotSent(f"{self._url} does not answer ({why}).") from None
        raise AssertionError("unreachable")


def _advice(status: int, body: bytes) -> str:
    try:
        message = msgspec.json.decode(body, type=Verdict).message
    except UNREADABLE:
        message = None
    if status in _PERSON and message is None:
        message = "Check proxy_url and token."
    return f"the proxy answered {status}. {message or ''}".strip()
