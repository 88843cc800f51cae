"""A config file, ours or LiteLLM's, as settings; nothing reads the environment later."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from proxy import config_file, litellm_config
from proxy.config_file import ConfigError, Document, Problem
from proxy.contradictions import contradictions
from proxy.settings import Settings


class Loaded(msgspec.Struct, frozen=True):
    """Settings with where they came from."""

    settings: Settings
    document: Document
    format: str  # "Joulegate" | "LiteLLM"
    honoured: list[str]
    not_honoured: list[str]


def interpret(document: Document, problems: list[Problem] | None = None) -> Loaded:
    """The settings in a document, ours or LiteLLM's. Raises ConfigError with every mistake; with
    ``problems`` those that leave settings that can be read are put there instead."""
    if not litellm_config.is_litellm(document.value):
        return Loaded(from_document(document, problems), document, "Joulegate", [], [])
    theirs = litellm_config.translate(document)
    settings = from_document(theirs.document, problems)
    return Loaded(settings, theirs.document, "LiteLLM", theirs.honoured, theirs.not_honoured)


def load(path: str, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in a config file, ours or LiteLLM's. Raises ConfigError with every mistake."""
    return interpret(config_file.read(path, environment)).settings


def from_document(document: Document, problems: list[Problem] | None = None) -> Settings:
    """Likewise, of ours."""
    if not isinstance(document.value, dict):
        raise ConfigError(document.path, [Problem(1, "", "should be a mapping of settings.")])
    settings = config_file.convert(document, Settings)
    known = {problem.line for problem in document.problems}
    found = [p for p in contradictions(settings, document) if p.line not in known]
    found += document.problems
    if problems is not None:
        problems += found
    elif found:
        raise ConfigError(document.path, found)
    return settings
