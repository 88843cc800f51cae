"""Keys become callers; everything else is a 401 that says what to do."""

from __future__ import annotations

import pytest

from proxy import auth
from proxy.auth import KeyRing
from proxy.errors import ApiError
from proxy.settings import KeySettings, LimitSettings, Settings, Team


def ring() -> KeyRing:
    return auth.from_settings(
        Settings(
            teams={
                "search": Team(
                    keys=["sk-search"], policy="thrifty", limits=LimitSettings(max_energy_j=5)
                ),
                "ops": Team(
                    keys=[
                        KeySettings(sha256=auth.digest("sk-ops").upper(), role="admin"),
                        KeySettings(key="sk-old", expires="2026-01-01T00:00:00Z"),
                    ]
                ),
            }
        )
    )


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer sk-search"),
        (b"authorization", b"bearer  sk-search "),
        (b"x-api-key", b"sk-search"),
        (b"api-key", b"sk-search"),
    ],
)
def test_a_key_is_found_wherever_clients_put_it(header: tuple[bytes, bytes]) -> None:
    caller = ring().caller([header], 0.0)
    assert (caller.team, caller.policy, caller.limits.max_energy_j) == ("search", "thrifty", 5)


def test_a_hashed_key_works_and_has_its_role() -> None:
    assert ring().caller([(b"x-api-key", b"sk-ops")], 0.0).role == "admin"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Basic x")],
        [(b"x-api-key", b"no")],
    ],
)
def test_anything_else_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ApiError) as caught:
        ring().caller(headers, 0.0)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_a_key_expires() -> None:
    assert ring().lookup("sk-old", 1_767_225_599.0) is not None
    assert ring().lookup("sk-old", 1_767_225_600.0) is None


def test_without_keys_anyone_may_call() -> None:
    assert KeyRing({}).caller([], 0.0) == auth.ANYONE


def test_no_key_stands_in_a_caller() -> None:
    assert "sk-search" not in repr(ring().caller([(b"x-api-key", b"sk-search")], 0.0))
