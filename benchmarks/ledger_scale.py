"""The ledger with ten million requests: from the journal, in both stores, and added up again.

A month of requests, each with a share of a metered window, is written to journal files slice by
slice, and every slice is drained into the ledger by the product's own drain, roll-ups included.
Only draining is timed (wall). Then a team's month is asked for, and at the end every row is added
up again: each row of each roll-up must be what its rows come to, to the micro-joule.

PostgreSQL runs with fsync on, as it does by default, and 512 MB of shared buffers.

    nice python -m benchmarks.ledger_scale --requests 10000000
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import func, select

from benchmarks.ledger import MONTH_S, START_S, record
from meters.drain import Drain
from meters.journal import Entry, Journal
from meters.ledger import Ledger
from meters.rollups import expected_request_hours
from meters.schema import REQUEST_SUMS, request_hours, requests
from meters.types import Attribution, Evidence, Share, UsageRecord, Window
from proxy.flight import new_request_id
from tests.servers import new_database, start_postgres

TEAM = "search"
IN_A_WINDOW = 50  # requests that share one metered window
POSTGRES = ("-c", "fsync=on", "-c", "shared_buffers=512MB", "-c", "max_wal_size=4GB")


def entries(first: int, count: int, of: int) -> Iterator[Entry]:
    """Requests ``first`` to ``first + count`` of a month's, with the windows they lived in."""
    dice = random.Random(first)
    apart_s = MONTH_S / of
    members: list[UsageRecord] = []
    for number in range(first, first + count):
        at_s = START_S + number * apart_s
        one = record(number, dice, at_s)
        values = {name: getattr(one, name) for name in one.__struct_fields__}
        one = UsageRecord(**(values | {"request_id": new_request_id(at_s)}))
        members.append(one)
        yield one
        if len(members) == IN_A_WINDOW:
            yield from _window(number, members, at_s, IN_A_WINDOW * apart_s)
            members = []


def _window(
    number: int, members: list[UsageRecord], end_s: float, length_s: float
) -> Iterator[Entry]:
    name = f"gpu-1:{number:09d}"
    parts = tuple(Share(name, m.request_id, 5.0 + n / 7) for n, m in enumerate(members))
    attributed_j = sum(share.energy_j for share in parts)
    common = {"window_id": name, "node": "gpu-1", "start_s": end_s - length_s, "end_s": end_s}
    yield Window(energy_j=attributed_j + 61.0, meter="nvml", **common)  # type: ignore[arg-type]
    yield Attribution(
        metered_j=attributed_j + 61.0,
        idle_j=60.0,
        external_j=0.0,
        unattributed_j=1.0,
        shares=parts,
        evidence=Evidence.METERED,
        meter="nvml",
        **common,  # type: ignore[arg-type]
    )


def drain_all(kind: str, ledger: Ledger, folder: Path, count: int, slice_: int) -> None:
    """Slice by slice: journal first, then all of it into the ledger. Says how far it came also
    when it is stopped."""
    took_s = cpu_s = 0.0
    done = 0
    slowest = float("inf")
    try:
        for first in range(0, count, slice_):
            size = min(slice_, count - first)
            journal = Journal(folder)
            for entry in entries(first, size, count):
                journal.append(entry)
                while journal.waiting > 100_000:
                    time.sleep(0.01)
            assert journal.flush(120)
            draining = Drain(journal, ledger, gather_s=0.0)
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            draining.start()
            while not draining.wait(60):
                pass
            slice_s = time.perf_counter() - began_s
            took_s += slice_s
            cpu_s += time.process_time() - began_cpu_s
            slowest = min(slowest, size / slice_s)
            draining.stop()
            journal.close()
            done += size
            left_s = (count - done) * took_s / done
            print(
                f"{kind:10} {done:11,} requests  {size / slice_s:8,.0f} rows/s "
                f"(load {os.getloadavg()[0]:.1f}; {left_s / 60:,.0f} min of draining to go)",
                flush=True,
            )
    finally:
        if done:
            print(
                f"{kind:10} drained {done:,} of {count:,} requests and as many shares in "
                f"{took_s:,.0f} s: {done / took_s:,.0f} requests/s sustained, slowest slice "
                f"{slowest:,.0f}/s, {cpu_s / done * 1e6:.0f} µs of this process's CPU each; "
                f"{ledger.database.size_bytes() / 1e9:.1f} GB",
                flush=True,
            )


def ask(kind: str, ledger: Ledger, repeat: int) -> None:
    """A team's month, from the roll-ups."""
    end_s = START_S + MONTH_S
    with ledger.database.read() as connection:
        sums = connection.scalar(
            select(func.count()).select_from(request_hours).where(request_hours.c.team == TEAM)
        )
    questions: dict[str, Callable[[], object]] = {
        "a team's month": lambda: ledger.usage(TEAM, START_S, end_s),
        "a team's month by model": lambda: ledger.usage(TEAM, START_S, end_s, ["model_group"]),
        "a team's month by hour": lambda: ledger.usage(TEAM, START_S, end_s, ["hour_s"]),
        "a team's budget": lambda: ledger.spent(START_S, end_s, teams=[TEAM]),
    }
    for name, question in questions.items():
        took_ms = []
        for _ in range(repeat):
            began_s = time.perf_counter()
            question()
            took_ms.append((time.perf_counter() - began_s) * 1e3)
        print(
            f"{kind:10} {name:26} median {statistics.median(took_ms):7.1f} ms, "
            f"worst {max(took_ms):7.1f} ms, from {sums:,} rows of roll-ups",
            flush=True,
        )


def compare(kind: str, ledger: Ledger, count: int) -> None:
    """Every roll-up against its rows, and a team's month against the team's requests."""
    began_s = time.perf_counter()
    balance = ledger.check()
    took_s = time.perf_counter() - began_s
    assert balance.balanced, balance.problems
    assert (balance.requests, balance.shares) == (count, count // IN_A_WINDOW * IN_A_WINDOW)
    (month,) = ledger.usage(TEAM, START_S, START_S + MONTH_S)
    with ledger.database.read() as connection:
        query = expected_request_hours().where(requests.c.team == TEAM)
        rows = connection.execute(query).mappings().all()
    for total in REQUEST_SUMS:
        assert month.sums[total] == sum(int(row[total] or 0) for row in rows), total
    print(
        f"{kind:10} every roll-up equals its rows: {balance.requests:,} requests, "
        f"{balance.shares:,} shares, {balance.windows:,} windows, "
        f"imbalance {balance.imbalance_uj} µJ (checked in {took_s:,.0f} s)",
        flush=True,
    )


def _stop(*_: object) -> None:
    """What was started and written is removed on the way out, as after a `timeout`."""
    raise SystemExit("stopped before the end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--slice", type=int, default=250_000)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), action="append")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    for kind in args.store or ("sqlite", "postgresql"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            server = start_postgres(*POSTGRES) if kind == "postgresql" else None
            url = new_database(server.url, "scale") if server else f"sqlite:///{folder / 'l.db'}"
            try:
                ledger = Ledger(url)
                drain_all(kind, ledger, folder / "journal" / "a", args.requests, args.slice)
                ask(kind, ledger, args.repeat)
                compare(kind, ledger, args.requests)
                ledger.close()
            finally:
                if server:
                    server.close()


if __name__ == "__main__":
    main()
