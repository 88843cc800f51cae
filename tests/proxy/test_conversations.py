from __future__ import annotations

import pytest

from proxy import conversations
from proxy.conversations import Conversations, called


def test_a_turn_is_found_by_its_prefix_and_only_in_its_team() -> None:
    known = Conversations()
    known.went("t", None, 11, "req_1", "m@a", 400)
    assert known.before("t", None, 11) == ("req_1", "m@a", 400)
    assert known.before("u", None, 11) is None
    assert known.before("t", None, 12) is None
    assert known.before("t", None, None) is None


def test_a_session_that_goes_on_from_its_last_turn_has_that_cached_and_another_has_nothing() -> (
    None
):
    known = Conversations()
    known.went("t", "s", 11, called("t", "s"), "m@a", 400)
    assert known.before("t", "s", 11) == (called("t", "s"), "m@a", 400)
    assert known.before("t", "s", 99) == (called("t", "s"), "m@a", 0)
    known.went("t", None, 11, "req_2", "m@b", 400)  # the same words, elsewhere and unnamed
    assert known.before("t", "s", 11) == (called("t", "s"), "m@a", 0)


def test_how_much_of_a_prefix_an_engine_has_is_learnt() -> None:
    known = Conversations()
    known.went("t", None, 11, "req_1", "m@a", 400)
    for _ in range(200):
        known.saw("m@a", 400, 0)
    turn = known.before("t", None, 11)
    assert turn is not None
    assert turn.tokens < 10
    assert turn.backend == "m@a"


def test_the_oldest_are_forgotten() -> None:
    known = Conversations()
    for number in range(conversations.MOST + 5_000):
        known.went("t", None, number, "r", "m", 1)
    assert len(known) <= conversations.MOST + 1
    assert known.before("t", None, 0) is None
    assert known.before("t", None, conversations.MOST + 4_999) is not None


def test_what_another_replica_told_is_known_unless_something_later_is() -> None:
    one, other = Conversations(), Conversations()
    one.went("t", "s", 11, called("t", "s"), "m@a", 400)
    other.heard(one.told())
    other.heard(one.told())  # it is told for some seconds
    assert other.before("t", "s", 11) == (called("t", "s"), "m@a", 400)
    assert other.told() == []  # it is not passed on
    other.went("t", "s", 12, called("t", "s"), "m@b", 500)
    other.heard(one.told())
    assert other.before("t", "s", 12) == (called("t", "s"), "m@b", 500)
    assert "s" not in {went.key for went in one.told()}


def test_only_the_last_seconds_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Conversations()
    known.went("t", "s", 11, called("t", "s"), "m@a", 400)
    monkeypatch.setattr(conversations, "TOLD_S", -1.0)
    assert known.told() == []
