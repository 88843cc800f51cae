"""From a request's bytes to what estimators and policies look at.

`peek` reads the few fields that routing needs and leaves everything else as raw bytes;
`text_of` collects the prompt's text for counting and for predictors. Nothing here is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Annotated, Any

import msgspec

from estimators.types import Features
from meters.unreadable import UNREADABLE
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
    instructions: msgspec.Raw = msgspec.Raw()  # of a Responses request, as is the next
    previous_response_id: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()  # of a Messages request
    query: msgspec.Raw = msgspec.Raw()  # of one to rerank, as are the documents
    documents: msgspec.Raw = msgspec.Raw()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Int64 | None = None
    max_completion_tokens: Int64 | None = None
    max_output_tokens: Int64 | str | None = None  # "inf" where sessions are opened
    n: Int64 | None = None
    best_of: Int64 | None = None  # of a completion: answers of which ``n`` are given
    temperature: float | None = None
    seed: Int64 | None = None
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()
    response_format: msgspec.Raw = msgspec.Raw()
    text: msgspec.Raw = msgspec.Raw()  # of a Responses request: the format of its answer
    logprobs: msgspec.Raw = msgspec.Raw()
    user: msgspec.Raw = msgspec.Raw()

    @property
    def output_limit(self) -> int | None:
        """The caller's limit on output tokens, of any name; a negative one is none, as
        llama.cpp has it."""
        limit = self.max_completion_tokens
        limit = self.max_tokens if limit is None else limit
        if limit is None and isinstance(self.max_output_tokens, int):
            limit = self.max_output_tokens
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
    content: Any = None  # of a tool's result in a Messages request
    input: Any = None  # what a tool is called with there


class _Message(msgspec.Struct):
    role: str = "user"
    content: str | list[_Part | str] | None = None
    tool_calls: list[_ToolCall] | None = None


class _Item(_Message):
    """One of a Responses request's input: a message, a call, its output, what was thought."""

    type: str | None = None
    text: str | None = None  # of a part that stands among them, as to be moderated
    name: Any = None
    arguments: Any = None
    input: Any = None
    output: Any = None
    summary: Any = None


# Above this, embedded files are cut out before a body is read: base64 holds nothing that routing
# needs, and reading 20 MB of it would stall every other request for milliseconds.
ELIDE_BYTES = 262_144
WINDOW_BYTES = 65_536
LEAST_FIELD_BYTES = 4_096  # of data in a field that is worth cutting out
_BASE64, _DATA = b";base64,", b'"data"'
_STRING = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*"')
_BASE64_TEXT = re.compile(rb"[A-Za-z0-9+/_-]{1024}")

# Lenient as engines are, which take "0.7" and 100.0: the body goes on as it came.
_peek = msgspec.json.Decoder(Peek, strict=False)
_messages = msgspec.json.Decoder(list[_Message])
_items = msgspec.json.Decoder(list[_Item])
_any = msgspec.json.Decoder()

# Tokens that a chat template puts around each message and before the answer; counted on
# the common ChatML form: <|im_start|>role\n ... <|im_end|>\n.
TOKENS_PER_MESSAGE = 4
TOKENS_PER_ANSWER = 3
# An image costs between 85 (OpenAI, low detail) and over 1,000 tokens; the middle of what
# 512-pixel tiles cost at OpenAI's published 170 a tile plus 85.
TOKENS_PER_IMAGE = 765
NOTHING = msgspec.Raw()
IMAGES = frozenset({"image_url", "input_image", "image"})  # types of parts


