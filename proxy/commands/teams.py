"""Make, list, change and archive teams, and read the audit log.

Settings of a team are written as in the config file's ``teams``, without keys. Teams that the
config file names are changed there.
"""

from __future__ import annotations

import argparse
from shlex import quote
from typing import Any

from proxy import books, tables
from proxy.settings import Team
from proxy.teams import TeamStore

EXAMPLE = "joulegate teams create search --organisation acme --timezone Europe/Berlin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = books.Actions(parser)
    for name, help_ in (("create", "add a team"), ("change", "set a team's settings anew")):
        made = actions.add_parser(name, help=help_, example="search --settings search.yaml")
        made.add_argument("team", metavar="T")
        made.add_argument("--organisation", metavar="O")
        made.add_argument("--timezone", metavar="Z", help="IANA name; default UTC")
        made.add_argument("--policy", metavar="P")
        made.add_argument("--settings", metavar="F", help="YAML file with limits, budgets, ...")
    actions.add_parser(
        "archive", help="refuse a team's keys; its books stay", example="search"
    ).add_argument("team", metavar="T")
    listed = actions.add_parser("list", help="show teams", example="")
    audit = actions.add_parser("audit", help="show the latest admin actions", example="--limit 20")
    audit.add_argument("--limit", type=int, default=50, metavar="N")
    for action in (listed, audit):
        action.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    with books.team_store(args.config) as store:
        return _act(store, args)


def _act(store: TeamStore, args: argparse.Namespace) -> int:
    if args.action == "create":
        again = store.create_team(args.team, _settings(args), books.actor())
        if again:
            print(f"Brought team {args.team} back, and with it {again} of its keys: see", end=" ")
            print(f"joulegate keys list --team {quote(args.team)}")
        else:
            print(f"Made team {args.team}. Now: joulegate keys create --team {quote(args.team)}")
    elif args.action == "change":
        store.change_team(args.team, _settings(args), books.actor())
        print(f"Changed team {args.team}.")
    elif args.action == "archive":
        store.archive_team(args.team, books.actor())
        print(f"Archived team {args.team}: its keys are refused, its books stay.")
    elif args.action == "audit":
        entries: list[dict[str, Any]] = [
            {
                "at": tables.moment(entry.at_s),
                "actor": entry.actor,
                "action": entry.action,
                "subject": entry.subject,
                "detail": entry.detail,
            }
            for entry in store.audit(args.limit)
        ]
        tables.show(entries, as_json=args.json, empty="No admin actions.")
    else:
        rows = [
            {
                "team": team.team,
                "organisation": team.settings.organisation,
                "timezone": team.settings.timezone,
                "policy": team.settings.policy,
                "projects": list(team.projects),
                "budgets": len(team.settings.budgets),
                "state": "archived" if team.archived else "active",
                "source": team.source,
            }
            for team in store.list_teams()
        ]
        tables.show(rows, as_json=args.json, empty="No teams.")
    return 0


def _settings(args: argparse.Namespace) -> Team:
    given = {name: getattr(args, name) for name in ("organisation", "timezone", "policy")}
    named = {name: value for name, value in given.items() if value is not None}
    return books.read_settings(args.settings, Team, "a team's", named)
