"""A caller's word for its user as a pseudonym: a keyed hash, made only where a team wants it."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from meters.unreadable import UNREADABLE

LONGEST = 256  # bytes of a name; OpenAI's own limit is 64 letters
_name = msgspec.json.Decoder(str)


class Pseudonyms:
    """Pseudonyms under this installation's secret: without it nobody can try names out.

    The same user of two teams has two pseudonyms, so that teams cannot be joined by them.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = blake2b(secret, person=b"joulegate-users").digest()

    def of(self, team: str, user: msgspec.Raw) -> str | None:
        """The pseudonym of a request's ``user`` field as it stood in the body; None where there is
        none, or what is there is no name."""
        raw = bytes(user)
        if not 2 < len(raw) <= LONGEST:
            return None
        try:
            name = _name.decode(raw)
        except UNREADABLE:
            return None
        return blake2b(f"{team}\x1f{name}".encode(), key=self._key, digest_size=9).hexdigest()
