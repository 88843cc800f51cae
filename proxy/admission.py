"""What the shared store says to a request: an answer from the cache, room in every budget, or no.

One round trip at admission, one when the request settles; without a cache key and without budgets
there is none at all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from estimators.types import Estimate, Features
from meters.carbon import operational_g
from proxy import budgets
from proxy.alerts import Alerts
from proxy.auth import Caller
from proxy.budgets import Amounts, Charge
from proxy.flight import Admitted, Flight
from proxy.settings import Organisation
from proxy.spending import Rules
from proxy.store import Admission, AdmitRequest, Settlement, Store
from proxy.store_local import LocalStore

log = logging.getLogger("joulegate.admission")

RawHeaders = list[tuple[bytes, bytes]]


# What a flight's engine takes for these features, and so many output tokens.
Recount = Callable[[Flight, Features, int], Estimate | None]
MOST_UNMETERED = (
    4_096  # requests whose meters may still tell what they took; others stay as settled
)
UNUSED = Amounts(tokens=0, energy_j=0.0, carbon_g=0.0, money_usd=0.0)


class _Unmetered(NamedTuple):
    """A settled request that a window may still tell more of."""

    holder: str
    charges: tuple[Charge, ...]  # those of energy and carbon
    settled_j: float  # by its last attempt
    g_per_j: float


class Gate:
    """Admits requests and settles them."""

    def __init__(
        self,
        organisations: Mapping[str, Organisation],
        store: Store,
        claim_s: float = 60.0,
        recount: Recount | None = None,
        alerts: Alerts | None = None,
    ) -> None:
        """``claim_s``: how long others wait for an answer whose request may have died.
        ``recount`` corrects an estimate once tokens have been counted."""
        self.store = store
        self.recount = recount
        self.alerts = alerts
        self._unmetered: OrderedDict[str, _Unmetered] = OrderedDict()
        self._correcting: set[asyncio.Task[None]] = set()
        self.instant = isinstance(store, LocalStore)  # never waits for anything
        self.claim_s = claim_s
        self.rules = Rules(organisations)

    async def admit(
        self, flight: Flight, caller: Caller, cache_key: str | None, *, read: bool
    ) -> Admitted | None:
        """The store's word on a request; None when there was nothing to ask.

        ``read`` is whether an answer may come from the cache. Raises ApiError 429.
        """
        rules = self.rules.of(caller)
        if not rules and cache_key is None:
            return None
        charges = (
            tuple(budgets.charges(rules, amounts(flight.estimate, flight), flight.start_wall_s))
            if rules
            else ()
        )
        holder = caller.organisation or caller.team
        lookup = cache_key if read else None
        if not charges and lookup is None:
            return Admitted(holder, (), Admission(allowed=True), cache_key)
        admission = await self.store.admit(
            AdmitRequest(
                request_id=flight.request_id,
                holder=holder,
                charges=charges,
                cache_key=lookup,
                claim_s=self.claim_s if lookup is not None else 0.0,
            )
        )
        if self.alerts is not None and admission.spent:
            self.alerts.look(holder, admission.spent, admission.denied)
        if admission.denied is not None:
            raise budgets.refusal(admission.denied, time.time())
        claims = lookup is not None and admission.leads and admission.cached is None
        return Admitted(holder, charges, admission, cache_key, claims)

    async def settle(self, admitted: Admitted, flight: Flight) -> None:
        """Replace what was reserved by what was used, as far as it is known by now."""
        if not admitted.charges:
            return
        used = took(flight, self.recount)
        if flight.sent_s is not None and used.energy_j is not None:
            self._await_meter(admitted, flight, used)
        await self.store.settle(
            Settlement(
                request_id=flight.request_id,
                holder=admitted.holder,
                charges=admitted.charges,
                took=used,
            )
        )

    def _await_meter(self, admitted: Admitted, flight: Flight, used: Amounts) -> None:
        charges = tuple(c for c in admitted.charges if c.rule.metric in ("energy_j", "carbon_g"))
        if not charges or flight.engine is None or used.energy_j is None:
            return
        facts = flight.engine.facts
        lost_j = (flight.lost.energy_j if flight.lost else None) or 0.0
        g_per_j = 0.0
        if facts.intensity_g_per_kwh is not None:
            pue = 1.0 if facts.pue is None else facts.pue
            g_per_j = operational_g(1.0, pue, facts.intensity_g_per_kwh)
        self._unmetered[flight.request_id] = _Unmetered(
            admitted.holder, charges, used.energy_j - lost_j, g_per_j
        )
        if len(self._unmetered) > MOST_UNMETERED:
            self._unmetered.popitem(last=False)

    def metered(self, energy_j: Mapping[str, float]) -> None:
        """Meters have told what these requests really took, in J: charge the difference.

        Only in periods that go on; called from the event loop, and does not wait.
        """
        now_s = time.time()
        by_holder: dict[str, dict[str, tuple[Charge, int]]] = {}
        for request_id, took_j in energy_j.items():
            known = self._unmetered.pop(request_id, None)
            if known is None:
                continue
            more_j = took_j - known.settled_j
            deltas = by_holder.setdefault(known.holder, {})
            for charge in known.charges:
                if charge.period.end_s <= now_s:
                    continue
                in_unit = more_j if charge.rule.metric == "energy_j" else more_j * known.g_per_j
                whole = budgets.whole(charge.rule.metric, abs(in_unit))
                before = deltas.get(charge.counter, (charge, 0))[1]
                deltas[charge.counter] = (charge, before + (whole if in_unit > 0 else -whole))
        for holder, deltas in by_holder.items():
            task = asyncio.get_running_loop().create_task(self._correct(holder, deltas))
            self._correcting.add(task)  # a task that nobody holds may be dropped
            task.add_done_callback(self._correcting.discard)

    async def _correct(self, holder: str, deltas: Mapping[str, tuple[Charge, int]]) -> None:
        try:
            await self.store.correct(holder, [d for d in deltas.values() if d[1]])
        except Exception:
            log.exception("what meters told of %s's requests could not be charged", holder)

    async def keep(self, admitted: Admitted, answer: bytes | None, ttl_s: float) -> None:
        """Keep an answer for the next one who asks; None says that there is none."""
        if admitted.cache_key is not None:
            await self.store.put(admitted.holder, admitted.cache_key, answer, ttl_s)

    async def wait(self, admitted: Admitted, timeout_s: float) -> bytes | None:
        """The answer that another request of the same key is fetching."""
        if admitted.cache_key is None:
            return None
        return await self.store.wait(admitted.holder, admitted.cache_key, timeout_s)

    async def look(self, admitted: Admitted, cache_key: str | None) -> bytes | None:
        """What the cache has there now; nothing is claimed and nobody waited for."""
        if cache_key is None:
            return None
        return await self.store.wait(admitted.holder, cache_key, 0.0)


def amounts(estimate: Estimate | None, flight: Flight) -> Amounts:
    """What a request is expected to take; unknown is None."""
    told = flight.features
    if estimate is None:
        return Amounts(tokens=told.prompt_tokens if told else None)
    lengths = estimate.output_tokens
    answers = told.n if told else 1
    return Amounts(
        tokens=(told.prompt_tokens if told else 0)
        + round(lengths.mean * answers if lengths else 0),
        energy_j=estimate.energy_j.mid if estimate.energy_j else None,
        carbon_g=estimate.carbon_g.mid if estimate.carbon_g else None,
        money_usd=estimate.money_usd.mid if estimate.money_usd else None,
    )


def took(flight: Flight, recount: Recount | None = None) -> Amounts:
    """What it took in the end, attempts that were given up included; a request that nothing was
    sent for took nothing but its place.

    ``recount`` says what the tokens that were really read and written take.
    """
    if flight.sent_s is None:
        refused = flight.outcome == "refused"
        last = msgspec.structs.replace(UNUSED, requests=0 if refused else 1)
    else:
        last = _last_attempt(flight, recount)
    return last if flight.lost is None else budgets.together(flight.lost, last)


def _last_attempt(flight: Flight, recount: Recount | None) -> Amounts:
    expected = amounts(flight.estimate, flight)
    usage, told = flight.usage, flight.features
    prompt = usage.prompt_tokens if usage else None
    output = usage.completion_tokens if usage else None
    if prompt is None:
        if not flight.events or told is None:
            return expected  # nobody counted
        prompt, output = told.prompt_tokens, flight.events  # a stream that broke off
    counted = msgspec.structs.replace(expected, tokens=prompt + (output or 0))
    if recount is None or told is None or flight.estimate is None:
        return counted
    cached = (usage.cached_tokens if usage else None) or 0
    read = msgspec.structs.replace(
        told, prompt_tokens=prompt, cached_prompt_tokens=min(cached, prompt)
    )
    again = amounts(recount(flight, read, output or 0), flight)
    return msgspec.structs.replace(
        counted,
        energy_j=_known(again.energy_j, expected.energy_j),
        carbon_g=_known(again.carbon_g, expected.carbon_g),
        money_usd=_known(again.money_usd, expected.money_usd),
    )


def _known(value: float | None, otherwise: float | None) -> float | None:
    return otherwise if value is None else value


def give_up(flight: Flight) -> None:
    """Charge an attempt whose answer nobody waits for any longer: it may have worked on."""
    expected = msgspec.structs.replace(amounts(flight.estimate, flight), requests=0)
    flight.lost = expected if flight.lost is None else budgets.together(flight.lost, expected)


def warning_headers(admission: Admission) -> RawHeaders:
    """One header for each budget past its threshold."""
    return [
        (b"x-joulegate-warning", budgets.warning(spent).encode("latin-1", "replace"))
        for spent in admission.warnings
    ]
