"""Keeps a book filled, in one background thread, one source a zone.

Every zone is fetched once an hour, at its own moment in the hour, so that a fleet of replicas
does not ask all at once. A source that fails is left alone for 30 s, then twice as long each
time, to an hour; the book's ladder bridges the gap.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from meters.intensity.book import TRAILING_DAYS, IntensityBook
from meters.intensity.hours import hour_of
from meters.intensity.keep import KeptObservations
from meters.intensity.types import HOUR_S, Observation, Source, SourceUnavailable

DAY_S = 24 * HOUR_S
RECENT_S = 2 * DAY_S  # asked for every hour: estimates of these hours are still moving
FIRST_WAIT_S = 30.0
LONGEST_WAIT_S = 3600.0

log = logging.getLogger("joulegate.intensity")


class Breaker:
    """How long to leave a failing source alone: 30 s, doubling to an hour."""

    def __init__(self) -> None:
        self.failures = 0

    def failed(self) -> float:
        """Note a failure; gives the seconds to wait before the next attempt."""
        self.failures += 1
        return min(FIRST_WAIT_S * 2.0 ** min(self.failures - 1, 20), LONGEST_WAIT_S)

    def worked(self) -> None:
        self.failures = 0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How one zone's source is doing, for the dashboard and /health."""

    zone: str
    source: str
    attribution: str
    last_success_s: float | None
    failures: int  # in a row
    error: str | None


class _Feed:
    def __init__(self, zone: str, source: Source, due_s: float) -> None:
        self.zone = zone
        self.source = source
        self.due_s = due_s
        self.breaker = Breaker()
        self.whole_day: int | None = None  # the day all 28 days were last asked for
        self.last_success_s: float | None = None
        self.error: str | None = None


class IntensityRefresher:
    """Fetches for each zone of ``sources`` into ``book``; ``start`` and ``stop`` its thread.

    ``clock`` gives Unix time and ``jitter`` a number in [0, 1): both are arguments for tests.
    """

    def __init__(
        self,
        book: IntensityBook,
        sources: Mapping[str, Source],
        kept: KeptObservations | None = None,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._book = book
        self._kept = kept
        self._clock = clock
        self._jitter = jitter
        self._feeds = [_Feed(zone, source, clock()) for zone, source in sorted(sources.items())]
        self._stop = threading.Event()
        self._woken = threading.Event()  # there is something to look at before its time
        self._thread: threading.Thread | None = None
        if kept is not None:
            book.put(kept.load())

    def take(self, sources: Mapping[str, Source], anew: bool) -> None:
        """Fetch for these zones from now on; ``anew`` when their sources may be others than those
        of the same zones before. What failed or was fetched is not asked for again until then."""
        before = {} if anew else {feed.zone: feed for feed in self._feeds}
        self._feeds = [
            before.get(zone) or _Feed(zone, source, self._clock())
            for zone, source in sorted(sources.items())
        ]
        self._woken.set()

    def start(self) -> None:
        """Start the thread; it does not keep the process alive."""
        if self._thread is None and self._feeds:
            self._thread = threading.Thread(target=self._run, name="intensity", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread; waits for a fetch under way, at most a few seconds."""
        self._stop.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)
            self._thread = None

    def health(self) -> list[Health]:
        """One entry a zone."""
        return [
            Health(
                zone=feed.zone,
                source=feed.source.name,
                attribution=feed.source.attribution,
                last_success_s=feed.last_success_s,
                failures=feed.breaker.failures,
                error=feed.error,
            )
            for feed in self._feeds
        ]

    def refresh_due(self) -> float:
        """Fetch what is due now; gives the Unix time at which the next fetch is."""
        for feed in self._feeds:
            if feed.due_s <= self._clock():
                self._fetch(feed)
        return min((feed.due_s for feed in self._feeds), default=self._clock() + HOUR_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            wait_s = self.refresh_due() - self._clock()
            self._woken.wait(max(wait_s, 0.05))
            self._woken.clear()

    def _fetch(self, feed: _Feed) -> None:
        now_s = self._clock()
        day = int(now_s // DAY_S)
        # Once a day all 28 days, for the climatology and for hours restated late.
        span_s = RECENT_S if feed.whole_day == day else TRAILING_DAYS * DAY_S
        end_s = hour_of(now_s) + HOUR_S
        try:
            found = feed.source.fetch(feed.zone, end_s - span_s, end_s)
            if not found:
                raise SourceUnavailable(f"{feed.source.name} gave no hours for {feed.zone}.")
            self._keep(found)
            self._book.put(found)
        except Exception as error:  # a seam: a source may be anyone's code
            feed.error = str(error) or type(error).__name__
            wait_s = feed.breaker.failed()
            # Up to a tenth more, so that replicas drift apart; the hour stays the most.
            feed.due_s = now_s + min(wait_s * (1 + 0.1 * self._jitter()), LONGEST_WAIT_S)
            log.warning("intensity of %s: %s Next try in %.0f s.", feed.zone, feed.error, wait_s)
            return
        feed.breaker.worked()
        feed.error = None
        feed.whole_day = day
        feed.last_success_s = now_s
        # At least five minutes into the next hour: sources publish an hour after it ended.
        feed.due_s = end_s + 300 + 600 * self._jitter()

    def _keep(self, found: list[Observation]) -> None:
        if self._kept is None:
            return
        news = [seen for seen in found if not self._known(seen)]
        try:
            self._kept.append(news)
        except OSError as error:
            log.warning("intensity figures are not kept: %s", error)

    def _known(self, seen: Observation) -> bool:
        marginal = seen.factor_type == "marginal"
        had = self._book.hourly(seen.zone, seen.hour_s, seen.hour_s + 1, marginal)
        return bool(had) and (had[0].g_per_kwh, had[0].estimated, had[0].source) == (
            seen.g_per_kwh,
            seen.estimated,
            seen.source,
        )
