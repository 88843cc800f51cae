"""Reading requests: what takes long keeps nothing that nobody waits for."""

from __future__ import annotations

import threading

import pytest

from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Start, config_of


def test_prompts_whose_requests_have_ended_are_not_counted_any_more(
    joulegate: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else large ones pile up in memory as soon as they come faster than they are counted."""
    with Upstream(answers.answer(answers.CHAT)) as upstream:
        running = joulegate(config_of(upstream.base_url))
        assert running.proxy is not None
        counter = running.proxy.steps.reading.counter
        counted, goes_on = list[int](), threading.Event()

        def slow(texts: list[str]) -> int:
            counted.append(sum(map(len, texts)))
            goes_on.wait(10)
            return 1

        monkeypatch.setattr(counter, "count", slow)
        for size in (10_001, 10_002, 10_003):
            asked = {"model": "tiny", "messages": [{"role": "user", "content": "x" * size}]}
            assert running.post(asked).status == 200
        goes_on.set()
        running.proxy.steps.reading.close()  # when all that was handed over is done
        assert counted == [10_001]
