"""Watching a stream of server-sent events go by, however its bytes are cut. No I/O, no clock.

`StreamWatcher` is fed the upstream's bytes and gives the bytes to pass on: the same ones, except
that the usage event we asked for on the client's behalf is taken out again. It never re-frames or
re-serialises; bytes of an event that is complete and wanted leave exactly as they came.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, cast

import msgspec

from meters.unreadable import UNREADABLE

MAX_LINE_BYTES = 1_048_576  # beyond this a line is passed on unread: memory stays bounded
MAX_EVENT_BYTES = 16 * MAX_LINE_BYTES  # and of all its lines together, an event
EDGE_BYTES = 4_096  # of its beginning and its end, which are read all the same


# What no answer has is no count of tokens, and neither sums nor the ledger would hold it.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class PromptDetails(msgspec.Struct):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    audio_tokens: Count | None = None
    image_tokens: Count | None = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: Count | None = None
    audio_tokens: Count | None = None
    image_tokens: Count | None = None


class CacheCreation(msgspec.Struct):
    """How long what Messages wrote into the prompt cache is kept there."""

    ephemeral_1h_input_tokens: Count | None = None


class TokenUsage(msgspec.Struct):
    """An upstream's own count of tokens; None where it does not say.

    The Responses and Messages APIs have names of their own, which are read into the common ones.
    """

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: PromptDetails | None = None
    output_tokens_details: CompletionDetails | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_creation: CacheCreation | None = None
    service_tier: str | None = None  # what it is charged as; Messages say it here, others beside it

    def __post_init__(self) -> None:
        if self.completion_tokens is None:
            self.completion_tokens = self.output_tokens
        self.prompt_tokens_details = self.prompt_tokens_details or self.input_tokens_details
        self.completion_tokens_details = (
            self.completion_tokens_details or self.output_tokens_details
        )
        if self.prompt_tokens is None and self.input_tokens is not None:
            # Messages leaves out of its input what came from its cache or went into it.
            cached = self.cache_read_input_tokens
            written = self.cache_creation_input_tokens
            self.prompt_tokens = self.input_tokens + (cached or 0) + (written or 0)
            if cached is not None:
                self.prompt_tokens_details = PromptDetails(cached_tokens=cached)

    def after(self, before: TokenUsage | None) -> TokenUsage:
        """This one, with what only an earlier event of the same stream said."""
        if before is None:
            return self
        prompt = self.prompt_tokens
        answer = self.completion_tokens
        return TokenUsage(
            prompt_tokens=before.prompt_tokens if prompt is None else prompt,
            completion_tokens=before.completion_tokens if answer is None else answer,
            prompt_tokens_details=self.prompt_tokens_details or before.prompt_tokens_details,
            completion_tokens_details=(
                self.completion_tokens_details or before.completion_tokens_details
            ),
            cache_creation_input_tokens=(
                before.cache_creation_input_tokens
                if self.cache_creation_input_tokens is None
                else self.cache_creation_input_tokens
            ),
            cache_creation=self.cache_creation or before.cache_creation,
            service_tier=self.service_tier or before.service_tier,
        )

    @property
    def written_tokens(self) -> int:
        """Tokens that the provider put into its prompt cache, at a price of their own."""
        if self.cache_creation_input_tokens is not None:
            return self.cache_creation_input_tokens
        details = self.prompt_tokens_details
        return (details.cache_write_tokens if details else None) or 0

    @property
    def cached_tokens(self) -> int | None:
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None

    @property
    def reasoning_tokens(self) -> int | None:
        details = self.completion_tokens_details
        return details.reasoning_tokens if details else None


class _UsageOnly(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()
    choices: msgspec.Raw = msgspec.Raw()
    service_tier: Any = None


class _Typed(msgspec.Struct):
    """An event of an API that names its events: Responses, Messages, speech and images."""

    type: str | None = None
    object: str | None = None
    usage: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()  # these two may hold the usage
    message: msgspec.Raw = msgspec.Raw()


LAST = frozenset(
    {
        "response.completed",
        "response.incomplete",
        "message_stop",
        "speech.audio.done",
        "image_generation.completed",
        "image_edit.completed",
        "transcript.text.done",
    }
)
ERRORS = frozenset({"error", "response.failed"})
NOTHING = msgspec.Raw()
# Those after which nothing comes: an image may be one of several.
VERY_LAST = frozenset({"response.completed", "response.incomplete", "message_stop"})
_COUNTS = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)
_usage = msgspec.json.Decoder(_UsageOnly)
_typed = msgspec.json.Decoder(_Typed)
_NAME = re.compile(rb'(?:^event: ?|"type": ?")([a-z_.]+)', re.M)
_json = json.JSONDecoder()
_tokens = msgspec.json.Decoder(TokenUsage | None)


def usage_in(body: bytes) -> TokenUsage | None:
    """The ``usage`` of an answer, or None."""
    try:
        return _usage_beside(_usage.decode(body))
    except UNREADABLE:
        return None


def usage_in_part(part: bytes) -> TokenUsage | None:
    """The last ``usage`` in a part of an answer that is too large to be read; None where there is
    none that is whole."""
    key = part.rfind(b'"usage"')
    brace = part.find(b"{", key)
    if key < 0 or part[key + 7 : brace].strip() != b":":
        return None
    try:
        return _salvaged(_json.raw_decode(part[brace:].decode("utf-8", "replace"))[0])
    except ValueError:
        return None


def _usage_beside(seen: _UsageOnly) -> TokenUsage | None:
    """The usage of an answer or event, with the tier that stands beside it."""
    usage = _usage_of(seen.usage)
    if usage is not None and isinstance(seen.service_tier, str):
        usage.service_tier = seen.service_tier
    return usage


def _usage_of(raw: msgspec.Raw) -> TokenUsage | None:
    if raw == NOTHING:
        return None
    try:
        found: TokenUsage | None = _tokens.decode(raw)
    except msgspec.ValidationError:
        try:
            return _salvaged(msgspec.json.decode(raw))
        except UNREADABLE:
            return None
    except UNREADABLE:
        return None
    return found


def _salvaged(usage: Any) -> TokenUsage | None:
    """The counts in a usage that is not as it should be; None where there is none."""
    if not isinstance(usage, dict):
        return None
    counts = {name: _count(usage.get(name)) for name in _COUNTS}
    if all(count is None for count in counts.values()):
        return None
    found = TokenUsage(**cast(Any, counts))
    for name in ("prompt_tokens_details", "input_tokens_details"):
        if isinstance(told := usage.get(name), dict):
            found.prompt_tokens_details = PromptDetails(
                *(_count(told.get(name)) for name in PromptDetails.__struct_fields__)
            )
    for name in ("completion_tokens_details", "output_tokens_details"):
        if isinstance(told := usage.get(name), dict):
            found.completion_tokens_details = CompletionDetails(
                *(_count(told.get(name)) for name in CompletionDetails.__struct_fields__)
            )
    return found


def _count(value: object) -> int | None:
    """A count of tokens, also one written as 12.0; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2**53:
        return None
    return int(value)


