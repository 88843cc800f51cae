"""What the shared store says to a request: an answer from the cache, room in every budget, or no.

One round trip at admission, one when the request settles; without a cache key and without budgets
there is none at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec

from estimators.types import Estimate
from proxy import budgets
from proxy.auth import Caller
from proxy.budgets import Amounts
from proxy.flight import Admitted, Flight
from proxy.settings import Organisation
from proxy.spending import Rules
from proxy.store import Admission, AdmitRequest, Settlement, Store
from proxy.store_local import LocalStore

RawHeaders = list[tuple[bytes, bytes]]


class Gate:
    """Admits requests and settles them."""

    def __init__(
        self, organisations: Mapping[str, Organisation], store: Store, claim_s: float = 60.0
    ) -> None:
        """``claim_s``: how long others wait for an answer whose request may have died."""
        self.store = store
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
        if admission.denied is not None:
            raise budgets.refusal(admission.denied, time.time())
        return Admitted(holder, charges, admission, cache_key)

    async def settle(self, admitted: Admitted, flight: Flight) -> None:
        """Replace what was reserved by what was used."""
        if admitted.charges:
            await self.store.settle(
                Settlement(
                    request_id=flight.request_id,
                    holder=admitted.holder,
                    charges=admitted.charges,
                    took=took(flight),
                )
            )

    async def keep(self, admitted: Admitted, answer: bytes | None, ttl_s: float) -> None:
        """Keep an answer for the next one who asks; None says that there is none."""
        if admitted.cache_key is not None:
            await self.store.put(admitted.holder, admitted.cache_key, answer, ttl_s)

    async def wait(self, admitted: Admitted, timeout_s: float) -> bytes | None:
        """The answer that another request of the same key is fetching."""
        if admitted.cache_key is None:
            return None
        return await self.store.wait(admitted.holder, admitted.cache_key, timeout_s)


def amounts(estimate: Estimate | None, flight: Flight) -> Amounts:
    """What a request is expected to take; unknown is None."""
    told = flight.features
    if estimate is None:
        return Amounts(tokens=told.prompt_tokens if told else None)
    lengths = estimate.output_tokens
    return Amounts(
        tokens=(told.prompt_tokens if told else 0) + round(lengths.mean if lengths else 0),
        energy_j=estimate.energy_j.mid if estimate.energy_j else None,
        carbon_g=estimate.carbon_g.mid if estimate.carbon_g else None,
        money_usd=estimate.money_usd.mid if estimate.money_usd else None,
    )


def took(flight: Flight) -> Amounts:
    """What it took in the end; a request that nothing was sent for took nothing but its place."""
    if flight.sent_s is None:
        nothing_was_sent = flight.outcome == "refused"
        return Amounts(
            requests=0 if nothing_was_sent else 1,
            tokens=0,
            energy_j=0.0,
            carbon_g=0.0,
            money_usd=0.0,
        )
    expected = amounts(flight.estimate, flight)
    usage = flight.usage
    if usage is None or usage.prompt_tokens is None:
        return expected
    return msgspec.structs.replace(
        expected, tokens=usage.prompt_tokens + (usage.completion_tokens or 0)
    )


def warning_headers(admission: Admission) -> RawHeaders:
    """One header for each budget past its threshold."""
    return [
        (b"x-joulegate-warning", budgets.warning(spent).encode("latin-1", "replace"))
        for spent in admission.warnings
    ]
