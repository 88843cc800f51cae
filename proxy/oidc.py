"""Signing in at an OpenID Connect provider: authorization code with PKCE, state and nonce.

Endpoints and keys come from the provider's discovery document. ID tokens are verified by joserfc:
signature by one of the provider's published keys (asymmetric algorithms only), issuer, audience,
times, nonce. Nothing is asked of the provider until somebody signs in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from meters.unreadable import UNREADABLE
from proxy.sessions import Attempt
from proxy.settings import Oidc

log = logging.getLogger("joulegate.oidc")

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
LEEWAY_S = 60
DISCOVERED_S = 3600.0  # how long endpoints and keys are believed
TIMEOUT_S = 10.0
MAX_BYTES = 1_048_576


class ProviderRefused(Exception):
    """Nobody is signed in; the message may be shown and says nothing secret."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who the provider says it is, and the values of the claim that grants."""

    name: str
    values: tuple[str, ...]


class Provider:
    """One provider. Used from the event loop only."""

    def __init__(self, settings: Oidc, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self._clock = clock
        self._found: dict[str, Any] = {}
        self._keys: KeySet | None = None
        self._found_s = float("-inf")

    async def begin(self, redirect_uri: str, next_: str) -> tuple[str, Attempt]:
        """Where to send the browser, and what to keep until it is back. Raises ProviderRefused."""
        found = await self._discover()
        attempt = Attempt(
            state=secrets.token_urlsafe(24),
            nonce=secrets.token_urlsafe(24),
            verifier=secrets.token_urlsafe(48),
            next=next_,
        )
        asked = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": self.settings.scopes,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": challenge(attempt.verifier),
            "code_challenge_method": "S256",
        }
        where = str(found["authorization_endpoint"])
        return f"{where}{'&' if '?' in where else '?'}{urlencode(asked)}", attempt

    async def end(self, given: Mapping[str, str], attempt: Attempt, redirect_uri: str) -> Identity:
        """Who came back with that query. Raises ProviderRefused."""
        if not hmac.compare_digest(given.get("state", "").encode(), attempt.state.encode()):
            raise ProviderRefused("This sign-in was not begun in this browser. Begin again.")
        if given.get("iss", self.settings.issuer) != self.settings.issuer:
            raise ProviderRefused("Another provider answered. Begin again.")
        if "error" in given:
            raise ProviderRefused(f"The provider says {given['error'][:80]!r}.")
        code = given.get("code", "")
        if not code:
            raise ProviderRefused("The provider sent no code. Begin again.")
        found = await self._discover()
        token = await self._token(found, code, attempt.verifier, redirect_uri)
        claims = await self._verified(str(token.get("id_token", "")), attempt.nonce)
        if self.settings.claim not in claims and "userinfo_endpoint" in found:
            claims = {**await self._userinfo(found, token, claims["sub"]), **claims}
        return self._identity(claims)

    # -- the provider's answers --------------------------------------------------------------------

    async def _discover(self) -> dict[str, Any]:
        if self._clock() - self._found_s < DISCOVERED_S:
            return self._found
        issuer = self.settings.issuer
        found = await self._get(issuer.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            log.warning("the provider calls itself %.200r, not %r", found.get("issuer"), issuer)
            raise ProviderRefused("The provider calls itself something else than configured.")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not is_safe(str(found.get(name, ""))):
                log.warning("the provider's %s is %.200r", name, found.get(name))
                raise ProviderRefused(f"The provider's {name} is missing or not https.")
        self._found = found
        await self._read_keys()
        self._found_s = self._clock()
        return found

    async def _read_keys(self) -> None:
        published = (await self._get(self._found["jwks_uri"])).get("keys")
        keys = []
        for one in published if isinstance(published, list) else ():
            # A key of a kind that is not known here may stand beside those that sign.
            with suppress(JoseError, ValueError, KeyError, TypeError):
                keys += KeySet.import_key_set({"keys": [one]}).keys
        if not keys:
            raise ProviderRefused("The provider's keys cannot be read.")
        self._keys = KeySet(keys)

    async def _token(
        self, found: Mapping[str, Any], code: str, verifier: str, redirect_uri: str
    ) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        headers = {}
        secret, client = self.settings.client_secret, self.settings.client_id
        ways = found.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        if secret is None:
            form["client_id"] = client
        elif "client_secret_basic" in ways:
            pair = f"{quote(client, safe='')}:{quote(secret, safe='')}".encode()
            headers["authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        else:
            form |= {"client_id": client, "client_secret": secret}
        return await self._ask("POST", str(found["token_endpoint"]), data=form, headers=headers)

    async def _verified(self, token: str, nonce: str) -> dict[str, Any]:
        try:
            claims = self._checked(token, nonce)
        except (JoseError, ValueError) as first:
            # Keys are changed now and then: look once whether there are new ones.
            await self._read_keys()
            try:
                claims = self._checked(token, nonce)
            except (JoseError, ValueError):
                log.warning("an ID token was refused: %s", first)
                raise ProviderRefused("The provider's token is not valid.") from None
        return claims

    def _checked(self, token: str, nonce: str) -> dict[str, Any]:
        assert self._keys is not None
        claims = dict(jwt.decode(token, self._keys, algorithms=ALGORITHMS).claims)
        jwt.JWTClaimsRegistry(
            now=int(self._clock()),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self.settings.issuer},
            aud={"essential": True, "value": self.settings.client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
        ).validate(claims)
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if (several or "azp" in claims) and claims.get("azp") != self.settings.client_id:
            raise ValueError("the token was issued to another client")
        return claims

    async def _userinfo(
        self, found: Mapping[str, Any], token: Mapping[str, Any], subject: str
    ) -> dict[str, Any]:
        where = str(found["userinfo_endpoint"])
        if not is_safe(where):
            return {}
        headers = {"authorization": f"Bearer {token.get('access_token', '')}"}
        told = await self._ask("GET", where, headers=headers)
        return told if told.get("sub") == subject else {}

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        value = claims.get(self.settings.claim, ())
        values = value if isinstance(value, list) else [value] if isinstance(value, str) else []
        verified = claims.get("email_verified") in (True, "true")  # some write it as text
        if self.settings.claim == "email" and values and not verified:
            raise ProviderRefused("The provider does not say that this e-mail address is verified.")
        granted = {grant.value for grant in self.settings.grants}
        name = claims.get(self.settings.name_claim)
        return Identity(
            name=str(name if isinstance(name, str) and name else claims["sub"])[:100],
            values=tuple(v for v in values if isinstance(v, str) and v in granted),
        )

    async def _get(self, url: str) -> dict[str, Any]:
        return await self._ask("GET", url)

    async def _ask(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        if not is_safe(url):
            raise ProviderRefused("The provider's address is not https.")
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(method, url, allow_redirects=False, **more) as response,
            ):
                body = b""
                async for part in response.content.iter_any():
                    body += part
                    if len(body) > MAX_BYTES:
                        raise ProviderRefused("The provider's answer cannot be read: too long.")
                if response.status != 200:
                    log.warning(
                        "the provider answered %s %s with %d: %.200r",
                        *(method, url, response.status, body),
                    )
                    raise ProviderRefused("The provider refused. Begin again.")
                return msgspec.json.decode(body, type=dict[str, Any])
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("the provider does not answer (%s)", type(error).__name__)
            raise ProviderRefused("The provider does not answer. Try again shortly.") from None
        except UNREADABLE:
            raise ProviderRefused("The provider's answer cannot be read.") from None


def challenge(verifier: str) -> str:
    """PKCE's S256 challenge of a verifier (RFC 7636, section 4.2)."""
    hashed = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(hashed).decode().rstrip("=")


def is_safe(url: str) -> bool:
    """Whether tokens may go there: HTTPS, or this machine."""
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    except ValueError:
        return False
    if scheme == "https":
        return bool(host)
    if scheme != "http":
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
