"""Separate limits for connecting, the first byte, gaps and the whole; retries, fallbacks, and a
failing backend left alone and probed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.fakes import answers
from tests.fakes.upstream import CUT, HANG, Gate, Pace, Upstream
from tests.joulegate_server import Start, config_of

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**ASK, "stream": True}


@contextmanager
def full() -> Iterator[str]:
    """An address whose queue of connections is full: connecting hangs."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        waiting = []
        for _ in range(8):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            waiting.append(one)
        yield f"http://127.0.0.1:{port}/v1"
        for one in waiting:
            one.close()


def test_connecting_has_a_limit_of_its_own(joulegate: Start) -> None:
    with full() as address:
        time_limits = {"connect_s": 0.2, "first_byte_s": 60}
        running = joulegate(config_of(address, time=time_limits, retries={"attempts": 1}))
        started_s = time.monotonic()
        failed = running.post(ASK)
        assert time.monotonic() - started_s < 5
    assert (failed.status, failed.code) == (504, "upstream_timeout")


def test_the_wait_for_the_first_byte_is_limited_and_the_next_backend_asked(
    joulegate: Start, upstream: Upstream
) -> None:
    with Upstream([HANG]) as slow:
        running = joulegate(config_of(slow.base_url, upstream.base_url, time={"first_byte_s": 0.7}))
        for body in (ASK, STREAM):
            got = running.post(body)
            assert got.status == 200
            assert got.header("x-joulegate-backend") == "tiny-1"
        assert slow.received
        assert all(request.gone.wait(2) for request in slow.received)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_gap_in_an_answer_is_limited(joulegate: Start, upstream: Upstream, stream: bool) -> None:
    running = joulegate(config_of(upstream.base_url, time={"between_chunks_s": 0.7}))
    if stream:
        first = answers.event(answers.chat_events()[0])
        upstream.play(answers.stream([first, HANG], end=False))
        got = running.post(STREAM)
        assert got.status == 200
        assert b'"code":"upstream_timeout"' in got.body
        assert b"[DONE]" not in got.body
    else:
        upstream.play([answers.head(content_length="100") + b"{", HANG])
        got = running.post(ASK)
        assert (got.status, got.code) == (504, "upstream_timeout")
    assert upstream.wait_for(1)[0].gone.wait(2)
    assert running.record(got.header("x-request-id")).error_code == "upstream_timeout"


def test_no_limit_cuts_a_stream_that_lives(joulegate: Start, upstream: Upstream) -> None:
    limits = {"first_byte_s": 0.7, "between_chunks_s": 0.8, "total_s": 0.2}
    running = joulegate(config_of(upstream.base_url, time=limits))
    script: list[Any] = []
    for one in answers.chat_events(["word"] * 8):
        script += [answers.event(one), Pace(0.15)]
    upstream.play(answers.stream(script))
    started_s = time.monotonic()
    got = running.post(STREAM)
    assert time.monotonic() - started_s > 1.0
    assert got.body.endswith(b"data: [DONE]\n\n")
    assert running.record(got.header("x-request-id")).outcome == "ok"


def test_a_whole_answer_is_limited_in_all(joulegate: Start, upstream: Upstream) -> None:
    limits = {"between_chunks_s": 10, "total_s": 0.3}
    running = joulegate(config_of(upstream.base_url, time=limits))
    upstream.play([answers.head(content_length="1000") + b"{", HANG])
    got = running.post(ASK)
    assert (got.status, got.code) == (504, "upstream_timeout")


# -- retries, fallbacks, cooldown ----------------------------------------------------------------


def test_the_whole_s_limit_holds_for_an_answer_of_which_nothing_comes(
    joulegate: Start, upstream: Upstream
) -> None:
    upstream.play([HANG])
    limits = {"total_s": 0.3, "first_byte_s": 60}
    running = joulegate(config_of(upstream.base_url, time=limits, retries={"attempts": 1}))
    failed = running.post(ASK)
    assert (failed.status, failed.code) == (504, "upstream_timeout")
    upstream.play([Pace(0.6), *answers.stream([answers.event(e) for e in answers.chat_events()])])
    assert running.post(STREAM).status == 200  # which may take its time


def test_the_same_backend_is_tried_again_when_it_is_the_only_one(
    joulegate: Start, upstream: Upstream
) -> None:
    running = joulegate(config_of(upstream.base_url))
    upstream.play([CUT], [CUT], answers.answer(answers.CHAT))
    got = running.post(ASK)
    assert got.status == 200
    assert running.record(got.header("x-request-id")).attempts == 3
    assert len(upstream.received) == 3


def test_attempts_end_at_the_limit(joulegate: Start, upstream: Upstream) -> None:
    config = config_of(upstream.base_url)
    running = joulegate({**config, "retries": {**config["retries"], "attempts": 2}})
    upstream.play([CUT])
    failed = running.post(ASK)
    assert failed.status == 503
    assert len(upstream.received) == 2


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_what_the_client_did_wrong_is_not_tried_elsewhere(
    joulegate: Start, upstream: Upstream, status: int
) -> None:
    with Upstream(answers.failure(status, "no", "No.")) as other:
        upstream.play(answers.failure(status, "no", "No."))
        running = joulegate(config_of(other.base_url, upstream.base_url))
        assert running.post(ASK).status == status
        assert len(other.received) + len(upstream.received) == 1


