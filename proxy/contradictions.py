"""What is well-formed in a config but cannot be meant, with the line it stands on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from proxy.config_file import Document, KeyPath, Problem
from proxy.settings import (
    BUDGETED,
    OVERHEAD,
    Budget,
    KeyRules,
    KeySettings,
    Organisation,
    Settings,
    SignInSettings,
    Team,
)

LEDGERS = ("postgresql", "postgres", "sqlite")  # each with a driver behind a +, too
REDISES = (
    "redis",
    "rediss",
    *(f"{r}+{k}" for r in ("redis", "rediss") for k in ("sentinel", "cluster")),
)


def contradictions(settings: Settings, document: Document) -> Iterator[Problem]:
    """Every one of a config."""
    seen: dict[str, int] = {}
    for index, backend in enumerate(settings.backends):
        path = ("backends", index)
        if backend.full_name in seen:
            first = document.line(("backends", seen[backend.full_name]))
            message = f"the name {backend.full_name!r} is taken in line {first}. Give a `name`."
            yield document.problem(path, message)
        seen[backend.full_name] = index
        if backend.provider == "openai" and not backend.url:
            yield document.problem(path, "'url' is missing. Add it.")
        yield from _in_address((*path, "url"), backend.url, document)
        yield from _in_names(index, settings, document)
        if backend.gpu and backend.num_gpus and backend.params_b is None and not backend.hf_config:
            message = "has a gpu but no params_b or hf_config, so its energy cannot be predicted."
            yield document.problem(path, message)
    for name, team in settings.teams.items():
        yield from of_team(name, team, settings, document)
    yield from _of_keys(settings, document)
    for name, organisation in settings.organisations.items():
        yield from of_organisation(name, organisation, settings, document)
    yield from _of_sign_in(settings.sign_in, document)
    for where, url in (
        (("budget_alerts", "url"), settings.budget_alerts.url),
        (("otlp", "url"), settings.otlp.url),
        (("sign_in", "public_url"), settings.sign_in.public_url),
        (("sign_in", "oidc", "issuer"), getattr(settings.sign_in.oidc, "issuer", None)),
    ):
        yield from _in_address(where, url, document)
    for where, url, known in (
        (("ledger", "url"), settings.ledger.url, LEDGERS),
        (("redis", "url"), settings.redis.url, REDISES),
    ):
        scheme, found, _ = (url or "").partition("://")
        if known is LEDGERS:  # a file's name is SQLite's
            scheme = scheme.partition("+")[0] if found else "sqlite"
        if url and scheme.lower() not in known:
            message = f"should start with one of {', '.join(f'{s}://' for s in known)}."
            yield document.problem(where, message)
    groups = {backend.model for backend in settings.backends}
    for group, others in settings.fallbacks.items():
        for name in (group, *others):
            if name not in groups:
                message = f"there is no backend of model {name!r}."
                yield document.problem(("fallbacks", group), message)


def _in_address(path: KeyPath, url: str | None, document: Document) -> Iterator[Problem]:
    if url is None:
        return
    message = None
    try:
        parts = urlsplit(url)
        if not url.startswith(("http://", "https://")):
            message = f"should start with http:// or https://; it is {url!r}."
        elif not parts.hostname or any(letter.isspace() for letter in url):
            message = f"is no address: {url!r}."
        elif parts.port == 0:
            message = "has the port 0."
    except ValueError as error:
        message = f"is no address ({error})."
    if message is not None:
        yield document.problem(path, message)


def _in_names(index: int, settings: Settings, document: Document) -> Iterator[Problem]:
    """What a client could not ask for, or would ask another one for."""
    backend = settings.backends[index]
    for key in ("model", "name"):
        name = getattr(backend, key) or ""
        path: KeyPath = ("backends", index, key)
        message = None
        if name == "auto" or name.startswith("auto:"):
            message = f"{name!r} leaves the choice open. Take another name."
        elif name not in ("", backend.model) and any(b.model == name for b in settings.backends):
            message = f"{name!r} is the model of others. Take another name."
        if message is not None:
            yield document.problem(path, message)


def _of_sign_in(sign_in: SignInSettings, document: Document) -> Iterator[Problem]:
    if sign_in.secret is not None and len(sign_in.secret) < 32:
        where: tuple[str | int, ...] = ("sign_in", "secret")
        message = "should have 32 characters or more: `openssl rand -hex 32` makes one."
        yield document.problem(where, message)
    for index, grant in enumerate(sign_in.oidc.grants if sign_in.oidc else ()):
        if grant.role != "admin" and grant.team is None:
            where = ("sign_in", "oidc", "grants", index)
            message = f"a {grant.role} needs a team. Add 'team'."
            yield document.problem(where, message)


def _of_keys(settings: Settings, document: Document) -> Iterator[Problem]:
    """Keys that nobody could use, or that would be two teams' at once."""
    owners: dict[str, str] = {}
    for name, team in settings.teams.items():
        for index, entry in enumerate(team.keys):
            key = entry if isinstance(entry, KeySettings) else KeySettings(key=entry)
            where: KeyPath = ("teams", name, "keys", index)
            hashed = (key.sha256 or "").lower()
            message = None
            if (key.key is None) == (key.sha256 is None):
                message = "should have either 'key' or 'sha256'."
            elif key.key is not None and not key.key.strip():
                message = "is empty, so nobody could use it. Give it a value, or take it out."
            elif key.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", hashed):
                message = "'sha256' should be 64 hexadecimal digits."
            else:
                hashed = hashed or hashlib.sha256((key.key or "").encode()).hexdigest()
                if hashed in owners:
                    message = f"is a key of {owners[hashed]!r} already. Each needs one of its own."
                owners.setdefault(hashed, name)
            if message is not None:
                yield document.problem(where, message)