def elided(body: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """The body without its base64 data, and the parts (start, end) of it that were kept.

    Data is what follows ``;base64,``, and where a field called ``data`` has it, as sound in a chat
    and images in a Messages request do. Looked for a window at a time, since what is found need
    not be searched.
    """
    size = len(body)
    if size < ELIDE_BYTES:
        return body, [(0, size)]
    kept: list[tuple[int, int]] = []
    start = at = 0
    while at < size:
        end = at + WINDOW_BYTES
        url = body.find(_BASE64, at, end + len(_BASE64))
        field = body.find(_DATA, at, end + len(_DATA) if url < 0 else url)
        if field >= 0:
            data = _string_after(body, field + len(_DATA))
        elif url >= 0:
            data = url + len(_BASE64)
        else:
            at = end
            continue
        quote = body.find(b'"', data)  # base64 has no quotes and no backslashes
        if quote < 0:
            break
        if field < 0 or (
            quote - data >= LEAST_FIELD_BYTES and _BASE64_TEXT.match(body, data, quote)
        ):
            kept.append((start, data))
            start = at = quote
        else:
            at = data
    kept.append((start, size))
    if len(kept) == 1:
        return body, kept
    return b"".join(body[a:b] for a, b in kept), kept


def _string_after(body: bytes, at: int) -> int:
    """Where the string of a field begins, whose name ends there; there where it is none."""
    found = _STRING.match(body, at)
    return found.end() if found else at


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
    except UNREADABLE as error:
        raise invalid_body(
            f"We could not parse the JSON body of your request: {error}. "
            "Send valid JSON as UTF-8 with content-type application/json."
        ) from None


def require_prompt(request: Peek) -> None:
    """Refuse what asks nothing, in no API's words; what is not another API's is to be a chat."""
    if not any(bytes(said) for said in (request.prompt, request.input, request.query)):
        require_chat(request)


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

    texts: list[str]  # everything that will be tokenised, message by message
    last: str  # the last user message: what the request is about
    messages: int
    images: int
    overhead_tokens: int  # what the chat template adds, images included
    # Of a conversation: what tells its messages from all others', and likewise the
    # messages before its last answer, which are those of the request before.
    whole: int | None = None
    before: int | None = None
    blocks: tuple[int, ...] = ()  # by which its beginning is known again (meters.prefixes)
    prompts: int = 1  # a completion's list of them, each of which is answered

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def __repr__(self) -> str:
        return f"Prompt({sum(map(len, self.texts))} characters)"


def prompt_of(request: Peek) -> Prompt:
    """The text in a request of any of the APIs; garbage counts as its characters."""
    tools = bytes(request.tools)
    raw = bytes(request.messages)
    if raw:
        try:
            return _of_messages(_messages.decode(raw), tools, _text_in(request.system))
        except UNREADABLE:
            return _plain(raw.decode("utf-8", "replace"))
    raw = bytes(request.prompt)
    completes = bool(raw) and not raw.startswith(b"{")
    if not completes:  # a Responses request may name a prompt kept elsewhere
        raw = bytes(request.input)
    if not raw:
        query = _text_in(request.query)
        return _plain("\n".join((query, _text_in(request.documents))).strip("\n"), query)
    try:
        if raw[1:].lstrip()[:1] == b"{":
            return _of_messages(_items.decode(raw), tools, _text_in(request.instructions))
        value = _any.decode(raw)
    except UNREADABLE:
        return _plain(raw.decode("utf-8", "replace"))
    texts, tokens = [], 0
    listed = value if isinstance(value, list) else [value]
    for item in listed:
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, list):  # already tokens
            tokens += len(item)
        else:
            tokens += 1
    text = "\n".join(texts)
    said = [part for part in (_text_in(request.instructions), text) if part]
    if tools:
        said.append(tools.decode("utf-8", "replace"))
    prompt = _plain("\n".join(said), text)
    prompt.overhead_tokens = tokens
    if completes:
        prompt.prompts = max(1, sum(isinstance(item, str | list) for item in listed))
    return prompt


def _told_apart(texts: Sequence[str], answered: int) -> tuple[int | None, int]:
    """What tells the texts before number ``answered``, and all of them, from all others; the same
    in every process."""
    digest, before = sha256(), None
    if answered:
        digest.update("\0".join((*texts[:answered], "")).encode("utf-8", "surrogatepass"))
        before = int.from_bytes(digest.digest()[:8])
    digest.update("\0".join((*texts[answered:], "")).encode("utf-8", "surrogatepass"))
    return before, int.from_bytes(digest.digest()[:8])


