"""Which backends' energy is read here, what their windows teach, and how windows are divided."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from estimators.steps import StepLearner
from estimators.types import Backend
from meters.attribution import Divider, Regressors, attribute_all, regressors
from meters.engine_reader import EngineUnavailable
from meters.local import LocalMeter
from meters.settings import MeterSettings
from meters.simulated_engine import SimulatedMeter
from meters.types import Activity, Attribution, Meter, MeterUnavailable, StepPhysics, Window
from proxy.accounts import undivided
from proxy.backends import Engine, Pool
from proxy.settings import BackendSettings, MeterSource, Settings

log = logging.getLogger("joulegate.measuring")

PUBLISH_S = 60.0  # how often estimates take over what windows taught


class Learning:
    """Each engine's step physics: the prior until its own windows taught better."""

    def __init__(self, pool: Pool, path: Path | None = None) -> None:
        """``path``: the file that keeps what was learnt over a restart."""
        self.pool = pool
        self.path = path
        self.prior: Callable[[Backend], StepPhysics | None] = lambda _: None
        self._divider = Divider()
        self._work: tuple[str, Regressors] | None = None  # of the window divided last
        self.learners: dict[str, StepLearner] = {}  # by node
        self._published: dict[str, tuple[float, StepPhysics]] = {}  # by node: when, what
        if path is not None and path.is_file():
            self._restore(path)

    def physics(self, node: str) -> StepPhysics | None:
        """What is known now of the engine on a node, for dividing its windows."""
        learner = self.learners.get(node)
        if learner is not None and learner.windows > 0:
            return learner.physics()
        engine = self._engine(node)
        return None if engine is None else self.prior(engine.facts)

    def learnt(self, backend: str) -> StepPhysics | None:
        """What a backend's windows taught, for estimates; None before they did.

        The same object for PUBLISH_S, since estimators work tables out from it.
        """
        engine = self.pool.by_name.get(backend)
        published = None if engine is None else self._published.get(engine.node)
        return None if published is None else published[1]

    def divide(
        self, window: Window, activities: Sequence[Activity], physics: StepPhysics | None
    ) -> Attribution:
        """Divide a window among the requests in it; one that cannot be used stays undivided.

        Foreign traffic is remembered from window to window, as ``divide`` alone cannot.
        """
        try:
            attribution, work = self._divider.divide(window, activities, physics)
        except ValueError as error:
            log.warning("%s; nobody is charged for it", error)
            return undivided(window)
        self._work = (window.window_id, work)
        return attribution

    def observe(self, window: Window, activities: Sequence[Activity]) -> None:
        """Learn from a window."""
        engine = self._engine(window.node)
        if engine is None:
            return
        learner = self.learners.get(window.node)
        if learner is None:
            prior = self.prior(engine.facts)
            if prior is None:
                return
            learner = self.learners[window.node] = StepLearner(prior)
        version = window.engine_version or engine.facts.engine_version or ""
        if learner.serves(f"{engine.group} {engine.facts.precision} {version}"):
            log.info("%s serves something else now; its physics start anew", window.node)
            self._published.pop(window.node, None)
        if self._work is not None and self._work[0] == window.window_id:
            learner.observe(window, self._work[1])
        else:
            learner.observe(window, regressors(window, activities))
        before = self._published.get(window.node)
        if learner.trained and (before is None or window.end_s - before[0] >= PUBLISH_S):
            self._published[window.node] = (window.end_s, learner.physics())

    def taught(self) -> dict[str, dict[str, Any]]:
        """What windows taught here, by node, for other replicas."""
        learners = list(self.learners.items())
        return {node: learner.as_dict() for node, learner in learners if learner.windows > 0}

    def take(self, taught: dict[str, dict[str, Any]]) -> int:
        """Go on from what another replica was taught, where it knows more; of how many nodes."""
        taken = 0
        for node, saved in taught.items():
            if self._engine(node) is None:
                continue
            try:
                theirs = StepLearner.from_dict(saved)
            except (KeyError, TypeError, ValueError, IndexError):
                continue  # another version's
            if not theirs.knows_more_than(self.learners.get(node)):
                continue
            self.learners[node] = theirs
            taken += 1
            if theirs.trained:
                self._published[node] = (theirs.last_s or 0.0, theirs.physics())
        return taken

    def save(self) -> None:
        """Keep what was learnt for the next start."""
        if self.path is not None and self.learners:
            saved = {node: learner.as_dict() for node, learner in self.learners.items()}
            whole = self.path.with_suffix(".new")
            try:
                whole.write_bytes(msgspec.json.encode(saved))
                whole.replace(self.path)
            except OSError as error:
                log.warning("what windows taught could not be kept (%s)", error)

    def _restore(self, path: Path) -> None:
        try:
            saved = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Any]])
            self.learners = {node: StepLearner.from_dict(one) for node, one in saved.items()}
        except (OSError, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be read (%s); learning starts anew", path, error)
            return
        for node, learner in self.learners.items():
            if learner.trained:
                self._published[node] = (0.0, learner.physics())

    def _engine(self, node: str) -> Engine | None:
        return next((engine for engine in self.pool.engines if engine.node == node), None)


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
        self._lock = threading.Lock()  # held while meters are started or ended
        self._ended = False

    def start(self) -> None:
        """Read what can be read; what cannot is said once and leaves figures estimated."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        for backend, source in self._wanted:
            try:
                meter = LocalMeter(
                    meter_settings(backend, source, backend.node or backend.full_name),
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
            with self._lock:
                if not self._ended:
                    self._stop()
                    self._start()

        self._wanted = wanted(settings)
        threading.Thread(target=change, name="meters", daemon=True).start()

    def stop(self) -> None:
        """End all meters, for good."""
        with self._lock:
            self._ended = True
            self._stop()

    def _stop(self) -> None:
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
        source_series=source.series,
        source_unit=source.unit,
        source_label=source.label,
        recording=source.file,
        engine_url=backend.metrics_url or (f"{address}/metrics" if address else None),
        window_s=source.window_s,
    )
