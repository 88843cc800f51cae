"""Exact-match cache of whole, successful answers.

The key is a hash of the whole canonical body, the model asked for, and the team: one team never
sees another's answers unless both opted in. Streams are kept as the bytes that were streamed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import msgspec
import orjson

from meters.unreadable import UNREADABLE
from proxy.auth import Caller
from proxy.features import Peek
from proxy.settings import Cache
from proxy.store import SHARED

# Endpoints whose answer is a function of the body: nothing is sampled.
FUNCTIONS = frozenset({"embeddings", "rerank", "moderations"})


class Answer(msgspec.Struct, frozen=True):
    """One complete answer, as kept."""

    content_type: bytes
    body: bytes
    backend: str
    prompt_tokens: int | None
    output_tokens: int | None
    energy_j: float | None  # what making it used, by estimate
    evidence: str
    made_s: float = 0.0  # Unix time


_CHANGING = frozenset({b"openai-beta", b"anthropic-beta", b"anthropic-version"})
_CALLS = re.compile(
    rb'"tool_calls"\s*:\s*\[\s*[^\]\s]|"function_call"\s*:\s*\{|"type"\s*:\s*"(?:tool_use|\w+_call)"'
)
NO_HEADERS: Mapping[bytes, bytes] = {}

_encode = msgspec.msgpack.Encoder().encode
_answer = msgspec.msgpack.Decoder(Answer)


def pack(answer: Answer) -> bytes:
    return _encode(answer)


def unpack(value: bytes) -> Answer | None:
    """The answer in a stored value; None when it is not one (another version's, say)."""
    try:
        return _answer.decode(value)
    except UNREADABLE:
        return None


def key_of(
    body: bytes,
    endpoint: str,
    caller: Caller,
    min_quality: float | None = None,
    *,
    group: str = "",
    headers: Mapping[bytes, bytes] = NO_HEADERS,
) -> str | None:
    """The key of a request's answer; None for a body that has no canonical form.

    ``group``: of the backend that was chosen, since ``auto`` and different policies choose
    differently. Who asks for a least quality shares answers only with those who ask for the same.
    Of ``headers`` those count that ask a provider for another behaviour.
    """
    try:
        canonical = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, TypeError, RecursionError):
        return None
    whose = f"team {caller.team}" if not caller.share_cache else SHARED
    hashed = hashlib.sha256(f"2\n{endpoint}\n{whose}\n{group}\n".encode())
    if min_quality is not None:
        hashed.update(f"quality {min_quality!r}\n".encode())
    for name in _CHANGING.intersection(headers):
        hashed.update(name + b": " + headers[name] + b"\n")
    hashed.update(canonical)
    key = hashed.hexdigest()
    return f"{SHARED}:{key}" if caller.share_cache else key


def keepable(response_headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a complete answer may be kept: none that calls a tool, since calling it again is the
    caller's to ask for, and none that its backend does not want kept."""
    control = response_headers.get("cache-control", "").lower()
    return "no-store" not in control and _CALLS.search(body) is None


def cacheable(request: Peek, body: bytes, endpoint: str, rules: Cache) -> bool:
    """Whether this request's answer may come from the cache and go into it.

    Not what calls tools (their world changes), what goes on with a conversation that the backend
    keeps (it is another one then), or what is large; sampled answers only where the
    config asks for it, unless a seed makes them repeatable.
    """
    if not rules.enabled or len(body) > rules.max_answer_bytes:
        return False
    if bytes(request.tools) or bytes(request.functions):
        return False
    if endpoint in FUNCTIONS:
        return True
    if endpoint == "responses" and b'"conversation"' in body:
        return False
    return rules.sampled or request.temperature == 0 or request.seed is not None
