"""Scripts for `Upstream`, as vLLM and OpenAI-like providers write them, well-formed and broken.

Every function gives a script: the whole HTTP answer, head included, ready to be cut or to have
gates and ends put in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from tests.fakes.upstream import Action, Answer, Received, Script

Headers = Mapping[str, str]

CHAT: dict[str, object] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1790000000,
    "model": "tiny",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Grüß Gott"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
}

# What providers send along and clients act upon.
PROVIDER_HEADERS = {
    "openai-processing-ms": "17",
    "openai-version": "2020-10-01",
    "openai-organization": "org-x",
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-reset-requests": "6ms",
}


def head(
    status: int = 200, headers: Headers | None = None, *, reason: str = "Whatever", **more: str
) -> bytes:
    """Status line and headers; keywords are headers with ``_`` for ``-``."""
    lines = [f"HTTP/1.1 {status} {reason}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def answer(body: bytes | object, status: int = 200, headers: Headers | None = None) -> Script:
    """An answer with a length; a body that is not bytes is written as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json", **(headers or {})}
    return (head(status, fields, content_length=str(len(raw))) + raw,)


def failure(status: int, code: str, message: str, headers: Headers | None = None) -> Script:
    """A provider's own error."""
    error = {"message": message, "type": "upstream_error", "param": None, "code": code}
    return answer({"error": error}, status, headers)


def event(value: object, *, newline: str = "\n", space: str = " ") -> bytes:
    """One server-sent event; text is sent as it is, other values as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"data:{space}{text}{newline}{newline}".encode()


def chat_events(
    words: Iterable[str] = ("Grüß ", "Gott", " 🦉"),
    *,
    usage: bool = False,
    cumulative: bool = False,
    model: str = "tiny",
    prompt_tokens: int = 12,
) -> list[object]:
    """The events of a streamed chat, ``[DONE]`` included, as vLLM writes them.

    ``usage``: one event more with the usage and no choices, as ``stream_options.include_usage``
    asks for. ``cumulative``: usage so far on every event, as ``--enable-force-include-usage``.
    """
    events: list[object] = []
    words = list(words)

    def chunk(count: int, delta: dict[str, object], finish: str | None = None) -> None:
        one: dict[str, object] = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1790000000,
            "model": model,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        }
        if cumulative:
            one["usage"] = usage_of(count)
        events.append(one)

    def usage_of(count: int) -> dict[str, object]:
        total = prompt_tokens + count
        return {
            "prompt_tokens": prompt_tokens,
            "total_tokens": total,
            "completion_tokens": count,
        }

    chunk(0, {"role": "assistant", "content": ""})
    for count, word in enumerate(words, 1):
        chunk(count, {"content": word})
    chunk(len(words), {}, "stop")
    if usage or cumulative:
        last = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1790000000}
        events.append({**last, "model": model, "choices": [], "usage": usage_of(len(words))})
    events.append("[DONE]")
    return events


STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8"}


def stream(
    pieces: Sequence[Action], status: int = 200, headers: Headers | None = None, *, end: bool = True
) -> Script:
    """A chunked answer; each piece of bytes is one HTTP chunk in one packet.

    With ``end`` false the last chunk is missing: put CUT, RESET or HANG there.
    """
    fields = {**STREAM_HEADERS, **(headers or {})}
    script: list[Action] = [head(status, fields, transfer_encoding="chunked")]
    script += [framed(piece) if isinstance(piece, bytes) else piece for piece in pieces]
    if end:
        script.append(b"0\r\n\r\n")
    return script


def framed(piece: bytes) -> bytes:
    """One HTTP chunk."""
    return f"{len(piece):x}\r\n".encode() + piece + b"\r\n"


def cut(whole: bytes, positions: Iterable[int]) -> list[bytes]:
    """The same bytes, cut there."""
    places = sorted({p for p in positions if 0 < p < len(whole)})
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]


def like_an_engine(
    words: Sequence[str] = ("Grüß ", "Gott", " 🦉"), *, cumulative: bool = False
) -> Answer:
    """Answers any chat, plain completion or embedding as vLLM would: streamed or not, with usage
    where it was asked for, and under the model's name that was asked for."""

    def play(request: Received) -> Script:
        asked = request.json()
        model = str(asked.get("model", ""))
        if request.path.endswith("/embeddings"):
            return answer(_embeddings(asked, model))
        if asked.get("stream"):
            options = asked.get("stream_options")
            wanted = isinstance(options, dict) and bool(options.get("include_usage"))
            events = chat_events(words, usage=wanted, cumulative=cumulative, model=model)
            return stream([event(one) for one in events])
        count = len(words)
        usage = {"prompt_tokens": 12, "completion_tokens": count, "total_tokens": 12 + count}
        return answer({**CHAT, "model": model, "usage": usage})

    return play


def _embeddings(asked: Mapping[str, object], model: str) -> dict[str, object]:
    given = asked.get("input")
    inputs = given if isinstance(given, list) else [given]
    data = [
        {"object": "embedding", "index": index, "embedding": [0.0, 1.0]}
        for index in range(len(inputs))
    ]
    usage = {"prompt_tokens": 4 * len(inputs), "total_tokens": 4 * len(inputs)}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def engine_pages(model: str = "tiny") -> dict[str, Callable[[Received], Script]]:
    """What vLLM answers to GETs: health, version, models and an idle metrics page."""
    models = {"object": "list", "data": [{"id": model, "object": "model", "owned_by": "vllm"}]}
    labels = f'{{engine="0",model_name="{model}"}}'
    counters = "\n".join(
        f"{name}{labels} 0.0"
        for name in (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
            "vllm:prompt_tokens_total",
            "vllm:generation_tokens_total",
            "vllm:prompt_tokens_cached_total",
            "vllm:iteration_tokens_total_count",
        )
    )
    page = answer((counters + "\n").encode(), headers={"content-type": "text/plain"})
    return {
        "/health": lambda _: answer(b""),
        "/version": lambda _: answer({"version": "0.32.0"}),
        "/v1/models": lambda _: answer(models),
        "/metrics": lambda _: page,
    }
