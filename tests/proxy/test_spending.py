from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from meters.ledger import Ledger
from proxy.auth import Caller
from proxy.budgets import Metric, Rule, period
from proxy.settings import Budget, Organisation
from proxy.spending import Rules, seed_from
from tests.meters.books import attribution, record


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def rule(scope: str, metric: Metric = "energy_j") -> Rule:
    return Rule(scope=scope, metric=metric, per="day", limit=1e9, timezone="Asia/Kolkata")


def test_a_caller_answers_to_its_key_its_team_and_its_organisation() -> None:
    caller = Caller(
        team="search",
        key_id="abc",
        organisation="acme",
        timezone="Europe/Berlin",
        budgets=(Budget(per="month", energy_j=1.0),),
        key_budgets=(Budget(per="minute", requests=5),),
    )
    found = Rules({"acme": Organisation(budgets=[Budget(per="day", money_usd=2.0)])}).of(caller)
    assert [(r.scope, r.metric, r.per, r.timezone) for r in found] == [
        ("team:search", "energy_j", "month", "Europe/Berlin"),
        ("key:abc", "requests", "minute", "Europe/Berlin"),
        ("organisation:acme", "money_usd", "day", "UTC"),
    ]
    assert Rules({}).of(Caller(team="other")) == ()


async def test_what_was_used_before_is_read_to_the_second(ledger: Ledger) -> None:
    # a day in India begins at half past an UTC hour
    begin = datetime(2026, 5, 4, tzinfo=ZoneInfo("Asia/Kolkata"))
    begin_s = begin.timestamp()

    def request(name: str, after_s: float, **fields: object) -> object:
        return record(name, start_s=begin_s + after_s, end_s=begin_s + after_s + 1, **fields)

    ledger.write(
        [
            request("before", -1.0, energy_j=1000.0),
            request("first", 0.0, energy_j=1.0, key_id="abc", money_usd=0.25),
            request("metered", 60.0, energy_j=50.0, carbon_g=10.0),
            request("metered-later", 5400.0, energy_j=50.0, carbon_g=20.0, team="chem"),
            request("estimated", 5400.0, energy_j=50.0, carbon_g=20.0, team="chem"),
            request("api", 5400.0, energy_j=None, carbon_g=4.0, team="chem", backend="api"),
            request("later", 7200.0, energy_j=4.0, key_id="abc"),
            request("other", 7300.0, energy_j=8.0, team="ads"),
            request("succeeded", 7500.0, energy_j=16.0, team="law", key_id="def"),
            request("unknown", 7400.0, energy_j=None),
            *(
                request(f"{name}-{at_s}", at_s, energy_j=0.0, **ended)
                for at_s in (30.0, 7450.0)  # in an hour that is cut, and in a whole one
                for name, ended in (
                    ("refused", {"outcome": "refused"}),
                    ("hit", {"cache": "hit"}),
                    ("similar", {"cache": "similar"}),
                )
            ),
        ],  # type: ignore[arg-type]
        [attribution(1, {"req-metered": 2.0, "req-metered-later": 150.0})],
    )
    seed = seed_from(lambda: ledger, lambda name: ["search", "ads"])
    today = period("day", begin_s + 9000, "Asia/Kolkata")
    yesterday = period("day", begin_s - 9000, "Asia/Kolkata")
    assert await seed(rule("team:search"), today) == 7_000_000
    assert await seed(rule("team:search", "requests"), today) == 4 + 4  # refused ones are none
    assert await seed(rule("team:search", "tokens"), today) == 600
    assert await seed(rule("team:search", "money_usd"), today) == 250_000_000
    assert await seed(rule("organisation:acme"), today) == 15_000_000
    assert await seed(rule("team:search", "carbon_g"), today) == 400_000  # 10 g at a 25th
    # the hour's roll-up has 100 J estimated for 40 g, which came to 200 J
    assert await seed(rule("team:chem", "carbon_g"), today) == 80_000_000 + 4_000_000
    assert await seed(rule("key:abc"), today) == 5_000_000
    chained = seed_from(lambda: ledger, lambda name: [], lambda first: ["abc", "def"])
    assert await chained(rule("key:abc"), today) == 5_000_000 + 16_000_000
    assert await seed(rule("team:search"), yesterday) == 1_000_000_000
    with pytest.raises(OSError, match="not open"):
        await seed_from(lambda: None, lambda name: [])(rule("team:search"), today)
