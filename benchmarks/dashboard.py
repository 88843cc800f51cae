"""The dashboard's first screen over a month of ten million requests: milliseconds and kilobytes.

    python -m benchmarks.dashboard

Fills the roll-ups of a SQLite ledger as such a month leaves them (twenty teams, each with 24
combinations of model, key and tags in every hour, two months), asks for one team's first screen
over a real socket, and prints what it took: cold (nothing of the ledger read before), again with
everything that was read thrown away but the weights that divide idle energy, and remembered. The
collector of garbage is set as the server sets it.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from sqlalchemy import func, select

from meters.intensity import IntensityBook, Observation
from meters.intensity.hours import hours_between
from meters.intensity.table import AnnualTable
from meters.ledger import Ledger
from meters.rows import dim_id
from meters.schema import (
    DIMENSIONS,
    REQUEST_SUMS,
    dims,
    energy_hours,
    node_hours,
    request_hours,
    team_days,
)
from proxy.dashboard.pages import Dashboard, router
from proxy.dashboard.periods import parse
from proxy.dashboard.sites import Site, Sites
from proxy.dashboard.snapshot import Snapshots
from proxy.dashboard.viewers import Viewer
from proxy.serving import spare_the_collector

MONTH = parse("2026-10", "Europe/Berlin")
TEAMS = 20
MODELS = (("llama-70b", "node-a", "DE"), ("llama-8b", "node-b", "FR"), ("qwen-32b", "node-c", "DE"))
KEYS, TAGS = 4, ("answers", "ranking")
REQUESTS = 10_000_000
TEAM = "team-07"


def fill(ledger: Ledger) -> int:
    """Two months of roll-ups; gives the number of requests in October."""
    rng = random.Random(7)
    hours = hours_between(MONTH.previous.start_s, MONTH.end_s)
    october = len(hours_between(MONTH.start_s, MONTH.end_s))
    each = REQUESTS // (TEAMS * len(MODELS) * KEYS * len(TAGS) * october)
    known: list[dict[str, object]] = []
    for team in range(TEAMS):
        for model, node, zone in MODELS:
            for key in range(KEYS):
                for tag in TAGS:
                    values = dict.fromkeys(DIMENSIONS, "") | {
                        "team": f"team-{team:02d}",
                        "key_id": f"k{team}-{key}",
                        "tags": tag,
                        "endpoint": "chat.completions",
                        "model_asked": model,
                        "model_group": model,
                        "backend": f"{model}@fp8",
                        "node": node,
                        "zone": zone,
                        "pue": 1.2,
                        "policy": "least_energy",
                        "task": "chat",
                        "cache": "miss",
                        "outcome": "ok",
                        "evidence": "calibrated",
                        "simulated": False,
                    }
                    number = dim_id(*(values[name] for name in DIMENSIONS))
                    known.append({"dim_id": number, **values})
    nothing = dict.fromkeys(REQUEST_SUMS, 0)
    with ledger.database.write() as connection:
        connection.execute(dims.insert(), known)
        for hour_s in hours:
            asked, drawn = [], []
            for dim in known:
                uj = rng.randrange(each * 10_000_000, each * 90_000_000)
                keys = {"team": dim["team"], "hour_s": hour_s, "dim_id": dim["dim_id"]}
                asked.append(
                    nothing
                    | keys
                    | {
                        "requests": each,
                        "prompt_tokens": each * 500,
                        "output_tokens": each * 300,
                        "tokens_known": each,
                        "energy_uj": uj,
                        "energy_low_uj": uj * 8 // 10,
                        "energy_high_uj": uj * 12 // 10,
                        "energy_known": each,
                        "metered_uj": uj,
                        "metered_requests": each - each // 50,
                        "metered_estimate_uj": uj * 98 // 100,
                        "metered_estimate_low_uj": uj * 78 // 100,
                        "metered_estimate_high_uj": uj * 118 // 100,
                    }
                )
                drawn.append(
                    keys
                    | {
                        "metered_node": dim["node"],
                        "metered_evidence": "metered",
                        "energy_uj": uj,
                    }
                )
            connection.execute(request_hours.insert(), asked)
            connection.execute(energy_hours.insert(), drawn)
            for _, node, _ in MODELS:
                active = sum(int(str(d["energy_uj"])) for d in drawn if d["metered_node"] == node)
                idle = 400 * 3600 * 1_000_000
                connection.execute(
                    node_hours.insert(),
                    [
                        {
                            "node": node,
                            "hour_s": hour_s,
                            "evidence": "metered",
                            "meter": "nvml",
                            "windows": 3600,
                            "metered_uj": active + idle,
                            "attributed_uj": active,
                            "idle_uj": idle,
                            "external_uj": 0,
                            "unattributed_uj": 0,
                            "metered_us": 3_600_000_000,
                            "host_energy_uj": 0,
                            "host_known": 0,
                        }
                    ],
                )
        connection.execute(
            team_days.insert().from_select(
                ["day", "node", "team", "energy_uj"],
                select(
                    (energy_hours.c.hour_s // 86_400).label("day"),
                    energy_hours.c.metered_node,
                    energy_hours.c.team,
                    func.sum(energy_hours.c.energy_uj),
                ).group_by("day", energy_hours.c.metered_node, energy_hours.c.team),
            )
        )
    return each * len(known) * october


def book() -> IntensityBook:
    made = IntensityBook(AnnualTable())
    for zone in ("DE", "FR"):
        made.put(
            Observation(zone=zone, hour_s=s, g_per_kwh=100.0 + s // 3600 % 24, source="file")
            for s in hours_between(MONTH.previous.start_s, MONTH.end_s)
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9, help="screens to ask for; default 9")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(str(Path(folder) / "ledger.db"))
        started_s = time.perf_counter()
        count = fill(ledger)
        print(f"{count:,} requests a month in roll-ups ({time.perf_counter() - started_s:.0f} s)")
        sites = Sites(
            nodes={n: Site(node=n, zone=z, pue=1.2, gpus=4) for _, n, z in MODELS},
            hosted=frozenset(),
        )
        snapshots = Snapshots(ledger, book(), sites, clock=lambda: MONTH.end_s + 86_400.0)
        app = FastAPI()
        dashboard = Dashboard(snapshots)
        dashboard.warm()  # as the server does when it starts
        app.include_router(
            router(dashboard, lambda: Viewer(name="a", role="admin", time_zone="UTC"))
        )
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = listener.getsockname()[1]
        spare_the_collector()
        query = f"period={MONTH.name}&tz={MONTH.time_zone}"
        url = f"http://127.0.0.1:{port}/dashboard/{TEAM}/overview?{query}"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/dashboard/style.css") as answer:
            answer.read()  # so that it is the page's time, not the web server's first request
        times_ms, cpu_ms, size = [], [], 0
        for number in range(args.repeat):
            if number:
                snapshots.forget()
            started_s, busy_s = time.perf_counter(), time.process_time()
            with urllib.request.urlopen(url, timeout=120) as answer:
                size = len(answer.read())
            times_ms.append((time.perf_counter() - started_s) * 1e3)
            cpu_ms.append((time.process_time() - busy_s) * 1e3)
        started_s = time.perf_counter()
        with urllib.request.urlopen(url, timeout=120) as answer:
            answer.read()
        kept_ms = (time.perf_counter() - started_s) * 1e3
        server.should_exit = True
        thread.join(timeout=10)  # an interpreter that ends under a thread in C may fall over
        ledger.close()
    again = statistics.median(times_ms[1:])
    print("first screen         ms   of that CPU")
    print(f"cold            {times_ms[0]:8.0f}   {cpu_ms[0]:8.0f}")
    print(f"again, median   {again:8.0f}   {statistics.median(cpu_ms[1:]):8.0f}")
    print(f"remembered      {kept_ms:8.0f}")
    print(f"size            {size / 1024:8.0f} KB")


if __name__ == "__main__":
    main()
