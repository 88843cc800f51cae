"""What is refused, repaired and accepted of what agents send, each by its rule."""

from __future__ import annotations

import itertools
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meters.intake import MAX_BATCH_BYTES, Submission, Verdict, WindowIntake
from meters.types import Evidence, Window

NOW_S = 1_700_000_000.0


def window(number: int = 0, **changes: Any) -> Window:
    fields: dict[str, Any] = {
        "window_id": f"gpu-1:run:{number}",
        "node": "gpu-1",
        "start_s": NOW_S - 1000 + number,
        "end_s": NOW_S - 999 + number,
        "energy_j": 300.0,
        "meter": "nvml",
    }
    return Window(**{**fields, **changes})


class Desk:
    """An intake, and what it handed over."""

    def __init__(self, **changes: Any) -> None:
        self.kept: list[Window] = []
        self.now_s = NOW_S
        self.failing = False
        settings: dict[str, Any] = {
            "tokens": {"right": None, "only-2": {"gpu-2"}},
            "known_nodes": {"gpu-1", "gpu-2"},
            "clock": lambda: self.now_s,
            "on_window": self.keep,
        }
        self.intake = WindowIntake(**{**settings, **changes})

    def keep(self, window: Window) -> None:
        if self.failing:
            raise RuntimeError("the ledger is away")
        self.kept.append(window)

    def send(self, *windows: Window, token: str = "right", **about: Any) -> tuple[int, Verdict]:
        about.setdefault("sent_s", self.now_s)
        body = msgspec.json.encode(Submission(windows=list(windows), **about))
        status, answer = self.intake.accept(token, body)
        return status, msgspec.json.decode(answer, type=Verdict)

    def refused(self, *windows: Window, **about: Any) -> list[str]:
        status, verdict = self.send(*windows, **about)
        assert status == 200
        return [r.reason for r in verdict.refused]


def test_good_windows_are_accepted_and_handed_over() -> None:
    desk = Desk()
    status, verdict = desk.send(window(0), window(1))
    assert (status, verdict.accepted, verdict.refused) == (200, 2, [])
    assert desk.kept == [window(0), window(1)]
    node = desk.intake.nodes()["gpu-1"]
    assert (node.last_end_s, node.meter, node.missing) == (window(1).end_s, "nvml", 0)


@pytest.mark.parametrize("token", ["", "wrong", "righ", "right "])
def test_a_wrong_token_is_refused_whole(token: str) -> None:
    desk = Desk()
    status, verdict = desk.send(window(0), token=token)
    assert status == 401
    assert "token" in (verdict.message or "")
    assert desk.kept == []
    assert desk.intake.counts["refused", "wrong_token"] == 1
    assert desk.intake.accept(None, b"{}")[0] == 401
    assert desk.intake.time(token)[0] == 401


def test_without_any_token_configured_nobody_gets_in() -> None:
    assert Desk(tokens={}).send(window(0), token="")[0] == 401
    assert Desk(tokens={}).send(window(0), token="x")[0] == 401


def test_a_token_speaks_for_its_own_nodes_only() -> None:
    desk = Desk()
    assert desk.refused(window(0), token="only-2") == ["foreign_node"]
    assert desk.refused(window(0, node="gpu-2"), token="only-2") == []


def test_nothing_is_metered_on_a_simulated_engine() -> None:
    desk = Desk(simulated_nodes={"gpu-2"})
    simulated = window(0, node="gpu-2", evidence=Evidence.SIMULATED)
    assert desk.refused(window(1, node="gpu-2")) == ["evidence"]
    assert desk.refused(simulated, window(2)) == []
    assert desk.intake.refused_j == {"evidence": 300.0}


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"windows": [{"node": 1}]}', b"\xff\xfe"])
def test_what_is_no_batch_is_refused_with_a_reason(payload: bytes) -> None:
    desk = Desk()
    status, body = desk.intake.accept("right", payload)
    assert status == 400
    assert b"Not a batch" in body


