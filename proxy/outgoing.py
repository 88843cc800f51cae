"""A client's request on its way to a backend."""

from __future__ import annotations

from typing import NamedTuple

from proxy.endpoints import Endpoint
from proxy.features import elided


class Outgoing(NamedTuple):
    """What is sent on: by which route, with which of the client's headers, and the body."""

    endpoint: Endpoint
    headers: dict[bytes, bytes]
    body: bytes
    kept: list[tuple[int, int]]  # the parts of the body that are left without embedded files

    def with_body(self, body: bytes) -> Outgoing:
        """The same with another body."""
        kept = [(0, len(body))] if len(self.kept) == 1 else elided(body)[1]
        return self._replace(body=body, kept=kept)
