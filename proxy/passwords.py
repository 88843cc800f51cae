"""Passwords of local accounts, kept as scrypt hashes that say how they were made."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

SHORTEST = 12
LONGEST = 256
# 32 MiB and about a quarter of a second: what OWASP's password storage cheat sheet asks for
# as one of its equals (N=2^15, r=8, p=3).
_N, _R, _P = 2**15, 8, 3
_MEMORY = 64 * 1024 * 1024


class BadPassword(ValueError):
    """It cannot be a password; the message says why."""


def hashed(password: str) -> str:
    """What is kept of a password. Raises BadPassword. Takes a quarter of a second."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise BadPassword(f"A password has {SHORTEST} to {LONGEST} characters.")
    salt = os.urandom(16)
    return f"scrypt${_N}${_R}${_P}${_text(salt)}${_text(_scrypt(password, salt, _N, _R, _P))}"


def matches(password: str, kept: str | None) -> bool:
    """Whether that is the password. Takes as long where nothing is kept, so that the time does
    not tell which names there are."""
    _, n, r, p, salt, expected = (kept or _NOBODYS).split("$")
    given = _scrypt(password[: LONGEST + 1], base64.b64decode(salt), int(n), int(r), int(p))
    return hmac.compare_digest(given, base64.b64decode(expected)) and kept is not None


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    raw = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(raw, salt=salt, n=n, r=r, p=p, maxmem=_MEMORY, dklen=32)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


_NOBODYS = f"scrypt${_N}${_R}${_P}${_text(bytes(16))}${_text(bytes(32))}"
