"""The ledger that a config names, for commands that work on it beside a running server."""

from __future__ import annotations

import argparse
import getpass
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from meters.ledger import Ledger
from proxy import config_file, loading
from proxy.commands import CommandError
from proxy.config_file import ConfigError, Document
from proxy.settings import Settings, Team
from proxy.teams import TeamsError, TeamStore

T = TypeVar("T")


def add_config(parser: argparse.ArgumentParser) -> None:
    """The option that names the config."""
    parser.add_argument(
        "--config", metavar="F", help="config file; default config.yaml where there is one"
    )


class Actions:
    """The actions of a command about the books; ``--config`` may stand before one or after it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        add_config(parser)
        self._command = parser.prog
        self._shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
        add_config(self._shared)
        self._actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add_parser(self, name: str, *, help: str, example: str) -> argparse.ArgumentParser:
        """The parser of one action; ``example`` is what may stand after its name."""
        return self._actions.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=f"example: {self._command} {name} {example}".rstrip(),
            parents=[self._shared],
        )


def settings_of(config: str | None) -> Settings:
    """The settings of a config file, or the defaults. Raises CommandError."""
    if config is None and Path("config.yaml").exists():
        config = "config.yaml"
    try:
        return Settings() if config is None else loading.load(config)
    except ConfigError as error:
        raise CommandError(str(error)) from None


def url_of(settings: Settings) -> str:
    """The configured ledger, or SQLite in the state folder."""
    return settings.ledger.url or f"sqlite:///{Path(settings.state_dir) / 'ledger.db'}"


@contextmanager
def opened(settings: Settings) -> Iterator[Ledger]:
    """The ledger, closed at the end. Raises CommandError when the database does not answer."""
    url = url_of(settings)
    try:
        ledger = Ledger(url)
    except (SQLAlchemyError, OSError, ValueError) as error:
        told = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise CommandError(f"The ledger cannot be opened: {told} Check ledger.url.") from None
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def team_store(config: str | None) -> Iterator[TeamStore]:
    """The teams and keys under a config; what they refuse is raised as CommandError."""
    settings = settings_of(config)
    with opened(settings) as ledger:
        try:
            yield TeamStore(ledger.database, settings)
        except TeamsError as error:
            raise CommandError(str(error)) from None


def teams_of(settings: Settings, wanted: Collection[str]) -> dict[str, Team]:
    """The config's teams; where one that is wanted is none of them, the ledger's too.

    Raises CommandError when the database does not answer.
    """
    known = dict(settings.teams)
    url = url_of(settings)
    if known.keys() >= set(wanted) or not (
        settings.ledger.url or Path(url.removeprefix("sqlite:///")).exists()
    ):
        return known
    with opened(settings) as ledger:
        return TeamStore(ledger.database, settings).directory().teams


def read_settings(
    path: str | None, kind: type[T], whose: str, more: Mapping[str, object] | None = None
) -> T:
    """A YAML file as those settings, with ``more`` on top of it; without a file, only that.

    Raises CommandError.
    """
    try:
        document = config_file.read(path) if path else Document("", {}, {(): 1}, [])
        if not isinstance(document.value, dict):
            raise CommandError(f"{path} should be a mapping of {whose} settings.")
        settings = config_file.convert(
            msgspec.structs.replace(document, value={**document.value, **(more or {})}), kind
        )
        if document.problems:
            raise ConfigError(document.path, document.problems)
    except ConfigError as error:
        raise CommandError(f"These cannot be {whose} settings: {error}") from None
    return settings


def actor() -> str:
    """Who works at this terminal, for the audit log."""
    try:
        return f"command line, {getpass.getuser()}"
    except (KeyError, OSError):
        return "command line"
