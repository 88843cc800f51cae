"""One JSON answer over HTTP for the intensity sources: bounded in time and size, no redirects.

Runs in the refresher's thread. A redirect could carry a token to another host, so it is an
error; credentials appear in no message.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import IO, Any

from meters.intensity.types import SourceUnavailable

TIMEOUT_S = 5.0
MAX_BYTES = 16 * 1024 * 1024


class Refused(SourceUnavailable):
    """The server answered with an error status, in ``status``."""

    def __init__(self, where: str, status: int) -> None:
        self.status = status
        hint = {
            401: " Check the credentials.",
            403: " The plan may not include this.",
            404: " Check the zone's name.",
            429: " Asked too often; trying again later.",
        }.get(status, "")
        super().__init__(f"{where} answered with status {status}.{hint}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def get_json(
    url: str,
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Any:
    """The JSON at ``url``. ``timeout_s`` bounds the whole exchange, however slowly it drips.

    Raises SourceUnavailable (Refused for an error status).
    """
    where = urllib.parse.urlsplit(url).netloc
    if query:
        url = f"{url}?{urllib.parse.urlencode(query)}"
    request = urllib.request.Request(url, headers={"accept": "application/json", **(headers or {})})
    deadline = time.monotonic() + timeout_s
    try:
        with _opener.open(request, timeout=timeout_s) as answer:
            body = _read(answer, deadline, where)
    except urllib.error.HTTPError as error:
        error.close()
        raise Refused(where, error.code) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise SourceUnavailable(f"{where} cannot be reached: {reason}.") from None
    try:
        return json.loads(body)
    except ValueError:
        raise SourceUnavailable(f"{where} did not answer with JSON.") from None


def _read(answer: Any, deadline: float, where: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := answer.read1(65536):
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise SourceUnavailable(f"{where} answered with more than {MAX_BYTES} bytes.")
        if time.monotonic() > deadline:
            raise SourceUnavailable(f"{where} answered too slowly.")
    return b"".join(parts)