def test_nothing_is_tried_again_once_a_byte_went_to_the_client(
    joulegate: Start, upstream: Upstream
) -> None:
    first = answers.event(answers.chat_events()[0])
    upstream.play(answers.stream([first, CUT], end=False))
    running = joulegate(config_of(upstream.base_url, upstream.base_url))
    assert b"error" in running.post(STREAM).body
    assert len(upstream.received) == 1


def test_another_group_steps_in_when_a_group_cannot_serve(
    joulegate: Start, upstream: Upstream
) -> None:
    with Upstream([CUT]) as broken:
        backends = [
            {"url": broken.base_url, "name": "first"},
            {"url": upstream.base_url, "name": "second", "model": "small"},
        ]
        running = joulegate(
            config_of(*backends, fallbacks={"tiny": ["small"]})
            | {"retries": {"failures": 1, "cooldown_s": 60, "health_check_s": 0, "wait_s": 0}}
        )
        running.post(ASK)  # the first failure sends it into its cooldown
        got = running.post(ASK)
        assert got.status == 200
        assert got.header("x-joulegate-backend") == "second"
        assert upstream.wait_for(1)[0].json()["model"] == "small"


@pytest.mark.parametrize(
    ("fails", "given_up"),
    [([CUT], None), ([HANG], "given up"), (answers.answer(b"{}", status=503), None)],
    ids=["broken off", "too late", "refused"],
)
@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
def test_a_request_that_all_of_its_group_failed_goes_to_the_fallbacks(
    joulegate: Start, upstream: Upstream, fails: Any, given_up: str | None, body: dict[str, Any]
) -> None:
    with Upstream(fails) as failing:
        backends = [
            failing.base_url,
            {"url": upstream.base_url, "model": "small", "name": "second"},
        ]
        config = config_of(*backends, fallbacks={"tiny": ["small"]}, time={"first_byte_s": 0.7})
        running = joulegate(config | {"retries": {**config["retries"], "attempts": 2}})
        got = running.post(body)
        assert got.status == 200
        assert got.header("x-joulegate-backend") == "second"
        assert upstream.wait_for(1)[0].json()["model"] == "small"
        record = running.record(got.header("x-request-id"))
        assert (record.backend, record.outcome) == ("second", "ok")
        assert record.attempts == 1 + len(failing.received)
        assert (given_up in record.earlier) if given_up else record.earlier is None
        assert running.proxy is not None
        assert [engine.in_flight for engine in running.proxy.pool.engines] == [0, 0]


def test_where_the_fallbacks_fail_too_the_client_is_told_so(joulegate: Start) -> None:
    with Upstream([CUT]) as failing, Upstream(answers.answer(b"{}", status=503)) as other:
        backends = [failing.base_url, {"url": other.base_url, "model": "small", "name": "second"}]
        running = joulegate(config_of(*backends, fallbacks={"tiny": ["small"]}))
        failed = running.post(ASK)
        assert (failed.status, failed.header("x-joulegate-backend")) == (503, "second")
        assert failed.body == b"{}"
        assert running.record(failed.header("x-request-id")).attempts == 4


def test_a_failing_backend_is_left_alone_then_probed_by_one(
    joulegate: Start, upstream: Upstream
) -> None:
    with Upstream([CUT]) as shaky:
        rules = {"failures": 2, "cooldown_s": 60, "health_check_s": 0, "wait_s": 0}
        backends = [
            {"url": shaky.base_url, "gpu": "H100-SXM", "params_b": 1.0},  # it would be chosen
            {"url": upstream.base_url, "gpu": "H100-SXM", "params_b": 70.0},
        ]
        running = joulegate(config_of(*backends, retries=rules))
        for _ in range(6):
            assert running.post(ASK).status == 200
        assert len(shaky.received) == 2  # then it was left alone
        assert running.proxy is not None
        engine = running.proxy.pool.by_name["tiny-0"]
        assert not engine.healthy
        gate = Gate()
        shaky.play([gate, *answers.answer(answers.CHAT)])
        engine.cooldown_until_s = time.monotonic()
        probe = running.open(ASK)
        shaky.wait_for(3)
        for _ in range(3):  # while one request probes it, others go elsewhere
            assert running.post(ASK).header("x-joulegate-backend") == "tiny-1"
        gate.open()
        assert probe.getresponse().headers["x-joulegate-backend"] == "tiny-0"
        assert engine.healthy
        assert running.post(ASK).header("x-joulegate-backend") == "tiny-0"


def test_a_probe_that_fails_begins_another_cooldown(joulegate: Start, upstream: Upstream) -> None:
    with Upstream([CUT]) as shaky:
        rules = {"failures": 1, "cooldown_s": 60, "health_check_s": 0, "wait_s": 0}
        backends = [
            {"url": shaky.base_url, "gpu": "H100-SXM", "params_b": 1.0},
            {"url": upstream.base_url, "gpu": "H100-SXM", "params_b": 70.0},
        ]
        running = joulegate(config_of(*backends, retries=rules))
        assert running.proxy is not None
        engine = running.proxy.pool.by_name["tiny-0"]
        for probes in (1, 2, 3):
            engine.cooldown_until_s = time.monotonic()
            assert running.post(ASK).status == 200
            assert running.post(ASK).status == 200
            assert len(shaky.received) == probes
