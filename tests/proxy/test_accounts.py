"""The books behind the request path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from estimators.types import Backend, Features, Outcome
from meters.types import (
    Activity,
    Around,
    Attribution,
    Evidence,
    StepPhysics,
    UsageRecord,
    Window,
)
from proxy import accounts, settings
from proxy.accounts import Accounts, undivided
from proxy.backends import Engine
from proxy.flight import Flight

NODE = "gpu-1"


class Kept:
    """What accounts hand on: a journal, an estimator, a learner and an observer in one."""

    def __init__(self) -> None:
        self.entered: list[Attribution] = []
        self.counted: list[Attribution] = []
        self.learnt: list[Outcome] = []
        self.around: list[Around] = []
        self.fails = False

    def write(self, entry: UsageRecord | Window) -> None: ...

    def record(self, entry: UsageRecord) -> asyncio.Future[bool] | None:
        return None

    def append(self, entry: Attribution) -> None:
        self.entered.append(entry)

    def request(self, flight: Flight, record: UsageRecord) -> None: ...

    def divided(self, attribution: Attribution) -> None:
        self.counted.append(attribution)

    def physics(self, node: str) -> StepPhysics | None:
        return None

    def observe(self, window: Window, activities: Sequence[Activity]) -> None:
        if self.fails:
            raise ArithmeticError("singular")

    def learn(self, outcome: Outcome) -> None:
        self.learnt.append(outcome)
        if self.fails:
            raise ArithmeticError("singular")

    def divide(
        self, window: Window, activities: Sequence[Activity], _: object, around: Around
    ) -> Attribution:
        self.around.append(around)
        return undivided(window)


def books(kept: Any) -> Accounts:
    return Accounts(
        journal=kept,
        estimator=kept,
        live={},
        divide=kept.divide,
        learner=kept,
        observer=kept,
        replica="one",
    )


def engine() -> Engine:
    one = settings.BackendSettings(model="tiny", url="http://127.0.0.1:9/v1", node=NODE)
    return Engine(one, Backend(name="tiny@bf16", group="tiny", node=NODE))


def finish(account: Accounts, ended_s: float) -> None:
    """Put a request of a second on the books that ended at this Unix time."""
    flight = Flight("chat.completions")
    flight.engine = engine()
    flight.features = Features(prompt_tokens=3, text="a prompt")
    flight.start_wall_s = ended_s - 1.0
    flight.sent_s = flight.start_s
    flight.end_s = flight.start_s + 1.0
    account.finished(flight)


def window(end_s: float) -> Window:
    return Window(
        window_id=f"w{end_s}",
        node=NODE,
        start_s=end_s - 1.0,
        end_s=end_s,
        energy_j=100.0,
        evidence=Evidence.METERED,
        meter="replay",
    )


async def test_a_window_is_entered_once_even_when_it_teaches_nothing() -> None:
    kept = Kept()
    kept.fails = True
    account = books(kept)
    now_s = time.time()
    finish(account, now_s - 10)
    account.window(window(now_s - 9))
    await account.divide_due(now_s)
    assert len(kept.entered) == len(kept.counted) == 1
    assert account.imbalance_j == 0


async def test_a_window_that_cannot_be_divided_is_entered_as_unattributed() -> None:
    kept = Kept()

    def broken(*_: object) -> Attribution:
        raise ValueError("no")

    account = books(kept)
    account.divide = broken
    account.window(window(time.time() - 9))
    await account.divide_due(time.time())
    assert [a.unattributed_j for a in kept.entered] == [100.0]


def test_lengths_and_times_are_learnt_once_and_joules_are_not() -> None:
    kept = Kept()
    account = books(kept)
    finish(account, time.time() - 1)
    assert kept.learnt == []  # nobody's answer waits for it
    account.teach()
    account.teach()
    (outcome,) = kept.learnt
    assert outcome.energy_j is None  # that is learnt from the ledger
    assert outcome.latency_s == pytest.approx(1.0)
    kept.fails = True
    finish(account, time.time())
    account.teach()
    assert len(kept.learnt) == 2


async def test_requests_of_a_node_without_a_meter_are_let_go_sooner() -> None:
    kept = Kept()
    account = books(kept)
    now_s = time.time()
    finish(account, now_s - 1)
    await account.divide_due(now_s)
    assert account._settled[NODE]  # a window may still come
    await account.divide_due(now_s + accounts.UNMETERED_S)
    assert not account._settled[NODE]
    account.window(window(now_s - 9))
    finish(account, now_s - 8)
    await account.divide_due(now_s + accounts.UNMETERED_S)
    assert account._settled[NODE]
    await account.divide_due(now_s + accounts.KEEP_S)
    assert not account._settled[NODE]


def test_activities_of_a_window_are_found_among_many_and_in_order() -> None:
    account = books(Kept())
    now_s = time.time()
    for age_s in range(400, 0, -1):
        finish(account, now_s - age_s)
    found = account.activities(NODE, now_s - 100.5, now_s - 98.5)
    ends = [round(now_s - (one.end_s or 0)) for one in found]
    assert ends == [100, 99, 98]


def sent(account: Accounts, *, stream: bool, ago_s: float = 9.0) -> Flight:
    """A request that was sent so long ago and is not answered yet."""
    flight = Flight("chat.completions")
    flight.engine = engine()
    flight.features = Features(prompt_tokens=3)
    flight.start_wall_s -= ago_s
    flight.start_s -= ago_s
    flight.sent_s = flight.start_s
    flight.stream = stream
    account.live[flight.request_id] = flight
    return flight


async def test_windows_wait_in_order_for_an_answer_that_shows_its_tokens_at_the_end() -> None:
    kept = Kept()
    account = books(kept)
    flight = sent(account, stream=False)
    now_s = time.time()
    ends = [now_s - 8, now_s - 7, now_s - 6.5]
    for end_s in ends:
        account.window(window(end_s))
    await account.divide_due(now_s)
    assert kept.entered == []
    flight.end_s = flight.start_s + 8.9
    await account.divide_due(now_s)
    assert [a.end_s for a in kept.entered] == ends


async def test_a_window_is_divided_among_its_neighbours_which_are_waited_for() -> None:
    kept = Kept()
    account = books(kept)
    now_s = time.time()
    ends = [now_s - age_s for age_s in (14.5, 5.5, 4.5, 3.5, 2.5, 1.6)]
    for end_s in ends:
        account.window(window(end_s))
    account.window(msgspec.structs.replace(window(ends[1]), node="gpu-2", window_id="other"))
    await account.divide_due(now_s)
    assert [a.end_s for a in kept.entered] == ends[:3]  # the others may still get neighbours
    seen = [([w.end_s for w in a.before], [w.end_s for w in a.after]) for a in kept.around]
    assert seen == [
        ([], ends[1:4]),
        (ends[:1], ends[2:5]),
        (ends[:2], ends[3:6]),
    ]
    await account.divide_due(now_s + accounts.AHEAD_S)
    assert [a.end_s for a in kept.entered if a.node == NODE] == ends
    assert [w.end_s for w in kept.around[-2].before] == ends[1:5]  # the first is too long ago
    assert len(kept.entered) == 7


async def test_a_window_that_other_replicas_forgot_the_requests_of_has_no_neighbours() -> None:
    kept = Kept()
    account = books(kept)
    now_s = time.time()
    for age_s in (41, 40):
        account.window(window(now_s - age_s))
    await account.divide_due(now_s)
    assert [len(around.before) for around in kept.around] == [0, 0]


async def test_windows_of_before_the_clock_was_set_back_hold_up_none_and_are_no_neighbours() -> (
    None
):
    kept = Kept()
    account = books(kept)
    now_s = time.time()
    for end_s in (now_s + 3598, now_s + 3599, now_s - 9, now_s - 8):
        account.window(window(end_s))
    await account.divide_due(now_s)
    ends = [a.end_s for a in kept.entered]
    assert ends == [now_s + 3598, now_s + 3599, now_s - 9, now_s - 8]
    assert [w.end_s for w in kept.around[3].before] == [now_s - 9]


async def test_windows_of_a_time_that_is_not_remembered_are_left_to_the_ledger() -> None:
    kept = Kept()
    account = books(kept)
    late: list[Window] = []
    account.late = late.append
    now_s = time.time()
    account._began_s -= 3600.0  # it has been running for an hour
    finish(account, now_s - 40.0)
    before, of_then, after, started = now_s - 3605, now_s - 50, now_s - 20, now_s - 10
    await account.divide_due(now_s)  # no window for half a minute: that request is let go
    for end_s in (before, of_then, after, started):
        account.window(window(end_s))
    await account.divide_due(now_s)
    assert [w.end_s for w in late] == [before, of_then]
    assert [a.end_s for a in kept.entered] == [after, started]


async def test_windows_that_come_after_other_replicas_forgot_are_left_to_the_ledger() -> None:
    kept = Kept()
    account = books(kept)
    late: list[Window] = []
    account.late = late.append
    account._began_s -= 3600.0

    class Others:
        until_s = float("inf")

        def __call__(self, node: str, start_s: float, end_s: float) -> list[Activity]:
            return []

    account.others = Others()
    now_s = time.time()
    for age_s in (accounts.PUBLISHED_S + 1, accounts.HOLD_S + 1):
        account.window(window(now_s - age_s))
    await account.divide_due(now_s)
    assert [round(now_s - w.end_s) for w in late] == [accounts.PUBLISHED_S + 1]
    assert [round(now_s - a.end_s) for a in kept.entered] == [accounts.HOLD_S + 1]


async def test_windows_wait_neither_for_streams_nor_for_ever_nor_for_later_requests() -> None:
    kept = Kept()
    account = books(kept)
    sent(account, stream=True)
    now_s = time.time()
    account.window(window(now_s - 7))
    await account.divide_due(now_s)
    assert len(kept.entered) == 1
    sent(account, stream=False)
    account.window(window(now_s - 10))  # over before that one was sent
    await account.divide_due(now_s)
    assert len(kept.entered) == 2
    account.window(window(now_s - 7))
    await account.divide_due(now_s)
    assert len(kept.entered) == 2
    await account.divide_due(now_s + accounts.HOLD_S)
    assert len(kept.entered) == 3


async def test_a_window_waits_until_other_replicas_told_what_they_did_in_it() -> None:
    class Told:
        until_s = 0.0

        def __call__(self, *_: object) -> list[Activity]:
            return []

    kept, told = Kept(), Told()
    account = books(kept)
    account.others = told
    now_s = time.time()
    ended = window(now_s - 7)
    account.window(ended)
    await account.divide_due(now_s)
    assert kept.entered == []
    told.until_s = ended.end_s
    await account.divide_due(now_s)
    assert len(kept.entered) == 1
    account.window(window(now_s - 6.5))
    await account.divide_due(now_s)
    assert len(kept.entered) == 1
    await account.divide_due(now_s + accounts.HOLD_S)  # it is dead, or Redis is
    assert len(kept.entered) == 2


@pytest.mark.alone
async def test_a_disk_that_hangs_holds_up_one_answer_and_then_none_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.accounts.DISK_S", 0.1)
    account = books(Kept())
    never: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    started_s = time.monotonic()
    await account.on_disk(never)
    assert time.monotonic() - started_s >= 0.1
    started_s = time.monotonic()
    for _ in range(20):
        await account.on_disk(never)
    assert time.monotonic() - started_s < 1.0  # of the 2 s if each waited
