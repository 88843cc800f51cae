"""Signing in at an OpenID Connect provider: against a real one, and against forged tokens."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, RSAKey

from meters.schema import audit_log
from proxy.oidc import Provider, ProviderRefused, challenge, is_safe
from proxy.sessions import Attempt, Seals
from proxy.settings import Grant, Oidc
from proxy.sign_in import ATTEMPT, own_path
from tests.joulegate_server import ADMIN, KEY, Joulegate, Start, config_of
from tests.provider import Browser, Page, is_installed, new_issuer, start_provider
from tests.servers import Server

PEOPLE = {
    "ada": {"email": "ada@example.org", "groups": ["physicists", "chess"]},
    "bob": {"email": "bob@example.org", "groups": ["chess"]},
    "eve": {"email": "eve@example.org", "groups": ["operators"]},
}
TEAMS = {"physics": {"keys": [KEY]}, "operators": {"keys": [{"key": ADMIN, "role": "admin"}]}}
DEEP = "/dashboard/physics/savings?from=2026-11-01&to=2026-11-02"
real = pytest.mark.skipif(not is_installed(), reason="python -m tests.prepare found no provider")


class World:
    """Joulegate, the provider it trusts, and a browser."""

    def __init__(self, joulegate: Joulegate, provider: Server) -> None:
        self.joulegate = joulegate
        self.provider = provider
        self.browser = Browser()

    def sign_in(self, name: str, deep: str = DEEP) -> Page:
        page = self.browser.open(self.joulegate.address + deep)
        page = self.browser.follow(page, "Sign in with Example Inc")
        return self.browser.sign_in_at_provider(page, name)


@pytest.fixture
def world(joulegate: Start, request: pytest.FixtureRequest) -> Iterator[World]:
    issuer = new_issuer()
    client = {"client_id": "joulegate", "client_secret": "a secret/of: the test"}
    more = getattr(request, "param", {})
    running = joulegate(
        config_of(
            "http://127.0.0.1:9/v1",
            teams=TEAMS,
            sign_in={
                "oidc": {
                    **client,
                    "issuer": issuer,
                    "name": "Example Inc",
                    "scopes": "openid email groups",
                    "grants": [
                        {"value": "physicists", "team": "physics", "role": "lead"},
                        {"value": "operators", "role": "admin"},
                    ],
                    **more.get("oidc", {}),
                }
            },
        )
    )
    callback = f"{running.address}/dashboard/sign-in/callback"
    provider = start_provider(
        issuer,
        clients=[{**client, "redirect_uris": [callback]}],
        people=PEOPLE,
        **more.get("provider", {}),
    )
    yield World(running, provider)
    provider.close()


@real
@pytest.mark.parametrize("world", [{}, {"provider": {"lean": True}}], indirect=True)
def test_whoever_the_provider_sends_back_sees_the_page_that_was_wanted(world: World) -> None:
    page = world.sign_in("ada")
    assert page.url == world.joulegate.address + DEEP
    assert (page.status, "Sign in" not in page.text) == (200, True)
    other = world.browser.open(f"{world.joulegate.address}/dashboard/operators/overview")
    assert other.status == 404
    proxy = world.joulegate.proxy
    assert proxy is not None
    assert proxy.ledger is not None
    with proxy.ledger.database.read() as connection:
        entries = connection.execute(audit_log.select()).mappings().all()
    assert [(e["actor"], e["action"]) for e in entries] == [("ada@example.org", "sign_in")]
    out = world.browser.open(f"{world.joulegate.address}/dashboard/sign-out", {})
    assert out.url.endswith("/dashboard/sign-in")
    again = world.browser.open(f"{world.joulegate.address}{DEEP}")
    assert "/dashboard/sign-in?next=" in again.url


@real
def test_groups_decide_what_is_seen(world: World) -> None:
    refused = world.sign_in("bob")
    assert (refused.status, "may not look here" in refused.text) == (403, True)
    assert world.browser.open(world.joulegate.address + DEEP).url.count("/sign-in?next=") == 1
    world.browser = Browser()
    assert world.sign_in("eve", "/dashboard/operators/overview").status == 200


@real
def test_an_answer_that_was_not_asked_for_lets_nobody_in(world: World) -> None:
    address = world.joulegate.address
    page = world.browser.open(f"{address}/dashboard/sign-in/callback?code=x&state=y")
    assert page.status == 400
    world.browser.open(f"{address}/dashboard/sign-in/provider")  # begins one
    page = world.browser.open(f"{address}/dashboard/sign-in/callback?code=x&state=y")
    assert (page.status, "not begun in this browser" in page.text) == (400, True)


@real
@pytest.mark.parametrize("field", ["nonce", "verifier", "state"])
def test_what_comes_back_has_to_fit_what_was_begun(world: World, field: str) -> None:
    proxy = world.joulegate.proxy
    assert proxy is not None
    page = world.browser.open(f"{world.joulegate.address}/dashboard/sign-in/provider")
    seals = Seals(proxy.secret)
    (kept,) = [c for c in world.browser.cookies if c.name.startswith(ATTEMPT)]
    attempt = seals.unpack(kept.value or "", Attempt, time.time())
    assert attempt is not None
    changed = Attempt(
        **{**{f: getattr(attempt, f) for f in attempt.__struct_fields__}, field: "x" * 64}
    )
    kept.value = seals.pack(changed, time.time() + 60)
    page = world.browser.sign_in_at_provider(page, "ada")
    assert page.status == 403
    assert "joulegate" not in {c.name for c in world.browser.cookies}


@real
@pytest.mark.parametrize("world", [{"oidc": {"client_secret": "wrong"}}], indirect=True)
def test_a_provider_that_refuses_is_a_page_and_no_error(world: World) -> None:
    page = world.sign_in("ada")
    assert (page.status, "The provider refused" in page.text) == (403, True)
    world.provider.kill()
    world.joulegate.proxy.sign_in.provider._found_s = float("-inf")  # type: ignore[union-attr]
    page = world.browser.open(f"{world.joulegate.address}/dashboard/sign-in/provider")
    assert (page.status, "does not answer" in page.text) == (502, True)


# -- tokens --------------------------------------------------------------------------------

ISSUER = "https://id.example.org"
RSA = RSAKey.generate_key(2048, {"kid": "a", "alg": "RS256"})
OIDC = Oidc(issuer=ISSUER, client_id="joulegate", grants=[Grant(value="g", role="admin")])


@pytest.fixture
def provider() -> Provider:
    made = Provider(OIDC)
    made._keys = KeySet([RSA])
    return made


def token(key: Any = RSA, header: dict[str, Any] | None = None, **changes: Any) -> str:
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": "joulegate",
        "sub": "ada",
        "iat": now,
        "exp": now + 300,
        "nonce": "n",
        **changes,
    }
    claims = {k: v for k, v in claims.items() if v is not None}
    head = header or {"alg": "RS256", "kid": "a"}
    return jwt.encode(head, claims, key, algorithms=[head["alg"]])


def with_head(made: str, head: dict[str, str]) -> str:
    """A token's claims under another head, without a signature."""
    return f"{b64(json.dumps(head).encode())}.{made.split('.')[1]}"


