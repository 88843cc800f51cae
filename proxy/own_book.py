"""Keeps this process's own energy in the ledger, hour by hour, from a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from meters.ledger import Ledger
from meters.ourselves import OwnSums
from meters.rows import hour_of
from proxy.own_energy import OwnMeter, own_meter

log = logging.getLogger("joulegate.own_energy")

EVERY_S = 60.0


class OwnBook:
    """Notes what was used since the last look, in the hour of the look."""

    def __init__(
        self,
        ledger: Ledger,
        process: str,
        own: OwnMeter | None = None,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        """``process``: a name that no other process had or will have."""
        self._ledger, self._process, self._unix_s = ledger, process, unix_s
        self._own = own or own_meter()
        self._noted = OwnSums()
        self._hours: dict[int, OwnSums] = {}  # not yet in the ledger, or not over
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="own-energy", daemon=True)

    def start(self) -> OwnBook:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Note the rest and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def note(self) -> None:
        """Keep what was used until now; what the ledger does not take is kept next time."""
        use = self._own.look()
        now = OwnSums(round(use.energy_j * 1e6), round(use.metered_j * 1e6))
        hour_s = hour_of(self._unix_s())
        had = self._hours.get(hour_s, OwnSums())
        self._hours[hour_s] = OwnSums(
            had.energy_uj + now.energy_uj - self._noted.energy_uj,
            had.metered_uj + now.metered_uj - self._noted.metered_uj,
        )
        self._noted = now
        try:
            self._ledger.keep_own(self._process, self._hours)
        except (SQLAlchemyError, OSError) as error:
            log.debug("Joulegate's own energy waits for the ledger (%s)", type(error).__name__)
            return
        self._hours = {hour_s: self._hours[hour_s]}

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            self.note()
        self.note()
