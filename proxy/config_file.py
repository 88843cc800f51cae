"""Reading a YAML file strictly: every mistake is reported with its line, key and nearest key.

Knows nothing of what the settings mean; settings.py says which struct a file should become.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from policies.wording import nearest

T = TypeVar("T")
KeyPath = tuple[str | int, ...]
_MERGE = "tag:yaml.org,2002:merge"
_DATE = "tag:yaml.org,2002:timestamp"


class Problem(msgspec.Struct, frozen=True, order=True):
    """One mistake in a config file."""

    line: int  # 1-based; 0 when the file as a whole is meant
    key: str  # "backends[0].url"
    message: str  # a sentence that says what to do

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.key + ': ' if self.key else ''}{self.message}"


class ConfigError(Exception):
    """The file cannot be used; ``problems`` has every mistake found in it."""

    def __init__(self, path: str, problems: list[Problem]) -> None:
        self.path = path
        self.problems = sorted(problems)
        lines = "\n".join(f"  {p}" for p in self.problems)
        count = f"{len(problems)} mistake{'s' if len(problems) != 1 else ''}"
        super().__init__(f"{path} has {count}:\n{lines}")


class Document(msgspec.Struct, frozen=True):
    """A YAML file's value, with the line that every key and item stands on."""

    path: str
    value: Any
    lines: dict[KeyPath, int]
    problems: list[Problem]

    def line(self, path: KeyPath) -> int:
        """The line of that key, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A mistake at that key; ``message`` says what to do."""
        return Problem(self.line(path), key_text(path), message)


def read(path: str, environment: Mapping[str, str] | None = None) -> Document:
    """The file's value, ``os.environ/NAME`` replaced. Raises ConfigError when it is not YAML."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        message = f"cannot be read ({error.strerror}). Name an existing file with --config."
        raise ConfigError(path, [Problem(0, "", message)]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(path, [Problem(0, "", f"is not UTF-8 text ({error.reason}).")]) from None
    return parse(text, path, environment)


def parse(text: str, path: str, environment: Mapping[str, str] | None = None) -> Document:
    """Like `read`, from text."""
    environment = os.environ if environment is None else environment
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = Problem(line, "", f"not valid YAML: {error.problem}. Check the indentation.")
        raise ConfigError(path, [problem]) from None
    except yaml.YAMLError as error:
        raise ConfigError(path, [Problem(0, "", f"not valid YAML: {error}")]) from None
    document = Document(path, None, {}, [])
    if root is None:
        return Document(path, {}, {(): 1}, [])
    scalars = yaml.SafeLoader("")
    try:
        environment = {**_given_environment(root, scalars, environment), **environment}
        value = _build(root, (), document, scalars, environment)
    except yaml.MarkedYAMLError as error:  # a tag that nobody knows, something odd merged
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError(path, [Problem(line, "", f"{error.problem}. Take it out.")]) from None
    except RecursionError:
        raise ConfigError(path, [Problem(0, "", "an anchor is part of itself.")]) from None
    return Document(path, value, document.lines, document.problems)


def _given_environment(
    root: yaml.Node, scalars: yaml.SafeLoader, environment: Mapping[str, str]
) -> dict[str, str]:
    """The file's own ``environment_variables``, which ``os.environ/NAME`` finds too."""
    if not isinstance(root, yaml.MappingNode):
        return {}
    for key, value in root.value:
        if key.value == "environment_variables" and isinstance(value, yaml.MappingNode):
            given = {k.value: str(scalars.construct_object(v)) for k, v in value.value}
            return {
                name: environment.get(text.removeprefix("os.environ/"), "")
                if text.startswith("os.environ/")
                else text
                for name, text in given.items()
            }
    return {}


def _build(
    node: yaml.Node,
    path: KeyPath,
    document: Document,
    scalars: yaml.SafeLoader,
    environment: Mapping[str, str],
) -> Any:
    line = node.start_mark.line + 1
    document.lines.setdefault(path, line)
    if isinstance(node, yaml.MappingNode):
        built: dict[str, Any] = {}
        given: set[str] = set()
        for key_node, value_node, own in _pairs(node):
            key = str(scalars.construct_object(key_node))
            inner = (*path, key)
            if key in given:
                first = document.lines[inner]
                message = f"given twice, first in line {first}. Keep one of them."
                document.problems.append(
                    Problem(key_node.start_mark.line + 1, key_text(inner), message)
                )
            if own:
                given.add(key)
            document.lines[inner] = key_node.start_mark.line + 1
            built[key] = _build(value_node, inner, document, scalars, environment)
        return built
    if isinstance(node, yaml.SequenceNode):
        return [
            _build(item, (*path, index), document, scalars, environment)
            for index, item in enumerate(node.value)
        ]
    if node.tag == _DATE:
        return node.value  # times are text here, with or without quotes
    value = scalars.construct_object(node, deep=True)
    if isinstance(value, str) and value.startswith("os.environ/"):
        name = value.removeprefix("os.environ/")
        if name not in environment:
            message = f"the environment variable {name} is not set. Export it, or give a value."
            document.problems.append(Problem(line, key_text(path), message))
            return ""
        return environment[name]
    return value