class StreamWatcher:
    """Notes first token, usage and the end; gives back the bytes to pass on.

    With ``hide_usage`` the one event whose ``choices`` is empty and that has a ``usage`` is
    removed, since the client did not ask for it.
    """

    def __init__(self, *, hide_usage: bool = False) -> None:
        self.hide_usage = hide_usage
        self.events = 0  # data events with content for the client
        self.typed = 0  # events of any kind, of an API that names them
        self.usage: TokenUsage | None = None
        self.done = False  # "[DONE]" was seen
        self.failed = False  # an error event was seen
        self.complete = False  # "[DONE]" was seen, or what other APIs end with
        self.finished = False  # a finish_reason was seen
        self._event = bytearray()  # the unfinished event's bytes
        self._data: list[bytes] = []  # the lines of its data so far
        self._line_start = 0  # where in _event the unfinished line begins
        self._passing = False  # inside a line too long to hold
        self._edge = b""  # the end, so far, of a line too long to hold
        self._last_was_cr = False
        self._hid = False  # the last event was not passed on

    @property
    def midway(self) -> bool:
        """Whether what was passed on ends within an event."""
        return self._passing or (bool(self._event) and not self.hide_usage)

    @property
    def counts(self) -> TokenUsage | None:
        """The usage, as far as it is one: Messages tell at once what they can only guess, and an
        answer that broke off has no more than that."""
        usage = self.usage
        if usage is not None and not (self.complete or self.finished):
            if (usage.completion_tokens or 0) < self.events:
                usage.completion_tokens = None
            usage.prompt_tokens = usage.prompt_tokens or None
        return usage

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; the bytes to pass on now."""
        if not self._event and not self._passing and self._whole_events(chunk):
            return self._feed_whole(chunk)
        out = bytearray()
        for line in chunk.splitlines(keepends=True):  # LF, CRLF or CR, for bytes
            self._take(line, out)
        # Only a hidden event makes it necessary to hold the unfinished one back.
        return bytes(out) if self.hide_usage else chunk

    def end(self) -> bytes:
        """The stream ended: what was held of an unfinished event."""
        rest = bytes(self._event) if self.hide_usage else b""
        self._inspect_rest()
        self._reset()
        return rest

    # -- the common case: a chunk of whole events, each "data: ...\n\n" ------------------------

    @staticmethod
    def _whole_events(chunk: bytes) -> bool:
        return chunk.endswith(b"\n\n") and chunk.startswith(b"data:") and b"\r" not in chunk

    def _feed_whole(self, chunk: bytes) -> bytes:
        if chunk.find(b"\n\n") == len(chunk) - 2 and b"\n" not in chunk[:-2]:
            return chunk if self._inspect(chunk[5:-2]) else b""
        kept = []
        for event in chunk[:-2].split(b"\n\n"):
            data = event[5:] if event.startswith(b"data:") and b"\n" not in event else None
            if data is None:
                data = _data_of(event)
            if data is None or self._inspect(data):
                kept.append(event + b"\n\n")
        return chunk if len(kept) == chunk.count(b"\n\n") else b"".join(kept)

    # -- the general case ----------------------------------------------------------------------

    def _take(self, line: bytes, out: bytearray) -> None:
        self._event += line
        if not line.endswith((b"\n", b"\r")):
            if self._passing or len(self._event) > MAX_LINE_BYTES:
                if not self._passing:
                    self._passing = True  # too long to be held: let it through as it comes
                    self._inspect_beginning(bytes(self._event[:EDGE_BYTES]))
                self._edge = (self._edge + self._event)[-EDGE_BYTES:]
                out += self._event
                self._event.clear()
                self._line_start = 0
            return
        if line == b"\n" and self._last_was_cr and self._line_start == len(self._event) - 1:
            # the second half of a CRLF that was cut between its two bytes
            self._last_was_cr = False
            self._line_start = len(self._event)
            if len(self._event) == 1:
                if not self._hid:  # else it belongs to the event that was taken out
                    out += self._event
                self._reset()
            return
        self._last_was_cr = line.endswith(b"\r")
        text = bytes(self._event[self._line_start :]).rstrip(b"\r\n")
        self._line_start = len(self._event)
        if self._passing:
            usage = usage_in_part((self._edge + self._event)[-EDGE_BYTES:]) if self._edge else None
            if usage is not None:
                self.usage = usage.after(self.usage)
            self._edge = b""
            out += self._event
            self._event.clear()
            self._line_start = 0
            if not text:
                self._passing = False
            return
        if text.startswith(b"data:"):
            self._data.append(text[5:])
        elif not text:
            self._hid = bool(self._data) and not self._inspect(b"\n".join(self._data))
            if not self._hid:
                out += self._event
            self._reset(keep_cr=True)
            return
        if len(self._event) > MAX_EVENT_BYTES:  # of many lines, and no blank one to end it
            self._passing = True
            out += self._event
            self._event.clear()
            self._data.clear()
            self._line_start = 0

    def _inspect(self, data: bytes) -> bool:
        """Note what an event says; whether to pass it on."""
        data = data.strip()
        if data == b"[DONE]":
            self.done = self.complete = True
            return True
        if b'"choices"' not in data and self._inspect_typed(data):
            return True
        if b'"usage"' in data and not data.endswith(b'"usage":null}'):
            try:
                seen = _usage.decode(data)
                usage = _usage_beside(seen)
            except UNREADABLE:
                seen, usage = _UsageOnly(), None
            if usage is not None:
                self.usage = usage
                if self.hide_usage and b"".join(bytes(seen.choices).split()) == b"[]":
                    return False
        if data.startswith(b'{"error"'):
            self.failed = True
            return True  # an error is no token
        if b'"finish_reason":"' in data or b'"finish_reason": "' in data:
            self.finished = True
        self.events += 1
        return True

    def _inspect_typed(self, data: bytes) -> bool:
        """Note what an event says that names its type; whether it is one."""
        try:
            event = _typed.decode(data)
        except UNREADABLE:
            return False
        if event.type is None:
            return False
        self.typed += 1
        if b'"usage"' in data:
            held = (usage_in(bytes(holder)) for holder in (event.response, event.message))
            for usage in (_usage_of(event.usage), *held):
                if usage is not None:
                    self.usage = usage.after(self.usage)
        if event.type in ERRORS or event.object == "error":  # as older vLLM writes them
            self.failed = True
        elif event.type in LAST:
            self.finished = True
            self.complete = self.complete or event.type in VERY_LAST
        elif event.type.endswith("delta") and event.type != "message_delta":
            self.events += 1
        return True

    def _inspect_beginning(self, beginning: bytes) -> None:
        """Note what the beginning of an event says that is too long to be held, as one that ends a
        response with an image in it."""
        found = _NAME.search(beginning)
        name = found[1].decode() if found else ""
        self.failed = self.failed or name in ERRORS
        self.finished = self.finished or name in LAST

    def _inspect_rest(self) -> None:
        text = bytes(self._event[self._line_start :]).rstrip(b"\r\n")
        if text.startswith(b"data:"):
            self._data.append(text[5:])
        if self._data:
            self._inspect(b"\n".join(self._data))

    def _reset(self, *, keep_cr: bool = False) -> None:
        self._event.clear()
        self._data.clear()
        self._line_start = 0
        if not keep_cr:
            self._last_was_cr = False


def _data_of(event: bytes) -> bytes | None:
    parts = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(parts) if parts else None
