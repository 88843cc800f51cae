"""Where conversations are: which backend holds a conversation's prefix in its cache.

A client names its session with ``x-session-id``. Without one a conversation is known by its own
prefix: a request that is an earlier one with an answer and more after it goes on from there. Only
hashes of names and prefixes are held, in memory; replicas tell them each other (siblings.py).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

import msgspec

TOLD_S = 2.0  # how long a turn is told to other replicas: five times
MOST_TOLD = 5_000
MOST = 100_000  # conversations that are remembered
SEEN_WEIGHT = 0.05  # how fast the part of a prefix that engines say was cached is followed


class Turn(NamedTuple):
    """The turn before this one."""

    session: str  # what the conversation is called in records
    backend: str
    tokens: int  # of this request, those that are cached there as far as is known


class Went(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a turn went, as it is told to other replicas."""

    key: str  # a hash of its session's name, or of its prefix
    at_s: float  # Unix time
    session: str
    backend: str
    tokens: int


class Conversations:
    """Remembers the last turn of each conversation. Used from the event loop only."""

    def __init__(self) -> None:
        self._turns: dict[str, Went] = {}
        self._fresh: deque[Went] = deque(maxlen=MOST_TOLD)
        self._cached: dict[str, float] = {}  # by backend: how much of a known prefix it had

    def __len__(self) -> int:
        return len(self._turns)

    def before(self, team: str, session: str | None, prefix: int | None) -> Turn | None:
        """The turn before, by session and by prefix; None for a new conversation.

        A session whose request does not go on from its last one has nothing cached for sure.
        """
        same = None if prefix is None else self._turns.get(_key(team, prefix))
        named = None if session is None else self._turns.get(_key(team, session))
        if named is None:
            if same is None:
                return None
            named = same
        tokens = same.tokens if same is not None and same.backend == named.backend else 0
        name = named.session if session is None else called(team, session)
        return Turn(name, named.backend, round(tokens * self._share(named.backend)))

    def went(
        self,
        team: str,
        session: str | None,
        prefix: int | None,
        name: str,
        backend: str,
        tokens: int,
    ) -> None:
        """Remember where a turn went: ``prefix`` of all its messages, ``tokens`` that are cached
        there now, ``name`` that the conversation has in records."""
        self._make_room()
        turns, now_s = self._turns, time.time()
        for sort in (session, prefix):
            if sort is not None:
                went = Went(_key(team, sort), now_s, name, backend, tokens)
                turns.pop(went.key, None)  # so that the newest are last
                turns[went.key] = went
                self._fresh.append(went)

    def told(self) -> list[Went]:
        """What went somewhere lately, for other replicas."""
        oldest_s = time.time() - TOLD_S
        while self._fresh and self._fresh[0].at_s < oldest_s:
            self._fresh.popleft()
        return list(self._fresh)

    def heard(self, told: Iterable[Went]) -> None:
        """Take what other replicas told, where nothing later is known."""
        for went in told:
            known = self._turns.get(went.key)
            if known is None or known.at_s < went.at_s:
                self._turns.pop(went.key, None)
                self._turns[went.key] = went
        self._make_room()

    def _make_room(self) -> None:
        while len(self._turns) > MOST:
            for key in list(islice(self._turns, 1000)):  # few at a time: nobody waits long for it
                del self._turns[key]

    def saw(self, backend: str, expected: int, cached: int) -> None:
        """Take an engine's word on how much of a prefix it had."""
        share = min(1.0, cached / expected)
        before = self._share(backend)
        self._cached[backend] = before + SEEN_WEIGHT * (share - before)

    def _share(self, backend: str) -> float:
        return self._cached.get(backend, 1.0)


def _key(team: str, sort: str | int) -> str:
    """What a turn is known by: its session's name, or the hash of its prefix."""
    return called(team, sort if isinstance(sort, str) else f"\0{sort}")


def called(team: str, session: str) -> str:
    """What a session is called in records: a hash, since its name is the client's own."""
    return blake2b(f"{team}/{session}".encode(), digest_size=9).hexdigest()
