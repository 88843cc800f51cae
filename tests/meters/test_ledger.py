from __future__ import annotations

import math
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import pq
from sqlalchemy import delete, select, text, update

from meters import usage
from meters.ledger import Ledger
from meters.schema import REQUEST_SUMS, energy_hours, request_hours, requests, shares
from meters.types import Attribution, Evidence, UsageRecord
from tests.meters.books import NOON_S, attribution, record, window
from tests.servers import new_database


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def whole_day(ledger: Ledger, *group_by: str, team: str | None = None) -> list[usage.Usage]:
    return ledger.usage(team, NOON_S - 43_200, NOON_S + 43_200, group_by)


def test_a_record_comes_back_as_it_went_in(ledger: Ledger) -> None:
    full = record(
        key_id="jg_abc",
        project="ranking",
        tags=("a", "b"),
        stream=True,
        cache="miss",
        task="code",
        prompt_tokens_counted=True,
        cached_prompt_tokens=7,
        first_token_s=NOON_S + 10.5,
        ttft_s=0.5,
        latency_s=2.0,
        marginal_energy_j=1.25,
        carbon_g=0.0025,
        money_usd=0.000123456,
        quality=0.75,
        zone="DE",
        pue=1.2,
        intensity_g_per_kwh=380.5,
        intensity_tier="hourly",
        arm="hold_out",
        counterfactual_backend="big",
        counterfactual_energy_j=50.0,
        session="5a1e",
        decision='{"chosen":"llama@bf16"}',
    )
    bare = UsageRecord(request_id="bare", start_s=NOON_S, end_s=NOON_S, team="t")
    ledger.write([full, bare])
    for given_record in (full, bare):
        receipt = ledger.receipt(given_record.request_id)
        assert receipt is not None
        assert receipt.record == given_record


def test_unknown_energy_is_null_and_not_counted_as_known(ledger: Ledger) -> None:
    ledger.write([record(1, energy_j=None, output_tokens=None), record(2, energy_j=4.0)])
    (all_of_it,) = whole_day(ledger)
    assert all_of_it.requests == 2
    assert all_of_it.sums["energy_known"] == 1
    assert all_of_it.sums["tokens_known"] == 1
    assert all_of_it.energy_j == 4.0
    assert all_of_it.carbon_g is None


def test_a_receipt_turns_from_estimated_to_metered(ledger: Ledger) -> None:
    ledger.write([record(1)])
    first = ledger.receipt("req-1")
    assert first is not None
    assert (first.state, first.energy_j, first.settled) == ("estimated", 12.5, False)
    assert first.evidence is Evidence.BENCHMARK

    ledger.write(attributions=[attribution(1, {"req-1": 5.0})])
    half = ledger.receipt("req-1")
    assert half is not None
    assert (half.state, half.attributed_j, half.energy_j) == ("partial", 5.0, 12.5)
    assert half.covered == pytest.approx(0.5)

    later = attribution(2, {"req-1": 2.5}, start_s=NOON_S + 11.0, end_s=NOON_S + 12.0)
    ledger.write(attributions=[later])
    done = ledger.receipt("req-1")
    assert done is not None
    assert (done.state, done.energy_j, done.settled) == ("metered", 7.5, True)
    assert done.evidence is Evidence.METERED
    assert done.covered == pytest.approx(1.0)
    assert [share.metered_j for share in done.shares] == [66.0, 63.5]


def test_simulated_energy_is_never_called_metered(ledger: Ledger) -> None:
    made_up = attribution(1, {"req-1": 5.0}, evidence=Evidence.SIMULATED, end_s=NOON_S + 12.0)
    ledger.write([record(1, simulated=True)], [made_up])
    receipt = ledger.receipt("req-1")
    assert receipt is not None
    assert receipt.evidence is Evidence.SIMULATED


def test_there_is_no_receipt_for_what_is_not_there(ledger: Ledger) -> None:
    assert ledger.receipt("nobody") is None


def test_writing_everything_again_changes_nothing(ledger: Ledger) -> None:
    batch = (
        [record(n) for n in range(5)],
        [attribution(1, {"req-0": 5.0, "req-3": 7.0}), attribution(2, {"req-3": 1.0, "x": 2.0})],
        [window(1, energy_j=73.0, host_energy_j=12.0), window(2, energy_j=64.0)],
    )
    first = ledger.write(*batch)
    before = ledger.check()
    sums = whole_day(ledger, "team", "backend")
    again = ledger.write(*batch)
    assert tuple(first) == (5, 2, 2, 4, 0)
    assert tuple(again) == (0, 0, 0, 0, 0)
    after = ledger.check()
    assert whole_day(ledger, "team", "backend") == sums
    assert after.balanced
    assert before == after


