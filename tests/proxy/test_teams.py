from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from sqlalchemy import select

from meters.ledger import Ledger
from meters.schema import metadata
from proxy.auth import Caller, KeyRing, digest
from proxy.key_watch import KeyWatch
from proxy.settings import (
    Budget,
    KeyRules,
    KeySettings,
    LimitSettings,
    Organisation,
    Settings,
    Team,
)
from proxy.spending import Rules
from proxy.teams import Directory, TeamsError, TeamStore
from tests.waiting import until_in_loop

CONFIG = Settings(
    teams={
        "ops": Team(keys=["from-config", KeySettings(key="admin-key", role="admin")]),
    }
)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


@pytest.fixture
def store(ledger: Ledger) -> TeamStore:
    store = TeamStore(ledger.database, CONFIG)
    store.create_team(
        "search",
        Team(
            organisation="acme",
            timezone="Europe/Berlin",
            budgets=[Budget(per="month", energy_j=5e6)],
            limits=LimitSettings(max_energy_j=100.0),
        ),
        "a test",
    )
    return store


def ring(store: TeamStore) -> KeyRing:
    return KeyRing(store.callers())


def test_a_new_key_calls_for_its_team_with_what_is_set_for_it(store: TeamStore) -> None:
    made = store.create_key("search", role="lead", project="ranking", actor="a test")
    caller = ring(store).lookup(made.key, time.time())
    assert caller is not None
    assert (caller.team, caller.role, caller.project) == ("search", "lead", "ranking")
    assert (caller.organisation, caller.timezone) == ("acme", "Europe/Berlin")
    assert caller.limits.max_energy_j == 100.0
    assert caller.budgets == (Budget(per="month", energy_j=5e6),)
    assert caller.key_id == made.key_id
    assert ring(store).lookup("jg-guess", time.time()) is None


RULES = KeyRules(
    limits=LimitSettings(max_energy_j=500.0, max_ttft_s=2.0),
    budgets=[Budget(per="day", money_usd=1.5)],
)


