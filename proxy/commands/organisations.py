"""List organisations, and set what their teams may use together.

Settings of an organisation are written as in the config file's ``organisations``. Those that the
config file names are changed there. A team belongs to the organisation that its settings name.
"""

from __future__ import annotations

import argparse

from proxy import books, tables
from proxy.settings import Organisation
from proxy.teams import TeamStore

EXAMPLE = "joulegate organisations set acme --settings acme.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = books.Actions(parser)
    given = actions.add_parser(
        "set", help="set an organisation's budgets anew", example="acme --settings acme.yaml"
    )
    given.add_argument("organisation", metavar="O")
    given.add_argument("--timezone", metavar="Z", help="IANA name; default UTC")
    given.add_argument("--settings", metavar="F", help="YAML file with its budgets")
    removed = actions.add_parser(
        "remove", help="set nothing for it any more; its teams stay", example="acme"
    )
    removed.add_argument("organisation", metavar="O")
    listed = actions.add_parser("list", help="show organisations", example="")
    listed.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    with books.team_store(args.config) as store:
        return _act(store, args)


def _act(store: TeamStore, args: argparse.Namespace) -> int:
    if args.action == "set":
        more = {} if args.timezone is None else {"timezone": args.timezone}
        given = books.read_settings(args.settings, Organisation, "an organisation's", more)
        store.set_organisation(args.organisation, given, books.actor())
        print(f"Set organisation {args.organisation}.")
    elif args.action == "remove":
        store.remove_organisation(args.organisation, books.actor())
        print(f"Removed organisation {args.organisation}: its teams stay.")
    else:
        rows = [
            {
                "organisation": found.organisation,
                "timezone": found.settings.timezone,
                "budgets": len(found.settings.budgets),
                "teams": list(found.teams),
                "source": found.source,
            }
            for found in store.list_organisations()
        ]
        tables.show(rows, as_json=args.json, empty="No organisations.")
    return 0
