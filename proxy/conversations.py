"""Where conversations are: which backend holds a conversation's prefix in its cache.

A client names its session with ``x-session-id``. Without one a conversation is known by its own
prefix: a request that is an earlier one with an answer and more after it goes on from there. Only
a hash of the prefix is held, in memory, for the conversations of this replica.
"""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

MOST = 100_000  # conversations that are remembered
SEEN_WEIGHT = 0.05  # how fast the part of a prefix that engines say was cached is followed


class Turn(NamedTuple):
    """The turn before this one."""

    session: str  # what the conversation is called in records
    backend: str
    tokens: int  # of this request, those that are cached there as far as is known


class Conversations:
    """Remembers the last turn of each conversation. Used from the event loop only."""

    def __init__(self) -> None:
        self._turns: dict[tuple[str, Hashable], Turn] = {}
        self._cached: dict[str, float] = {}  # by backend: how much of a known prefix it had

    def __len__(self) -> int:
        return len(self._turns)

    def before(self, team: str, session: str | None, prefix: int | None) -> Turn | None:
        """The turn before, by session and by prefix; None for a new conversation.

        A session whose request does not go on from its last one has nothing cached for sure.
        """
        same = None if prefix is None else self._turns.get((team, prefix))
        named = None if session is None else self._turns.get((team, session))
        if named is None:
            if same is None:
                return None
            named = same if session is None else Turn(called(team, session), same.backend, 0)
        tokens = same.tokens if same is not None and same.backend == named.backend else 0
        return Turn(named.session, named.backend, round(tokens * self._share(named.backend)))

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
        turns = self._turns
        if len(turns) > MOST:
            for key in list(islice(turns, 1000)):  # few at a time: nobody waits long for it
                del turns[key]
        turn = Turn(name, backend, tokens)
        for sort in (session, prefix):
            if sort is not None:
                turns.pop((team, sort), None)  # so that the newest are last
                turns[(team, sort)] = turn

    def saw(self, backend: str, expected: int, cached: int) -> None:
        """Take an engine's word on how much of a prefix it had."""
        share = min(1.0, cached / expected)
        before = self._share(backend)
        self._cached[backend] = before + SEEN_WEIGHT * (share - before)

    def _share(self, backend: str) -> float:
        return self._cached.get(backend, 1.0)


def called(team: str, session: str) -> str:
    """What a session is called in records: a hash, since its name is the client's own."""
    return blake2b(f"{team}/{session}".encode(), digest_size=9).hexdigest()
