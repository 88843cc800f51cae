"""Write what the dashboard shows of a team and period, as a file.

The figures are those of the page of the same team, period and time zone: one snapshot, with its
boundary, method, factor set and hash. Days are local days of the team's time zone, both included.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from proxy import books, facts
from proxy.commands import CommandError
from proxy.dashboard.configured import budgets_of, snapshots_of
from proxy.dashboard.exports import FORMATS
from proxy.dashboard.numbers import LANGUAGES
from proxy.dashboard.pages import written
from proxy.dashboard.periods import BadPeriod, Period, parse, this_month
from proxy.grid import kept_book
from proxy.settings import Team
from proxy.teams import TeamStore

EXAMPLE = (
    "joulegate report --team search --from 2026-10-01 --to 2026-10-31 --format pdf --out r.pdf"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    books.add_config(parser)
    parser.add_argument("--team", required=True, metavar="T", help="the team")
    parser.add_argument("--from", dest="first", metavar="D", help="first day, such as 2026-10-01")
    parser.add_argument("--to", dest="last", metavar="D", help="last day, included")
    parser.add_argument("--period", metavar="P", help="2026, 2026-10 or a day, instead of days")
    parser.add_argument("--tz", metavar="Z", help="IANA time zone; default the team's")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="default csv")
    parser.add_argument("--book", choices=("real", "simulated"), help="default: real if any")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="numbers in a PDF")
    parser.add_argument("--out", default="-", metavar="F", help="file; default standard output")


def run(args: argparse.Namespace) -> int:
    settings = books.settings_of(args.config)
    if args.out == "-" and args.format in ("pdf", "parquet") and sys.stdout.isatty():
        raise CommandError(f"A {args.format} file is no text: name a file with --out.")
    with books.opened(settings) as ledger:
        teams = TeamStore(ledger.database, settings).directory().teams
        period = _period(args, args.tz or teams.get(args.team, Team()).timezone)
        if args.team not in ledger.teams():
            known = ", ".join(filter(None, ledger.teams())) or "none yet"
            raise CommandError(f"The ledger has no team {args.team!r}. Teams: {known}.")
        backends = facts.all_facts(settings).values()
        book = kept_book(settings)
        simulated = {"real": False, "simulated": True}.get(args.book or "")
        snapshots = snapshots_of(settings, backends, book, ledger)
        snapshots.take(snapshots.sites, budgets_of(teams))
        snapshot = snapshots.of(args.team, period, simulated)
    body = written(snapshot, args.format, args.lang)
    if snapshot.simulated:
        print("This is SIMULATED data: no footprint of anything.", file=sys.stderr)
    if args.out == "-":
        sys.stdout.buffer.write(body)
        return 0
    try:
        Path(args.out).write_bytes(body)
    except OSError as error:
        raise CommandError(f"{args.out} cannot be written: {error.strerror}.") from None
    return 0


def _period(args: argparse.Namespace, zone: str) -> Period:
    try:
        if args.period:
            if args.first or args.last:
                raise CommandError("Give either --period or --from and --to.")
            return parse(args.period, zone)
        if args.first or args.last:
            if not (args.first and args.last):
                raise CommandError("Give both --from and --to.")
            return parse(f"{args.first}..{args.last}", zone)
        parse("2026-01", zone)
        return this_month(time.time(), zone)
    except BadPeriod as error:
        raise CommandError(str(error)) from None
