"""What a signed-in person's browser keeps: who, until when, signed. Nothing of it is secret."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TypeVar

import msgspec

from meters.unreadable import UNREADABLE

T = TypeVar("T")
LONGEST = 4_000  # characters; browsers drop longer cookies


class Session(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody who signed in without a key."""

    kind: str  # account | oidc
    name: str
    stamp: str = ""  # of the account's password
    values: tuple[str, ...] = ()  # short_hash of the provider's that grant something


class Attempt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sign-in at the provider that has begun: what its answer must fit."""

    state: str
    nonce: str
    verifier: str
    next: str


def short_hash(value: str) -> str:
    """Twelve characters that tell a value from others: names of groups can be long, and many."""
    return base64.urlsafe_b64encode(hashlib.sha256(value.encode()).digest()[:9]).decode()


class Seals:
    """Signs and checks. ``purpose`` keeps one kind of value from passing for another."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, text: str, purpose: str = "") -> str:
        """The signature of a text, in hexadecimal."""
        key = self._secret if not purpose else hmac.digest(self._secret, purpose.encode(), "sha256")
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()

    def pack(self, value: msgspec.Struct, until_s: float) -> str:
        """A value good until that Unix time."""
        inner = base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")
        text = f"{inner}.{int(until_s)}"
        return f"{text}.{self.sign(text, type(value).__name__)}"

    def unpack(self, text: str, kind: type[T], now_s: float) -> T | None:
        """The value, if it is ours, whole, of that kind and still good."""
        signed, _, signature = text.rpartition(".")
        inner, _, until = signed.partition(".")
        expected = self.sign(signed, kind.__name__)
        if len(text) > LONGEST or not hmac.compare_digest(
            signature.encode("utf-8", "replace"), expected.encode()
        ):
            return None
        if not until.isascii() or not until.isdecimal() or int(until) < now_s:
            return None
        try:
            raw = base64.urlsafe_b64decode(inner + "=" * (-len(inner) % 4))
            return msgspec.json.decode(raw, type=kind)
        except (binascii.Error, ValueError, *UNREADABLE):
            return None
