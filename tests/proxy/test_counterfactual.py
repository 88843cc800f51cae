"""What a saving is counted against, and which figure of the grid: as a request's row keeps them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from meters.intensity.hours import hour_of, iso
from meters.types import UsageRecord
from tests.fakes import answers
from tests.fakes.upstream import CUT, HANG, Upstream
from tests.joulegate_server import Start, config_of
from tests.proxy.two_backends import ASK, LARGE, SMALL, both, kept, large, small
from tests.waiting import until

__all__ = ["large", "small"]  # fixtures


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

    def recorded() -> UsageRecord:
        return running.record(running.post(ASK).header("x-request-id"))

    until(lambda: recorded().intensity_tier == tier)
    record = recorded()
    assert (record.intensity_g_per_kwh == 77.0) is (older < 200)
    assert record.zone == "FR"


def test_an_api_that_no_meter_reads_is_on_the_books_by_the_tokens_that_were_counted(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    """Both sides of the saving, too: three tokens, where hundreds had been expected."""
    each = {"engine": "api", "gpu": None, "params_b": None}
    little, much = ({"declared_energy": {"j_per_output_token": j}} for j in (1.0, 10.0))
    config = config_of(
        {**SMALL, "url": small.base_url, **each, **little},
        {**LARGE, "url": large.base_url, **each, **much},
        carbon={"intensity_g_per_kwh": 3.6e6},
    )
    running = joulegate({**config, "default_policy": "least_energy"})
    reply = running.post({**ASK, "max_tokens": 400})
    assert reply.header("x-joulegate-backend") == "m@small"
    assert float(reply.header("x-joulegate-energy-j") or 0) > 10.0
    record = running.record(reply.header("x-request-id"))
    assert record.output_tokens == 3
    assert record.energy_j == pytest.approx(3.0)
    assert record.carbon_g == pytest.approx(3.0)
    assert record.counterfactual_energy_j == pytest.approx(30.0)
    assert record.counterfactual_carbon_g == pytest.approx(30.0)


@pytest.mark.parametrize("how", ["it breaks off", "the client leaves"])
def test_an_answer_that_nobody_got_whole_took_its_tokens_and_avoided_nothing(
    joulegate: Start, small: Upstream, large: Upstream, how: str
) -> None:
    running = joulegate(both(small, large, default_policy="least_energy"))
    whole = running.record(running.post(AUTO).header("x-request-id"))
    assert whole.counterfactual_energy_j is not None
    begun = [answers.event(e) for e in answers.chat_events(["a", "b"], usage=False)[:2]]
    if how == "it breaks off":
        small.play(answers.stream([*begun, CUT], end=False))
        running.post({**AUTO, "stream": True})
        (record,) = running.records(lambda r: r.outcome == "failed")
    else:
        small.play(answers.stream([*begun, HANG], end=False))
        connection = running.open({**AUTO, "stream": True})
        connection.getresponse().readline()
        connection.close()
        (record,) = running.records(lambda r: r.outcome == "cancelled")
    assert 0 < (record.output_tokens or 0) <= 2
    assert record.energy_j is not None
    assert whole.energy_j is not None
    assert record.energy_j < 0.2 * whole.energy_j
    assert record.counterfactual_backend is None
