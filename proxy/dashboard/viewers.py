"""Who looks at the dashboard, and the token that keeps others from posting in their name."""

from __future__ import annotations

import hashlib
import hmac
import time

import msgspec

TOKEN_S = 12 * 3600


class Viewer(msgspec.Struct, frozen=True, kw_only=True):
    """A signed-in person, or anyone where no keys are configured."""

    name: str
    role: str = "member"  # admin sees every team; lead also keys and single requests
    teams: tuple[str, ...] = ()
    time_zone: str = "UTC"

    def may_see(self, team: str) -> bool:
        return self.role == "admin" or team in self.teams

    @property
    def sees_keys(self) -> bool:
        """Keys can stand for single people; members see their team's sums only."""
        return self.role in ("admin", "lead")


class FormTokens:
    """Tokens for forms: bound to a viewer, good for twelve hours."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def make(self, viewer: Viewer, now_s: float | None = None) -> str:
        until = int((time.time() if now_s is None else now_s) + TOKEN_S)
        return f"{until}.{self._sign(viewer, until)}"

    def valid(self, token: str, viewer: Viewer, now_s: float | None = None) -> bool:
        until, _, signature = token.partition(".")
        if not token.isascii() or not until.isdigit() or len(until) > 12:
            return False
        fresh = int(until) >= (time.time() if now_s is None else now_s)
        return hmac.compare_digest(signature, self._sign(viewer, int(until))) and fresh

    def _sign(self, viewer: Viewer, until: int) -> str:
        text = f"{viewer.role}\x1f{viewer.name}\x1f{until}".encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()
