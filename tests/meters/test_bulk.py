from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DataError, IntegrityError

from meters.bulk import add, insert, rows_where
from meters.ledger import Ledger
from meters.rows import record_row
from meters.schema import NODE_SUMS, node_hours, requests
from tests.meters.books import record


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def node_hour(node: str, **sums: int) -> dict[str, object]:
    key = {"node": node, "hour_s": 3600, "evidence": "metered", "meter": "nvml"}
    return {**key, **dict.fromkeys(NODE_SUMS, 0), **sums}


def test_more_rows_than_go_together_are_all_there(ledger: Ledger) -> None:
    rows = [record_row(record(n, tags=("a", 'quote " \t tab \\ back'))) for n in range(345)]
    with ledger.database.write() as connection:
        insert(connection, requests, rows)
    with ledger.database.read() as connection:
        wanted = [row["request_id"] for row in rows] + ["nobody"]
        found = rows_where(connection, select(requests), requests.c.request_id, wanted)
        assert rows_where(connection, select(requests), requests.c.request_id, []) == []
    assert sorted(found, key=lambda r: str(r["request_id"])) == sorted(
        rows, key=lambda r: str(r["request_id"])
    )


def test_sums_are_made_where_they_are_missing_and_added_to_where_not(ledger: Ledger) -> None:
    largest = 2**53 + 1  # more than a double holds
    with ledger.database.write() as connection:
        add(connection, node_hours, [node_hour("a", metered_uj=largest), node_hour("b")])
        add(connection, node_hours, [node_hour("a", metered_uj=2, idle_uj=-5)])
        rows = connection.execute(select(node_hours).order_by(node_hours.c.node)).mappings().all()
    assert [(row["node"], row["metered_uj"], row["idle_uj"]) for row in rows] == [
        ("a", largest + 2, -5),
        ("b", 0, 0),
    ]


def test_what_the_database_refuses_is_raised_as_sqlalchemy_raises_it(ledger: Ledger) -> None:
    one = record_row(record(1))
    with pytest.raises(IntegrityError), ledger.database.write() as connection:
        insert(connection, requests, [one, one])
    too_large = node_hour("a", metered_uj=2**63)
    refused = (DataError, OverflowError)
    with pytest.raises(refused), ledger.database.write() as connection:
        add(connection, node_hours, [too_large])
    with ledger.database.write() as connection:  # and the connection is good for the next
        insert(connection, requests, [one])
