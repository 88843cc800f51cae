"""Paths as routes want them: names in them may hold slashes, and none is at the end.

A link escapes a name's slash (``/dashboard/a%2Fb/overview``), but a server takes escapes out before
routes are looked at. Here such a slash becomes a character that no name holds, and ``{team:name}``
in a route turns it back.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.convertors import StringConvertor, register_url_convertor

from proxy.asgi import Scope

_NAMING = (b"/dashboard/", b"/admin/")  # names of teams and organisations are parts of these
_SLASH = "\x1f"
# As Azure has them: /openai/deployments/gpt-5/chat/completions, /openai/v1/files, /openai/models.
_AZURE = re.compile(rb"/openai(?:/v1|/deployments/[^/]+)?(/.+)")


class _Name(StringConvertor):
    def convert(self, value: str) -> str:
        return value.replace(_SLASH, "/")


register_url_convertor("name", _Name())


def below(scope: Scope, prefix: str) -> Scope:
    """The scope without the prefix under which browsers see us (``/energy``), where whoever
    stands before us left it on."""
    if not scope["path"].startswith(f"{prefix}/"):
        return scope
    raw = scope["raw_path"].removeprefix(prefix.encode())
    return {**scope, "path": scope["path"].removeprefix(prefix), "raw_path": raw}


def of_azure(scope: Scope) -> Scope:
    """The scope with OpenAI's path instead of Azure's; the body names the model in both."""
    found = _AZURE.fullmatch(scope["raw_path"])
    if found is None:
        return scope
    raw = b"/v1" + found[1]
    return {**scope, "path": unquote(raw.decode("latin-1")), "raw_path": raw}


def routed(scope: Scope, prefix: str) -> Scope:
    """The scope for the routes, which make links that begin with ``prefix``."""
    path, raw = scope["path"], scope["raw_path"]
    if raw.startswith(_NAMING) and b"%2f" in raw.lower():
        parts = raw.decode("latin-1").split("/")
        path = "/".join(unquote(part).replace("/", _SLASH) for part in parts)
    # To send the client there would send it to http where a balancer ends HTTPS.
    path, raw = path.rstrip("/") or "/", raw.rstrip(b"/") or b"/"
    return {**scope, "path": prefix + path, "raw_path": prefix.encode() + raw, "root_path": prefix}
