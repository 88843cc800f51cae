"""The OpenAPI description names what is served, and requests made from it find no mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from proxy.front import ENDPOINTS
from proxy.openapi import document
from tests import fuzzing, openapi_fuzzing
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Config, Joulegate

PUBLISHED = Path(__file__).parent.parent / "docs" / "openapi.json"


def test_the_published_description_is_the_one_in_the_code() -> None:
    assert json.loads(PUBLISHED.read_text()) == document()


def test_every_route_for_clients_is_described(joulegate: Callable[[Config], Joulegate]) -> None:
    described = set(document()["paths"])
    assert set(ENDPOINTS) <= described
    with Upstream() as upstream:
        proxy = joulegate(fuzzing.config(upstream.base_url)).proxy
        assert proxy is not None
        served = {
            str(route.path).replace(":path", "")
            for route in proxy.routes.router.routes  # type: ignore[attr-defined]
        }
    assert {path for path in served if not path.startswith("/meters/")} <= described


def test_no_generated_request_fails_or_hangs(
    joulegate_process: Callable[[Config], Joulegate],
) -> None:
    with Upstream() as upstream:
        upstream.play(fuzzing.any_answer)
        running = joulegate_process(fuzzing.config(upstream.base_url))
        tally = openapi_fuzzing.run(running.address, 100)
    assert tally.wrong == []
    assert tally.cases >= 60
    assert {200, 400} <= set(tally.statuses)
