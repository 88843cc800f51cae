"""What docs/scaling.md tells an operator to run, run."""

from __future__ import annotations

import re
import time
from pathlib import Path

import psycopg

from meters.ledger import Ledger
from proxy.flight import new_request_id
from tests.meters.books import attribution, record
from tests.servers import new_database

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
MONTH_S = 31 * 86_400


def test_a_ledger_partitioned_by_month_keeps_the_same_books(postgres_url: str) -> None:
    url = new_database(postgres_url, "partitioned")
    Ledger(url).close()
    found = re.search(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(found[1])  # type: ignore[call-overload]
    now_s = time.time()
    ids = [new_request_id(now_s + months * MONTH_S) for months in range(3)]
    ids.append("req_" + "f" * 24)  # as they were before they began with their time
    ledger = Ledger(url)
    for _ in range(2):  # again changes nothing
        ledger.write(
            [record(1, request_id=one) for one in ids],
            [attribution(1, dict.fromkeys(ids, 2.0))],
        )
    balance = ledger.check()
    assert balance.balanced, balance.problems
    assert (balance.requests, balance.shares, balance.pending_uj) == (4, 4, 0)
    assert all(ledger.receipt(one) is not None for one in ids)
    ledger.close()
    with psycopg.connect(url) as connection:
        for table in ("requests", "shares"):
            rows = connection.execute(
                f"SELECT tableoid::regclass::text FROM {table} ORDER BY request_id"  # type: ignore[call-overload]
            ).fetchall()
            names = [str(name) for (name,) in rows]
            assert len(set(names)) == 4
            assert names[-1] == f"{table}_other"
            assert re.fullmatch(table + r"_\d{4}_\d{2}", names[0])
