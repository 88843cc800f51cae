from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meters.prefixes import COARSE_CHARACTERS, FINE, Prefixes, blocks_of, characters

LONG = "".join(f"{i:06d}" for i in range(3_000))


def test_what_begins_as_an_earlier_prompt_was_cached_as_far_as_it_does() -> None:
    engine = Prefixes()
    first = engine.sent(("a", "ab", "abc"))
    assert first.cached() == 0
    first.first_token(1.0)
    second = engine.sent(("a", "ab", "abx", "abxy"))
    second.first_token(2.0)
    assert second.cached() == 2
    third = engine.sent(("a", "ab", "abx", "abz"))
    third.first_token(3.0)
    assert third.cached() == 3  # two of the first, one of the second
    assert engine.sent(("b", "ab")).cached() == 0  # not from its beginning


def test_a_prompt_whose_first_token_had_not_come_was_in_no_cache() -> None:
    engine = Prefixes()
    slow, quick = engine.sent(("a", "ab")), engine.sent(("a", "ab"))
    quick.first_token(1.0)
    slow.first_token(2.0)
    assert quick.cached() == 0
    late = engine.sent(("a", "ab"))
    assert late.cached() == 2  # both are done by now
    late.first_token(1.5)
    assert late.cached() == 0  # but when it was its turn, the one that had it first was not


def test_a_prompt_that_never_got_a_token_left_nothing() -> None:
    engine = Prefixes()
    engine.sent(("a", "ab")).ended()
    again = engine.sent(("a", "ab"))
    assert again.cached() == 0
    again.first_token(1.0)
    again.ended()
    assert engine.sent(("a", "ab")).cached() == 2


def test_the_longest_unused_is_forgotten_first() -> None:
    engine = Prefixes(most_blocks=4)
    for number, prompt in enumerate((("a", "ab"), ("c", "cd"), ("a", "ab"), ("e", "ef"))):
        engine.sent(prompt).first_token(float(number))
    assert len(engine) == 4
    assert engine.sent(("a", "ab")).cached() == 2
    assert engine.sent(("c", "cd")).cached() == 0


def test_text_is_known_again_by_blocks_and_only_under_the_same_name() -> None:
    one, other = blocks_of(LONG), blocks_of(LONG[:9_000] + "!" + LONG[9_000:])
    same = sum(a == b for a, b in zip(one, other, strict=False))
    assert one[:same] == other[:same]
    assert one[same] != other[same]
    assert 9_000 - COARSE_CHARACTERS < characters(same) <= 9_000
    assert not set(one) & set(blocks_of(LONG, "another model"))
    assert not any(isinstance(block, str) for block in one)


@given(st.integers(0, len(LONG)))
def test_blocks_are_as_much_text_as_they_say(size: int) -> None:
    blocks = len(blocks_of(LONG[:size]))
    assert characters(blocks) <= size < characters(blocks + 1)
    assert blocks <= FINE + size / COARSE_CHARACTERS
