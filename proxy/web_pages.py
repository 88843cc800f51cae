"""What other sites' pages cannot do with a Joulegate that asks nobody for a key.

It listens on loopback only, but the browser of whoever sits there runs any site's scripts. A page
can post to an address of this machine without being allowed to read the answer, and it can read it
too once its own name has come to mean this machine (DNS rebinding). Browsers say in ``Origin``
whose page posts, and in ``Host`` by which name they came; programs send no ``Origin``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

# Top-level names that nobody can register: who answers to them is in this network.
_NEARBY = ("localhost", "local", "internal", "lan", "home.arpa")


class Pages:
    """Tells requests of this machine's own programs and pages from those of other sites' pages."""

    def __init__(self, allowed: Iterable[str | None]) -> None:
        """``allowed``: origins, such as ``https://chat.example.org``, that may call all the same;
        ``*``: all."""
        self.allowed = {origin.rstrip("/").lower() for origin in allowed if origin}
        self.names = {urlsplit(origin).hostname for origin in self.allowed}

    def refuses(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a page from elsewhere is behind a request with these raw headers."""
        host = origin = None
        for name, value in headers:
            if name == b"host":
                host = value.decode("latin-1").lower()
            elif name == b"origin":
                origin = value.decode("latin-1").lower()
        if "*" in self.allowed:
            return False
        if host:
            named = _name_in(f"//{host}")
            if named not in self.names and not _is_nearby(named):
                return True
        if origin is None or origin in self.allowed:
            return False
        if origin != "null" and not origin.startswith(("http://", "https://")):
            return False  # an extension's or an application's own page
        same = origin.partition("//")[2] == host
        return not same and not _is_loopback(_name_in(origin))


def _name_in(url: str) -> str | None:
    """The host that a URL names; None where it cannot be read, as in ``null``."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_nearby(name: str | None) -> bool:
    """Whether no stranger's DNS server answers for that name."""
    if not name:
        return False
    if "." not in name or _address(name) is not None:
        return True
    return name.rstrip(".").endswith(tuple(f".{last}" for last in _NEARBY))


def _is_loopback(name: str | None) -> bool:
    if not name:
        return False
    address = _address(name)
    if address is not None:
        return address.is_loopback
    return name == "localhost" or name.endswith(".localhost")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
