"""The one page of metrics of several workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from proxy.tallies import Spread, Tally
from proxy.worker_metrics import WorkerMetrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Worker:
    """What one worker counts."""

    def __init__(self, folder: Path, name: str) -> None:
        self.registry = CollectorRegistry()
        self.requests = Tally("joulegate_requests", "Requests.", ["team"], self.registry)
        self.times = Spread("joulegate_times", "Times.", ["backend"], (0.1, 1.0), self.registry)
        self.gauges = {
            name: Gauge(f"joulegate_{name}", name, registry=self.registry)
            for name in (
                "requests_in_flight",
                "backend_healthy",
                "degraded",
                "meter_missing_windows",
            )
        }
        self.path = folder / f"{name}.metrics"
        self.metrics = WorkerMetrics(folder, name, self.registry, self.refresh)

    async def refresh(self) -> None: ...

    async def page(self) -> Samples:
        text = (await self.metrics.page()).decode()
        return {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
        }


@pytest.fixture
def workers(tmp_path: Path) -> list[Worker]:
    one, two = Worker(tmp_path / "metrics", "0-a"), Worker(tmp_path / "metrics", "1-b")
    one.requests.add(("search",), 3)
    two.requests.add(("search",), 4)
    two.requests.add(('a "team"\n',), 1)
    one.times.observe(("tiny",), 0.05)
    two.times.observe(("tiny",), 5.0)
    for worker, figures in ((one, (2, 1, 0, 5)), (two, (3, 0, 1, 6))):
        for gauge, value in zip(worker.gauges.values(), figures, strict=True):
            gauge.set(value)
    return [one, two]


SEARCH = ("joulegate_requests_total", (("team", "search"),))


async def test_whichever_worker_is_asked_tells_the_counts_of_all(workers: list[Worker]) -> None:
    one, two = workers
    await one.page()
    await two.page()
    told = await one.page()
    assert told == await two.page()
    assert told[SEARCH] == 7
    assert told["joulegate_requests_total", (("team", 'a "team"\n'),)] == 1
    assert told["joulegate_times_count", (("backend", "tiny"),)] == 2
    assert told["joulegate_times_bucket", (("backend", "tiny"), ("le", "1.0"))] == 1
    assert told["joulegate_requests_in_flight", ()] == 5
    assert told["joulegate_backend_healthy", ()] == 0
    assert told["joulegate_degraded", ()] == 1
    assert ("joulegate_meter_missing_windows", ()) not in told


async def test_counts_never_fall_when_a_worker_ends_and_its_present_goes_with_it(
    workers: list[Worker],
) -> None:
    one, two = workers
    await two.page()
    before = await one.page()
    os.utime(two.path, (0, 0))  # long ago
    after = await one.page()
    assert after[SEARCH] == before[SEARCH] == 7
    assert after["joulegate_requests_in_flight", ()] == 2
    assert after["joulegate_backend_healthy", ()] == 1
    assert after["joulegate_degraded", ()] == 0


async def test_what_cannot_be_read_is_left_out(workers: list[Worker]) -> None:
    one, two = workers
    await two.page()
    two.path.write_bytes(b"of another version")
    assert (await one.page())[SEARCH] == 3


async def test_a_folder_that_cannot_be_written_leaves_a_worker_its_own(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("in the way")
    alone = Worker(tmp_path / "metrics", "0-a")
    alone.requests.add(("search",), 3)
    assert (await alone.page())[SEARCH] == 3
