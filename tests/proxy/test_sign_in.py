"""Who may look at the dashboard: a key's holder, its own team's pages, until the key is revoked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest

from proxy import sign_in
from tests.joulegate_server import ADMIN, KEY, TEAMS, Config, Joulegate, Reply, config_of

Start = Callable[[Config], Joulegate]
FORM = {"content-type": "application/x-www-form-urlencoded"}


def enter(running: Joulegate, key: str) -> Reply:
    return running.post(urlencode({"key": key}).encode(), path="/dashboard/sign-in", headers=FORM)


def cookie_of(running: Joulegate, key: str) -> str:
    header = enter(running, key).header("set-cookie") or ""
    assert "HttpOnly" in header
    assert "samesite=strict" in header.lower()
    return header.split(";")[0]


@pytest.fixture
def running(joulegate: Start) -> Joulegate:
    return joulegate(config_of("http://127.0.0.1:9/v1", teams=TEAMS))


def test_without_a_key_the_sign_in_page_is_next(running: Joulegate) -> None:
    reply = running.get("/dashboard/physics/overview")
    assert (reply.status, reply.header("location")) == (303, "/dashboard/sign-in")
    assert b'name="key"' in running.get("/dashboard/sign-in").body


def test_a_right_key_opens_its_own_teams_pages_and_no_others(running: Joulegate) -> None:
    cookie = cookie_of(running, KEY)
    assert running.get("/dashboard/physics/overview", cookie=cookie).status == 200
    assert running.get("/dashboard/operators/overview", cookie=cookie).status == 404
    assert running.get("/dashboard/physics/overview", x_api_key=KEY).status == 200
    assert running.get("/dashboard/physics/overview", x_api_key=ADMIN).status == 200


def test_a_wrong_key_opens_nothing(running: Joulegate) -> None:
    reply = enter(running, "sk-wrong")
    assert (reply.status, reply.header("set-cookie")) == (401, None)
    assert running.get("/dashboard/physics/overview", x_api_key="sk-wrong").status == 401


def test_a_cookie_that_was_changed_opens_nothing(running: Joulegate) -> None:
    cookie = cookie_of(running, KEY)
    name, _, value = cookie.partition("=")
    key_id, until, signature = value.split(".")
    for forged in (
        f"{name}={key_id}.{int(until) + 1}.{signature}",
        f"{name}={key_id}.{until}.{signature[::-1]}",
        f"{name}={key_id}.{until}.",
        f"{name}=..",
    ):
        assert running.get("/dashboard/physics/overview", cookie=forged).status == 303


def test_a_cookie_dies_with_its_key(running: Joulegate) -> None:
    cookie = cookie_of(running, KEY)
    assert running.proxy is not None
    running.proxy.keys.replace({})
    assert running.get("/dashboard/physics/overview", cookie=cookie).status == 303


def test_without_keys_anyone_on_this_machine_may_look(joulegate: Start) -> None:
    open_to_all = joulegate(config_of("http://127.0.0.1:9/v1"))
    assert open_to_all.get("/dashboard").status in (200, 303)


def test_the_secret_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    first = sign_in.secret_in(tmp_path)
    assert sign_in.secret_in(tmp_path) == first
    assert (tmp_path / "cookie.secret").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
def test_another_sites_page_cannot_sign_anyone_in_or_out(
    running: Joulegate, headers: dict[str, str]
) -> None:
    form = urlencode({"key": KEY}).encode()
    for path in ("/dashboard/sign-in", "/dashboard/sign-out"):
        refused = running.post(form, path=path, headers=FORM | headers)
        assert (refused.status, refused.header("set-cookie")) == (403, None)
        assert "default-src 'none'" in (refused.header("content-security-policy") or "")


def test_the_dashboards_own_page_can(running: Joulegate) -> None:
    form = urlencode({"key": KEY}).encode()
    for headers in ({"sec-fetch-site": "same-origin"}, {"origin": running.address}):
        entered = running.post(form, path="/dashboard/sign-in", headers=FORM | headers)
        assert entered.status == 303
        cookie = (entered.header("set-cookie") or "").lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "path=/dashboard" in cookie
        assert "secure" not in cookie  # a browser would not send it back over plain HTTP
    out = running.post(b"", path="/dashboard/sign-out", headers={"origin": running.address})
    assert (out.status, "max-age=0" in (out.header("set-cookie") or "").lower()) == (303, True)
    assert running.get("/dashboard/sign-out").header("set-cookie") is None


def test_behind_a_balancer_that_ends_https_the_cookie_is_secure(running: Joulegate) -> None:
    form = urlencode({"key": KEY}).encode()
    origin = {"origin": running.address.replace("http:", "https:")}
    entered = running.post(form, path="/dashboard/sign-in", headers=FORM | origin)
    assert "secure" in (entered.header("set-cookie") or "").lower()
