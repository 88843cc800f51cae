"""Which backends' energy is read here, what their windows teach, and how windows are divided."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from estimators.steps import StepLearner
from estimators.types import Backend
from meters.attribution import (
    NOTHING_AROUND,
    Divider,
    Regressors,
    attribute_all,
    regressors,
)
from meters.engine_reader import EngineUnavailable
from meters.local import LocalMeter
from meters.settings import MeterSettings
from meters.simulated_engine import SimulatedMeter
from meters.types import Activity, Around, Attribution, Meter, MeterUnavailable, StepPhysics, Window
from meters.unreadable import UNREADABLE
from meters.whole_file import write_whole
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
        # of the window divided last: the work of each engine in it
        self._work: tuple[str, dict[str, Regressors]] | None = None
        # by node; where several engines share its devices, by node and engine (``_key``)
        self.learners: dict[str, StepLearner] = {}
        self._published: dict[str, tuple[float, StepPhysics]] = {}  # likewise: when, what
        self._keyed: tuple[list[Engine], dict[str, str]] = ([], {})  # for which engines
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
        published = self._published.get(self._keys().get(backend, ""))
        return None if published is None else published[1]

    def divide(
        self,
        window: Window,
        activities: Sequence[Activity],
        physics: StepPhysics | None,
        around: Around = NOTHING_AROUND,
    ) -> Attribution:
        """Divide a window among the requests in it; one that cannot be used stays undivided.

        It is looked at among its neighbours, as ``divide`` alone cannot.
        """
        engines = self._engines(window.node)
        try:
            if len(engines) > 1:
                return self._divide_shared(window, activities, engines, around)
            attribution, work = self._divider.divide(window, activities, physics, around)
        except ValueError as error:
            log.warning("%s; nobody is charged for it", error)
            return undivided(window)
        self._work = (window.window_id, {engines[0].name: work} if engines else {})
        return attribution

    def _divide_shared(
        self,
        window: Window,
        activities: Sequence[Activity],
        engines: Sequence[Engine],
        around: Around,
    ) -> Attribution:
        """Divide a window among the requests of all engines that share its devices."""
        # Several backends may be one engine: an adapter, a model's other name.
        chief = {e.name: self._chief(e).name for e in self.pool.engines if e.node == window.node}
        activities = [
            msgspec.structs.replace(a, engine=chief.get(a.engine, engines[0].name))
            for a in activities
        ]

        def told(seen: Window) -> Window:
            engines = (
                msgspec.structs.replace(did, engine=chief[did.engine])
                for did in seen.engines
                if did.engine in chief
            )
            return msgspec.structs.replace(seen, engines=tuple(engines))

        known: dict[str, StepPhysics] = {}
        for engine in engines:
            learner = self.learners.get(self._key(engine))
            taught = learner is not None and learner.windows > 0
            found = learner.physics() if learner and taught else self.prior(engine.facts)
            if found is not None:
                known[engine.name] = found
        if len(known) < len(engines):
            known = {}  # all by usual proportions: figures from two sources have no common scale
        around = Around(tuple(map(told, around.before)), tuple(map(told, around.after)))
        attribution, works = self._divider.divide_shared(told(window), activities, known, around)
        self._work = (window.window_id, works)
        return attribution

    def observe(self, window: Window, activities: Sequence[Activity]) -> None:
        """Learn from a window.

        Of engines that share devices only those learn that were alone at work in it: what the
        meter saw then is theirs.
        """
        engines = self._engines(window.node)
        known = self._work is not None and self._work[0] == window.window_id
        works = self._work[1] if known and self._work is not None else {}
        if len(engines) == 1:
            name = engines[0].name
            if name not in works:
                works = {name: regressors(window, activities)}
        busy = {name for name, work in works.items() if work.busy_s > 0 or any(work[2:6])}
        for engine in engines:
            work = works.get(engine.name)
            if work is not None and busy <= {engine.name}:
                did = next((d for d in window.engines if d.engine == engine.name), None)
                version = (did.version if did else window.engine_version) or ""
                self._learn(engine, window, work, version)

    def _learn(self, engine: Engine, window: Window, work: Regressors, version: str) -> None:
        key = self._key(engine)
        learner = self.learners.get(key)
        if learner is None:
            prior = self.prior(engine.facts)
            if prior is None:
                return
            learner = self.learners[key] = StepLearner(prior)
        model = f"{engine.group} {engine.facts.precision} "
        version = version or engine.facts.engine_version or ""
        if not version and learner.engine and learner.engine.startswith(model):
            version = learner.engine.removeprefix(model)  # it was out of reach in this window
        served = model + version
        if learner.serves(served):
            log.info("%s serves something else now; its physics start anew", engine.name)
            self._published.pop(key, None)
            prior = self.prior(engine.facts)
            if prior is not None:  # of what it serves now, not of what it did
                learner = self.learners[key] = StepLearner(prior)
                learner.serves(served)
        learner.observe(window, work)
        before = self._published.get(key)
        if learner.trained and (before is None or window.end_s - before[0] >= PUBLISH_S):
            self._published[key] = (window.end_s, learner.physics())

    def taught(self) -> dict[str, dict[str, Any]]:
        """What windows taught here, by node, for other replicas."""
        learners = list(self.learners.items())
        return {node: learner.as_dict() for node, learner in learners if learner.windows > 0}

    def take(self, taught: dict[str, dict[str, Any]]) -> int:
        """Go on from what another replica was taught, where it knows more; of how many nodes."""
        taken = 0
        for node, saved in taught.items():
            if not any(self._key(engine) == node for engine in self.pool.engines):
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
            try:
                write_whole(self.path, msgspec.json.encode(saved))
            except OSError as error:
                log.warning("what windows taught could not be kept (%s)", error)

    def _restore(self, path: Path) -> None:
        try:
            saved = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Any]])
            self.learners = {node: StepLearner.from_dict(one) for node, one in saved.items()}
        except (OSError, *UNREADABLE, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be read (%s); learning starts anew", path, error)
            return
        for node, learner in self.learners.items():
            if learner.trained:
                self._published[node] = (0.0, learner.physics())

    def _engine(self, node: str) -> Engine | None:
        return next((engine for engine in self.pool.engines if engine.node == node), None)

    def _engines(self, node: str) -> list[Engine]:
        """The engines on a node, one for each address; usually there is one."""
        on_node = [engine for engine in self.pool.engines if engine.node == node]
        return [engine for engine in on_node if self._chief(engine) is engine]

    def _chief(self, engine: Engine) -> Engine:
        """The first backend of a node that is the same engine: it has the same address."""
        if not engine.url:
            return engine
        same = (e for e in self.pool.engines if e.node == engine.node and e.url == engine.url)
        return next(same, engine)

    def _key(self, engine: Engine) -> str:
        """What an engine's lessons are kept under: its node, unless others share that."""
        return self._keys()[engine.name]

    def _keys(self) -> dict[str, str]:
        """Those of all backends, by name; every estimate asks for them."""
        engines, keys = self._keyed
        if engines is not self.pool.engines:
            engines = self.pool.engines
            keys = {
                e.name: e.node
                if len(self._engines(e.node)) <= 1
                else f"{e.node} {self._chief(e).name}"
                for e in engines
            }
            self._keyed = engines, keys
        return keys


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


