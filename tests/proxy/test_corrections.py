"""What meters told of settled requests reaches their budgets: twice at most, and not in vain."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from proxy import budgets, corrections
from proxy.budgets import Amounts, Charge, Rule
from proxy.corrections import AGAIN_S, PATIENCE_S, Corrections, Part

NOW_S = 1_000_000.0


class Books:
    """A ledger's answers, and a store that notes what it is told to correct."""

    def __init__(self) -> None:
        self.last_s: dict[str, float] = {}
        self.shares_j: dict[tuple[str, str], float] = {}
        self.asked: list[set[str]] = []
        self.corrected: list[tuple[str, float]] = []
        self.away = False

    def metered_until(self, nodes: Collection[str]) -> dict[str, float]:
        return {node: self.last_s[node] for node in nodes if node in self.last_s}

    def metered(self, request_ids: Collection[str]) -> dict[tuple[str, str], float]:
        self.asked.append(set(request_ids))
        if self.away:
            raise OperationalError("select", {}, Exception("away"))
        return {key: value for key, value in self.shares_j.items() if key[0] in request_ids}

    async def correct(self, _: str, more: Sequence[tuple[Charge, int]]) -> None:
        self.corrected += [(c.rule.metric, amount / 1e6) for c, amount in more]


def charges(*metrics: budgets.Metric) -> Sequence[Charge]:
    rules = [Rule(scope="team:a", metric=metric, per="month", limit=1e6) for metric in metrics]
    return budgets.charges(rules, Amounts(), NOW_S)


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def waiting(books: Books) -> Corrections:
    told: Any = books
    return Corrections(told, lambda: told, clock=lambda: NOW_S)


async def test_a_request_is_corrected_once_its_windows_are_in_and_once_more(
    books: Books, waiting: Corrections
) -> None:
    waiting.expect("r1", "a", charges("energy_j", "carbon_g"), [Part("n", NOW_S, 10.0, 0.5)])
    books.shares_j["r1", "n"] = 8.0
    await waiting.look()
    books.last_s["n"] = NOW_S - 1.0
    await waiting.look()
    assert books.asked == []  # nothing is looked up before its windows are in
    books.last_s["n"] = NOW_S
    await waiting.look()
    assert books.corrected == [("energy_j", -2.0), ("carbon_g", -1.0)]
    await waiting.look()
    assert len(books.asked) == 1
    books.shares_j["r1", "n"] = 9.0
    books.last_s["n"] = NOW_S + AGAIN_S
    await waiting.look()
    assert books.corrected[2:] == [("energy_j", 1.0), ("carbon_g", 0.5)]
    books.last_s["n"] = NOW_S + 100 * AGAIN_S
    await waiting.look()
    assert len(books.asked) == 2


async def test_each_node_of_a_request_is_corrected_by_its_own_windows(
    books: Books, waiting: Corrections
) -> None:
    parts = [Part("n", NOW_S, 3.0, 0.0), Part("m", NOW_S, 5.0, 0.0), Part("n", NOW_S, 1.0, 0.0)]
    waiting.expect("r1", "a", charges("energy_j"), parts)
    books.shares_j |= {("r1", "n"): 5.0, ("r1", "m"): 5.5}
    books.last_s["n"] = NOW_S
    await waiting.look()
    assert books.corrected == [("energy_j", 1.0)]
    books.last_s["m"] = NOW_S
    await waiting.look()
    assert books.corrected[1:] == [("energy_j", 0.5)]


async def test_what_the_ledger_could_not_say_is_asked_again(
    books: Books, waiting: Corrections
) -> None:
    waiting.expect("r1", "a", charges("energy_j"), [Part("n", NOW_S, 1.0, 0.0)])
    books.shares_j["r1", "n"], books.last_s["n"], books.away = 2.0, NOW_S, True
    with pytest.raises(OperationalError):
        await waiting.look()
    with pytest.raises(OperationalError):
        await waiting.look()
    books.away = False
    books.last_s["n"] = NOW_S + AGAIN_S
    await waiting.look()
    assert books.corrected == [("energy_j", 1.0)]


async def test_nobody_waits_for_a_node_without_windows_for_ever_nor_without_bound(
    books: Books, waiting: Corrections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrections, "MOST", 2)
    for age_s, name in ((PATIENCE_S + 1, "old"), (3.0, "r3"), (2.0, "r2"), (1.0, "r1")):
        waiting.expect(name, "a", charges("energy_j"), [Part("n", NOW_S - age_s, 1.0, 0.0)])
    waiting.expect("lost", "a", charges("energy_j"), [Part("m", NOW_S - PATIENCE_S, 1.0, 0.0)])
    await waiting.look()
    books.last_s |= {"n": NOW_S, "m": NOW_S}
    await waiting.look()
    assert books.asked == [{"r1", "r2"}]


async def test_requests_without_budgets_of_energy_are_not_waited_for(
    books: Books, waiting: Corrections
) -> None:
    waiting.expect("r1", "a", charges("tokens"), [Part("n", NOW_S, 1.0, 0.0)])
    books.last_s["n"] = NOW_S
    await waiting.look()
    assert books.asked == []
