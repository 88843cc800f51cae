"""The policies of a config, and what is wrong with them, in lines of the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from estimators.types import Backend, Features, Load
from policies.findings import Finding, TeamRules, check_figures, check_policies
from policies.language import Book, mistakes, read_policies
from policies.types import Candidate
from proxy import contradictions
from proxy.auth import limits_of
from proxy.config_file import ConfigError, Document, Problem, key_text
from proxy.predicting import Predictors
from proxy.settings import (
    Budget,
    KeyRules,
    KeySettings,
    Organisation,
    Settings,
    Team,
)

_NOWHERE = Document("", None, {}, [])  # no file stands behind it
SHORTEST = Features(prompt_tokens=1, max_tokens=1)  # what any limit must leave room for


def book_of(settings: Settings, document: Document | None = None) -> Book:
    """Every policy by name. Raises ConfigError with one mistake of each policy that has any."""
    problems = [
        Problem(
            document.line(("policies", *error.path)) if document else 0,
            key_text(("policies", *error.path)),
            error.message + (f". Did you mean {error.nearest!r}?" if error.nearest else ""),
        )
        for error in mistakes(settings.policies)
    ]
    if problems:
        raise ConfigError(document.path if document else "config", problems)
    return read_policies(settings.policies)


def findings(settings: Settings, book: Book, facts: Mapping[str, Backend]) -> list[Finding]:
    """What is well-formed in the policies and still cannot be meant."""
    found = check_policies(book, list(facts.values()), _rules(settings), settings.default_policy)
    return found + _unknown(settings, book)


def unkept(settings: Settings, book: Book, facts: Mapping[str, Backend]) -> list[Finding]:
    """Limits that by today's estimates not even the shortest request keeps."""
    backends = list(facts.values())
    estimator = Predictors(
        model=settings.quality_model, folder=Path(settings.state_dir), estimator=settings.estimator
    )
    estimator.know(backends)
    loads = [Load() for _ in backends]
    estimates = estimator.estimate(SHORTEST, backends, loads)
    shortest = list(map(Candidate, backends, estimates, loads))
    return check_figures(book, shortest, _rules(settings))


def left_without(settings: Settings, book: Book, teams: Mapping[str, Team]) -> Iterator[Problem]:
    """Policies that teams of the ledger name and these settings have no more: each of their
    requests would be refused."""
    for name, team in teams.items():
        if name in settings.teams:
            continue  # those of the config are looked at with it
        for policy in (team.policy, *(budget.fallback_policy for budget in team.budgets)):
            if policy is not None and policy not in book.policies:
                message = f"there is no policy {policy!r}, and the team {name!r} of the ledger "
                yield Problem(0, "policies", message + "uses it. Keep it, or change the team.")


def _rules(settings: Settings) -> dict[str, TeamRules]:
    return {
        name: TeamRules(
            policy=team.policy, limits=limits_of(team.limits), answer_budgets=team.answer_budgets
        )
        for name, team in settings.teams.items()
    }


def _unknown(settings: Settings, book: Book) -> list[Finding]:
    """Policies that budgets fall back to, or teams may choose, and that there are none of."""
    named: list[tuple[tuple[str | int, ...], str | None]] = []
    for name, team in settings.teams.items():
        at: tuple[str | int, ...] = ("teams", name)
        named += [((*at, "policies"), policy) for policy in team.policies or ()]
        named += [((*at, "budgets"), budget.fallback_policy) for budget in team.budgets]
        for index, key in enumerate(team.keys):
            budgets = key.budgets if isinstance(key, KeySettings) else []
            named += [((*at, "keys", index), budget.fallback_policy) for budget in budgets]
    for name, organisation in settings.organisations.items():
        for budget in organisation.budgets:
            named.append((("organisations", name), budget.fallback_policy))
    return [
        Finding("unknown_name", True, path, f"there is no policy {policy!r}.")
        for path, policy in named
        if policy is not None and policy not in book.policies
    ]


def mistakes_of_team(name: str, team: Team, settings: Settings) -> list[str]:
    """Why a team that is not in the config file cannot be set like this; empty where it can."""
    found = [str(problem) for problem in contradictions.of_team(name, team, settings, _NOWHERE)]
    book = book_of(settings)
    alone = msgspec.structs.replace(settings, teams={name: team}, organisations={})
    found += [f"{key_text(f.path)}: {f.message}" for f in _unknown(alone, book)]
    if team.policy is not None and team.policy not in book.policies:
        found.append(f"teams.{name}.policy: there is no policy {team.policy!r}.")
    return found


def mistakes_of_key(key_id: str, rules: KeyRules, settings: Settings) -> list[str]:
    """Why a key that is not in the config file cannot be ruled like this; empty where it can."""
    path = ("keys", key_id) if key_id else ("key",)
    found = [str(p) for p in contradictions.of_key(path, rules, settings, _NOWHERE)]
    return found + _unknown_fallbacks(path, rules.budgets, settings)


def mistakes_of_organisation(
    name: str, organisation: Organisation, settings: Settings
) -> list[str]:
    """The same of an organisation."""
    found = [str(p) for p in contradictions.of_organisation(name, organisation, settings, _NOWHERE)]
    path = ("organisations", name)
    return found + _unknown_fallbacks(path, organisation.budgets, settings)


def _unknown_fallbacks(
    path: tuple[str, ...], budgets: Sequence[Budget], settings: Settings
) -> list[str]:
    book = book_of(settings)
    return [
        f"{key_text((*path, 'budgets'))}: there is no policy {budget.fallback_policy!r}."
        for budget in budgets
        if budget.fallback_policy is not None and budget.fallback_policy not in book.policies
    ]


def refuse_errors(found: list[Finding], document: Document | None) -> list[str]:
    """The warnings among the findings. Raises ConfigError when there are errors."""
    problems = [
        Problem(document.line(f.path) if document else 0, key_text(f.path), f.message)
        for f in found
        if f.error
    ]
    if problems:
        raise ConfigError(document.path if document else "config", problems)
    return [str(f) for f in found if not f.error]