def test_a_window_that_was_divided_as_another_amount_is_found(ledger: Ledger) -> None:
    ledger.write(attributions=[attribution(1, {"req-1": 5.0})], windows=[window(1)])
    (problem,) = ledger.check().problems
    assert "66000000 µJ were divided, 300000000 µJ were reported" in problem


def test_the_same_request_twice_in_one_batch_counts_once(ledger: Ledger) -> None:
    written = ledger.write([record(1, output_tokens=1), record(1, output_tokens=2)])
    assert written.requests == 1
    (all_of_it,) = whole_day(ledger)
    assert all_of_it.sums["output_tokens"] == 1


def test_a_share_may_come_before_its_request(ledger: Ledger) -> None:
    ledger.write(attributions=[attribution(1, {"req-1": 5.0})])
    waiting = ledger.check()
    assert waiting.balanced
    assert waiting.pending_uj == 5_000_000
    ledger.write([record(1)])
    arrived = ledger.check()
    assert arrived.balanced
    assert arrived.pending_uj == 0
    (team,) = whole_day(ledger, team="search")
    assert team.metered_j == 5.0
    assert team.sums["metered_requests"] == 1


def test_a_late_share_is_added_to_the_hour_of_its_request(ledger: Ledger) -> None:
    ledger.write([record(1, start_s=NOON_S - 1.0, sent_s=NOON_S - 1.0)])
    ledger.write(attributions=[attribution(1, {"req-1": 5.0})])
    (hour,) = whole_day(ledger, "hour_s")
    assert hour.group["hour_s"] == NOON_S - 3600
    assert hour.metered_j == 5.0
    with ledger.database.read() as connection:
        c = energy_hours.c
        drawn = connection.execute(select(c.hour_s, c.team, c.energy_uj)).all()
    assert drawn == [(int(NOON_S), "search", 5_000_000)]
    assert ledger.check().balanced


def test_estimates_stand_in_only_for_requests_without_a_share(ledger: Ledger) -> None:
    ledger.write([record(1, energy_j=10.0), record(2, energy_j=3.0)])
    ledger.write(attributions=[attribution(1, {"req-1": 4.0})])
    (all_of_it,) = whole_day(ledger)
    assert (all_of_it.metered_j, all_of_it.estimated_j, all_of_it.energy_j) == (4.0, 3.0, 7.0)


@pytest.mark.parametrize("window_first", [True, False])
def test_what_no_meter_reads_stays_beside_what_one_read(ledger: Ledger, window_first: bool) -> None:
    """An API's part in a request that an engine had a part in, too."""
    both = record(1, energy_j=100.0, node="api", hosted_j=40.0)
    if not window_first:
        ledger.write([both])
    ledger.write(attributions=[attribution(1, {"req-1": 70.0}, end_s=NOON_S + 20.0)])
    ledger.write([both])
    found = ledger.receipt("req-1")
    assert found is not None
    assert (found.state, found.energy_j, found.attributed_j) == ("partial", 110.0, 70.0)
    assert found.evidence is both.evidence
    assert [sums.energy_j for sums in whole_day(ledger)] == [110.0]
    for from_s, to_s in ((NOON_S, NOON_S + 3600.0), (NOON_S + 5.0, NOON_S + 60.0)):
        spent = ledger.spent(from_s, to_s, teams=[both.team])  # of roll-ups, and of rows
        assert spent.energy_uj == 110_000_000
    assert ledger.check().balanced


def test_parts_that_miss_the_meter_are_booked_as_unattributed(ledger: Ledger) -> None:
    wrong = attribution(1, {"req-1": 5.0}, metered_j=100.0)  # its parts add up to 66 J
    ledger.write(attributions=[wrong])
    balance = ledger.check()
    assert balance.balanced
    assert balance.unattributed_uj == 35_000_000


@pytest.mark.parametrize(
    "bad",
    [
        record(1, energy_j=math.nan),
        record(1, money_usd=math.inf),
        attribution(1, {"req-1": -5.0}),
        attribution(1, {"req-1": 1.0}, metered_j=math.nan),
    ],
)
def test_a_figure_that_is_none_is_refused_and_nothing_of_its_batch_is_kept(
    ledger: Ledger, bad: UsageRecord | Attribution
) -> None:
    records, attributions = [record(2)], []
    if isinstance(bad, UsageRecord):
        records.append(bad)
    else:
        attributions.append(bad)
    with pytest.raises((ValueError, OverflowError)):
        ledger.write(records, attributions)
    assert ledger.receipt("req-2") is None