def _of_messages(messages: Sequence[_Message], tools: bytes, system: str) -> Prompt:
    texts = [system] if system else []
    last, images, answered, by_model = "", 0, 0, False
    for message in messages:
        content, results = message.content, ""
        if isinstance(content, str):
            said = content
        elif content:
            parts = list(_text_parts(content))
            images += sum(part is None for part in parts)
            said = "\n".join(part for part in parts if part)
            inner = [text for part in content for text in _results(part)]
            images += sum(text is None for text in inner)
            results = "\n".join(text for text in inner if text)
        else:
            said = ""
        before, by_model = by_model, message.role == "assistant"
        if type(message) is _Item and message.type is not None:
            by_model = by_model or _is_by_model(message)
            images += message.type in IMAGES
            said = said or message.text or ""
            results = _text_of_item(message)
        if by_model and not before:
            answered = len(texts)
        texts.append(f"{said}\n{results}" if said and results else said or results)
        if message.role == "user" and said:
            last = said
        texts.extend(
            f"{call.function.name} {call.function.arguments}"
            for call in message.tool_calls or ()
            if call.function
        )
    before_it, whole = _told_apart(texts, answered)
    if tools:
        texts.append(tools.decode("utf-8", "replace"))
    overhead = TOKENS_PER_MESSAGE * len(messages) + TOKENS_PER_ANSWER + TOKENS_PER_IMAGE * images
    return Prompt(
        texts=texts,
        last=last or (texts[-1] if texts else ""),
        messages=len(messages),
        images=images,
        overhead_tokens=overhead,
        whole=whole,
        before=before_it,
    )


def _is_by_model(item: _Item) -> bool:
    """Whether the model wrote that; what came of a call, others did."""
    kind = item.type or ""
    return kind == "reasoning" or kind.endswith("_call")


def _text_of_item(item: _Item) -> str:
    """What an item of a Responses request says beside its content."""
    said: list[str] = []
    if _is_by_model(item):
        said += [str(part) for part in (item.name, item.arguments or item.input) if part]
    for value in (item.output, item.summary):
        said += [text for text in _texts(value) if text]
    return " ".join(said)


def _text_parts(content: list[_Part | str]) -> Iterator[str | None]:
    """Texts of a message's parts; None for an image."""
    for part in content:
        if isinstance(part, str):
            yield part
        elif part.text is not None:
            yield part.text
        elif part.type in IMAGES:
            yield None


def _results(part: _Part | str) -> Iterator[str | None]:
    """What a tool was called with or gave, in a Messages request; None for an image."""
    if isinstance(part, _Part):
        if part.input is not None:
            yield msgspec.json.encode(part.input).decode()
        yield from _texts(part.content)


def _texts(value: Any) -> Iterator[str | None]:
    """The texts in what may be one, a list of them, or of parts that hold them; None for an
    image."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            if isinstance(part.get("text"), str):
                yield part["text"]
            elif part.get("type") in IMAGES:
                yield None


def _text_in(raw: msgspec.Raw) -> str:
    """The text in a field that is one, or a list of parts."""
    if raw == NOTHING:
        return ""
    given = bytes(raw)
    try:
        return "\n".join(text for text in _texts(_any.decode(given)) if text)
    except UNREADABLE:
        return given.decode("utf-8", "replace")


def _plain(text: str, last: str | None = None) -> Prompt:
    last = text if last is None else last
    return Prompt(texts=[text], last=last, messages=1, images=0, overhead_tokens=0)


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
        has_schema=b"json_schema" in bytes(request.response_format)
        or b"json_schema" in bytes(request.text),
        has_images=bool(prompt and prompt.images),
        n=max(1, request.n or 1, request.best_of or 1) * (prompt.prompts if prompt else 1),
        cached_prompt_tokens=min(cached_tokens, tokens),
    )
