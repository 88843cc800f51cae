"""Asking backends whether they are there."""

from __future__ import annotations

import asyncio

from estimators.types import Backend
from proxy.backends import Engine, Pool
from proxy.health import HealthChecks
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
