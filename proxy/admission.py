"""What the shared store says to a request: an answer from the cache, room in every budget, or no.

One round trip at admission, one when the request settles; without a cache key and without budgets
there is none at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec

from estimators.types import Z_80, Backend, Estimate
from meters.carbon import operational_g
from proxy import budgets
from proxy.alerts import Alerts
from proxy.asgi import RawHeaders
from proxy.attempts import Recount, as_counted, tokens_counted
from proxy.auth import Caller
from proxy.budgets import Amounts, Charge
from proxy.corrections import Corrections, Part
from proxy.costs import paid_usd
from proxy.flight import Admitted, Attempt, Flight
from proxy.settings import Organisation
from proxy.spending import Rules
from proxy.store import Admission, AdmitRequest, Settlement, Store
from proxy.store_local import LocalStore

PATIENCE_S = 3.0  # how long a request waits for others to end, before it is refused
PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.25  # between two looks, at first and later
# How many times further from the median, in logarithms, one in a thousand lies than one in ten.
_TAIL = 3.0902 / Z_80
UNUSED = Amounts(tokens=0, energy_j=0.0, carbon_g=0.0, money_usd=0.0)


class Gate:
    """Admits requests and settles them."""

    def __init__(
        self,
        organisations: Mapping[str, Organisation],
        store: Store,
        claim_s: float = 60.0,
        recount: Recount | None = None,
        alerts: Alerts | None = None,
        corrections: Corrections | None = None,
    ) -> None:
        """``claim_s``: how long others wait for an answer whose request may have died.
        ``recount`` corrects an estimate once tokens have been counted."""
        self.store = store
        self.recount = recount
        self.alerts = alerts
        self.corrections = corrections
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
        charges: tuple[Charge, ...] = ()
        if rules:
            expected = amounts(flight.estimate, flight)
            most = at_most(flight) if any(rule.reserve_most for rule in rules) else None
            charges = tuple(budgets.charges(rules, expected, flight.start_wall_s, most))
        holder = caller.organisation or caller.team
        lookup = cache_key if read else None
        if not charges and lookup is None:
            return Admitted(holder, (), Admission(allowed=True), cache_key)
        wanted = AdmitRequest(
            request_id=flight.request_id,
            holder=holder,
            charges=charges,
            cache_key=lookup,
            claim_s=self.claim_s if lookup is not None else 0.0,
        )
        admission = await self.store.admit(wanted)
        if admission.denied is not None and admission.denied.passing:
            admission = await self._room(wanted, admission)
        if self.alerts is not None and admission.spent:
            full = admission.denied
            self.alerts.look(holder, admission.spent, None if full and full.passing else full)
        if admission.denied is not None:
            raise budgets.refusal(admission.denied, time.time())
        claims = lookup is not None and admission.leads and admission.cached is None
        return Admitted(holder, charges, admission, cache_key, claims)

    async def _room(self, wanted: AdmitRequest, admission: Admission) -> Admission:
        """Ask again for a while: there is room once others that are in flight have ended."""
        end_s = time.monotonic() + PATIENCE_S
        pause_s = PAUSE_S
        while (full := admission.denied) is not None and full.passing:
            if time.monotonic() + pause_s > end_s:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            admission = await self.store.admit(wanted)
        return admission

    async def settle(self, admitted: Admitted, flight: Flight) -> None:
        """Replace what was reserved by what was used, as far as it is known by now."""
        if not admitted.charges:
            return
        last = _last_attempt(flight, self.recount) if flight.sent_s is not None else None
        used = took(flight, last)
        self._await_meter(admitted, flight, last)
        await self.store.settle(
            Settlement(
                request_id=flight.request_id,
                holder=admitted.holder,
                charges=admitted.charges,
                took=used,
            )
        )

    def _await_meter(self, admitted: Admitted, flight: Flight, last: Amounts | None) -> None:
        if self.corrections is None:
            return
        engines = {c.backend.name: c.backend for c in flight.candidates} if flight.earlier else {}
        parts = [
            Part(
                attempt.node,
                flight.wall(attempt.end_s),
                _mid_j(attempt.estimate) or 0.0,
                _g_per_j(engines.get(attempt.backend)),
            )
            for attempt in flight.earlier
        ]
        if last is not None and flight.engine is not None:
            end_s = time.time() if flight.end_s is None else flight.wall(flight.end_s)
            facts = flight.engine.facts
            parts.append(Part(flight.engine.node, end_s, last.energy_j or 0.0, _g_per_j(facts)))
        self.corrections.expect(flight.request_id, admitted.holder, admitted.charges, parts)

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


def at_most(flight: Flight) -> Amounts:
    """The most that a request may take, at the high end of every figure's band: an answer as long
    as ``max_tokens`` lets it be, or where that is not set one that one in a thousand exceeds; both
    within the model's context."""
    told, estimate = flight.features, flight.estimate
    if told is None or estimate is None:
        return amounts(estimate, flight)
    lengths = estimate.output_tokens
    likely = lengths.q90 if lengths else 0.0
    longest = float(told.max_tokens or 0)
    if longest <= 0.0 and lengths is not None:
        # log-normal beyond the band, as lengths of answers nearly are
        median = max(1.0, lengths.q50)
        longest = median * (max(1.0, likely) / median) ** _TAIL
    if flight.engine is not None and flight.engine.facts.context_tokens is not None:
        longest = min(longest, float(flight.engine.facts.context_tokens - told.prompt_tokens))
    longest = max(longest, likely)
    # What comes with a longer answer grows no faster than it.
    factor = longest / likely if likely > 0.0 else 1.0
    return Amounts(
        tokens=told.prompt_tokens + round(longest * told.n),
        energy_j=estimate.energy_j.high * factor if estimate.energy_j else None,
        carbon_g=estimate.carbon_g.high * factor if estimate.carbon_g else None,
        money_usd=estimate.money_usd.high * factor if estimate.money_usd else None,
    )


