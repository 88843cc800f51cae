"""How the proxy's parts are started and ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import config_of, in_thread


def test_a_part_that_cannot_be_ended_keeps_no_other_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Upstream(answers.like_an_engine(), pages=answers.engine_pages()) as upstream:
        running, stop = in_thread(config_of(upstream.base_url), tmp_path)
        proxy = running.proxy
        assert proxy is not None

        def broken() -> None:
            raise RuntimeError("the driver is gone")

        proxy.measuring.stop = broken  # type: ignore[method-assign]
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        assert running.post(body).status == 200
        stop()
    assert "the driver is gone" in caplog.text
    assert not proxy.steps.reading.small._thread.is_alive()
    assert proxy.drain is not None
    assert proxy.drain.backlog_bytes == 0
