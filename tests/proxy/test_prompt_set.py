"""A prompt set is read strictly, and answers are checked as its lines say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy import prompt_set
from proxy.prompt_set import BadPromptSet, Check

PERSON = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(
    ("check", "answer", "score"),
    [
        ({"exact": "4"}, " 4\n", 1.0),
        ({"exact": "4"}, "It is 4", 0.0),
        ({"regex": r"(?i)\bberlin\b"}, "That is Berlin.", 1.0),
        ({"regex": r"^Berlin"}, "That is Berlin.", 0.0),
        ({"schema": PERSON}, '{"name": "Ada"}', 1.0),
        ({"schema": PERSON}, 'Here:\n```json\n{"name": "Ada"}\n```', 1.0),
        ({"schema": PERSON}, '{"name": 4}', 0.0),
        ({"schema": PERSON}, "Ada", 0.0),
        ({"tests": "assert add(1, 2) == 3"}, "```python\ndef add(a, b): return a + b\n```", 1.0),
        ({"tests": "assert add(1, 2) == 3"}, "```python\ndef add(a, b): return a - b\n```", 0.0),
        ({"tests": "assert add(1, 2) == 3"}, "I would rather not.", 0.0),
    ],
)
def test_checks_an_answer(check: dict[str, Any], answer: str, score: float) -> None:
    assert prompt_set.score(Check(**check), answer) == score


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2"),
        ('{"prompt": "a", "messages": []}', "one of them"),
        ('{"prompt": "a", "chekc": {}}', "chekc"),
        ('{"prompt": "a", "check": {"exac": "b"}}', "'exac' in check. Did you mean 'exact'"),
        ('{"prompt": "a", "check": {}}', "should name one"),
        ('{"prompt": "a", "check": {"exact": "b", "regex": "c"}}', "should name one"),
        ('{"prompt": "a", "check": {"regex": "("}}', "regex"),
        ('{"prompt": "a", "check": {"schema": {"type": "objct"}}}', "schema"),
    ],
)
def test_says_which_line_is_wrong(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('\ufeff{"prompt": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(BadPromptSet, match=says) as caught:
        prompt_set.read(str(path))
    assert "line 2" in str(caught.value)


def test_an_item_is_the_same_wherever_it_stands_and_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    lines = [json.dumps({"prompt": text}) for text in ("a", "b", "a")]
    path.write_text("\n".join(lines))
    assert [item.prompt for item in prompt_set.read(str(path))] == ["a", "b"]
    path.write_text("\n".join(reversed(lines[:2])))
    assert {i.key for i in prompt_set.read(str(path))} == {
        i.key for i in prompt_set.read(str(path))
    }


def test_a_missing_or_empty_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadPromptSet, match="Name a readable"):
        prompt_set.read(str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(BadPromptSet, match="no prompts"):
        prompt_set.read(str(tmp_path / "empty"))
