"""Make, list and remove local accounts: names and passwords for the dashboard.

The password is asked for at the terminal, twice, or read as one line from standard input. It is
kept as a scrypt hash. Setting a new one ends all sessions of the account.
"""

from __future__ import annotations

import argparse
import getpass
import sys

from proxy import books, tables
from proxy.commands import CommandError
from proxy.passwords import BadPassword
from proxy.people import People
from proxy.teams import ROLES, TeamsError

EXAMPLE = "joulegate accounts create ada --role lead --team search"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = books.Actions(parser)
    create = actions.add_parser(
        "create",
        help="add an account; asks for its password",
        example="ada --role lead --team search",
    )
    create.add_argument("name", metavar="NAME")
    create.add_argument("--role", choices=ROLES, default="member")
    create.add_argument("--team", action="append", default=[], metavar="T", help="may be repeated")
    actions.add_parser("password", help="set a new password", example="ada").add_argument(
        "name", metavar="NAME"
    )
    actions.add_parser("remove", help="let it in no longer", example="ada").add_argument(
        "name", metavar="NAME"
    )
    listed = actions.add_parser("list", help="show accounts", example="")
    listed.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    settings = books.settings_of(args.config)
    with books.opened(settings) as ledger:
        try:
            return _act(People(ledger.database), args)
        except (TeamsError, BadPassword) as error:
            raise CommandError(str(error)) from None


def _act(people: People, args: argparse.Namespace) -> int:
    if args.action == "create":
        teams = tuple(args.team)
        people.create(args.name, _password(), role=args.role, teams=teams, actor=books.actor())
        print(f"Made account {args.name}: {args.role} of {', '.join(teams) or 'all teams'}.")
    elif args.action == "password":
        people.set_password(args.name, _password(), books.actor())
        print(f"Set a new password for {args.name}; its sessions have ended.")
    elif args.action == "remove":
        people.remove(args.name, books.actor())
        print(f"Removed account {args.name}; its sessions have ended.")
    else:
        rows = [
            {
                "name": p.name,
                "role": p.role,
                "teams": list(p.teams),
                "created": tables.moment(p.created_s),
            }
            for p in sorted(people.all().values(), key=lambda p: p.name)
        ]
        tables.show(rows, as_json=args.json, empty="No accounts.")
    return 0


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    given = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != given:
        raise CommandError("The two are not the same. Try again.")
    return given
