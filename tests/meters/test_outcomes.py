"""Which requests of a ledger say what answers take, and what they were scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from meters import outcomes
from meters.ledger import Ledger
from meters.types import Attribution, Evidence, UsageRecord
from tests.meters.books import NOON_S, attribution, record

HOUR_S = NOON_S + 3600.0


def second(number: int, shares: dict[str, float], **fields: Any) -> Attribution:
    """The window of second ``number`` of the hour."""
    times = {"start_s": NOON_S + number, "end_s": NOON_S + number + 1.0}
    return attribution(number, shares, **{**times, **fields})


def answer(number: int | str = 1, **fields: Any) -> UsageRecord:
    return record(number, **{"running": 3.0, **fields})


WHOLE = [second(10, {"req-1": 5.0}), second(11, {"req-1": 6.0})]


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    made = Ledger(ledger_url)
    yield made
    made.close()


def test_an_answer_took_the_sum_of_its_shares(ledger: Ledger) -> None:
    ledger.write([answer()], WHOLE)
    (found,), next_s = ledger.metered_answers("gpu-1", NOON_S, HOUR_S)
    assert found == outcomes.MeteredAnswer(
        backend="llama@bf16",
        prompt_tokens=100,
        cached_prompt_tokens=0,
        output_tokens=50,
        running=3.0,
        energy_j=pytest.approx(11.0),
        evidence=Evidence.METERED,
    )
    assert next_s == NOON_S + 15.0
    assert ledger.metered_answers("gpu-1", next_s, HOUR_S) == ([], HOUR_S)


@pytest.mark.parametrize(
    ("fields", "cached"),
    [
        ({"cached_prompt_tokens": 40, "likely_cached_tokens": 60}, 40),
        ({"likely_cached_tokens": 60}, 60),
        ({"cached_prompt_tokens": 0}, 0),
    ],
)
def test_what_of_the_prompt_was_cached_is_the_engines_word_or_what_was_expected(
    ledger: Ledger, fields: dict[str, Any], cached: int
) -> None:
    ledger.write([answer(**fields)], WHOLE)
    (found,), _ = ledger.metered_answers("gpu-1", NOON_S, HOUR_S)
    assert found.cached_prompt_tokens == cached


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({}, WHOLE[:1]),  # its last window is not in
        ({}, [WHOLE[0], second(12, {"req-1": 1.0})]),  # the meter was away for a second of two
        ({"running": None}, WHOLE),  # of a version that did not say
        ({"cache": "hit"}, WHOLE),
        ({"outcome": "cancelled"}, WHOLE),
        ({"output_tokens": 0}, WHOLE),
        ({"node": "elsewhere"}, WHOLE),
        ({"earlier": '[{"kind":"answer","node":"gpu-1"}]'}, WHOLE),
    ],
)
def test_what_says_nothing_of_one_answer_is_left_out(
    ledger: Ledger, fields: dict[str, Any], windows: list[Attribution]
) -> None:
    ledger.write([answer(**fields)], windows)
    assert ledger.metered_answers("gpu-1", NOON_S, HOUR_S)[0] == []


def test_only_its_own_nodes_joules_are_an_answers(ledger: Ledger) -> None:
    other = second(13, {"req-1": 9.0}, node="gpu-2", evidence=Evidence.SIMULATED)
    tried = answer(attempts=2, earlier='[{"kind":"answer","node":"gpu-2"}]')
    ledger.write([tried], [*WHOLE, other])
    (found,), _ = ledger.metered_answers("gpu-1", NOON_S, HOUR_S)
    assert (found.energy_j, found.evidence) == (pytest.approx(11.0), Evidence.METERED)


def test_whoever_asks_and_when_gets_the_same_answers_of_a_slot(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "MOST", 2)
    ends = (11.5, 10.5, 12.5, 21.0)
    records = [
        answer(n, sent_s=NOON_S + end - 0.5, end_s=NOON_S + end, output_tokens=n + 1)
        for n, end in enumerate(ends)
    ]
    windows = [second(n, {f"req-{r}": 1.0 for r in range(4)}) for n in range(10, 22)]
    ledger.write(records, windows)
    first, next_s = ledger.metered_answers("gpu-1", NOON_S, HOUR_S)
    assert [one.output_tokens for one in first] == [2, 1]  # in the order they ended, two at most
    assert next_s == NOON_S + 15.0
    later, next_s = ledger.metered_answers("gpu-1", next_s, NOON_S + 25.0)
    assert [one.output_tokens for one in later] == [4]
    assert next_s == NOON_S + 25.0
    assert ledger.latest_from("gpu-1", 2) == NOON_S + 12.5
    assert ledger.latest_from("gpu-1", 5) == 0.0


def test_scores_come_in_order_with_what_they_are_about(ledger: Ledger) -> None:
    ledger.write([answer(n, task="code", answer_budget="brief") for n in range(3)])
    given = [("req-1", 0.5, 20.0), ("req-0", 1.0, 10.0), ("req-2", 0.0, 5.0), ("lost", 1.0, 30.0)]
    for request_id, score, at_s in given:
        assert ledger.add_feedback(request_id, "caller", score, "search", at_s) is None
    found = ledger.scores(5.0, 100)
    assert [(one.request_id, one.at_s) for one in found] == [("req-0", 10.0), ("req-1", 20.0)]
    assert msgspec.structs.asdict(found[0]) == {
        "request_id": "req-0",
        "source": "caller",
        "at_s": 10.0,
        "score": 1.0,
        "backend": "llama@bf16",
        "task": "code",
        "team": "search",
        "prompt_tokens": 100,
        "answer_budget": "brief",
    }
    assert [one.request_id for one in ledger.scores(0.0, 1)] == ["req-1"]  # the latest


def test_the_same_score_again_is_no_new_one(ledger: Ledger) -> None:
    ledger.write([answer()])
    said = [(1.0, 1.0), (1.0, 2.0), (0.5, 3.0)]
    before = [ledger.add_feedback("req-1", "caller", s, "search", at) for s, at in said]
    assert before == [None, 1.0, 1.0]
    assert [(one.score, one.at_s) for one in ledger.scores(0.0, 10)] == [(0.5, 3.0)]
