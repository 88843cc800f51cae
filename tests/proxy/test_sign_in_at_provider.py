"""Signing in at a provider that does what providers do: over real sockets, to the page wanted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

import pytest

from tests.fakes.answers import answer
from tests.fakes.issuer import DISCOVERY, Issuer
from tests.joulegate_server import TEAMS, Joulegate, Start, config_of
from tests.provider import Browser, Page

WANTED = "/dashboard/physics/overview"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as made:
        yield made


@pytest.fixture
def running(joulegate: Start, issuer: Issuer, request: pytest.FixtureRequest) -> Joulegate:
    more: dict[str, Any] = getattr(request, "param", {})
    sign_in = {"oidc": issuer.settings(**more.get("oidc", {}))}
    given = {"teams": TEAMS, "sign_in": {**sign_in, **more.get("sign_in", {})}}
    return joulegate({**config_of("http://127.0.0.1:9/v1", **given), "log": {"level": "warning"}})


def begin(running: Joulegate, browser: Browser, wanted: str = WANTED) -> Page:
    return browser.open(f"{running.address}/dashboard/sign-in/provider?next={wanted}")


def landed(page: Page) -> tuple[int, str]:
    return page.status, urlsplit(page.url).path


def test_answers_that_come_in_pieces_are_read_to_their_end(
    running: Joulegate, issuer: Issuer
) -> None:
    issuer.in_pieces = True
    assert landed(begin(running, Browser())) == (200, WANTED)


def test_an_answer_without_end_is_not_read_on(running: Joulegate, issuer: Issuer) -> None:
    issuer.document = {"padding": "x" * 2_000_000}
    page = begin(running, Browser())
    assert (page.status, "cannot be read" in page.text) == (502, True)


def test_a_key_that_nobody_here_can_read_does_not_hide_the_others(
    running: Joulegate, issuer: Issuer
) -> None:
    issuer.keys.insert(0, {"kty": "EC", "crv": "P-999", "x": "AA", "y": "AA", "kid": "new"})
    assert landed(begin(running, Browser())) == (200, WANTED)


def test_two_tabs_of_a_browser_may_sign_in_at_once(running: Joulegate, issuer: Issuer) -> None:
    waiting: list[str] = []

    def hold(request: Any) -> Any:
        waiting.append(request.target)
        return answer(b"who are you?")

    authorize, issuer.pages["/authorize"] = issuer.pages["/authorize"], hold
    browser = Browser()
    begin(running, browser)
    begin(running, browser, "/dashboard/physics/savings")
    issuer.pages["/authorize"] = authorize
    pages = [browser.open(issuer.address + target) for target in waiting]
    assert [landed(page) for page in pages] == [(200, WANTED), (200, "/dashboard/physics/savings")]
    assert [c.name for c in browser.cookies] == ["joulegate"]


def test_sign_ins_that_are_begun_and_left_do_not_fill_the_browser(
    running: Joulegate, issuer: Issuer
) -> None:
    issuer.pages["/authorize"] = lambda _: answer(b"who are you?")
    browser = Browser()
    for _ in range(12):
        begin(running, browser)
    assert len(list(browser.cookies)) <= 5


MANY = [
    f"cn=engineers-{number:04},ou=groups,dc=research,dc=example,dc=org" for number in range(400)
]


@pytest.mark.parametrize(
    "running",
    [{"oidc": {"grants": [{"value": value, "team": "physics"} for value in MANY]}}],
    indirect=True,
)
def test_somebody_in_very_many_groups_is_let_in_or_told(running: Joulegate, issuer: Issuer) -> None:
    issuer.claims = {"groups": MANY[:150]}
    assert landed(begin(running, Browser())) == (200, WANTED)
    issuer.claims = {"groups": MANY}
    page = begin(running, Browser())
    assert (page.status, "more groups" in page.text) == (403, True)


@pytest.mark.parametrize(
    "running",
    [
        {
            "oidc": {
                "claim": "email",
                "grants": [{"value": "ada@example.org", "team": "physics", "role": "lead"}],
            }
        }
    ],
    indirect=True,
)
def test_an_address_grants_only_once_it_is_verified(running: Joulegate, issuer: Issuer) -> None:
    for told in ({}, {"email_verified": False}, {"email_verified": "no"}):
        issuer.claims = {"email": "ada@example.org", **told}
        page = begin(running, Browser())
        assert (page.status, "verified" in page.text) == (403, True), told
    issuer.claims = {"email": "ada@example.org", "email_verified": True}
    assert landed(begin(running, Browser())) == (200, WANTED)


@pytest.mark.parametrize(
    ("claims", "document", "said"),
    [
        ({"aud": "another"}, {}, "'aud'"),
        ({"iat": 9_999_999_999}, {}, "issued in the future"),
        ({}, {"issuer": "http://127.0.0.1/elsewhere"}, "'http://127.0.0.1/elsewhere'"),
        ({}, {"token_endpoint": "http://[broken"}, "token_endpoint"),
    ],
)
def test_the_log_says_what_is_wrong_with_the_provider(
    running: Joulegate,
    issuer: Issuer,
    caplog: pytest.LogCaptureFixture,
    claims: dict[str, Any],
    document: dict[str, Any],
    said: str,
) -> None:
    issuer.claims |= claims
    issuer.document = document
    with caplog.at_level(logging.WARNING, "joulegate.oidc"):
        page = begin(running, Browser())
    assert page.status in (403, 502)
    assert "<h1>Sign in</h1>" in page.text
    assert said in caplog.text


def test_the_log_says_which_address_refused(
    running: Joulegate, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.pages[DISCOVERY] = lambda _: answer(b"", 302, {"location": "https://elsewhere.example"})
    with caplog.at_level(logging.WARNING, "joulegate.oidc"):
        assert begin(running, Browser()).status == 502
    assert DISCOVERY in caplog.text
    assert "302" in caplog.text


class Stay(HTTPRedirectHandler):
    """Follows nobody."""

    def redirect_request(self, *_: Any) -> None:
        return None


PUBLIC = "https://example.org/energy"


@pytest.mark.parametrize("running", [{"sign_in": {"public_url": PUBLIC}}], indirect=True)
@pytest.mark.parametrize("left_on", ["", "/energy"])
def test_browsers_may_see_it_below_a_prefix(
    running: Joulegate, issuer: Issuer, left_on: str
) -> None:
    """Whether whoever stands before it takes the prefix off or leaves it on."""
    first = running.get(f"{left_on}{WANTED}")
    wanted = f"/energy{WANTED}"
    assert first.header("location") == f"/energy/dashboard/sign-in?next={quote(wanted, safe='')}"
    begun = running.get(f"{left_on}/dashboard/sign-in/provider?next={wanted}")
    where = begun.header("location") or ""
    (back,) = parse_qs(urlsplit(where).query)["redirect_uri"]
    assert back == f"{PUBLIC}/dashboard/sign-in/callback"
    with pytest.raises(HTTPError) as came:
        build_opener(Stay).open(where)
    path = f"{left_on}/dashboard/sign-in/callback?{urlsplit(came.value.headers['location']).query}"
    cookie = (begun.header("set-cookie") or "").partition(";")[0]
    entered = running.get(path, cookie=cookie)
    assert entered.header("location") == wanted
    cookies = [value for name, value in entered.headers if name == "set-cookie"]
    assert all("Path=/energy/dashboard" in one for one in cookies)
    page = running.get(f"{left_on}{WANTED}", cookie=cookies[0].partition(";")[0])
    assert (page.status, 'href="/energy/dashboard/style.css"' in page.body.decode()) == (200, True)
    assert running.get(f"{left_on}/health").status == 200
