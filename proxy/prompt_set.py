"""A team's own prompts with what a good answer is: JSON Lines, one prompt a line.

    {"prompt": "2+2? Only the number.", "check": {"exact": "4"}}
    {"messages": [...], "check": {"regex": "(?i)berlin"}, "max_tokens": 50}
    {"prompt": "A person as JSON.", "check": {"schema": {"type": "object", "required": ["name"]}}}
    {"prompt": "Write add(a, b).", "check": {"tests": "assert add(1, 2) == 3"}}
    {"prompt": "Explain tides.", "check": {"judge": true}}

A line without a check is judged where there is a judge, and else only its energy is measured.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import orjson

from estimators.text import coarse_task
from proxy import sandbox
from proxy.jsonl import BadLine, numbered_lines

_FENCE = re.compile(r"```[\w+-]*\n(.*?)```", re.DOTALL)


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What makes an answer good; exactly one is given."""

    exact: str | None = None  # the whole answer, spaces around it aside
    regex: str | None = None  # found anywhere in it
    schema: dict[str, Any] | None = None  # its JSON, or that of its fenced block, is valid
    tests: str | None = None  # Python that passes after the answer's code
    judge: bool | None = None  # compared with the first backend's answer

    def problem(self) -> str | None:
        """What is wrong with it; None where it can be used."""
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        if len(given) != 1:
            return f"'check' should name one of {', '.join(self.__struct_fields__)}"
        try:
            if self.regex is not None:
                re.compile(self.regex)
            if self.schema is not None:
                jsonschema.validators.validator_for(self.schema).check_schema(self.schema)
        except re.error as error:
            return f"the regex cannot be read ({error})"
        except jsonschema.SchemaError as error:
            return f"the schema is none ({error.message})"
        return None


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a prompt set."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    system: str | None = None
    check: Check | None = None
    max_tokens: int | None = None
    task: str | None = None  # its kind; else found from its words

    @property
    def key(self) -> str:
        """The same for the same line, whatever its place."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    @property
    def chat(self) -> list[dict[str, Any]]:
        if self.messages is not None:
            return self.messages
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt or ""}]

    @property
    def kind(self) -> str:
        last = self.chat[-1].get("content") if self.chat else ""
        return self.task or coarse_task(last if isinstance(last, str) else "")

    @property
    def judged(self) -> bool:
        return self.check is None or bool(self.check.judge)


class BadPromptSet(Exception):
    """A prompt set that cannot be used; the message names the line and what to change."""


def read(path: str) -> list[Item]:
    """The items of a file, each once. Raises BadPromptSet."""
    items: dict[str, Item] = {}
    try:
        lines = list(numbered_lines(path, Item))
    except BadLine as error:
        raise BadPromptSet(str(error)) from None
    for number, item in lines:
        if (item.prompt is None) == (item.messages is None):
            raise BadPromptSet(f"{path}, line {number}: give 'prompt' or 'messages', one of them")
        problem = item.check.problem() if item.check else None
        if problem:
            raise BadPromptSet(f"{path}, line {number}: {problem}")
        items[item.key] = item
    if not items:
        raise BadPromptSet(f"{path} has no prompts.")
    return list(items.values())


def score(check: Check, answer: str) -> float:
    """1 where an answer passes, else 0. Not for ``judge``."""
    if check.exact is not None:
        return float(answer.strip() == check.exact.strip())
    if check.regex is not None:
        return float(re.search(check.regex, answer) is not None)
    if check.tests is not None:
        return float(sandbox.passes(fenced(answer), check.tests))
    try:
        value = orjson.loads(fenced(answer))
        jsonschema.validate(value, check.schema or {})
    except (json.JSONDecodeError, jsonschema.ValidationError):
        return 0.0
    return 1.0


def fenced(answer: str) -> str:
    """The fenced blocks of an answer, one after the other; all of it when it has none."""
    blocks = _FENCE.findall(answer)
    return "\n".join(blocks) if blocks else answer
