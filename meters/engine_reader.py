"""Asks an engine for its metrics page over HTTP. One connection, kept open; never waits long."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from meters.dialects import DIALECTS
from meters.engines import UnknownPage, detect, parse, restarted, together
from meters.types import EngineCounters
from meters.unreadable import UNREADABLE

# A busy engine lets a request wait before it looks at its counters, not after: when an answer takes
# longer than this, the counters are of so long before its end.
WRITING_S = 0.02


class EngineUnavailable(Exception):
    """The engine does not say what it does; the message says why and what to check."""


class EngineReader:
    """Reads one engine's counters.

    ``url`` is its metrics page, "http://host:port/metrics"; ``dialect`` a row of the engines'
    table or "auto". Not safe for use by two threads at once.
    """

    def __init__(
        self,
        url: str,
        dialect: str = "auto",
        *,
        timeout_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EngineUnavailable(f"{url!r} is not an HTTP URL of a metrics page.")
        if dialect != "auto" and dialect not in DIALECTS:
            known = ", ".join(DIALECTS)
            raise EngineUnavailable(f"No engine dialect {dialect!r}; known: auto, {known}.")
        self.url, self.dialect = url, dialect
        self._scheme, self._host, self._port = parts.scheme, parts.hostname, parts.port
        self._path = parts.path if parts.path not in ("", "/") else None
        self.timeout_s, self._clock = timeout_s, clock
        self._connection: http.client.HTTPConnection | None = None
        self._version: str | None = None
        self._asked_version = False
        self._last: EngineCounters | None = None

    def read(self) -> EngineCounters:
        """The counters now; ``at_s`` is when they were looked at. Raises EngineUnavailable."""
        before_s = self._clock()
        page, headers = self._get(self._path or self._usual_path())
        after_s = self._clock()
        at_s = after_s - min((after_s - before_s) / 2, WRITING_S)
        try:
            name = self.dialect if self.dialect != "auto" else detect(page) or "auto"
            seen = parse(page, name, at_s=at_s)
        except UnknownPage as error:
            raise EngineUnavailable(f"{self.url}: {error}") from None
        if seen.started_s is None and headers.get("Process-Start-Time-Unix"):
            started_s = _number(headers["Process-Start-Time-Unix"])
            seen = msgspec.structs.replace(seen, started_s=started_s)
        if self._last is not None and restarted(self._last, seen):
            self._asked_version = False
        self._last = seen
        if not self._asked_version:
            self._version, self._asked_version = self._ask_version(name), True
        return msgspec.structs.replace(seen, version=self._version)

    def close(self) -> None:
        """Close the connection; read opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _usual_path(self) -> str:
        return DIALECTS[self.dialect].metrics_path if self.dialect != "auto" else "/metrics"

    def _ask_version(self, dialect: str) -> str | None:
        row = DIALECTS[dialect]
        if row.version_path is None:
            return None
        try:
            body, _ = self._get(row.version_path)
            said = msgspec.json.decode(body)
        except (EngineUnavailable, *UNREADABLE):
            return None  # many engines hide it; unknown is fine
        version = said.get(row.version_key) if isinstance(said, dict) else None
        return str(version)[:64] if version else None

    def _get(self, path: str) -> tuple[bytes, http.client.HTTPMessage]:
        # a connection the engine has closed meanwhile is opened once more
        for fresh in (self._connection is None, True):
            try:
                if self._connection is None:
                    kind = http.client.HTTPSConnection
                    if self._scheme == "http":
                        kind = http.client.HTTPConnection  # type: ignore[assignment]
                    self._connection = kind(self._host, self._port, timeout=self.timeout_s)
                self._connection.request("GET", path, headers={"accept": "text/plain, */*"})
                answer = self._connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if fresh:
                    raise EngineUnavailable(
                        f"{self.url} does not answer ({error or type(error).__name__}). "
                        "Check that the engine runs and exports metrics."
                    ) from None
                continue
            if answer.status != 200:
                raise EngineUnavailable(
                    f"{self.url} answered {answer.status} to {path}. Check the URL's path; "
                    "SGLang needs --enable-metrics and llama.cpp --metrics."
                )
            return body, answer.headers
        raise AssertionError("unreachable")


class EngineReaders:
    """Reads several engines that share devices, one after the other, as one reader.

    ``readers`` by the name of the backend. One that does not answer is left out of that look.
    """

    def __init__(self, readers: dict[str, EngineReader]) -> None:
        self._readers = readers
        self.url = ", ".join(reader.url for reader in readers.values())
        self.timeout_s = sum(reader.timeout_s for reader in readers.values())

    def read(self) -> EngineCounters:
        """All counters now. Raises EngineUnavailable where none of the engines answers."""
        seen: dict[str, EngineCounters] = {}
        silent: list[str] = []
        for name, reader in self._readers.items():
            try:
                seen[name] = reader.read()
            except EngineUnavailable as error:
                silent.append(str(error))
        if not seen:
            raise EngineUnavailable(" ".join(silent))
        return together(seen, all_of_them=not silent)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
