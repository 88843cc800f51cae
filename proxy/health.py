"""Asking backends whether they are there, beside the traffic that shows it anyway."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable

import aiohttp

from meters.prefixes import Prefixes
from meters.types import Activity, Window
from proxy.backends import Engine, Pool
from proxy.background import ended
from proxy.settings import Retries
from proxy.upstream import Upstream

log = logging.getLogger("joulegate.health")

OFF_S = 5.0  # how long until it is looked again whether checks are off
ANSWER_S = 5.0  # how long a backend may take to say that it is there


class HealthChecks:
    """Probes every backend that speaks OpenAI's API, all of them each ``health_check_s``.

    A backend that answers is tried again at once; one that cannot be reached is left alone before
    a request had to find that out. Providers behind litellm are not probed: that would cost money.
    Closed APIs are probed while they fail.
    """

    def __init__(self, pool: Pool, client: Upstream, rules: Retries) -> None:
        self.pool = pool
        self.client = client
        self.rules = rules
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        await ended(self._task)

    async def _run(self) -> None:
        while True:
            # A config that is read again may turn checks off and on.
            await asyncio.sleep(self.rules.health_check_s or OFF_S)
            if not self.rules.health_check_s:
                continue
            probed = filter(is_probed, self.pool.engines)
            for found in await asyncio.gather(*map(self.check, probed), return_exceptions=True):
                if isinstance(found, Exception):
                    log.error("a backend could not be checked", exc_info=found)

    async def check(self, engine: Engine) -> bool:
        """Whether the backend answers; notes it."""
        try:
            async with (
                asyncio.timeout(ANSWER_S),
                self.client.session.get(
                    self.client.url(engine, "/models"),
                    headers=engine.headers,
                    allow_redirects=False,
                ) as answer,
            ):
                there = answer.status < 500
        except (aiohttp.ClientError, OSError, TimeoutError):
            there = False
        now_s = time.monotonic()
        if not there:
            engine.failed(now_s, self.rules)
        elif not engine.healthy:
            engine.succeeded()
        return there


def is_probed(engine: Engine) -> bool:
    """Whether a backend is asked now. Closed APIs are while they fail: else traffic shows it, and
    nobody likes to be asked for all models every few seconds."""
    if engine.settings.provider != "openai":
        return False
    return engine.facts.engine != "api" or not engine.healthy


def note_load(pool: Pool, window: Window, now_s: float) -> None:
    """Take an engine's own word on how busy it is, and whether it sleeps, from a window that just
    closed."""
    if window.cached_prompt_tokens is not None:
        for engine in pool.engines:
            if engine.node == window.node and engine.prefixes is None:
                engine.prefixes, pool.remembers = Prefixes(), True
    if window.running is None and window.asleep is None:
        return
    for engine in pool.engines:
        if engine.node != window.node:
            continue
        if window.asleep is not None:
            engine.asleep = window.asleep
        if window.running is not None:
            engine.reports(window.running, window.waiting or 0.0, now_s)


def note_elsewhere(pool: Pool, activities: Iterable[Activity]) -> None:
    """Take what other replicas have in flight into the load of engines."""
    going = Counter(activity.engine for activity in activities if activity.end_s is None)
    for engine in pool.engines:
        engine.elsewhere = going[engine.name]
