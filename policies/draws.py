"""Randomness that replays: every draw comes from the request's own, by name."""

from __future__ import annotations

from hashlib import blake2b


def drawn(draw: float, purpose: str) -> float:
    """A number in [0, 1) from a request's draw; for each purpose another, always the same."""
    return _hashed(f"{draw!r}/{purpose}")


def steady(key: str, purpose: str) -> float:
    """A number in [0, 1) from a name, such as a session's: the same for all its requests."""
    return _hashed(f"{key}/{purpose}")


def _hashed(text: str) -> float:
    # 53 bits: every value is a float of its own below 1.
    return (int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 11) / 2**53
