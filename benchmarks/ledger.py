"""How fast the ledger takes records from the journal, and answers what a dashboard asks.

Three parts, on SQLite and on PostgreSQL (an installed one, or the wheel's):

1. append: what journalling a record costs the caller, in microseconds of its processor time;
2. drain: records a second from journal files into an empty ledger, roll-ups included, with the
   windows and shares that belong to them (one share a request and second);
3. month: a team's month from the roll-ups. The ledger is filled with `--requests` requests over
   30 days through SQL, roll-ups made by the statements that `check` compares them with, so that
   ten million are ready in minutes; then each question is asked `--repeat` times.

    python -m benchmarks.ledger --requests 1000000
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Table, func, select, text

from meters import rollups
from meters.drain import Drain
from meters.journal import Journal
from meters.ledger import Ledger, add_dims
from meters.rows import record_row
from meters.schema import request_hours, requests
from meters.types import Attribution, Evidence, Share, UsageRecord, Window
from tests.servers import new_database, start_postgres

MONTH_S = 30 * 86_400
START_S = 1_790_000_000 // 3600 * 3600
TEAMS = ("search", "ads", "ops", "maps", "mail", "shop", "lab", "docs", "chat", "code")
BACKENDS = ("llama-3.1-8b@bf16", "llama-3.1-8b@int4", "qwen-3-32b@fp8", "gpt-oss-120b@mxfp4")


def record(number: int, dice: random.Random, at_s: float) -> UsageRecord:
    """One request as it comes, with a decision of ordinary length."""
    backend = dice.choice(BACKENDS)
    return UsageRecord(
        request_id=f"req_{number:024x}",
        start_s=at_s,
        end_s=at_s + 2.5,
        sent_s=at_s,
        team=dice.choice(TEAMS),
        key_id=f"{dice.randrange(3):012x}",
        project=dice.choice(("a", "b")),
        tags=dice.choice(((), ("batch",))),
        model_asked="auto",
        backend=backend,
        group=backend.partition("@")[0],
        node=backend,
        policy="least_energy",
        prompt_tokens=dice.randrange(50, 4000),
        output_tokens=dice.randrange(10, 900),
        usage_source="upstream",
        ttft_s=0.2,
        latency_s=2.5,
        energy_j=dice.expovariate(0.02),
        energy_low_j=1.0,
        energy_high_j=200.0,
        carbon_g=0.01,
        money_usd=0.0001,
        evidence=Evidence.CALIBRATED,
        estimator_version="1",
        zone="DE",
        pue=1.2,
        intensity_g_per_kwh=380.0,
        counterfactual_backend=BACKENDS[0],
        counterfactual_energy_j=80.0,
        counterfactual_carbon_g=0.02,
        replica="replica-1",
        decision='{"chosen":"' + "x" * 500 + '"}',
    )


def window(number: int, members: list[UsageRecord]) -> tuple[Window, Attribution]:
    """One second of a node that served ``members``."""
    start_s = START_S + float(number)
    name = f"node:{number}"
    shares = tuple(Share(name, m.request_id, 5.0) for m in members)
    metered_j = 5.0 * len(shares) + 61.0
    common = {"window_id": name, "node": "node", "start_s": start_s, "end_s": start_s + 1.0}
    return (
        Window(energy_j=metered_j, meter="nvml", **common),  # type: ignore[arg-type]
        Attribution(
            metered_j=metered_j,
            idle_j=60.0,
            external_j=0.0,
            unattributed_j=1.0,
            shares=shares,
            evidence=Evidence.METERED,
            meter="nvml",
            **common,  # type: ignore[arg-type]
        ),
    )


def append(folder: Path, count: int) -> None:
    dice = random.Random(1)
    records = [record(n, dice, START_S) for n in range(count)]
    for name in ("append", "write"):
        journal = Journal(folder / name / "own")  # apart: a drain takes over idle siblings
        keep: Callable[[UsageRecord], None] = getattr(journal, name)
        cpu_s, wall_s = time.thread_time(), time.perf_counter()
        for one in records:
            keep(one)
        cpu_us = (time.thread_time() - cpu_s) / count * 1e6
        wall_us = (time.perf_counter() - wall_s) / count * 1e6
        journal.flush()
        size = sum(path.stat().st_size for path in (folder / name / "own").glob("*.journal"))
        journal.close()
        print(
            f"journal.{name:7} {cpu_us:7.1f} µs of CPU a record, {wall_us:7.1f} µs of time, "
            f"{size / count:.0f} bytes on disk"
        )


def drain(kind: str, url: str, folder: Path, count: int) -> None:
    """Journal first, then everything into the ledger in one go."""
    dice = random.Random(2)
    journal = Journal(folder)
    for second in range(count // 50):
        members = [record(second * 50 + n, dice, START_S + second + n / 50) for n in range(50)]
        for one in members:
            journal.append(one)
        for entry in window(second, members):
            journal.append(entry)
    journal.flush()
    ledger = Ledger(url)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    draining = Drain(journal, ledger, gather_s=0.0).start()
    draining.wait(600)
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    draining.stop()
    journal.close()
    balance = ledger.check()
    ledger.close()
    assert balance.balanced, balance.problems
    print(
        f"{kind:10} drain {count / took_s:9,.0f} requests/s with as many shares "
        f"({count:,} requests in {took_s:.1f} s, {cpu_s / count * 1e6:.0f} µs of this process's "
        f"CPU each: {count / cpu_s:,.0f} a second of one core), books balanced"
    )


def fill(ledger: Ledger, count: int) -> None:
    """``count`` requests over a month: a thousand by the usual way, then copies of them by SQL."""
    dice = random.Random(3)
    seeds = [record_row(record(n, dice, START_S)) for n in range(1_000)]
    names = [column.name for column in requests.c]
    columns = ", ".join(names)
    copies = count // len(seeds)
    with ledger.database.write() as connection:
        add_dims(connection, seeds)
        connection.execute(requests.insert(), seeds)
    series = (
        "SELECT n FROM generate_series(1, :copies) AS g(n)"
        if ledger.database.kind == "postgresql"
        else "WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < :copies) "
        "SELECT n FROM g"
    )
    # every copy lies in another hour of the month, in turn
    moved = f"(g.n % {MONTH_S // 3600}) * 3600"
    values = ", ".join(
        {
            "request_id": "request_id || '-' || g.n",
            "start_s": f"start_s + {moved}",
            "end_s": f"end_s + {moved}",
            "sent_s": f"sent_s + {moved}",
            "hour_s": f"hour_s + {moved}",
            "decision": "NULL",
        }.get(name, name)
        for name in names
    )
    with ledger.database.write() as connection:
        connection.execute(
            text(
                f"INSERT INTO requests ({columns}) SELECT {values} FROM requests, ({series}) AS g"
            ),
            {"copies": copies - 1},
        )
    with ledger.database.write() as connection:
        _sum_up(ledger, connection, request_hours, rollups.expected_request_hours())
    ledger.database.vacuum()


def _sum_up(ledger: Ledger, connection: object, table: Table, query: object) -> None:
    rows = connection.execute(query).mappings()  # type: ignore[attr-defined]
    made = [
        {str(name): int(v) if name != "team" else v for name, v in row.items() if v is not None}
        for row in rows
    ]
    complete = [{column.name: row.get(column.name, 0) for column in table.c} for row in made]
    connection.execute(table.insert(), complete)  # type: ignore[attr-defined]


def month(kind: str, url: str, count: int, repeat: int) -> None:
    ledger = Ledger(url)
    began_s = time.perf_counter()
    fill(ledger, count)
    with ledger.database.read() as connection:
        rows = connection.scalar(select(func.count()).select_from(requests))
        sums = connection.scalar(select(func.count()).select_from(request_hours))
    print(
        f"{kind:10} filled with {rows:,} requests in {sums:,} rows of roll-ups "
        f"({time.perf_counter() - began_s:.0f} s, {ledger.database.size_bytes() / 1e6:,.0f} MB)"
    )
    end_s = START_S + MONTH_S
    questions: dict[str, Callable[[], object]] = {
        "a team's month, one line": lambda: ledger.usage("search", START_S, end_s),
        "a team's month by model": lambda: ledger.usage("search", START_S, end_s, ["model_group"]),
        "a team's month by hour": lambda: ledger.usage("search", START_S, end_s, ["hour_s"]),
        "all teams' month": lambda: ledger.usage(None, START_S, end_s, ["team"]),
        "one receipt": lambda: ledger.receipt("req_" + "0" * 21 + "2a0-7"),
    }
    for name, ask in questions.items():
        took_ms = []
        for _ in range(repeat):
            began_s = time.perf_counter()
            ask()
            took_ms.append((time.perf_counter() - began_s) * 1e3)
        print(f"{kind:10} {name:26} median {statistics.median(took_ms):8.1f} ms")
    ledger.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=20_000, help="through journal and drain")
    parser.add_argument("--requests", type=int, default=1_000_000, help="in the month")
    parser.add_argument("--repeat", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        append(folder, args.records)
        postgres = start_postgres()
        try:
            for kind, drained, filled in (
                ("SQLite", f"sqlite:///{folder / 'drain.db'}", f"sqlite:///{folder / 'month.db'}"),
                (
                    "PostgreSQL",
                    new_database(postgres.url, "drain"),
                    new_database(postgres.url, "month"),
                ),
            ):
                drain(kind, drained, folder / f"journals-{kind}" / "own", args.records)
                month(kind, filled, args.requests, args.repeat)
        finally:
            postgres.close()


if __name__ == "__main__":
    main()
