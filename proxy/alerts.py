"""Tells people that a budget is nearly used up, or is: a metric, and a signed webhook.

One message for each threshold of each counter and period, whichever replica is first; sent off the
request path and again until it is taken. Where that replica dies before, another that noticed
sends it, or whoever notices next; its id is the same, so that a receiver can tell a second one.
Nothing of this can slow or fail a request.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal, NamedTuple

import aiohttp
import msgspec

from proxy import budgets
from proxy.background import ended
from proxy.budgets import Spent
from proxy.settings import BudgetAlerts
from proxy.store import Store

log = logging.getLogger("joulegate.alerts")

SIGNATURE = "x-joulegate-signature"
MOST_WAITING = 1_000
MOST_SEEN = 100_000
Threshold = Literal["soft", "hard"]


class Crossing(NamedTuple):
    """A counter that passed a threshold."""

    holder: str
    spent: Spent
    threshold: Threshold
    at_s: float


class Alerts:
    """Used from the event loop only. ``counted`` is told (holder, metric, per, threshold)."""

    def __init__(
        self,
        settings: BudgetAlerts,
        store: Store,
        counted: Callable[[tuple[str, str, str, str]], None] = lambda _: None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.counted = counted
        self.failed = 0  # messages that nobody took
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._queue: asyncio.Queue[Crossing] = asyncio.Queue(MOST_WAITING)
        self._sending: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def look(self, holder: str, spent: Sequence[Spent], denied: Spent | None = None) -> None:
        """Notice the counters of one admission that passed a threshold."""
        for one in spent:
            share = one.share
            if share >= one.charge.rule.soft:
                self._passed(holder, one, "soft")
                if share > 1.0 or one is denied:
                    self._passed(holder, one, "hard")
            elif one is denied:
                self._passed(holder, one, "hard")

    def _passed(self, holder: str, spent: Spent, threshold: Threshold) -> None:
        name = f"{spent.charge.counter}:{threshold}"
        if name in self._seen:
            return
        self._seen[name] = None
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)
        rule = spent.charge.rule
        # A key is no label: there may be thousands, and one may stand for a person.
        whose = "key" if rule.scope.startswith("key:") else rule.scope
        self.counted((whose, rule.metric, rule.per, threshold))
        if self.settings.url is None:
            return
        try:
            self._queue.put_nowait(Crossing(holder, spent, threshold, time.time()))
        except asyncio.QueueFull:
            self.failed += 1
            log.warning("too many budget alerts wait to be sent; one is dropped")

    def take(self, settings: BudgetAlerts) -> None:
        """Tell whom these settings name from now on. In the event loop."""
        self.settings = settings
        self.start()

    def start(self) -> None:
        if self.settings.url is not None and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Give up on what has not been taken yet."""
        await ended(self._task)
        for task in list(self._sending):
            await ended(task)

    async def _run(self) -> None:
        while True:
            crossing = await self._queue.get()
            task = asyncio.get_running_loop().create_task(self._tell(crossing))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _tell(self, crossing: Crossing) -> None:
        charge = crossing.spent.charge
        name = f"alert:{charge.counter}:{crossing.threshold}"
        try:
            if not await self._falls_to_us(crossing.holder, name, charge.period.end_s):
                return
            body = message(crossing)
            for attempt in range(self.settings.attempts):
                wait_s = self._pause_s(attempt)
                lease_s = time.time() + wait_s + self._grace_s()
                await self.store.hold(crossing.holder, name, lease_s)
                await asyncio.sleep(wait_s)
                if await self._send(body):
                    await self.store.hold(crossing.holder, name, charge.period.end_s)
                    return
            await self.store.hold(crossing.holder, name, charge.period.end_s)
        except Exception:
            log.exception("a budget alert could not be sent")
        self.failed += 1
        log.warning("nobody took the alert that %s is past its %s", charge.rule.scope, "threshold")

    async def _falls_to_us(self, holder: str, name: str, until_s: float) -> bool:
        """Whether this replica is to send. Another that is sending renews its claim before every
        try; where it dies, the claim ends and one that waited here takes over."""
        end_s = time.time() + self._grace_s()
        end_s += sum(self._pause_s(n) + self._grace_s() for n in range(self.settings.attempts))
        while True:
            lease_s = time.time() + self._grace_s()
            if await self.store.first(holder, name, lease_s):
                return True
            if time.time() >= min(end_s, until_s):
                return False
            await asyncio.sleep(self._grace_s())
            if time.time() >= until_s:
                return False  # what was told is known until then

    def _pause_s(self, attempt: int) -> float:
        return min(60.0, self.settings.wait_s * 2 ** (attempt - 1)) if attempt else 0.0

    def _grace_s(self) -> float:
        """Longer than one try may take."""
        return 2 * self.settings.timeout_s + 0.5

    async def _send(self, body: bytes) -> bool:
        assert self.settings.url is not None
        headers = {"content-type": "application/json", "user-agent": "joulegate"}
        if self.settings.secret is not None:
            headers[SIGNATURE] = signature(self.settings.secret, body, int(time.time()))
        timeout = aiohttp.ClientTimeout(total=self.settings.timeout_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(
                    self.settings.url, data=body, headers=headers, allow_redirects=False
                ) as response,
            ):
                return 200 <= response.status < 300
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False


def signature(secret: str, body: bytes, at_s: int) -> str:
    """``t=TIME,v1=HEX``: HMAC-SHA256 of ``TIME.BODY``, so that an old message cannot be replayed
    unnoticed."""
    signed = hmac.digest(secret.encode(), f"{at_s}.".encode() + body, "sha256")
    return f"t={at_s},v1={signed.hex()}"


def message(crossing: Crossing) -> bytes:
    """The body of the webhook. Holds no key and no content."""
    charge = crossing.spent.charge
    rule = charge.rule
    unit = budgets.whole(rule.metric, 1.0)
    name = f"{charge.counter}:{crossing.threshold}"
    return msgspec.json.encode(
        {
            "id": f"alert_{sha256(name.encode()).hexdigest()[:24]}",
            "type": f"budget.{crossing.threshold}",
            "created": int(crossing.at_s),
            "scope": rule.scope,
            "metric": rule.metric,
            "per": rule.per,
            "limit": rule.limit,
            "used": crossing.spent.used / unit,
            "share": round(crossing.spent.share, 4),
            "soft": rule.soft,
            "fallback_policy": rule.fallback_policy,
            "time_zone": rule.timezone,
            "period": charge.period.name,
            "resets_at": datetime.fromtimestamp(charge.period.end_s, UTC).isoformat(),
        }
    )
