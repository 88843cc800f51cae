"""Which backend keeps a response that a client may go on from with ``previous_response_id``.

Only that one can answer: to another backend of the same model the id means nothing. Known in this
replica, for the newest responses; where nobody knows, policy decides as always.
"""

from __future__ import annotations

import re

MOST = 100_000  # responses that are remembered
HEAD_BYTES = 4_096  # of an answer, in which its id stands
_ID = re.compile(rb'"id"\s*:\s*"(resp_[\w.=-]{1,500})"')


class KeptResponses:
    """The newest responses of each team. Used from the event loop only."""

    def __init__(self) -> None:
        self._backends: dict[tuple[str, bytes], str] = {}

    def note(self, team: str, backend: str, answer: bytes) -> None:
        """Remember who gave an answer, or the beginning of one."""
        found = _ID.search(answer, 0, HEAD_BYTES)
        if found is None:
            return
        if len(self._backends) >= MOST:
            del self._backends[next(iter(self._backends))]
        self._backends[team, found[1]] = backend

    def holder(self, team: str, quoted: bytes) -> str | None:
        """The backend that gave a team the response of that id, as written in JSON."""
        return self._backends.get((team, quoted.strip(b'"'))) if quoted else None
