"""Exact-match cache of whole, successful answers.

The key is a hash of the whole canonical body, the model asked for, and the team: one team never
sees another's answers unless both opted in. Streams are kept as the bytes that were streamed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Protocol

import msgspec
import orjson

from proxy.auth import Caller
from proxy.features import Peek
from proxy.settings import Cache

SHARED = "\x00shared"  # no team can have this name


class Answer(msgspec.Struct, frozen=True):
    """One complete answer, as kept."""

    content_type: bytes
    body: bytes
    backend: str
    prompt_tokens: int | None
    output_tokens: int | None
    energy_j: float | None  # what making it used, by estimate
    evidence: str


class AnswerStore(Protocol):
    """Where answers are kept. Never raises: a store that is gone is a miss."""

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, value: bytes, ttl_s: float) -> None: ...


class MemoryStore:
    """In this process, the least recently used thrown away first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def get_at(self, key: str, now_s: float) -> bytes | None:
        entry = self._kept.get(key)
        if entry is None:
            return None
        if now_s >= entry[0]:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return entry[1]

    def put_at(self, key: str, value: bytes, ttl_s: float, now_s: float) -> None:
        if key in self._kept:
            self._drop(key)
        if len(value) > self.max_bytes:
            return
        self._kept[key] = (now_s + ttl_s, value)
        self.size_bytes += len(value)
        while self.size_bytes > self.max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: str) -> None:
        self.size_bytes -= len(self._kept.pop(key)[1])


_encode = msgspec.msgpack.Encoder().encode
_answer = msgspec.msgpack.Decoder(Answer)


def pack(answer: Answer) -> bytes:
    return _encode(answer)


def unpack(value: bytes) -> Answer | None:
    """The answer in a stored value; None when it is not one (another version's, say)."""
    try:
        return _answer.decode(value)
    except msgspec.MsgspecError:
        return None


def key_of(body: bytes, endpoint: str, caller: Caller) -> str | None:
    """The key of a request's answer; None for a body that has no canonical form."""
    try:
        canonical = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, TypeError, RecursionError):
        return None
    whose = SHARED if caller.share_cache else caller.team
    hashed = hashlib.sha256(f"1\n{endpoint}\n{whose}\n".encode())
    hashed.update(canonical)
    return hashed.hexdigest()


def cacheable(request: Peek, body: bytes, rules: Cache) -> bool:
    """Whether this request's answer may come from the cache and go into it.

    Not what calls tools (their world changes) or what is large; sampled answers only where the
    config asks for it, unless a seed makes them repeatable.
    """
    if not rules.enabled or len(body) > rules.max_answer_bytes:
        return False
    if bytes(request.tools) or bytes(request.functions):
        return False
    if bytes(request.input):  # embeddings are a function of their input
        return True
    return rules.sampled or request.temperature == 0 or request.seed is not None