def _pairs(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
    """Keys and values, and whether they are the mapping's own: what ``<<`` merges comes first, so
    that others take its place."""
    for key, value in node.value:
        if key.tag == _MERGE:
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for one in reversed(merged):  # the first of them counts
                if not isinstance(one, yaml.MappingNode):
                    raise yaml.constructor.ConstructorError(
                        None, None, "'<<' merges mappings, and this is none", value.start_mark
                    )
                yield from ((k, v, False) for k, v, _ in _pairs(one))
    yield from ((k, v, True) for k, v in node.value if k.tag != _MERGE)


def convert(document: Document, kind: type[T]) -> T:
    """The document as ``kind``, a msgspec Struct. Raises ConfigError with every mistake where it
    cannot be that; what else is in ``document.problems`` is the caller's to raise."""
    problems: list[Problem] = []
    _check(document.value, kind, (), document, problems)
    if problems:
        raise ConfigError(document.path, [*document.problems, *problems])
    try:
        return msgspec.convert(document.value, kind, strict=False)
    except msgspec.ValidationError as error:  # pragma: no cover - _check finds these first
        raise ConfigError(document.path, [document.problem((), str(error))]) from None


def _check(
    value: Any, kind: Any, path: KeyPath, document: Document, problems: list[Problem]
) -> None:
    whole = kind  # with its bounds, for the last check
    kind = bare(kind)
    if value is None and type(None) in get_args(kind):
        return
    for option in get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,):
        option = bare(option)
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            if isinstance(value, dict):
                _check_struct(value, option, path, document, problems)
                return
            if kind is option:
                message = f"should be a mapping of keys to values, not {_named(value)}."
                problems.append(document.problem(path, message))
                return
        origin, args = get_origin(option), get_args(option)
        if origin in (list, tuple) and isinstance(value, list):
            for index, item in enumerate(value):
                _check(item, args[0], (*path, index), document, problems)
            return
        if origin is dict and isinstance(value, dict):
            for key, item in value.items():
                _check(item, args[1], (*path, key), document, problems)
            return
    try:
        msgspec.convert(value, whole, strict=False)
    except msgspec.ValidationError as error:
        text = str(error).split(" - at ")[0]
        message = f"{text[0].lower()}{text[1:]}; it is {value!r}."
        if text.startswith("Expected `str") and isinstance(value, bool | int | float):
            message += " Put it in quotes."
        words = _words(whole)
        if words and (not isinstance(value, str) or value not in words):
            close = nearest(value, words)
            hint = f" Did you mean {close!r}?" if close else ""
            message = f"should be one of {', '.join(words)}, not {value!r}.{hint}"
        problems.append(document.problem(path, message))


def _check_struct(
    value: dict[str, Any],
    kind: type[msgspec.Struct],
    path: KeyPath,
    document: Document,
    problems: list[Problem],
) -> None:
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key, item in value.items():
        inner = (*path, key)
        if key in fields:
            _check(item, hints[fields[key].name], inner, document, problems)
            continue
        problems.append(unknown_key(document, inner, list(fields)))
    for name, field in fields.items():
        if field.required and name not in value:
            message = f"{name!r} is missing. Add it."
            problems.append(document.problem(path, message))


def unknown_key(document: Document, path: KeyPath, known: list[str]) -> Problem:
    """The mistake of a key nobody reads, with the nearest known one."""
    close = nearest(path[-1], known)
    hint = f"Did you mean {close!r}?" if close else f"Known keys: {', '.join(sorted(known))}."
    return document.problem(path, f"unknown key {path[-1]!r}. {hint}")


def key_text(path: KeyPath) -> str:
    """("backends", 0, "url") as "backends[0].url"."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _words(kind: Any) -> list[str]:
    """The words that a setting may be; empty where it may be something else, too."""
    kind = bare(kind)
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    words: list[str] = []
    for option in map(bare, options):
        if get_origin(option) is Literal:
            words += map(str, get_args(option))
        elif isinstance(option, type) and issubclass(option, Enum):
            words += [str(member.value) for member in option]
        elif option is not type(None):
            return []
    return words


def bare(kind: Any) -> Any:
    """A type without its bounds and help."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _named(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "nothing"}.get(type(value), repr(value))