def signed_with_hmac(made: str, secret: bytes) -> str:
    """Its claims signed with a public key as if that were a shared secret."""
    text = with_head(made, {"alg": "HS256", "kid": "a"})
    return f"{text}.{b64(hmac.digest(secret, text.encode(), 'sha256'))}"


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def test_a_right_token_is_taken(provider: Provider) -> None:
    assert provider._checked(token(), "n")["sub"] == "ada"
    both = token(aud=["joulegate", "other"], azp="joulegate")
    assert provider._checked(both, "n")["sub"] == "ada"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://id.example.com"},
        {"iss": None},
        {"aud": "another"},
        {"aud": None},
        {"aud": ["joulegate", "other"]},
        {"azp": "another"},
        {"exp": -600},
        {"exp": None},
        {"iat": 600},
        {"nbf": 600},
        {"nonce": "another"},
        {"nonce": None},
        {"sub": None},
    ],
)
def test_a_token_that_does_not_fit_is_refused(provider: Provider, changes: dict[str, Any]) -> None:
    now = int(time.time())  # tests are collected long before they run
    made = token(**{k: now + v if isinstance(v, int) else v for k, v in changes.items()})
    with pytest.raises((JoseError, ValueError)):
        provider._checked(made, "n")


@pytest.mark.parametrize("forged", ["another key", "public key as secret", "none", "cut"])
def test_a_token_that_nobody_right_signed_is_refused(provider: Provider, forged: str) -> None:
    if forged == "another key":
        made = token(RSAKey.generate_key(2048, {"kid": "a"}))
    elif forged == "public key as secret":
        made = signed_with_hmac(token(), RSA.as_pem(private=False))
    elif forged == "none":
        made = with_head(token(), {"alg": "none"}) + "."
    else:
        made = token()[:-4]
    with pytest.raises((JoseError, ValueError)):
        provider._checked(made, "n")


async def test_a_query_of_another_issuer_is_refused(provider: Provider) -> None:
    attempt = Attempt(state="s", nonce="n", verifier="v", next="/dashboard")
    for query in (
        {"state": "s", "iss": "https://evil.example", "code": "c"},
        {"state": "t", "code": "c"},
        {"code": "c"},
        {"state": "s", "error": "access_denied"},
        {"state": "s"},
    ):
        with pytest.raises(ProviderRefused):
            await provider.end(query, attempt, "https://x/cb")


async def test_the_request_carries_pkce_state_and_nonce(provider: Provider) -> None:
    provider._found = {"authorization_endpoint": f"{ISSUER}/auth"}
    provider._found_s = time.time()
    where, attempt = await provider.begin("https://x/cb", "/dashboard")
    asked = {k: v[0] for k, v in parse_qs(urlsplit(where).query).items()}
    assert asked["code_challenge"] == challenge(attempt.verifier)
    assert asked["code_challenge_method"] == "S256"
    assert (asked["state"], asked["nonce"]) == (attempt.state, attempt.nonce)
    _, second = await provider.begin("https://x/cb", "/dashboard")
    assert not {second.state, second.nonce, second.verifier} & {
        attempt.state,
        attempt.nonce,
        attempt.verifier,
    }


def test_the_challenge_is_that_of_the_standard() -> None:
    # RFC 7636, appendix B
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert challenge(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://id.example.org/token", True),
        ("http://127.0.0.1:8080/token", True),
        ("http://localhost/token", True),
        ("http://id.example.org/token", False),
        ("ftp://id.example.org", False),
        ("", False),
        ("https://", False),
    ],
)
def test_tokens_travel_encrypted_or_not_at_all(url: str, safe: bool) -> None:
    assert is_safe(url) is safe


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/dashboard/physics/overview?month=2026-10", True),
        ("/dashboard", True),
        ("/dashboard?x=1", True),
        ("//evil.example/dashboard", False),
        ("https://evil.example/dashboard/", False),
        ("/dashboardevil", False),
        ("/admin/keys", False),
        ("/dashboard/\\evil", False),
        ("/dashboard/../admin", False),
        ("/dashboard/\r\nset-cookie: x", False),
        ("/dashboard/" + "x" * 3000, False),
        ("", False),
    ],
)
def test_only_the_dashboards_own_pages_can_come_next(path: str, kept: bool) -> None:
    assert own_path(path, "/dashboard") == (path if kept else "/dashboard")