def of_team(name: str, team: Team, settings: Settings, document: Document) -> Iterator[Problem]:
    """Those of one team, of the config file or not."""
    path: KeyPath = ("teams", name)
    yield from _in_zone(path, team.timezone, document)
    yield from _in_expiry(path, team, document)
    yield from _of_judging(name, team, settings, document)
    yield from _of_budgets((*path, "budgets"), team.budgets, settings, document)
    for index, key in enumerate(team.keys):
        if isinstance(key, KeySettings):
            where = (*path, "keys", index)
            yield from of_key(where, key.rules, settings, document)


def of_key(
    path: KeyPath, rules: KeyRules, settings: Settings, document: Document
) -> Iterator[Problem]:
    """Those of what is set for one key, of the config file or not."""
    yield from _of_budgets((*path, "budgets"), rules.budgets, settings, document)
    known = {word for b in settings.backends for word in (b.full_name, b.model)}
    for word in rules.limits.backends or ():
        if word not in known:
            where = (*path, "limits", "backends")
            message = f"there is no backend {word!r}."
            yield document.problem(where, message)


def of_organisation(
    name: str, organisation: Organisation, settings: Settings, document: Document
) -> Iterator[Problem]:
    """Those of one organisation, of the config file or not."""
    path: KeyPath = ("organisations", name)
    yield from _in_zone(path, organisation.timezone, document)
    yield from _of_budgets((*path, "budgets"), organisation.budgets, settings, document)


def _of_budgets(
    path: KeyPath, budgets: Sequence[Budget], settings: Settings, document: Document
) -> Iterator[Problem]:
    if budgets and settings.server.workers > 1 and settings.redis.url is None:
        message = (
            f"each of {settings.server.workers} processes (server.workers) would keep these alone. "
            "Set redis.url."
        )
        yield document.problem(path, message)
    for index, budget in enumerate(budgets):
        given = (getattr(budget, name) for name in BUDGETED)
        if all(value is None for value in given):
            where = (*path, index)
            message = f"limits nothing. Name one of {', '.join(BUDGETED)}."
            yield document.problem(where, message)


def _in_zone(path: KeyPath, timezone: str, document: Document) -> Iterator[Problem]:
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        where = (*path, "timezone")
        message = f"{timezone!r} is not an IANA time zone, such as Europe/Berlin."
        yield document.problem(where, message)


def _in_expiry(path: KeyPath, team: Team, document: Document) -> Iterator[Problem]:
    for index, key in enumerate(team.keys):
        if isinstance(key, KeySettings) and key.expires is not None:
            try:
                datetime.fromisoformat(key.expires)
            except ValueError:
                where = (*path, "keys", index)
                message = f"'expires' is not an ISO 8601 time: {key.expires!r}."
                yield document.problem(where, message)


def _of_judging(name: str, team: Team, settings: Settings, document: Document) -> Iterator[Problem]:
    known = {word for b in settings.backends for word in (b.full_name, b.model)}
    judge = settings.judging.judge
    path: tuple[str | int, ...] = ("teams", name, "judging")

    def problem(message: str, where: tuple[str | int, ...] = path) -> Problem:
        return document.problem(where, message)

    if name == OVERHEAD:
        yield problem(
            f"{OVERHEAD!r} is the line of the books that judging stands on. Take another name.",
            path[:2],
        )
    for word in team.judging.backends:
        if word not in known:
            yield problem(f"there is no backend {word!r}.")
    if team.judging.share == 0.0:
        return
    if judge is None:
        yield problem("has a share, but judging.judge names no backend. Set it.")
        return
    found = [b for b in settings.backends if b.full_name == judge]
    if not found:
        where = ("judging", "judge")
        yield problem(f"there is no backend of the name {judge!r}.", where)
    elif not {judge, found[0].model} & set(team.judging.backends):
        yield problem(f"its prompts go to the judge too: add {judge!r} to 'backends'.")
