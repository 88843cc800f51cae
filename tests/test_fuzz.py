"""Whatever is sent, there is an answer, it is not our failure, and errors look like OpenAI's."""

from __future__ import annotations

import logging

import pytest
from hypothesis import HealthCheck, given, settings

from tests import fuzzing
from tests.fakes.upstream import Upstream
from tests.joulegate_server import KEY, Start

EXAMPLES = 400


def test_no_request_makes_it_fail_or_hang(
    joulegate: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with Upstream(fuzzing.any_answer) as upstream:
        running = joulegate(fuzzing.config(upstream.base_url))

        @settings(
            max_examples=EXAMPLES,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(fuzzing.cases())
        def try_one(case: fuzzing.Case) -> None:
            answer = fuzzing.verdict(running.port, case)
            assert answer.wrong is None, answer.wrong

        try_one()
        failures = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
        assert failures == []
        ask = {"model": "tiny", "messages": [{"role": "user", "content": "still there?"}]}
        assert running.post(ask, headers={"authorization": f"Bearer {KEY}"}).status == 200
        assert running.proxy is not None
        assert running.proxy.steps.in_flight == 0
