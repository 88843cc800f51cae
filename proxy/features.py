"""From a request's bytes to what estimators and policies look at.

`peek` reads the few fields that routing needs and leaves everything else as raw bytes;
`text_of` collects the prompt's text for counting and for predictors. Nothing here is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from estimators.types import Features
from proxy.errors import ApiError, invalid_body

# What no engine counts to, and what neither a float nor a database's integer holds, is a mistake.
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Peek(msgspec.Struct):
    """The fields of a request body that Joulegate reads; all others pass as they are."""

    model: str | None = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Int64 | None = None
    max_completion_tokens: Int64 | None = None
    n: Int64 | None = None
    temperature: float | None = None
    seed: Int64 | None = None
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()
    response_format: msgspec.Raw = msgspec.Raw()
    logprobs: msgspec.Raw = msgspec.Raw()
    user: msgspec.Raw = msgspec.Raw()

    @property
    def output_limit(self) -> int | None:
        """The caller's limit on output tokens, of either name; a negative one is none, as
        llama.cpp has it."""
        limit = self.max_completion_tokens
        limit = self.max_tokens if limit is None else limit
        return None if limit is None or limit < 0 else limit

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class _Function(msgspec.Struct):
    name: str = ""
    arguments: Any = ""


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Part(msgspec.Struct):
    type: str | None = None
    text: str | None = None


class _Message(msgspec.Struct):
    role: str = "user"
    content: str | list[_Part | str] | None = None
    tool_calls: list[_ToolCall] | None = None


# Above this, embedded files are cut out before a body is read: base64 holds nothing that routing
# needs, and reading 20 MB of it would stall every other request for milliseconds.
ELIDE_BYTES = 262_144
_BASE64 = b";base64,"

# Lenient as engines are, which take "0.7" and 100.0: the body goes on as it came.
_peek = msgspec.json.Decoder(Peek, strict=False)
_messages = msgspec.json.Decoder(list[_Message])
_any = msgspec.json.Decoder()

# Tokens that a chat template puts around each message and before the answer; counted on
# the common ChatML form: <|im_start|>role\n ... <|im_end|>\n.
TOKENS_PER_MESSAGE = 4
TOKENS_PER_ANSWER = 3
# An image costs between 85 (OpenAI, low detail) and over 1,000 tokens; the middle of what
# 512-pixel tiles cost at OpenAI's published 170 a tile plus 85.
TOKENS_PER_IMAGE = 765


def elided(body: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """The body without its base64 data, and the parts (start, end) of it that were kept."""
    if len(body) < ELIDE_BYTES:
        return body, [(0, len(body))]
    kept: list[tuple[int, int]] = []
    start = 0
    while True:
        found = body.find(_BASE64, start)
        if found < 0:
            break
        data = found + len(_BASE64)
        quote = body.find(b'"', data)  # base64 has no quotes and no backslashes
        if quote < 0:
            break
        kept.append((start, data))
        start = quote
    kept.append((start, len(body)))
    if len(kept) == 1:
        return body, kept
    return b"".join(body[a:b] for a, b in kept), kept


def peek(body: bytes) -> Peek:
    """What routing needs of a body. Raises ApiError 400 for what no OpenAI API would take."""
    try:
        if not body.isascii():
            body.decode()  # fields that are passed on unread have to be UTF-8 too
        return _peek.decode(body)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        param = path.strip("`").lstrip(".") or None
        if param is None and "object" in text:
            raise invalid_body("The request body should be a JSON object.") from None
        raise invalid_body(
            f"Invalid value for {param!r}: {text[0].lower()}{text[1:]}.",
            code="invalid_type",
            param=param,
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(
            f"We could not parse the JSON body of your request: {error}. "
            "Send valid JSON as UTF-8 with content-type application/json."
        ) from None


def require_chat(request: Peek) -> None:
    """Refuse what is not a chat request, saying what it looks like instead."""
    if not bytes(request.messages):
        if bytes(request.input):
            raise invalid_body(
                "This looks like a Responses request ('input' instead of 'messages'). "
                "Send it to /v1/responses, or use 'messages'.",
                code="unsupported_parameter",
                param="input",
            )
        raise missing("messages")
    first = bytes(request.messages).lstrip()[:1]
    if first != b"[":
        raise invalid_body(
            "Invalid type for 'messages': expected an array of objects.",
            code="invalid_type",
            param="messages",
        )


def missing(name: str) -> ApiError:
    return invalid_body(
        f"Missing required parameter: {name!r}.", code="missing_required_parameter", param=name
    )


class Prompt(msgspec.Struct):
    """A prompt's text and shape, for counting and for predictors. Never logged or stored."""

    text: str  # everything that will be tokenised
    last: str  # the last user message: what the request is about
    messages: int
    images: int
    overhead_tokens: int  # what the chat template adds, images included
    # Of a conversation: what tells its messages from all others' in this process, and likewise the
    # messages before its last answer, which are those of the request before.
    whole: int | None = None
    before: int | None = None
    blocks: tuple[int, ...] = ()  # by which its beginning is known again (meters.prefixes)

    def __repr__(self) -> str:
        return f"Prompt({len(self.text)} characters)"


