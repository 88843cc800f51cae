"""A small OpenID Connect provider that signs everybody in at once, and can misbehave."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.fakes.answers import answer
from tests.fakes.upstream import Pace, Received, Script, Upstream

CLIENT = {"client_id": "joulegate", "client_secret": "a secret"}
DISCOVERY = "/.well-known/openid-configuration"


class Issuer(Upstream):
    """``claims`` are those of the next ID token, ``keys`` the published ones, and ``document``
    what discovery says beside the endpoints; ``in_pieces``: answers come a few bytes at a time."""

    def __init__(self) -> None:
        super().__init__(self._token)
        self.key = RSAKey.generate_key(2048, {"kid": "a", "alg": "RS256"})
        self.keys: list[dict[str, Any]] = [dict(self.key.as_dict(private=False))]
        self.claims: dict[str, Any] = {"groups": ["physicists"], "email": "ada@example.org"}
        self.document: dict[str, Any] = {}
        self.in_pieces = False
        self._nonces: dict[str, str] = {}  # by code
        self.pages = {
            DISCOVERY: self._discovery,
            "/keys": lambda _: self._said({"keys": self.keys}),
            "/authorize": self._authorize,
        }

    def settings(self, **more: Any) -> dict[str, Any]:
        """What ``sign_in.oidc`` says of it."""
        grants = [{"value": "physicists", "team": "physics", "role": "lead"}]
        return {**CLIENT, "issuer": self.address, "grants": grants, **more}

    def _discovery(self, _: Received) -> Script:
        endpoints = {
            "issuer": self.address,
            "authorization_endpoint": f"{self.address}/authorize",
            "token_endpoint": f"{self.address}/token",
            "jwks_uri": f"{self.address}/keys",
        }
        return self._said({**endpoints, **self.document})

    def _authorize(self, request: Received) -> Script:
        asked = {name: one[0] for name, one in parse_qs(urlsplit(request.target).query).items()}
        code = f"code-{len(self._nonces)}"
        self._nonces[code] = asked["nonce"]
        back = urlencode({"code": code, "state": asked["state"]})
        return answer(b"", 302, {"location": f"{asked['redirect_uri']}?{back}"})

    def _token(self, request: Received) -> Script:
        form = {name: one[0] for name, one in parse_qs(request.body.decode()).items()}
        nonce = self._nonces.pop(form["code"], None)
        if nonce is None:
            return answer({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {"iss": self.address, "aud": "joulegate", "sub": "ada", "nonce": nonce}
        claims |= {"iat": now, "exp": now + 300, **self.claims}
        made = jwt.encode({"alg": "RS256", "kid": "a"}, claims, self.key, algorithms=["RS256"])
        return self._said({"access_token": "t", "token_type": "Bearer", "id_token": made})

    def _said(self, value: Any) -> Script:
        if not self.in_pieces:
            return answer(value)
        whole = answer(value)[0]
        assert isinstance(whole, bytes)
        begin, _, body = whole.partition(b"\r\n\r\n")
        middle = len(body) // 2
        first = begin + b"\r\n\r\n" + body[:middle]
        return (first, Pace(0.05), body[middle:])  # so long that they are read apart
