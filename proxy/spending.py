"""Whose budgets count for a caller, and what the ledger knows of how far they are used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import lru_cache

from meters.ledger import Ledger
from proxy import budgets
from proxy.auth import Caller
from proxy.budgets import Metric, Period, Rule
from proxy.settings import Budget, Organisation
from proxy.store import Seed

_COLUMNS: dict[Metric, str] = {
    "requests": "requests",
    "tokens": "tokens",
    "energy_j": "energy_uj",
    "carbon_g": "carbon_ug",
    "money_usd": "money_nusd",
}


class Rules:
    """The rules of a caller: its key's, its team's and its organisation's."""

    def __init__(self, organisations: Mapping[str, Organisation]) -> None:
        self._organisations = dict(organisations)

    def take(self, organisations: Mapping[str, Organisation]) -> None:
        """What organisations share from now on."""
        self._organisations = dict(organisations)

    def of(self, caller: Caller) -> tuple[Rule, ...]:
        shared = self._organisations.get(caller.organisation or "")
        if not (caller.budgets or caller.key_budgets or shared):
            return ()
        found = _rules(f"team:{caller.team}", caller.budgets, caller.timezone)
        if caller.key_id is not None:
            # a key that replaced others goes on with what those had left
            first = caller.earlier[0] if caller.earlier else caller.key_id
            found += _rules(f"key:{first}", caller.key_budgets, caller.timezone)
        if shared is not None:
            scope = f"organisation:{caller.organisation}"
            found += _rules(scope, tuple(shared.budgets), shared.timezone)
        return found


@lru_cache(maxsize=4096)
def _rules(scope: str, given: tuple[Budget, ...], timezone: str) -> tuple[Rule, ...]:
    return tuple(budgets.rules(scope, given, timezone))


def seed_from(
    ledger: Callable[[], Ledger | None],
    teams_of: Callable[[str], list[str]],
    keys_of: Callable[[str], list[str]] = lambda first: [first],
) -> Seed:
    """Reads what was used so far in a period; ``teams_of`` names an organisation's teams, and
    ``keys_of`` the keys that replaced that one, itself among them."""

    async def seed(rule: Rule, period: Period) -> int:
        books = ledger()
        if books is None:
            raise OSError("the ledger is not open")
        kind, _, name = rule.scope.partition(":")
        until_s = max(period.start_s, min(period.end_s, time.time()))
        teams = {"team": [name], "organisation": teams_of(name)}.get(kind, [])
        if kind == "organisation" and not teams:
            return 0
        spent = await asyncio.to_thread(
            books.spent,
            period.start_s,
            until_s,
            teams=teams,
            keys=keys_of(name) if kind == "key" else (),
        )
        return int(getattr(spent, _COLUMNS[rule.metric]))

    return seed
