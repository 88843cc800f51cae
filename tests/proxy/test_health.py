"""Asking backends whether they are there."""

from __future__ import annotations

import asyncio

from estimators.types import Backend
from proxy.backends import Engine, Pool
from proxy.health import HealthChecks, is_probed
from proxy.settings import BackendSettings, Retries, Time
from proxy.upstream import Upstream as Client
from tests.fakes import answers
from tests.fakes.upstream import Received, Script, Upstream


async def test_checks_can_be_turned_off_while_they_run() -> None:
    asked = 0
    loop = asyncio.get_running_loop()
    was_asked = asyncio.Event()

    def models(_: Received) -> Script:
        nonlocal asked
        asked += 1
        loop.call_soon_threadsafe(was_asked.set)
        return answers.answer({"object": "list", "data": []})

    client = Client(Time())
    with Upstream(pages={"/v1/models": models}) as upstream:
        await client.start()
        backend = BackendSettings(model="tiny", url=upstream.base_url)
        pool = Pool([Engine(backend, Backend(name=backend.full_name, group="tiny"))])
        checks = HealthChecks(pool, client, Retries(health_check_s=0.01))
        checks.start()
        await asyncio.wait_for(was_asked.wait(), 10)
        checks.rules = Retries(health_check_s=0)
        before = asked
        await asyncio.sleep(0.2)  # time for a hundred more
        assert asked <= before + 1
        await checks.stop()
        await client.stop()


def test_a_closed_api_is_asked_while_it_fails_and_an_engine_always() -> None:
    def engine(kind: str, provider: str = "openai") -> Engine:
        settings = BackendSettings(model="m", url="http://127.0.0.1:9/v1", provider=provider)
        return Engine(settings, Backend(name="m", group="m", engine=kind))

    own, api, sdk = engine("vllm"), engine("api"), engine("api", "anthropic")
    assert [is_probed(e) for e in (own, api, sdk)] == [True, False, False]
    for each in (own, api, sdk):
        each.failed(0.0, Retries(failures=1))
    assert [is_probed(e) for e in (own, api, sdk)] == [True, True, False]
