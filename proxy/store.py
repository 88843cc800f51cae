"""What replicas share about requests in flight: cached answers, limits, budgets, who is asking.

``Store`` is the contract; ``store_local`` keeps it in process, ``store_redis`` in Redis, and
``store_fallback`` goes on in process while Redis is away. A request costs one round trip at
admission and one when it settles, and none of the three ever raises into serving.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from proxy import budgets
from proxy.budgets import Charge, Period, Rule, Spent

# Reservations of a replica that died are given back after this; one that lives renews them.
LEASE_S = 300.0
KEPT_S = 3600.0  # for how long a counter outlives its period: requests that began in it end later

AGAIN_S = 5.0  # after which a ledger that did not answer is asked again what was used

# Cache keys that begin so lie with no holder: for teams that share their answers.
SHARED = "shared"

# Reads what a rule's holder has used in a period from the ledger, in the counter's whole units.
# Asked once for every counter that is new, so that budgets outlive restarts and lost memory; while
# the ledger is away the counter begins at nothing, and is raised to what it says once it answers.
Seed = Callable[[Rule, Period], Awaitable[int]]


class AdmitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """All that a request wants to know of the shared state before it is sent."""

    request_id: str
    holder: str  # the organisation, else the team: what it shares lies together in a cluster
    charges: Sequence[Charge] = ()
    cache_key: str | None = None  # None: not to be answered from the cache
    claim_s: float = 0.0  # on a miss, claim the answer for so long; 0: no claim


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What the store says to one request."""

    allowed: bool
    cached: bytes | None = None
    leads: bool = True  # False: another request is fetching the same answer now
    spent: tuple[Spent, ...] = ()
    denied: Spent | None = None
    fallback_policy: str | None = None  # over a budget that asks for this instead of refusing
    degraded: bool = False  # decided without the other replicas

    @property
    def warnings(self) -> list[Spent]:
        """Counters past their soft threshold, fullest first."""
        return budgets.warnings(self.spent)

    @property
    def budget_left(self) -> float | None:
        """Of the tightest budget, 0..1; None without budgets."""
        return budgets.left(self.spent)


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """What a request that was admitted really took."""

    request_id: str
    holder: str
    charges: Sequence[Charge] = ()  # those of its admission
    took: budgets.Amounts = budgets.NOTHING  # an unknown amount keeps its estimate


class Store(Protocol):
    """Shared state. No method raises for a store that is away."""

    async def admit(self, request: AdmitRequest) -> Admission:
        """Look in the cache, check every counter, and reserve in all or in none of them: a counter
        has room when what was used, what others in flight hold, margins included, and this
        request's amount are within the limit.

        An answer from the cache reserves requests, and nothing else.
        """
        ...

    async def settle(self, settlement: Settlement) -> None:
        """Replace the reservation by what was taken."""
        ...

    async def correct(self, holder: str, more: Sequence[tuple[Charge, int]]) -> None:
        """Add to counters what settled requests took beyond what was settled; may be negative.
        A counter that is gone stays gone: the ledger knows."""
        ...

    async def first(self, holder: str, name: str, until_s: float) -> bool:
        """Whether nobody has asked for that name before; it is forgotten at that Unix time."""
        ...

    async def hold(self, holder: str, name: str, until_s: float) -> None:
        """Let a name that this process was first to ask for be taken until that Unix time."""
        ...

    async def put(self, holder: str, cache_key: str, answer: bytes | None, ttl_s: float) -> None:
        """Keep an answer, and end the claim on it; None only ends the claim."""
        ...

    async def wait(self, holder: str, cache_key: str, timeout_s: float) -> bytes | None:
        """The answer that another request is fetching; None when it ends without one."""
        ...

    def hold_at_most(self, cache_bytes: int) -> None:
        """How much memory answers in this process may take, from now on."""
        ...

    async def close(self) -> None: ...


def settled(charge: Charge, took: budgets.Amounts) -> int:
    """What a charge comes to in the end: what was taken, else the estimate."""
    amount = getattr(took, charge.rule.metric)
    return charge.amount if amount is None else budgets.whole(charge.rule.metric, amount)


def admission(
    request: AdmitRequest,
    denied: int | None,
    used: Sequence[int],
    margins: Sequence[int],
    *,
    cached: bytes | None = None,
    leads: bool = True,
    degraded: bool = False,
) -> Admission:
    """What counters that stand at ``used`` say, with the ``margins`` of others in flight;
    ``denied`` is the index of one without room."""
    spent = tuple(map(Spent, request.charges, used, margins))
    fallback = None
    soft = [s for s in spent if s.charge.rule.fallback_policy is not None]
    if soft and denied is None and (over := budgets.exceeded(soft)) is not None:
        fallback = over.charge.rule.fallback_policy
    return Admission(
        allowed=denied is None,
        cached=cached,
        leads=leads,
        spent=spent,
        denied=None if denied is None else spent[denied],
        fallback_policy=fallback,
        degraded=degraded,
    )