class Turn:
    """Who reads the meters for a state folder: one process at a time, or each joule would be on the
    books as often as there are processes."""

    def __init__(self, path: Path, every_s: float = 1.0) -> None:
        self._path, self._every_s = path, every_s
        self._held: int | None = None
        self._ended = threading.Event()
        self._waiting: threading.Thread | None = None

    def take(self) -> bool:
        """Whether it is ours; also where nobody can tell."""
        if self._held is not None:
            return True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            held = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.debug("no lock can be had in %s (%s)", self._path, error)
            return True
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(held)
            return False
        self._held = held
        return True

    def wait(self, start: Callable[[], None]) -> None:
        """Call ``start``, in a thread, once the other process has ended."""
        if self._waiting is not None and self._waiting.is_alive():
            return
        log.warning(
            "Another process reads the meters for %s: this one begins when that ends. Give each "
            "Joulegate a state_dir of its own, and each meter to one of them.",
            self._path.parent,
        )

        def look() -> None:
            while not self._ended.wait(self._every_s):
                if self.take():
                    start()
                    return

        self._waiting = threading.Thread(target=look, name="meters-turn", daemon=True)
        self._waiting.start()

    def end(self) -> None:
        self._ended.set()
        if self._held is not None:
            os.close(self._held)
            self._held = None


