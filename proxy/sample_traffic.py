"""Sample traffic for the demonstration: three teams asking different things, at a steady rate."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Mapping
from pathlib import Path

from meters.ledger import Ledger
from proxy.dashboard.sample import sample_hours
from proxy.settings import KeySettings, Settings, SignInSettings, Team

log = logging.getLogger("joulegate.demo")

TEAMS = {
    "search": ("classify", "Which category is this product in: {n}? Answer with one word.", 16),
    "support": ("answer", "A customer asks about order {n}. Write a short, polite answer.", 160),
    "research": ("write", "Explain in detail how experiment {n} could be repeated.", 500),
}


def teams() -> dict[str, Team]:
    """The demonstration's teams, each with the key its traffic uses, and one to look at it all."""
    demo = {name: Team(keys=[f"demo-{name}"], policy="balanced") for name in TEAMS}
    return {**demo, "platform": Team(keys=[KeySettings(key="demo-admin", role="admin")])}


def settings() -> Settings:
    """What the demonstration is served with; its dashboard is open."""
    return Settings(teams=teams(), state_dir=STATE_DIR, sign_in=SignInSettings(guests=True))


STATE_DIR = "state/demo"
HISTORY_DAYS = 61  # this month and the one before it


def write_history(state_dir: str, now_s: float) -> int:
    """Simulated traffic of the last two months, once, so that the dashboard has something to
    show; the number of requests written, 0 when there is a ledger already."""
    path = Path(state_dir) / "ledger.db"
    if path.exists():
        return 0
    print("writing two months of simulated traffic, once ...", file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="history-", dir=path.parent) as unfinished:
        whole = Path(unfinished) / path.name
        written = _write_hours(whole, now_s)
        whole.replace(path)  # all of it or nothing: who stops it half-way gets it next time
    return written


def _write_hours(path: Path, now_s: float) -> int:
    hours = HISTORY_DAYS * 24
    start_s = int(now_s) // 3600 * 3600 - hours * 3600
    ledger = Ledger(f"sqlite:///{path}")
    try:
        written = 0
        for hour in sample_hours(start_s, hours, scale=0.3):
            written += len(hour.records)
            ledger.write(hour.records, hour.attributions, hour.windows)
        return written
    finally:
        ledger.close()


def of_rate(rate_per_s: float, *, open_dashboard: bool) -> Callable[[str], Callable[[], None]]:
    """What `serving.serve` runs beside the server: called with its URL, gives a way to stop."""

    def start(url: str) -> Callable[[], None]:
        stopping = threading.Event()
        thread = threading.Thread(
            target=_run, args=(url, rate_per_s, stopping), name="sample-traffic", daemon=True
        )
        thread.start()
        if open_dashboard and has_screen(sys.platform, os.environ):
            # Not from here: a browser may be waited for, and it waits for the server.
            page = f"{url}/dashboard"
            threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
        return stopping.set

    return start


def has_screen(platform: str, environment: Mapping[str, str]) -> bool:
    """Whether a browser with windows can be opened. Without one a text browser would be, which
    takes the terminal."""
    shown = environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    return platform in ("darwin", "win32") or bool(shown)


def _run(url: str, rate_per_s: float, stopping: threading.Event) -> None:
    chance = random.Random(7)
    while not stopping.wait(chance.expovariate(max(rate_per_s, 0.01))):
        team = chance.choice(list(TEAMS))
        threading.Thread(target=_ask, args=(url, team, chance.randrange(10_000))).start()


def _ask(url: str, team: str, number: int) -> None:
    tag, text, limit = TEAMS[team]
    body = {
        "model": "llama-3.1-8b",
        "messages": [{"role": "user", "content": text.format(n=number)}],
        "max_tokens": limit,
        "stream": number % 2 == 0,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {
            "content-type": "application/json",
            "authorization": f"Bearer demo-{team}",
            "x-joulegate-tags": tag,
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            answer.read()
    except (urllib.error.URLError, OSError) as error:
        log.debug("a sample request failed: %s", error)