def test_a_batch_that_is_too_large_is_refused_unread() -> None:
    assert Desk().intake.accept("right", b" " * (MAX_BATCH_BYTES + 1))[0] == 413


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"node": "gpu-9"}, "unknown_node"),
        ({"energy_j": -1.0}, "negative"),
        ({"generated_tokens": -5.0}, "negative"),
        ({"host_energy_j": -0.1}, "negative"),
        ({"end_s": NOW_S - 1000.5}, "interval"),
        ({"end_s": NOW_S - 1000}, "interval"),
        ({"window_id": ""}, "interval"),
        ({"energy_j": 3e5}, "implausible"),
        ({"evidence": Evidence.CALIBRATED}, "evidence"),
        ({"start_s": NOW_S + 60, "end_s": NOW_S + 61}, "future"),
        ({"start_s": NOW_S - 5e6, "end_s": NOW_S - 5e6 + 1}, "too_old"),
    ],
)
def test_each_bad_window_is_refused_by_name_and_the_rest_goes_through(
    changes: dict[str, Any], reason: str
) -> None:
    desk = Desk()
    assert desk.refused(window(1, **changes), window(2)) == [reason]
    assert [w.window_id for w in desk.kept] == ["gpu-1:run:2"]
    assert desk.intake.counts["refused", reason] == 1
    if changes.get("energy_j", 1.0) > 0:
        assert desk.intake.refused_j[reason] > 0


def test_the_same_window_twice_changes_nothing() -> None:
    desk = Desk()
    desk.send(window(0))
    _, again = desk.send(window(0), window(1))
    assert (again.accepted, again.duplicates, again.refused) == (1, 1, [])
    assert [w.window_id for w in desk.kept] == ["gpu-1:run:0", "gpu-1:run:1"]


def test_windows_out_of_order_are_taken_and_counted() -> None:
    desk = Desk()
    numbers = list(range(50))
    random.Random(1).shuffle(numbers)
    for n in numbers:
        assert desk.refused(window(n)) == []
    assert len(desk.kept) == 50
    assert desk.intake.counts["accepted", "out_of_order"] > 10
    assert desk.intake.nodes()["gpu-1"].missing == 0


def test_an_overlap_of_clocks_is_trimmed_and_keeps_its_energy() -> None:
    desk = Desk()
    early = window(1, start_s=window(1).start_s - 0.02)
    _, verdict = desk.send(window(0), early)
    assert verdict.repaired == {"trimmed": 1}
    assert desk.kept[1].start_s == desk.kept[0].end_s
    assert desk.kept[1].energy_j == early.energy_j


def test_an_overlap_that_is_no_clock_error_is_refused() -> None:
    desk = Desk()
    inside = window(1, start_s=window(0).start_s + 0.2, end_s=window(0).start_s + 0.7)
    assert desk.refused(window(0), inside) == ["overlapping"]
    around = window(2, start_s=window(0).start_s - 5, end_s=window(0).end_s + 5)
    assert desk.refused(around) == ["overlapping"]
    assert len(desk.kept) == 1
    other_node = window(3, node="gpu-2", start_s=window(0).start_s, end_s=window(0).end_s)
    assert desk.refused(other_node) == []


def test_an_agent_that_knows_its_clock_badly_may_overlap_by_as_much() -> None:
    desk = Desk()
    early = window(1, start_s=window(1).start_s - 0.2)
    assert desk.refused(window(0), early, clock_error_s=0.15) == []
    assert Desk().refused(window(0), early, clock_error_s=0.01) == ["overlapping"]


@pytest.mark.parametrize("off_s", [3600.0, -3600.0, 86_400.0])
def test_a_clock_an_hour_off_is_put_right(off_s: float) -> None:
    desk = Desk()
    told = window(0, start_s=window(0).start_s + off_s, end_s=window(0).end_s + off_s)
    _, verdict = desk.send(told, sent_s=NOW_S + off_s)
    assert verdict.repaired == {"clock": 1}
    assert desk.kept[0].start_s == pytest.approx(window(0).start_s)
    assert desk.intake.nodes()["gpu-1"].clock_off_s == pytest.approx(off_s)


