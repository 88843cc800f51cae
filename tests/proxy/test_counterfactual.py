"""What a saving is counted against, and which figure of the grid: as a request's row keeps them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from meters.intensity.hours import hour_of, iso
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Config, Joulegate
from tests.proxy.two_backends import ASK, both, kept, large, small

__all__ = ["large", "small"]  # fixtures
Start = Callable[[Config], Joulegate]
AUTO = {**ASK, "model": "auto"}


@pytest.mark.parametrize("declared", ["m@large", "m@small"])
def test_auto_is_counted_against_the_declared_default_as_it_was_estimated_then(
    joulegate: Start, small: Upstream, large: Upstream, declared: str
) -> None:
    carbon = {"default_counterfactual": declared}
    running = joulegate(both(small, large, carbon=carbon, default_policy="least_energy"))
    reply = running.post(AUTO)
    assert reply.header("x-joulegate-backend") == "m@small"
    record = running.record(reply.header("x-request-id"))
    assert record.counterfactual_backend == declared
    decision = kept(running, reply).decision
    assert decision is not None
    assert decision.counterfactual == declared
    then = record.counterfactual_energy_j
    assert then is not None
    assert record.energy_j is not None
    assert (then > 2 * record.energy_j) is (declared == "m@large")
    for _ in range(5):  # estimates move on; what was frozen stays
        running.post(AUTO)
    again = running.record(reply.header("x-request-id"))
    assert (again.counterfactual_backend, again.counterfactual_energy_j) == (declared, then)


def test_a_model_that_was_asked_for_is_counted_against_itself(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    carbon = {"default_counterfactual": "m@large"}
    running = joulegate(both(small, large, carbon=carbon, default_policy="least_energy"))
    reply = running.post({**ASK, "model": "m@small"})
    record = running.record(reply.header("x-request-id"))
    assert record.counterfactual_backend == "m@small"


@pytest.mark.parametrize(
    ("older", "tier"), [(0, "hourly"), (1, "live"), (4, "last_value"), (200, "annual_zone")]
)
def test_the_step_of_the_ladder_is_in_the_requests_row(
    joulegate: Start, small: Upstream, large: Upstream, tmp_path: Path, older: int, tier: str
) -> None:
    now_s = hour_of(time.time())
    rows = [f"FR,{iso(now_s - n * 3600)},77.0" for n in range(older, older + 2)]
    if not older:  # should the hour end while this runs
        rows.append(f"FR,{iso(now_s + 3600)},77.0")
    file = tmp_path / "grid.csv"
    file.write_text("\n".join(["zone,hour,value", *rows]) + "\n")
    carbon = {"zone": "FR", "intensity_file": str(file)}
    running = joulegate(both(small, large, carbon=carbon))
    deadline_s = time.monotonic() + 10.0
    while True:
        reply = running.post(ASK)
        record = running.record(reply.header("x-request-id"))
        if record.intensity_tier == tier:
            break
        assert time.monotonic() < deadline_s, record.intensity_tier
    assert (record.intensity_g_per_kwh == 77.0) is (older < 200)
    assert record.zone == "FR"
