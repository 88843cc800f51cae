"""Say what the hold-out proves: the energy saved per request, with its interval.

A policy with `hold_out` serves a share of its requests, drawn at random, as if Joulegate were not
there. This compares both arms in the ledger.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import msgspec

from proxy import books
from proxy.commands import CommandError
from proxy.dashboard.periods import BadPeriod, parse, this_month
from proxy.savings import Validated, validated

EXAMPLE = "joulegate savings --team search --from 2026-10-01 --to 2026-10-31"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    books.add_config(parser)
    parser.add_argument("--team", metavar="T", help="one team; default all")
    parser.add_argument("--policy", metavar="P", help="one policy; default all")
    parser.add_argument("--from", dest="first", metavar="D", help="first day; default this month's")
    parser.add_argument("--to", dest="last", metavar="D", help="last day, included")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    if (args.first is None) != (args.last is None):
        raise CommandError("Give both --from and --to.")
    try:
        period = (
            parse(f"{args.first}..{args.last}", "UTC")
            if args.first
            else this_month(time.time(), "UTC")
        )
    except BadPeriod as error:
        raise CommandError(str(error)) from None
    with books.opened(books.settings_of(args.config)) as ledger:
        found = validated(ledger, period.start_s, period.end_s, team=args.team, policy=args.policy)
    if args.json:
        print(json.dumps([as_json(one) for one in found]))
        return 0
    if not found:
        raise CommandError(
            "No request of that time was in a hold-out. Give a policy `hold_out: 1 %`."
        )
    for one in found:
        print(sentence(one))
    return 0


def as_json(one: Validated) -> dict[str, Any]:
    """The figures, and whether they validate the saving."""
    return {**msgspec.to_builtins(one), "validates": one.validates}


def sentence(one: Validated) -> str:
    """The figures in words."""
    start = "SIMULATED: " if one.simulated else ""
    arms = f"{one.held_out:,} requests held out, {one.treated:,} not"
    if one.saved is None or one.saved_low is None or one.saved_high is None:
        return f"{start}{arms}: too few to say what was saved."
    proof = (
        "validated"
        if one.validates
        else "not validated: more was used"
        if one.saved_high < 0.0
        else "not validated: the interval includes zero"
    )
    return (
        f"{start}{one.saved:.1%} saved ({one.saved_low:.1%} to {one.saved_high:.1%}, 80 % "
        f"interval), {proof}. {one.treated_j:.3g} J a request against {one.held_out_j:.3g} J; "
        f"{arms}; {one.metered:.0%} of them metered."
    )