def test_a_batch_that_was_long_under_way_is_no_wrong_clock() -> None:
    """A killed proxy's successor finds in its queue what the agent gave up and sends again."""
    desk = Desk()
    _, late = desk.send(window(0), sent_s=NOW_S - 20.0, clock_error_s=0.01)
    assert (late.accepted, late.repaired) == (1, {})
    _, again = desk.send(window(0), window(1), clock_error_s=0.01)
    assert (again.accepted, again.duplicates, again.refused) == (1, 1, [])
    assert desk.kept == [window(0), window(1)]
    assert desk.intake.nodes()["gpu-1"].clock_off_s == 0.0


def test_windows_that_waited_for_days_are_not_taken_for_a_wrong_clock() -> None:
    desk = Desk()
    old = window(0, start_s=NOW_S - 3 * 86_400, end_s=NOW_S - 3 * 86_400 + 1)
    _, verdict = desk.send(old)
    assert (verdict.accepted, verdict.repaired) == (1, {})
    assert desk.kept == [old]


def test_more_cached_than_prompt_tokens_is_as_many() -> None:
    desk = Desk()
    _, verdict = desk.send(window(0, prompt_tokens=10.0, cached_prompt_tokens=12.0))
    assert verdict.repaired == {"cached_tokens": 1}
    assert desk.kept[0].cached_prompt_tokens == 10.0


@pytest.mark.parametrize("number", ["²", "9" * 5000])
def test_ids_that_only_look_like_numbers_are_ids(number: str) -> None:
    desk = Desk()
    assert desk.refused(window(0, window_id=f"gpu-1:run:{number}"), window(1)) == []
    assert desk.intake.nodes()["gpu-1"].missing == 0


def test_what_cannot_be_kept_is_asked_for_again() -> None:
    desk = Desk()
    desk.send(window(0))
    desk.failing = True
    assert desk.send(window(1))[0] == 503
    desk.failing = False
    _, verdict = desk.send(window(1))
    assert verdict.accepted == 1
    assert [w.window_id for w in desk.kept] == ["gpu-1:run:0", "gpu-1:run:1"]


def test_windows_dropped_at_the_node_are_noticed_by_their_numbers() -> None:
    desk = Desk()
    for n in (0, 1, 4, 5, 3):
        desk.send(window(n))
    assert desk.intake.nodes()["gpu-1"].missing == 1


def test_after_a_restart_remembered_windows_are_duplicates() -> None:
    desk = Desk()
    desk.intake.remember(window(0))
    _, verdict = desk.send(window(0))
    assert (verdict.accepted, verdict.duplicates) == (0, 1)


def test_the_clock_is_told_to_who_has_a_token() -> None:
    status, body = Desk().intake.time("right")
    assert (status, msgspec.json.decode(body)) == (200, {"unix_s": NOW_S})


batches = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.floats(-0.5, 0.5),
        st.floats(0.01, 3.0),
        st.floats(-10.0, 500.0),
    ),
    max_size=40,
)


@given(batches)
def test_whatever_is_sent_no_two_accepted_windows_overlap_and_joules_are_all_accounted_for(
    batch: list[tuple[int, float, float, float]],
) -> None:
    desk = Desk()
    sent = [
        window(n, start_s=NOW_S - 100 + n + off, end_s=NOW_S - 100 + n + off + length, energy_j=j)
        for n, off, length, j in batch
    ]
    _, verdict = desk.send(*sent)
    kept = sorted(desk.kept, key=lambda w: w.start_s)
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(kept))
    assert len({w.window_id for w in kept}) == len(kept)
    assert verdict.accepted + verdict.duplicates + len(verdict.refused) == len(sent)
    refused_ids = [r.window_id for r in verdict.refused]
    assert all(w.energy_j >= 0 for w in kept)
    accepted_j = sum(w.energy_j for w in kept)
    refused_j = sum(desk.intake.refused_j.values())
    offered_j = sum(max(0.0, w.energy_j) for w in sent)
    if not verdict.duplicates:
        assert accepted_j + refused_j == pytest.approx(offered_j)
    assert len(refused_ids) == len(verdict.refused)
