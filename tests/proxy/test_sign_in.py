"""Who may look at the dashboard: a key's holder, its own team's pages, until the key is revoked."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import pytest

from proxy import sign_in
from proxy.auth import Caller, KeyRing
from proxy.sessions import Attempt, Seals, Session
from proxy.settings import SignInSettings
from proxy.sign_in import SignIn
from tests.joulegate_server import ADMIN, KEY, TEAMS, Joulegate, Reply, Start, config_of

FORM = {"content-type": "application/x-www-form-urlencoded"}


def enter(running: Joulegate, key: str) -> Reply:
    return running.post(urlencode({"key": key}).encode(), path="/dashboard/sign-in", headers=FORM)


def cookie_of(running: Joulegate, key: str) -> str:
    header = enter(running, key).header("set-cookie") or ""
    assert "HttpOnly" in header
    assert "samesite=lax" in header.lower()
    return header.split(";")[0]


@pytest.fixture
def running(joulegate: Start) -> Joulegate:
    return joulegate(config_of("http://127.0.0.1:9/v1", teams=TEAMS))


def test_without_a_key_the_sign_in_page_is_next(running: Joulegate) -> None:
    reply = running.get("/dashboard/physics/overview")
    next_ = "/dashboard/sign-in?next=%2Fdashboard%2Fphysics%2Foverview"
    assert (reply.status, reply.header("location")) == (303, next_)
    page = running.get(next_).body
    assert b'name="key"' in page
    assert b'name="next" value="/dashboard/physics/overview"' in page


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
        assert "samesite=lax" in cookie
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


def test_the_page_that_was_wanted_comes_after_signing_in_and_no_other_sites(
    running: Joulegate,
) -> None:
    for wanted, next_ in (
        (
            "/dashboard/physics/savings?from=2026-01-01",
            "/dashboard/physics/savings?from=2026-01-01",
        ),
        ("https://evil.example/", "/dashboard"),
        ("//evil.example/dashboard", "/dashboard"),
        ("", "/dashboard"),
    ):
        form = urlencode({"key": KEY, "next": wanted}).encode()
        entered = running.post(form, path="/dashboard/sign-in", headers=FORM)
        assert (entered.status, entered.header("location")) == (303, next_)


def test_one_secret_makes_sessions_good_on_every_machine_that_has_it(
    joulegate: Start, tmp_path: Path
) -> None:
    secret = "0123456789abcdef" * 2
    (tmp_path / "secret").write_text(secret + "\n")
    one, two, other = (
        joulegate(config_of("http://127.0.0.1:9/v1", teams=TEAMS, **more))
        for more in (
            {"sign_in": {"secret": secret}},
            {"sign_in": {"secret_file": str(tmp_path / "secret")}},
            {},
        )
    )
    cookie = cookie_of(one, KEY)
    assert two.get("/dashboard/physics/overview", cookie=cookie).status == 200
    assert other.get("/dashboard/physics/overview", cookie=cookie).status == 303


def test_a_session_ends_when_the_settings_say() -> None:
    now_s = 1_790_000_000.0
    keys = KeyRing({"h": Caller(team="physics", key_id="abc")})
    ring = SignIn(keys, b"x" * 32, lambda: now_s, settings=SignInSettings(hours=2.0))
    session = Session(kind="oidc", name="ada", values=("g",))
    until_s = now_s + 7200
    for cookie, kind in (
        (ring.cookie(keys.callers()[0]), "key"),
        (ring.seals.pack(session, now_s + ring.lasts_s), "session"),
    ):
        if kind == "key":
            assert ring._of_cookie(cookie, until_s - 1) is not None
            assert ring._of_cookie(cookie, until_s + 1) is None
        else:
            assert ring.seals.unpack(cookie, Session, until_s - 1) == session
            assert ring.seals.unpack(cookie, Session, until_s + 1) is None


def test_what_was_sealed_as_one_thing_is_not_taken_for_another() -> None:
    seals = Seals(b"x" * 32)
    attempt = Attempt(state="s", nonce="n", verifier="v", next="/")
    packed = seals.pack(attempt, 100.0)
    assert seals.unpack(packed, Attempt, 50.0) == attempt
    assert seals.unpack(packed, Session, 50.0) is None
    assert Seals(b"y" * 32).unpack(packed, Attempt, 50.0) is None
    assert seals.unpack(packed.replace(".100.", ".999."), Attempt, 50.0) is None
    for broken in ("", ".", "..", "a.b.c", "é.1.é", "x" * 5000):
        assert seals.unpack(broken, Attempt, 50.0) is None
