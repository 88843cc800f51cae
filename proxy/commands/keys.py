"""Make, list, change, rotate and revoke the keys of teams.

A key is printed once, when it is made; only its hash is kept. What is revoked here is refused by
every replica within a second, keys of the config file included. Limits and budgets of a key are
written as in the config file; its successors keep them, and go on with what it has left.
"""

from __future__ import annotations

import argparse
import re
import time

import msgspec

from proxy import books, tables
from proxy.auth import unix_time
from proxy.commands import CommandError
from proxy.settings import BUDGETED, Budget, KeyRules, LimitSettings
from proxy.teams import ROLES, NewKey, TeamStore

EXAMPLE = "joulegate keys create --team search --role member --expires 90d"

MOST_S = 36_525 * 86_400.0  # a century: later times cannot be shown everywhere
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = books.Actions(parser)
    create = actions.add_parser(
        "create",
        help="make a key and print it, once",
        example="--team search --role member --expires 90d",
    )
    create.add_argument("--team", required=True, metavar="T")
    create.add_argument("--role", choices=ROLES, default="member")
    create.add_argument("--project", metavar="P")
    create.add_argument("--name", default="", metavar="N", help="what it is for")
    create.add_argument("--expires", metavar="WHEN", help="ISO 8601 time, or a time from now: 90d")
    create.add_argument("--settings", metavar="F", help="YAML file with its limits and budgets")
    listed = actions.add_parser(
        "list", help="show keys, never the keys themselves", example="--team search"
    )
    listed.add_argument("--team", metavar="T")
    change = actions.add_parser(
        "change",
        help="set a key's limits and budgets anew",
        example="3fa94c01d2be --settings key.yaml",
    )
    change.add_argument("key_id", metavar="ID")
    change.add_argument(
        "--settings",
        required=True,
        metavar="F",
        help="YAML file with limits and budgets; - is none",
    )
    rotate = actions.add_parser(
        "rotate",
        help="make a successor; the old one ends later",
        example="3fa94c01d2be --overlap 24h",
    )
    rotate.add_argument("key_id", metavar="ID")
    rotate.add_argument("--overlap", default="24h", metavar="TIME", help="default 24h")
    revoke = actions.add_parser("revoke", help="refuse a key from now on", example="3fa94c01d2be")
    revoke.add_argument("key_id", metavar="ID")
    for action in (create, listed, change, rotate, revoke):
        action.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    with books.team_store(args.config) as store:
        return _act(store, args)


def _act(store: TeamStore, args: argparse.Namespace) -> int:
    now_s = time.time()
    if args.action == "create":
        made = store.create_key(
            args.team,
            role=args.role,
            project=args.project,
            name=args.name,
            expires_s=_expiry(args.expires, now_s),
            rules=KeyRules() if args.settings is None else _rules(args.settings),
            actor=books.actor(),
        )
        _print_key(made, args.json)
    elif args.action == "change":
        store.change_key(args.key_id, _rules(args.settings), books.actor())
        tables.show([{"key_id": args.key_id, "state": "changed"}], as_json=args.json)
    elif args.action == "rotate":
        overlap_s = seconds(args.overlap)
        _print_key(
            store.rotate_key(args.key_id, overlap_s=overlap_s, actor=books.actor()), args.json
        )
    elif args.action == "revoke":
        store.revoke_key(args.key_id, books.actor())
        tables.show([{"key_id": args.key_id, "state": "revoked"}], as_json=args.json)
    else:
        rows = [
            {
                "key_id": key.key_id,
                "team": key.team,
                "role": key.role,
                "project": key.project,
                "name": key.name or None,
                "state": key.state(now_s),
                "created": tables.moment(key.created_s),
                "expires": tables.moment(key.expires_s),
                "limits": _set(key.rules.limits),
                "budgets": [_in_words(budget) for budget in key.rules.budgets],
                "source": key.source,
            }
            for key in store.list_keys(args.team)
        ]
        tables.show(rows, as_json=args.json, empty="No keys.")
    return 0


def _rules(path: str) -> KeyRules:
    return KeyRules() if path == "-" else books.read_settings(path, KeyRules, "a key's")


def _set(limits: LimitSettings) -> list[str]:
    told = msgspec.structs.asdict(limits).items()
    return [f"{name} {value}" for name, value in told if value is not None]


def _in_words(budget: Budget) -> str:
    told = ((name, getattr(budget, name)) for name in BUDGETED)
    return ", ".join(
        f"{value:g} {name} a {budget.per}" for name, value in told if value is not None
    )


def seconds(text: str) -> float:
    """``90d``, ``24h``, ``30m`` or ``10s`` in seconds. Raises CommandError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise CommandError(f"{text!r} is not a length of time. Write it like 24h or 90d.")
    length_s = float(match[1]) * _UNITS_S[match[2]]
    if length_s > MOST_S:
        raise CommandError(f"{text!r} is more than a century. Write less.")
    return length_s


def _expiry(text: str | None, now_s: float) -> float | None:
    if text is None:
        return None
    if re.fullmatch(r"[\d.]+[smhd]", text):
        return now_s + seconds(text)
    try:
        at_s = unix_time(text)
    except ValueError:
        raise CommandError(f"{text!r} is not a time. Write 2027-01-31, or 90d.") from None
    if at_s <= now_s:
        raise CommandError(f"{text} has passed, so nobody could use the key. Name a later time.")
    return at_s


def _print_key(made: NewKey, as_json: bool) -> None:
    if as_json:
        tables.show([msgspec.to_builtins(made)], as_json=True)
        return
    until = tables.moment(made.expires_s)
    print(made.key)
    print(f"\nKey {made.key_id} of team {made.team}, {made.role}, ", end="")
    print(f"until {until}." if until else "without an end.")
    print("It is shown this once: keep it where secrets are kept.")