def prompt_of(request: Peek) -> Prompt:
    """The text in a chat, completion or embedding request; garbage counts as its characters."""
    raw = bytes(request.messages)
    if raw:
        try:
            return _of_messages(_messages.decode(raw), bytes(request.tools))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _plain(raw.decode("utf-8", "replace"))
    raw = bytes(request.prompt) or bytes(request.input)
    if not raw:
        return _plain("")
    try:
        value = _any.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _plain(raw.decode("utf-8", "replace"))
    texts, tokens = [], 0
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, list):  # already tokens
            tokens += len(item)
        else:
            tokens += 1
    text = "\n".join(texts)
    return Prompt(text=text, last=text, messages=1, images=0, overhead_tokens=tokens)


def _of_messages(messages: list[_Message], tools: bytes) -> Prompt:
    texts: list[str] = []
    last, images, answered = "", 0, 0
    for message in messages:
        content = message.content
        if isinstance(content, str):
            said = content
        else:
            parts = list(_text_parts(content))
            images += sum(part is None for part in parts)
            said = "\n".join(part for part in parts if part)
        if message.role == "assistant":
            answered = len(texts)
        texts.append(said)
        if message.role == "user" and said:
            last = said
        texts.extend(
            f"{call.function.name} {call.function.arguments}"
            for call in message.tool_calls or ()
            if call.function
        )
    whole = hash(tuple(texts))
    before = hash(tuple(texts[:answered])) if answered else None
    if tools:
        texts.append(tools.decode("utf-8", "replace"))
    overhead = TOKENS_PER_MESSAGE * len(messages) + TOKENS_PER_ANSWER + TOKENS_PER_IMAGE * images
    return Prompt(
        text="\n".join(texts),
        last=last or (texts[-1] if texts else ""),
        messages=len(messages),
        images=images,
        overhead_tokens=overhead,
        whole=whole,
        before=before,
    )


def _text_parts(content: list[_Part | str] | None) -> Iterator[str | None]:
    """Texts of a message's parts; None for an image."""
    for part in content or ():
        if isinstance(part, str):
            yield part
        elif part.text is not None:
            yield part.text
        elif part.type in ("image_url", "input_image", "image"):
            yield None


def _plain(text: str) -> Prompt:
    return Prompt(text=text, last=text, messages=1, images=0, overhead_tokens=0)


def features_from(
    request: Peek,
    prompt: Prompt | None,
    *,
    tokens: int,
    counted: bool,
    task: str | None,
    text: str,
    team: str,
    cached_tokens: int = 0,
) -> Features:
    """What estimators look at; ``prompt`` is None where it has not been read in time.

    ``cached_tokens`` are those of the conversation's turn before, on the backend that has it."""
    return Features(
        prompt_tokens=tokens,
        prompt_tokens_counted=counted,
        max_tokens=request.output_limit,
        task=task,
        text=text,
        team=team,
        messages=prompt.messages if prompt else 1,
        has_tools=bool(bytes(request.tools)),
        has_schema=b"json_schema" in bytes(request.response_format),
        has_images=bool(prompt and prompt.images),
        n=max(1, request.n or 1),
        cached_prompt_tokens=min(cached_tokens, tokens),
    )