def test_text_that_no_database_takes_is_cleaned(ledger: Ledger) -> None:
    ledger.write([record("a", model_asked="x\x00y\ud800", tags=("p,q", "\x00"))])
    receipt = ledger.receipt("req-a")
    assert receipt is not None
    assert receipt.record.model_asked == "xy?"
    assert receipt.record.tags == ("p q",)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (update(shares).values(energy_uj=shares.c.energy_uj + 1), "shares differ by"),
        (delete(shares), "shares differ by"),
        (update(request_hours).values(output_tokens=1), "output_tokens 1 instead of"),
        (update(energy_hours).values(energy_uj=1), "energy_uj 1 instead of"),
        (text("UPDATE team_days SET energy_uj = 1"), "energy_uj 1 instead of"),
        (delete(requests), "request_hours"),
        (text("UPDATE node_hours SET idle_uj = 0"), "idle_uj 0 instead of"),
        (text("UPDATE window_totals SET metered_uj = metered_uj + 1"), "are in no part"),
        (text("DELETE FROM window_totals"), "has shares but no totals"),
        (text("DELETE FROM dims"), "not described"),
    ],
)
def test_check_sees_what_does_not_agree(
    tmp_path_factory: pytest.TempPathFactory, spoil: object, says: str
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('l') / 'ledger.db'}")
    ledger.write([record(1), record(2)], [attribution(1, {"req-1": 5.0, "req-2": 6.0})])
    assert ledger.check().balanced
    with ledger.database.write() as connection:
        connection.execute(spoil)  # type: ignore[call-overload]
    balance = ledger.check()
    ledger.close()
    assert not balance.balanced
    assert any(says in problem for problem in balance.problems), balance.problems


def test_usage_groups_add_up_to_the_total(ledger: Ledger) -> None:
    dice = random.Random(4)
    rows = [
        record(
            n,
            team=dice.choice(["search", "ads", "ops"]),
            start_s=NOON_S + dice.uniform(-9000, 9000),
            backend=dice.choice(["a", "b", None]),
            energy_j=dice.choice([None, dice.expovariate(0.1)]),
            money_usd=dice.random() / 1000,
            tags=tuple(dice.sample(["x", "y", "z"], dice.randrange(3))),
        )
        for n in range(200)
    ]
    ledger.write(rows)
    (total,) = whole_day(ledger)
    for group_by in (["team"], ["hour_s", "backend"], ["tags", "team", "hour_s"], ["simulated"]):
        groups = whole_day(ledger, *group_by)
        assert {name: sum(g.sums[name] for g in groups) for name in REQUEST_SUMS} == total.sums
    assert ledger.teams() == ["ads", "ops", "search"]
    (ads,) = whole_day(ledger, team="ads")
    assert ads.requests == sum(r.team == "ads" for r in rows)
    with pytest.raises(ValueError, match="cannot group by"):
        whole_day(ledger, "nonsense")


def test_many_writers_at_once_lose_nothing(ledger_url: str) -> None:
    ledgers = [Ledger(ledger_url) for _ in range(3)]

    def write(worker: int) -> None:
        for n in range(8):
            # each share is written by one worker while another writes its request
            ledgers[worker].write(
                [record(f"{worker}-{n}"), record(f"all-{n}")],
                [attribution(f"{worker}-{n}", {f"req-{(worker + 1) % 3}-{n}": 2.0})],
            )

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    balance = ledgers[0].check()
    for ledger in ledgers:
        ledger.close()
    assert balance.problems == ()
    assert (balance.requests, balance.windows, balance.pending_uj) == (32, 24, 0)


ENTRIES = st.lists(
    st.one_of(
        st.builds(
            lambda n, h, team, e: record(
                n,
                start_s=NOON_S + h,
                sent_s=NOON_S + h,
                end_s=NOON_S + h + 2,
                team=team,
                energy_j=e,
            ),
            st.integers(0, 8),
            st.floats(-4000, 4000),
            st.sampled_from(["search", "ads"]),
            st.none() | st.floats(0, 1e4),
        ),
        st.builds(
            lambda n, h, shares, idle: attribution(
                n, shares, idle_j=idle, start_s=NOON_S + h, end_s=NOON_S + h + 1
            ),
            st.integers(0, 8),
            st.floats(-4000, 4000),
            st.dictionaries(st.integers(0, 8).map(lambda n: f"req-{n}"), st.floats(0, 1e4)),
            st.floats(0, 1e3),
        ),
    ),
    max_size=25,
)


@given(entries=ENTRIES, cuts=st.lists(st.integers(1, 5), min_size=25, max_size=25))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_books_balance_whatever_comes_in_whatever_order(
    entries: list[UsageRecord | Attribution],
    cuts: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('l') / 'ledger.db'}")
    try:
        left = entries * 2  # everything is delivered twice
        for cut in cuts * 2:
            batch, left = left[:cut], left[cut:]
            ledger.write(
                [e for e in batch if isinstance(e, UsageRecord)],
                [e for e in batch if isinstance(e, Attribution)],
            )
        balance = ledger.check()
        assert balance.problems == ()
        assert balance.imbalance_uj == 0
    finally:
        ledger.close()