def took(flight: Flight, last: Amounts | None) -> Amounts:
    """What it took in the end, attempts that were given up included; a request that nothing was
    sent for (``last`` None) took nothing but its place.
    """
    if last is None:
        refused = flight.outcome == "refused"
        last = msgspec.structs.replace(UNUSED, requests=0 if refused else 1)
    for attempt in flight.earlier:
        last = budgets.together(_of_attempt(attempt, flight), last)
    return last


def _last_attempt(flight: Flight, recount: Recount | None) -> Amounts:
    """What the attempt that answered took. ``recount`` says what the tokens that were really read
    and written take."""
    expected = amounts(flight.estimate, flight)
    counted = tokens_counted(flight)
    if counted is None:
        return expected
    tokens = sum(counted)
    again = None if recount is None else as_counted(flight, counted, recount)
    if again is None:
        return msgspec.structs.replace(expected, tokens=tokens)
    money_usd = paid_usd(flight)
    if money_usd is None:
        money_usd = again.money_usd.mid if again.money_usd else expected.money_usd
    return Amounts(
        tokens=tokens,
        energy_j=again.energy_j.mid if again.energy_j else expected.energy_j,
        carbon_g=again.carbon_g.mid if again.carbon_g else expected.carbon_g,
        money_usd=money_usd,
    )


def _of_attempt(attempt: Attempt, flight: Flight) -> Amounts:
    """What an attempt on the way took: its counted tokens, else as expected."""
    expected = amounts(attempt.estimate, flight)
    tokens = expected.tokens
    if attempt.prompt_tokens is not None and attempt.output_tokens is not None:
        tokens = attempt.prompt_tokens + attempt.output_tokens
    return msgspec.structs.replace(expected, requests=0, tokens=tokens)


def _mid_j(estimate: Estimate | None) -> float | None:
    return estimate.energy_j.mid if estimate and estimate.energy_j else None


def _g_per_j(facts: Backend | None) -> float:
    if facts is None or facts.intensity_g_per_kwh is None:
        return 0.0
    return operational_g(1.0, 1.0 if facts.pue is None else facts.pue, facts.intensity_g_per_kwh)


def warning_headers(admission: Admission) -> RawHeaders:
    """One header for each budget past its threshold; it names a team, whatever that is called."""
    return [
        (
            b"x-joulegate-warning",
            "".join(c if c.isprintable() else "?" for c in text).encode("latin-1", "replace"),
        )
        for text in map(budgets.warning, admission.warnings)
    ]
