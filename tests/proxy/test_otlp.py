"""Spans and hw.energy reach a collector on a real socket, and its absence reaches nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meters.types import Attribution, Evidence, Share, UsageRecord
from proxy.flight import Flight
from proxy.otlp import Otlp
from proxy.spans import Metered, span
from tests.fakes import answers
from tests.fakes.collector import Collector, attributes
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Config, Joulegate, config_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Quiet:
    """An observer that only counts."""

    def __init__(self) -> None:
        self.told = 0

    def request(self, flight: Flight, record: UsageRecord) -> None:
        self.told += 1

    def divided(self, attribution: Attribution) -> None:
        self.told += 1


def record(number: int = 1, **more: Any) -> UsageRecord:
    values: dict[str, Any] = {
        "request_id": f"r{number}",
        "start_s": 1000.0,
        "end_s": 1002.5,
        "team": "search",
        "model_asked": "llama",
        "group": "llama",
        "backend": "llama@fp8",
        "node": "n",
        "prompt_tokens": 12,
        "output_tokens": 3,
        "energy_j": 40.0,
        "evidence": Evidence.CALIBRATED,
        "zone": "DE",
        "pue": 1.5,
        "intensity_g_per_kwh": 360.0,
    }
    return UsageRecord(**(values | more))


def window(end_s: float, energy_j: float) -> Attribution:
    return Attribution(
        window_id=f"w{end_s}",
        node="n",
        start_s=end_s - 2,
        end_s=end_s,
        metered_j=energy_j + 5,
        idle_j=5.0,
        external_j=0.0,
        unattributed_j=0.0,
        shares=(Share(f"w{end_s}", "r1", energy_j),),
        evidence=Evidence.METERED,
    )


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def exporter(url: str, after: Quiet | None = None, hold_s: float = 0.0) -> Otlp:
    return Otlp(url, after or Quiet(), lambda _: None, {"x-token": "t"}, hold_s, every_s=0.01)


def test_a_span_has_the_conventions_names_and_what_it_used(collector: Collector) -> None:
    after = Quiet()
    otlp = exporter(collector.url, after)
    flight = Flight("chat.completions")
    flight.traceparent = PARENT.encode()
    otlp.divided(window(1001.0, 6.0))
    otlp.divided(window(1003.0, 4.0))
    otlp.request(flight, record())
    otlp.start()
    (found,) = collector.spans(1)
    otlp.stop()
    assert after.told == 3
    assert found["name"] == "chat llama"
    assert (found["kind"], found["traceId"]) == (3, PARENT[3:35])
    assert found["parentSpanId"] == PARENT[36:52]
    assert int(found["endTimeUnixNano"]) - int(found["startTimeUnixNano"]) == 2_500_000_000
    told = attributes(found)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "llama"
    assert told["gen_ai.provider.name"]
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (12, 3)
    assert (told["joulegate.energy"], told["joulegate.energy.evidence"]) == (10.0, "metered")
    assert told["joulegate.co2e"] == pytest.approx(10.0 / 3.6e6 * 1.5 * 360.0)
    assert collector.headers[0]["x-token"] == "t"
    energy = collector.metric("hw.energy")
    (point,) = energy["sum"]["dataPoints"]
    assert (energy["unit"], point["asDouble"]) == ("J", 20.0)
    assert attributes(point)["hw.id"] == "n"
    assert attributes(point)["hw.type"] == "gpu"


def test_half_metered_is_told_as_estimated() -> None:
    told = attributes(span(record(), None, None, None))
    assert (told["joulegate.energy"], told["joulegate.energy.evidence"]) == (40.0, "calibrated")
    unknown = attributes(span(record(energy_j=None)))
    assert "joulegate.energy" not in unknown
    metered = attributes(span(record(), metered=Metered(9.0, Evidence.METERED)))
    assert metered["joulegate.energy.estimated"] == 40.0


def test_a_window_that_is_still_missing_makes_no_half_figure(collector: Collector) -> None:
    otlp = exporter(collector.url)
    otlp.divided(window(1001.0, 6.0))  # the request ended later
    otlp.request(Flight("chat.completions"), record())
    otlp.start()
    (found,) = collector.spans(1)
    otlp.stop()
    assert attributes(found)["joulegate.energy.evidence"] == "calibrated"


def test_a_collector_that_was_away_gets_each_span_once() -> None:
    collector = Collector((503, 503))
    otlp = exporter(collector.url)
    for number in range(3):
        otlp.request(Flight("chat.completions"), record(number))
    otlp.start()
    found = collector.spans(3)
    otlp.stop()
    collector.close()
    assert len({each["spanId"] for each in found}) == len(found) == 3
    assert (otlp.sent, otlp.dropped) == (3, 0)


def test_failures_are_errors_and_a_bad_traceparent_is_none() -> None:
    failed = span(record(outcome="failed", status=503, error_code="upstream_failed"), "00-xyz")
    assert failed["status"]["code"] == 2
    assert "parentSpanId" not in failed
    assert attributes(failed)["error.type"] == "upstream_failed"
    assert "status" not in span(record())


def test_requests_through_the_proxy_are_traced_without_their_words(
    joulegate: Callable[[Config], Joulegate], collector: Collector
) -> None:
    with Upstream(answers.like_an_engine(), pages=answers.engine_pages()) as upstream:
        config = {**config_of(upstream.base_url), "otlp": {"url": collector.url, "hold_s": 0}}
        running = joulegate(config)
        ask = {"model": "tiny", "messages": [{"role": "user", "content": "a secret word"}]}
        assert running.post(ask).status == 200
        (found,) = collector.spans(1)
    assert found["name"] == "chat tiny"
    assert attributes(found)["http.response.status_code"] == 200
    assert "secret" not in str(collector.bodies)
