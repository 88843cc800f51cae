"""The commands of ``joulegate``, one file each.

A command module has a docstring (its help), an ``EXAMPLE`` line, ``add_arguments(parser)`` and
``run(args) -> int``. It raises CommandError for what the user can mend: the message goes to
stderr and the exit status is 1; argparse itself exits with 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Protocol, cast

# name -> module; imported only when used, since some pull in heavy libraries
COMMANDS: dict[str, str] = {
    "ledger": "proxy.commands.ledger",
    "keys": "proxy.commands.keys",
    "teams": "proxy.commands.teams",
    "organisations": "proxy.commands.organisations",
    "accounts": "proxy.commands.accounts",
    "serve": "proxy.commands.serve",
    "init": "proxy.commands.init",
    "check": "proxy.commands.check",
    "explain": "proxy.commands.explain",
    "demo": "proxy.commands.demo",
    "attribute": "proxy.commands.attribute",
    "meter": "proxy.commands.meter",
    "learn-quality": "proxy.commands.learn_quality",
    "predict-quality": "proxy.commands.predict_quality",
    "replay": "proxy.commands.replay",
    "eval": "proxy.commands.eval",
    "estimate": "proxy.commands.estimate",
    "estimators": "proxy.commands.estimators",
    "report": "proxy.commands.report",
    "savings": "proxy.commands.savings",
}


class CommandError(Exception):
    """Something the user can mend; the message is one sentence that says what to do."""


class Command(Protocol):
    __doc__: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def load(name: str) -> Command:
    """The command module of that name. Raises KeyError when there is none."""
    return cast(Command, importlib.import_module(COMMANDS[name]))
