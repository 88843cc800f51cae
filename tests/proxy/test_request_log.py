"""The log's lines of requests."""

from __future__ import annotations

from proxy.flight import Flight
from proxy.request_log import line_of
from proxy.usage_records import record_of


def test_a_line_stays_one_line_whatever_the_client_calls_its_model() -> None:
    flight = Flight("chat.completions")
    flight.asked = "tiny\nreq_0 status=200"
    line = line_of(record_of(flight, "replica"))
    assert "\n" not in line
    assert line.startswith(flight.request_id)
    assert r"model='tiny\nreq_0 status=200'" in line


def test_what_is_unknown_is_left_out() -> None:
    line = line_of(record_of(Flight("embeddings"), "replica"))
    assert "energy" not in line
    assert "backend" not in line
    assert "endpoint=embeddings" in line