class Measuring:
    """Starts and stops the meters of backends that run on this machine."""

    def __init__(self, settings: Settings, pool: Pool, on_window: Callable[[Window], None]) -> None:
        self.pool = pool
        self.on_window = on_window
        self.meters: list[LocalMeter] = []
        self._wanted, self._sharing = wanted(settings), sharing(settings)
        self._lock = threading.Lock()  # held while meters are started or ended
        self._ended = False
        self._turn = Turn(Path(settings.state_dir) / "meters.lock")

    def start(self) -> None:
        """Read what can be read; what cannot is said once and leaves figures estimated."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if not self._wanted or self._ended:
            return
        if not self._turn.take():
            self._turn.wait(self.start)
            return
        read: list[tuple[str, MeterSource]] = []  # what is read already, and for which node
        for backend, source in self._wanted:
            node = backend.node or backend.full_name
            other = next((n for n, there in read if same_devices(there, source)), None)
            if other is not None:
                if other != node:
                    log.warning(
                        "%s and %s name the same devices; counted twice they would be too much, "
                        "so only %s is read. Backends on the same devices need the same node.",
                        other,
                        node,
                        other,
                    )
                continue
            read.append((node, source))
            try:
                meter = LocalMeter(
                    meter_settings(backend, source, node, self._sharing.get(node)),
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

        self._wanted, self._sharing = wanted(settings), sharing(settings)
        threading.Thread(target=change, name="meters", daemon=True).start()

    def stop(self) -> None:
        """End all meters, for good."""
        with self._lock:
            self._ended = True
            self._stop()
            self._turn.end()

    def _stop(self) -> None:
        for meter in self.meters:
            meter.stop()
        self.meters.clear()


def wanted(settings: Settings) -> list[tuple[BackendSettings, MeterSource]]:
    """The backends whose energy is read here."""
    return [(b, b.meter) for b in settings.backends if b.meter is not None]


def same_devices(one: MeterSource, other: MeterSource) -> bool:
    """Whether two meters would count the same joules."""
    where = [(m.kind, m.url, m.series, m.file) for m in (one, other)]
    if one.kind == "none" or where[0] != where[1]:
        return False
    ours, theirs = set(map(str, one.devices)), set(map(str, other.devices))
    return not ours or not theirs or not ours.isdisjoint(theirs)


def sharing(settings: Settings) -> dict[str, dict[str, str]]:
    """The metrics pages of engines that share a node's devices, by node and backend's name; of
    backends with the same page only the first. Nodes with one engine are left out."""
    pages: dict[str, dict[str, str]] = {}
    for backend in settings.backends:
        page = metrics_page(backend)
        on_node = pages.setdefault(backend.node or backend.full_name, {})
        if page is not None and page not in on_node.values():
            on_node[backend.full_name] = page
    return {node: on_node for node, on_node in pages.items() if len(on_node) > 1}


def metrics_page(backend: BackendSettings) -> str | None:
    """Where a backend's engine shows its counters."""
    address = (backend.url or "").rstrip("/").removesuffix("/v1")
    return backend.metrics_url or (f"{address}/metrics" if address else None)


def _simulated(source: MeterSource) -> Callable[[], Meter] | None:
    url = source.url
    if source.kind != "simulated" or url is None:
        return None
    return lambda: SimulatedMeter.at(url)


def meter_settings(
    backend: BackendSettings,
    source: MeterSource,
    node: str,
    engines: dict[str, str] | None = None,
) -> MeterSettings:
    """A backend's meter as meters understand it; ``engines``: where several share its devices.

    Raises ValueError.
    """
    return MeterSettings(
        node=node,
        meter=source.kind,
        devices=[int(d) if str(d).isdecimal() else d for d in source.devices] or None,
        source_url=source.url,
        source_series=source.series,
        source_unit=source.unit,
        source_label=source.label,
        recording=source.file,
        engine_url=metrics_page(backend),
        engines=engines or {},
        host="none" if source.kind == "simulated" else "auto",
        window_s=source.window_s,
    )