def test_an_older_ledger_is_brought_up_to_date_and_keeps_its_books(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.write([record(1)], [attribution(1, {"req-1": 5.0})])
    before = ledger.check()
    with ledger.database.write() as connection:  # as version 1 had it
        connection.execute(text("DROP TABLE changes"))
        connection.execute(text("ALTER TABLE window_totals DROP COLUMN windows"))
        connection.execute(text("ALTER TABLE windows DROP COLUMN host_windows"))
        for table in ("team_days", "organisations", "dashboard_frozen", "own_hours"):
            connection.execute(text(f"DROP TABLE {table}"))
        hosted = ("hosted_uj", "hosted_low_uj", "hosted_high_uj")
        for column in ("arm", "intensity_tier", "user_hash", *hosted):
            connection.execute(text(f"ALTER TABLE requests DROP COLUMN {column}"))
        connection.execute(text("ALTER TABLE dims DROP COLUMN arm"))
        connection.execute(text("DROP INDEX ix_feedback_at_s"))
        connection.execute(text("UPDATE ledger_meta SET version = 1"))
    ledger.close()
    newer = Ledger(ledger_url)
    assert newer.migrated == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert newer.check() == before
    newer.write([record(2)], [attribution(2, {"req-2": 5.0})])
    assert newer.check().balanced
    newer.close()


def test_postgresql_may_be_called_as_other_programs_call_it(postgres_url: str) -> None:
    url = new_database(postgres_url, "short_name").replace("postgresql://", "postgres://")
    assert url.startswith("postgres://")
    ledger = Ledger(url)
    assert ledger.database.kind == "postgresql"
    assert ledger.check().balanced
    ledger.close()


def test_one_statement_takes_no_transaction_in_postgresql(postgres_url: str) -> None:
    """Its beginning and its end are round trips too, three times a second and replica."""
    database = Ledger(new_database(postgres_url, "asked")).database
    for open_, status in (
        (database.ask, pq.TransactionStatus.IDLE),
        (database.read, pq.TransactionStatus.INTRANS),  # it was given back as it was
    ):
        with open_() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
            driver = connection.connection.driver_connection
            assert driver is not None
            assert driver.info.transaction_status == status
    database.close()


def test_adding_to_roll_ups_reuses_their_room_in_postgresql(postgres_url: str) -> None:
    ledger = Ledger(new_database(postgres_url, f"room_{time.time_ns()}"))
    for batch in range(12):
        ledger.write([record(f"{batch}-{n}", team=f"team-{n}") for n in range(100)])
    query = text(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'request_hours'"
    )
    with ledger.database.write() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with ledger.database.read() as connection:
        changed, in_place = connection.execute(query).one()
    assert changed == 1100
    assert in_place > 0.9 * changed, "changed rows need new entries in the index"
    ledger.close()


def test_a_newer_ledger_is_left_alone(ledger_url: str, new_ledger_url: Callable[[], str]) -> None:
    ledger = Ledger(ledger_url)
    with ledger.database.write() as connection:
        connection.execute(text("UPDATE ledger_meta SET version = 99"))
    ledger.close()
    with pytest.raises(Exception, match="version 99"):
        Ledger(ledger_url)
    Ledger(new_ledger_url()).close()


def test_a_new_ledger_that_another_process_is_just_writing_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE theirs (x)")
    other.execute("BEGIN IMMEDIATE")  # SQLite then refuses to change its mode, and does not wait
    done = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    done.start()
    ledger = Ledger(f"sqlite:///{path}")
    assert ledger.check().balanced
    ledger.close()
    done.join()
    other.close()


def test_two_that_start_at_once_make_one_ledger(ledger_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: Ledger(ledger_url), range(4)))
    assert sorted(len(ledger.migrated) for ledger in opened) == [0, 0, 0, 1]
    for ledger in opened:
        ledger.close()


@pytest.mark.parametrize("left", ["nothing", "an older copy"])
def test_a_sqlite_file_that_is_deleted_or_replaced_is_not_written_on_unseen(
    tmp_path: Path, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state" / "ledger.db"
    path.parent.mkdir()
    copy = tmp_path / "copy.db"
    ledger = Ledger(str(path))
    ledger.write([record(1)])
    with sqlite3.connect(copy) as there, sqlite3.connect(path) as source:
        source.backup(there)
    ledger.write([record(2)])
    shutil.rmtree(path.parent)
    if left == "an older copy":
        path.parent.mkdir()
        shutil.copy(copy, path)
    ledger.write([record(3)])
    fresh = Ledger(str(path))
    assert fresh.receipt("req-3") is not None
    assert fresh.check().requests == (1 if left == "nothing" else 2)
    assert caplog.text.count("deleted or replaced") == 1
    fresh.close()
    ledger.close()
