"""Wrong keys per client address: who sends too many in a minute is not looked at for its rest.

Two counts, so that one client with an old key does not shut out those behind the same address:
many different wrong keys block the address, the same wrong key again and again only itself. An
address is the connection's peer; behind a balancer or NAT, many clients have one.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

MINUTE_S = 60.0
MAX_ADDRESSES = 4_096  # the longest unseen is forgotten; each holds at most `per_minute` numbers


class FailedKeys:
    """Counts wrong keys. ``per_minute`` of 0 counts and refuses nothing by them."""

    def __init__(
        self,
        per_minute: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_minute = per_minute
        self.on_failed: Callable[[], None] = lambda: None
        self._clock = clock
        self._minutes: OrderedDict[str, tuple[float, dict[int, int]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._minutes)

    def wait_s(self, address: str, key: bytes) -> float | None:
        """How long the address has to wait before that key is looked at; None: not at all."""
        if not self._minutes:  # nearly always
            return None
        found = self._minutes.get(network_of(address))
        if found is None:
            return None
        begun_s, wrong = found
        left_s = begun_s + MINUTE_S - self._clock()
        if left_s <= 0:
            return None
        if len(wrong) >= self.per_minute or wrong.get(hash(key), 0) >= self.per_minute:
            return left_s
        return None

    def note(self, address: str, key: bytes) -> None:
        """That key was wrong."""
        self.on_failed()
        if self.per_minute <= 0:
            return
        name, now_s = network_of(address), self._clock()
        found = self._minutes.pop(name, None)
        if found is None or now_s >= found[0] + MINUTE_S:
            found = (now_s, {})
        hashed = hash(key)  # salted by the process; no key is kept
        found[1][hashed] = found[1].get(hashed, 0) + 1
        self._minutes[name] = found
        if len(self._minutes) > MAX_ADDRESSES:
            self._minutes.popitem(last=False)

    def look_again(self) -> None:
        """Other keys are good now: one that was sent again and again may be among them. How many
        different ones an address tried still counts. From any thread."""
        for _, wrong in list(self._minutes.values()):
            for hashed in list(wrong):
                wrong[hashed] = 1


def address_of(scope: Mapping[str, Any]) -> str:
    """The peer's address of an ASGI scope; empty where there is none, as on a Unix socket."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def network_of(address: str) -> str:
    """What is counted together: an IPv4 address, or the /64 that one IPv6 host can have whole."""
    if ":" not in address:
        return address
    try:
        whole = int(ipaddress.IPv6Address(address.partition("%")[0]))
    except ValueError:
        return address
    if whole >> 32 == 0xFFFF:  # an IPv4 address on an IPv6 socket
        return str(ipaddress.IPv4Address(whole & 0xFFFFFFFF))
    return f"{whole >> 64:x}::/64"
