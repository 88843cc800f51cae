"""Guessing keys is slow; clients with an old key are in nobody's way."""

from __future__ import annotations

import sys
from urllib.parse import urlencode

import pytest

from proxy import failed_keys
from proxy.auth import Caller, KeyRing, digest
from proxy.errors import ApiError
from proxy.failed_keys import MAX_ADDRESSES, FailedKeys, network_of
from tests.joulegate_server import ADMIN, KEY, TEAMS, Joulegate, Start, config_of

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def guarded(joulegate: Start, per_minute: int = 3) -> Joulegate:
    server = {"failed_keys_per_minute": per_minute}
    return joulegate(config_of("http://127.0.0.1:9/v1", teams=TEAMS, server=server))


def statuses(running: Joulegate, *keys: str) -> list[int]:
    return [running.get("/v1/models", authorization=f"Bearer {key}").status for key in keys]


def test_after_some_wrong_keys_not_even_a_right_one_is_looked_up(joulegate: Start) -> None:
    running = guarded(joulegate)
    assert statuses(running, "a", "b", KEY, "c") == [401, 401, 200, 401]
    for refused in (
        running.get("/v1/models", x_api_key=KEY),
        running.post(ASK, headers={"authorization": f"Bearer {KEY}"}),
        running.get("/admin/teams", x_api_key=ADMIN),
    ):
        assert (refused.status, refused.code) == (429, "too_many_failed_keys")
        assert 1 <= int(refused.header("retry-after") or 0) <= 60
    form = urlencode({"key": KEY}).encode()
    refused = running.post(form, path="/dashboard/sign-in")
    assert (refused.status, refused.header("set-cookie")) == (429, None)
    assert running.proxy is not None
    page = running.proxy.telemetry.registry
    assert page.get_sample_value("joulegate_failed_keys_total") == 3


def test_wrong_keys_at_the_sign_in_page_count_too(joulegate: Start) -> None:
    running = guarded(joulegate)
    for key in "abc":
        running.post(urlencode({"key": key}).encode(), path="/dashboard/sign-in")
    assert statuses(running, KEY) == [429]


def test_a_client_with_an_old_key_shuts_out_only_itself(joulegate: Start) -> None:
    running = guarded(joulegate)
    assert statuses(running, *["old"] * 4) == [401, 401, 401, 429]
    assert statuses(running, KEY) == [200]


def test_a_key_that_became_good_is_looked_at_again_and_a_guesser_is_not() -> None:
    ring = KeyRing({"of another": Caller(team="a")}, FailedKeys(3))

    def tries(*keys: bytes) -> None:
        for key in keys:
            assert ring.lookup_from("1.2.3.4", key, 0.0) is None

    tries(b"late", b"late", b"late")
    with pytest.raises(ApiError, match="Too many"):
        tries(b"late")
    ring.replace({digest("late"): Caller(team="a")})
    assert ring.lookup_from("1.2.3.4", b"late", 0.0) is not None
    tries(b"x", b"y")
    ring.replace({digest("late"): Caller(team="b")})
    with pytest.raises(ApiError, match="Too many"):
        tries(b"z")


def test_requests_without_a_key_are_no_guesses(joulegate: Start) -> None:
    running = guarded(joulegate)
    assert [running.get("/v1/models").status for _ in range(5)] == [401] * 5
    assert statuses(running, KEY) == [200]


def test_nothing_is_limited_where_that_is_turned_off(joulegate: Start) -> None:
    assert statuses(guarded(joulegate, 0), *"abcdefgh", KEY) == [401] * 8 + [200]


def test_a_minute_later_all_is_forgotten() -> None:
    now_s = 0.0
    failed = FailedKeys(2, clock=lambda: now_s)
    for key in (b"a", b"b"):
        assert failed.wait_s("1.2.3.4", key) is None
        failed.note("1.2.3.4", key)
    now_s = 59.0
    assert failed.wait_s("1.2.3.4", b"c") == 1.0
    assert failed.wait_s("1.2.3.5", b"c") is None
    now_s = 60.0
    assert failed.wait_s("1.2.3.4", b"c") is None


def test_memory_is_bounded_however_many_addresses_there_are() -> None:
    failed = FailedKeys(60)
    for number in range(3 * MAX_ADDRESSES):
        failed.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", b"x")
    assert len(failed) == MAX_ADDRESSES
    one = FailedKeys(60)
    for number in range(100_000):  # a caller that is refused is noted no more
        key = b"%d" % number
        if one.wait_s("1.2.3.4", key) is None:
            one.note("1.2.3.4", key)
    assert sys.getsizeof(one._minutes["1.2.3.4"][1]) < 10_000


def test_an_ipv6_host_has_one_address_however_many_it_uses() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db9::1")
    assert network_of("::ffff:1.2.3.4") == "1.2.3.4"
    assert network_of("fe80::1%eth0") == network_of("fe80::2")
    assert failed_keys.address_of({"client": None}) == ""
