"""Which backends' energy is read here, what their windows teach, and how windows are divided."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from estimators.types import Backend
from meters.attribution import attribute_all
from meters.engine_reader import EngineUnavailable
from meters.local import LocalMeter
from meters.settings import MeterSettings
from meters.simulated_engine import SimulatedMeter
from meters.types import Activity, Attribution, Meter, MeterUnavailable, StepPhysics, Window
from proxy.accounts import undivided
from proxy.backends import Pool
from proxy.settings import BackendSettings, MeterSource, Settings

log = logging.getLogger("joulegate.measuring")


class Learning:
    """Each engine's step physics: the prior until its own windows taught better."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.prior: Callable[[Backend], StepPhysics | None] = lambda _: None

    def physics(self, node: str) -> StepPhysics | None:
        """The physics of the engine on a node."""
        for engine in self.pool.engines:
            if engine.node == node:
                return self.learnt(engine.name) or self.prior(engine.facts)
        return None

    def learnt(self, backend: str) -> StepPhysics | None:
        """What a backend's windows taught; None before they did."""
        return None

    def observe(self, window: Window, activities: Sequence[Activity]) -> None:
        """Learn from a window."""


def divide(
    window: Window, activities: Sequence[Activity], physics: StepPhysics | None
) -> Attribution:
    """Divide a window among the requests in it; one that cannot be used stays undivided."""
    known = None if physics is None else {window.node: physics}
    books = attribute_all([window], activities, known)
    if not books.attributions:
        reason = next(iter(books.refused), "not usable")
        log.warning("window %s is %s; nobody is charged for it", window.window_id, reason)
        return undivided(window)
    return books.attributions[0]


class Measuring:
    """Starts and stops the meters of backends that run on this machine."""

    def __init__(self, settings: Settings, pool: Pool, on_window: Callable[[Window], None]) -> None:
        self.pool = pool
        self.on_window = on_window
        self.meters: list[LocalMeter] = []
        self._wanted = wanted(settings)

    def start(self) -> None:
        """Read what can be read; what cannot is said once and leaves figures estimated."""
        for backend, source in self._wanted:
            engine = self.pool.by_name[backend.full_name]
            try:
                meter = LocalMeter(
                    meter_settings(backend, source, engine.node),
                    meter=_simulated(source),
                )
                meter.start(self.on_window)
            except (MeterUnavailable, EngineUnavailable, ValueError) as error:
                log.warning(
                    "the energy of %s is not read, its figures stay estimates: %s",
                    backend.full_name,
                    error,
                )
                continue
            self.meters.append(meter)

    def restart(self, settings: Settings) -> None:
        """Read what these settings name instead; in a thread, since ending a meter takes time."""

        def change() -> None:
            self.stop()
            self._wanted = wanted(settings)
            self.start()

        threading.Thread(target=change, name="meters", daemon=True).start()

    def stop(self) -> None:
        """End all meters."""
        for meter in self.meters:
            meter.stop()
        self.meters.clear()


def wanted(settings: Settings) -> list[tuple[BackendSettings, MeterSource]]:
    """The backends whose energy is read here."""
    return [(b, b.meter) for b in settings.backends if b.meter is not None]


def _simulated(source: MeterSource) -> Callable[[], Meter] | None:
    url = source.url
    if source.kind != "simulated" or url is None:
        return None
    return lambda: SimulatedMeter.at(url)


def meter_settings(backend: BackendSettings, source: MeterSource, node: str) -> MeterSettings:
    """A backend's meter as meters understand it. Raises ValueError."""
    address = (backend.url or "").rstrip("/").removesuffix("/v1")
    return MeterSettings(
        node=node,
        meter=source.kind,
        devices=[int(d) if d.isdecimal() else d for d in source.devices] or None,
        source_url=source.url,
        recording=source.file,
        engine_url=backend.metrics_url or (f"{address}/metrics" if address else None),
        window_s=source.window_s,
    )