def test_a_key_carries_limits_and_budgets_that_only_tighten(store: TeamStore) -> None:
    made = store.create_key("search", rules=RULES, actor="a test")
    caller = ring(store).lookup(made.key, time.time())
    assert caller is not None
    assert (caller.limits.max_energy_j, caller.limits.max_ttft_s) == (100.0, 2.0)  # the team's 100
    assert caller.key_budgets == (Budget(per="day", money_usd=1.5),)
    assert caller.budgets == (Budget(per="month", energy_j=5e6),)
    store.change_key(made.key_id, KeyRules(limits=LimitSettings(max_energy_j=20.0)), "a test")
    caller = ring(store).lookup(made.key, time.time())
    assert caller is not None
    assert (caller.limits.max_energy_j, caller.limits.max_ttft_s) == (20.0, None)
    assert caller.key_budgets == ()
    (shown,) = store.list_keys("search")
    assert shown.rules == KeyRules(limits=LimitSettings(max_energy_j=20.0))


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (KeyRules(budgets=[Budget(per="day")]), "limits nothing"),
        (KeyRules(budgets=[Budget(per="day", tokens=1, fallback_policy="x")]), "no policy 'x'"),
        (KeyRules(limits=LimitSettings(backends=["nowhere"])), "no backend 'nowhere'"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(
    store: TeamStore, rules: KeyRules, says: str
) -> None:
    made = store.create_key("search", actor="a test")
    with pytest.raises(TeamsError, match=says):
        store.create_key("search", rules=rules, actor="a test")
    with pytest.raises(TeamsError, match=says):
        store.change_key(made.key_id, rules, "a test")
    assert [key.rules for key in store.list_keys("search")] == [KeyRules()]


def test_only_keys_that_are_here_and_good_can_be_changed(store: TeamStore) -> None:
    with pytest.raises(TeamsError, match=r"in the config file\. Change it"):
        store.change_key(digest("admin-key")[:12], RULES, "a test")
    with pytest.raises(TeamsError, match="no key nosuchkey"):
        store.change_key("nosuchkey", RULES, "a test")
    made = store.create_key("search", actor="a test")
    store.revoke_key(made.key_id, "a test")
    with pytest.raises(TeamsError, match="revoked"):
        store.change_key(made.key_id, RULES, "a test")


def test_a_successor_keeps_the_rules_and_what_is_left_of_the_budgets(
    store: TeamStore, ledger: Ledger
) -> None:
    first = store.create_key("search", rules=RULES, actor="a test")
    second = store.rotate_key(first.key_id, overlap_s=3600, actor="a test")
    third = store.rotate_key(second.key_id, overlap_s=3600, actor="a test")
    keys = ring(store)
    callers = [keys.lookup(made.key, time.time()) for made in (first, second, third)]
    scopes = set()
    for caller in callers:
        assert caller is not None
        assert caller.key_budgets == (Budget(per="day", money_usd=1.5),)
        scopes |= {r.scope for r in Rules({}).of(caller) if r.scope.startswith("key:")}
    assert scopes == {f"key:{first.key_id}"}  # one counter, however often it is rotated
    assert callers[2] is not None
    assert callers[2].earlier == (first.key_id, second.key_id)


def test_an_organisation_is_set_changed_and_removed(store: TeamStore) -> None:
    assert [(o.organisation, o.teams, o.source) for o in store.list_organisations()] == [
        ("acme", ("search",), None)  # a team names it
    ]
    given = Organisation(budgets=[Budget(per="month", money_usd=9.0)], timezone="Asia/Kolkata")
    store.set_organisation("acme", given, "a test")
    assert store.directory().organisations == {"acme": given}
    store.set_organisation("acme", Organisation(), "a test")
    assert store.directory().organisations == {"acme": Organisation()}
    with pytest.raises(TeamsError, match="'Mars' is not an IANA time zone"):
        store.set_organisation("acme", Organisation(timezone="Mars"), "a test")
    store.remove_organisation("acme", "a test")
    assert store.directory().organisations == {}
    with pytest.raises(TeamsError, match="Nothing is set"):
        store.remove_organisation("acme", "a test")
    told = [(e.action, e.detail) for e in store.audit() if e.action.startswith("org")]
    assert sorted(told, key=str) == sorted(
        [
            ("organisation.set", msgspec.to_builtins(given)),
            ("organisation.set", {}),
            ("organisation.remove", {}),
        ],
        key=str,
    )


def test_organisations_of_the_config_are_changed_there(ledger: Ledger) -> None:
    settings = Settings(organisations={"acme": Organisation(budgets=[Budget(per="day", tokens=5)])})
    store = TeamStore(ledger.database, settings)
    with pytest.raises(TeamsError, match="config file"):
        store.set_organisation("acme", Organisation(), "a test")
    with pytest.raises(TeamsError, match="config file"):
        store.remove_organisation("acme", "a test")
    (found,) = store.list_organisations()
    assert (found.source, found.settings) == ("config", settings.organisations["acme"])


def test_no_key_is_written_anywhere(store: TeamStore, ledger: Ledger) -> None:
    made = store.create_key("search", actor="a test")
    rotated = store.rotate_key(made.key_id, overlap_s=10, actor="a test")
    with ledger.database.read() as connection:
        text = "".join(
            str(connection.execute(select(table)).all()) for table in metadata.sorted_tables
        )
    assert digest(made.key) in text
    for key in (made.key, rotated.key, "from-config"):
        assert key not in text


def test_a_revoked_key_is_refused_and_others_are_not(store: TeamStore) -> None:
    first = store.create_key("search", actor="a test")
    second = store.create_key("search", actor="a test")
    store.revoke_key(first.key_id, "a test")
    store.revoke_key(first.key_id, "a test")  # again changes nothing
    assert ring(store).lookup(first.key, time.time()) is None
    assert ring(store).lookup(second.key, time.time()) is not None
    with pytest.raises(TeamsError, match="is revoked"):
        store.rotate_key(first.key_id, overlap_s=1, actor="a test")


def test_a_key_of_the_config_can_be_revoked_but_not_rotated(store: TeamStore) -> None:
    key_id = digest("from-config")[:12]
    with pytest.raises(TeamsError, match="config file"):
        store.rotate_key(key_id, overlap_s=1, actor="a test")
    assert ring(store).lookup("from-config", time.time()) is not None
    store.revoke_key(key_id, "a test")
    assert ring(store).lookup("from-config", time.time()) is None
    assert ring(store).lookup("admin-key", time.time()) is not None
    states = {key.key_id: key.state(time.time()) for key in store.list_keys("ops")}
    assert states == {key_id: "revoked", digest("admin-key")[:12]: "active"}


def test_both_keys_work_while_a_rotation_overlaps(store: TeamStore) -> None:
    old = store.create_key("search", role="lead", actor="a test")
    new = store.rotate_key(old.key_id, overlap_s=3600, actor="a test")
    now_s = time.time()
    keys = ring(store)
    assert keys.lookup(old.key, now_s) is not None
    assert keys.lookup(old.key, now_s + 3601) is None
    later = keys.lookup(new.key, now_s + 3601)
    assert later is not None
    assert later.role == "lead"


def test_what_was_replaced_or_has_ended_is_not_rotated_again(store: TeamStore) -> None:
    old = store.create_key("search", actor="a test")
    new = store.rotate_key(old.key_id, overlap_s=3600, actor="a test")
    with pytest.raises(TeamsError, match=new.key_id):
        store.rotate_key(old.key_id, overlap_s=3600, actor="a test")
    last = store.rotate_key(new.key_id, overlap_s=3600, actor="a test")
    assert last.expires_s is None  # not the overlap of the one before
    ended = store.create_key("search", expires_s=time.time() - 1, actor="a test")
    with pytest.raises(TeamsError, match="expired"):
        store.rotate_key(ended.key_id, overlap_s=3600, actor="a test")


def test_a_rotation_never_lengthens_a_life(store: TeamStore) -> None:
    old = store.create_key("search", expires_s=time.time() + 10, actor="a test")
    store.rotate_key(old.key_id, overlap_s=3600, actor="a test")
    assert ring(store).lookup(old.key, time.time() + 11) is None


def test_an_archived_team_is_refused_and_may_come_back(store: TeamStore) -> None:
    made = store.create_key("search", actor="a test")
    revoked = store.create_key("search", actor="a test")
    store.revoke_key(revoked.key_id, "a test")
    store.archive_team("search", "a test")
    assert ring(store).lookup(made.key, time.time()) is None
    with pytest.raises(TeamsError, match="no team 'search'"):
        store.create_key("search", actor="a test")
    assert store.create_team("search", Team(), "a test") == 1
    assert ring(store).lookup(made.key, time.time()) is not None
    (entry,) = [e for e in store.audit() if e.detail.get("keys_good_again")]
    assert (entry.action, entry.detail) == ("team.create", {"keys_good_again": 1})


def test_teams_of_the_config_are_changed_there(store: TeamStore) -> None:
    for change in (
        lambda: store.create_team("ops", Team(), "a test"),
        lambda: store.change_team("ops", Team(), "a test"),
        lambda: store.archive_team("ops", "a test"),
    ):
        with pytest.raises(TeamsError, match="config file"):
            change()
    made = store.create_key("ops", actor="a test")  # its keys may be here
    assert ring(store).lookup(made.key, time.time()) is not None
    assert [(t.team, t.source) for t in store.list_teams()] == [
        ("ops", "config"),
        ("search", "ledger"),
    ]


@pytest.mark.parametrize("name", ["", "x\x00y", "a" * 201, ".", "..", "search ", " "])
def test_a_name_that_cannot_be_kept_is_refused(store: TeamStore, name: str) -> None:
    with pytest.raises(TeamsError):
        store.create_team(name, Team(), "a test")


def test_the_audit_log_says_what_a_key_was_made_with(store: TeamStore) -> None:
    far_s = time.time() + 9e6
    store.create_key("search", project="ranking", name="nightly", expires_s=far_s, actor="alice")
    (entry,) = store.audit(1)
    assert entry.detail == {
        "team": "search",
        "role": "member",
        "project": "ranking",
        "name": "nightly",
        "expires_s": far_s,
    }


def test_every_change_is_in_the_audit_log(store: TeamStore) -> None:
    made = store.create_key("search", actor="alice")
    store.rotate_key(made.key_id, overlap_s=5, actor="bob")
    store.change_key(made.key_id, RULES, "dan")
    store.revoke_key(made.key_id, "carol")
    found = [(entry.actor, entry.action, entry.subject) for entry in store.audit()]
    assert sorted(found) == sorted(
        [
            ("a test", "team.create", "search"),
            ("alice", "key.create", made.key_id),
            ("bob", "key.rotate", made.key_id),
            ("dan", "key.change", made.key_id),
            ("carol", "key.revoke", made.key_id),
        ]
    )


async def test_a_change_holds_on_another_replica_while_all_threads_are_busy(
    ledger_url: str, store: TeamStore
) -> None:
    other_ledger = Ledger(ledger_url)
    keys = KeyRing({})
    watch = KeyWatch(TeamStore(other_ledger.database, CONFIG), keys, interval_s=0.05)
    watch.start()
    made = await asyncio.to_thread(store.create_key, "search", actor="a test")
    exported = threading.Event()
    exports = [asyncio.create_task(asyncio.to_thread(exported.wait, 30.0)) for _ in range(40)]
    await until_in_loop(lambda: keys.lookup(made.key, time.time()), within_s=10.0)
    store.revoke_key(made.key_id, "a test")
    await until_in_loop(lambda: not keys.lookup(made.key, time.time()), within_s=10.0)
    exported.set()
    await asyncio.gather(*exports)
    await watch.stop()
    other_ledger.close()


def test_revoking_the_last_key_does_not_let_everybody_in() -> None:
    keys = KeyRing({})
    assert keys.open
    keys.replace({digest("k"): Caller(team="t")})
    assert not keys.open
    keys.replace({})
    assert not keys.open


def test_a_config_that_comes_while_the_ledger_is_read_is_not_forgotten(ledger: Ledger) -> None:
    class Slow(TeamStore):
        def directory(self) -> Directory:
            found = super().directory()
            watch.watch(TeamStore(ledger.database, Settings(teams={"new": Team(keys=["sk-new"])})))
            return found

    keys = KeyRing({})
    watch = KeyWatch(Slow(ledger.database, CONFIG), keys)
    assert watch.refresh()
    assert watch.refresh()
    assert [caller.team for caller in keys.callers()] == ["new"]
