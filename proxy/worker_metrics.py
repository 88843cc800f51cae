"""One page of metrics for all workers of a machine.

They share a socket, so each look is answered by another of them, and counters that jump between
what one and another counted are restarts to whoever takes rates of them. So each leaves what it
counts in a file, and whoever is asked adds the others' to its own. Counts of a worker that ended
stay; what it said of the present goes with it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from meters.unreadable import UNREADABLE
from meters.whole_file import write_whole
from proxy.background import ended
from proxy.settings import Settings

log = logging.getLogger("joulegate.metrics")

PUBLISH_S = 5.0
STALE_S = 4 * PUBLISH_S  # a worker that published nothing for so long is gone
ADDED = frozenset({"counter", "histogram", "summary"})
# Of figures of the present the largest is told, which is the worst, but for these.
SUMS = frozenset(
    {
        "joulegate_requests_in_flight",
        "joulegate_journal_backlog_bytes",
        "joulegate_ledger_imbalance_joules",
    }
)
LEAST = frozenset({"joulegate_backend_healthy", "joulegate_meter_age_seconds"})
# Each worker gets some of a node's windows, and takes the others' for missing.
UNKNOWN = frozenset({"joulegate_meter_missing_windows"})

Labels = tuple[tuple[str, str], ...]


class Family(msgspec.Struct, array_like=True):
    """A metric and its samples: name, labels, value."""

    name: str
    about: str
    kind: str
    samples: list[tuple[str, Labels, float]]


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(list[Family])


class WorkerMetrics:
    """Publishes what this worker counts, and tells the sum of all."""

    def __init__(
        self,
        folder: Path,
        name: str,
        registry: CollectorRegistry,
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        """``name``: one that no other worker had since the start; ``refresh`` brings the registry
        up to date."""
        self._folder, self._path = folder, folder / f"{name}.metrics"
        self._registry, self._refresh = registry, refresh
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        await ended(self._task)
        await self._publish()

    async def page(self) -> bytes:
        """The page of all workers; this one's registry is up to date."""
        mine = await self._publish()
        others = await asyncio.to_thread(self._others)
        return generate_latest(_Told(merged([(mine, True), *others])))

    async def _run(self) -> None:
        while True:
            try:
                await self._refresh()
                await self._publish()
            except Exception:
                log.exception("what this worker counts is not told to the others")
            await asyncio.sleep(PUBLISH_S)

    async def _publish(self) -> list[Family]:
        mine = families(self._registry)
        try:
            await asyncio.to_thread(self._write, _encode(mine))
        except OSError as error:
            log.debug("what this worker counts cannot be written (%s)", error)
        return mine

    def _write(self, value: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, value)

    def _others(self) -> list[tuple[list[Family], bool]]:
        """What others published, and whether they live."""
        found = []
        for path in sorted(self._folder.glob("*.metrics")):
            if path == self._path:
                continue
            try:
                lives = time.time() - path.stat().st_mtime < STALE_S
                found.append((_decoder.decode(path.read_bytes()), lives))
            except (OSError, *UNREADABLE):
                continue  # replaced just now, or another version's
        return found


class _Told(CollectorRegistry):
    """Metrics as they are."""

    def __init__(self, metrics: list[Metric]) -> None:
        super().__init__()
        self.register(_Fixed(metrics))


class _Fixed(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def metrics_folder(settings: Settings) -> Path:
    """Where the workers of this process's parent, or of this process, leave what they count."""
    parent = multiprocessing.parent_process()
    owner = os.getpid() if parent is None else parent.pid
    return Path(settings.state_dir) / "metrics" / f"{socket.gethostname()}-{owner}"


def families(registry: CollectorRegistry) -> list[Family]:
    """What a registry holds."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [
                (s.name, tuple(sorted(s.labels.items())), float(s.value))
                for s in metric.samples
                if not s.name.endswith("_created")
            ],
        )
        for metric in registry.collect()
    ]


def merged(pages: list[tuple[list[Family], bool]]) -> list[Metric]:
    """One page of several; of those that do not live only what was counted."""
    metrics: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, Labels], float]] = {}
    for page, lives in pages:
        for family in page:
            adds = family.kind in ADDED
            if family.name in UNKNOWN or not (adds or lives):
                continue
            metrics.setdefault(family.name, Metric(family.name, family.about, family.kind))
            known = values.setdefault(family.name, {})
            for name, labels, value in family.samples:
                had = known.get((name, labels))
                if had is None:
                    known[name, labels] = value
                elif adds or family.name in SUMS:
                    known[name, labels] = had + value
                else:
                    choose = min if family.name in LEAST else max
                    known[name, labels] = choose(had, value)
    for family_name, metric in metrics.items():
        for (name, labels), value in values[family_name].items():
            metric.add_sample(name, dict(labels), value)
    return list(metrics.values())
