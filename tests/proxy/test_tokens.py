"""Tokens of prompts: counted message by message, and long ones once."""

from __future__ import annotations

import pytest
import tiktoken

from proxy import tokens
from proxy.tokens import REMEMBERED_CHARS, TokenCounter

LONG = "In the beginning there was a long message, which every turn brings again. " * 40


class Counted:
    """An encoding that notes which texts it was given."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding
        self.given: list[str] = []

    def encode_ordinary(self, text: str) -> list[int]:
        self.given.append(text)
        return self._encoding.encode_ordinary(text)


@pytest.fixture
def counter() -> tuple[TokenCounter, Counted]:
    made = TokenCounter()
    assert made._encoding is not None
    counted = Counted(made._encoding)
    made._encoding = counted  # type: ignore[assignment]
    return made, counted


def test_each_turn_of_a_conversation_counts_only_what_is_new(
    counter: tuple[TokenCounter, Counted],
) -> None:
    made, counted = counter
    assert len(LONG) >= REMEMBERED_CHARS
    said, total = [LONG], made.count([LONG])
    for turn in range(5):
        said += [f"short {turn}", f"{LONG} {turn}"]
        counted.given.clear()
        total = made.count(said)
        assert f"{LONG} {turn}" in counted.given
        assert LONG not in counted.given
    whole = len(tiktoken.get_encoding("o200k_base").encode_ordinary("\n".join(said)))
    assert total == pytest.approx(whole, abs=len(said))


def test_it_remembers_no_more_than_so_many(
    counter: tuple[TokenCounter, Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, counted = counter
    monkeypatch.setattr(tokens, "MOST_REMEMBERED", 10)
    lengths = [made.count([f"{LONG} {number}"]) for number in range(100)]
    assert len(made._remembered) <= 10
    counted.given.clear()
    assert made.count([f"{LONG} 99"]) == lengths[99]
    assert counted.given == []
    assert made.count([f"{LONG} 0"]) == lengths[0]
    assert counted.given == [f"{LONG} 0"]


def test_nothing_is_still_counted(counter: tuple[TokenCounter, Counted]) -> None:
    assert counter[0].count([]) == counter[0].count([""]) == 0
