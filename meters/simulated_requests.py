"""Requests as the simulated engine understands them: checked, and with the answer planned.

Pure. What an answer will say is decided when the request arrives; the physics decide when each
token of it is there. Errors have vLLM's shape and wording.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson

from meters.simulated_physics import EngineConfig
from meters.simulated_text import (
    MESSAGE_TOKENS,
    count_tokens,
    cut,
    fitting,
    natural_length,
    pieces,
    source,
    stop_at,
    text_of_messages,
)


class Refused(Exception):
    """The engine will not serve this; status, type and parameter as vLLM says them."""

    def __init__(
        self, message: str, status: int = 400, kind: str = "BadRequestError", param: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = orjson.dumps(
            {
                "error": {
                    "message": message,
                    "type": kind,
                    "param": param or None,
                    "code": status,
                }
            }
        )


class Answer(msgspec.Struct):
    """One planned choice: its tokens, one string each, and why it ends."""

    parts: list[str]
    finish_reason: str
    tool: str | None = None  # the function called; the parts are then its arguments


class Asked(msgspec.Struct):
    """One request for text, with its planned answers."""

    prompt: str
    prompt_tokens: int
    answers: list[Answer]
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: bool = False
    echo: bool = False


def decoded(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises Refused."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        detail = {
            "type": "json_invalid",
            "loc": "body",
            "msg": "JSON decode error",
            "ctx": str(error),
        }
        raise Refused(
            f"1 validation error:\n  {detail}", kind="Bad Request", param="body"
        ) from None
    if not isinstance(value, dict):
        raise Refused(
            "1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body'}",
            kind="Bad Request",
            param="body",
        )
    return value


def chat(body: Mapping[str, Any], config: EngineConfig) -> Asked:
    """A chat completion. Raises Refused."""
    _check_model(body, config)
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Refused(
            "messages: a list of objects is required", kind="Bad Request", param="messages"
        )
    if not messages:
        raise Refused(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    prompt = text_of_messages(messages)
    tools = body.get("tools") or []
    if tools:
        prompt = orjson.dumps(tools).decode() + "\n" + prompt
    prompt_tokens = count_tokens(prompt) + MESSAGE_TOKENS * len(messages)
    limit = _limit(body, "max_completion_tokens") or _limit(body, "max_tokens")
    most = _most(prompt_tokens, limit, config)
    seed = _seed(body, config)
    answers = []
    for choice in range(_choices(body)):
        random_ = source(seed, prompt, choice)
        answer = _tool_call(body, messages, tools, prompt, random_)
        answer = answer or _structured(body, random_)
        answers.append(_ended(answer or _plain(random_, config, body, most), body, most))
    return _asked(body, prompt, prompt_tokens, answers, bool(body.get("logprobs")))


def completion(body: Mapping[str, Any], config: EngineConfig) -> list[Asked]:
    """Text completions, one for each prompt. Raises Refused."""
    _check_model(body, config)
    prompts = _texts(body.get("prompt"), "prompt")
    limit = _limit(body, "max_tokens") or 16  # the API's own default
    asked = []
    for prompt, tokens in prompts:
        most = _most(tokens, limit, config)
        seed = _seed(body, config)
        answers = [
            _ended(_plain(source(seed, prompt, choice), config, body, most), body, most)
            for choice in range(_choices(body))
        ]
        one = _asked(body, prompt, tokens, answers, isinstance(body.get("logprobs"), int))
        one.echo = bool(body.get("echo"))
        asked.append(one)
    return asked


def embedding(body: Mapping[str, Any], config: EngineConfig) -> list[tuple[str, int]]:
    """The texts to embed, with their token counts. Raises Refused."""
    _check_model(body, config)
    texts = _texts(body.get("input"), "input")
    for _, tokens in texts:
        _most(tokens, 0, config)
    return texts


def tokenized(body: Mapping[str, Any], config: EngineConfig) -> dict[str, Any]:
    """What ``/tokenize`` says."""
    _check_model(body, config)
    if isinstance(body.get("messages"), list):
        prompt = text_of_messages(body["messages"])
        count = count_tokens(prompt) + MESSAGE_TOKENS * len(body["messages"])
    else:
        prompt = str(body.get("prompt", ""))
        count = count_tokens(prompt)
    ids = [1 + int.from_bytes(part.encode()[:2], "big") % 32_000 for part in cut(prompt)]
    ids = (ids + [0] * count)[:count]
    return {
        "count": count,
        "max_model_len": config.max_model_len,
        "tokens": ids,
        "token_strs": None,
    }


def _check_model(body: Mapping[str, Any], config: EngineConfig) -> None:
    model = body.get("model", config.model)
    if model != config.model:
        raise Refused(
            f"The model `{model}` does not exist. Valid aliases: {config.model}.",
            404,
            "NotFoundError",
            "model",
        )


def _seed(body: Mapping[str, Any], config: EngineConfig) -> int:
    seed = body.get("seed")
    return config.seed + (seed if isinstance(seed, int) else 0)


def _limit(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(f"{name}: Input should be a valid integer", kind="Bad Request", param=name)
    if value < 1:
        raise Refused(f"{name} must be at least 1, got {value}.", param=name)
    return value


def _choices(body: Mapping[str, Any]) -> int:
    n = _limit(body, "n") or 1
    if n > 64:
        raise Refused(f"n must be at most 64, got {n}.", param="n")
    return n


def _most(prompt_tokens: int, limit: int | None, config: EngineConfig) -> int:
    """The most tokens an answer may have."""
    room = config.max_model_len
    if limit is not None and limit > room:
        raise Refused(
            f"max_tokens={limit} cannot be greater than max_model_len={room}. "
            f"Please request fewer output tokens. (parameter=max_tokens, value={limit})",
            param="max_tokens",
        )
    if prompt_tokens + (limit or 1) > room:
        raise Refused(
            f"This model's maximum context length is {room} tokens. However, your request has "
            f"{prompt_tokens} input tokens and asks for {limit or 1} output tokens. "
            "Please reduce the length of the input messages.",
            param="input_tokens",
        )
    return limit or room - prompt_tokens


def _texts(value: Any, name: str) -> list[tuple[str, int]]:
    """One or several prompts, as text or as token numbers, with their token counts."""
    if isinstance(value, str) or (isinstance(value, list) and value and _is_tokens(value)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise Refused(f"{name}: a string or a list is required", kind="Bad Request", param=name)
    texts = []
    for item in value:
        if isinstance(item, str):
            texts.append((item, max(1, count_tokens(item))))
        elif isinstance(item, list) and item and _is_tokens(item):
            texts.append((" ".join(map(str, item)), len(item)))
        else:
            raise Refused(f"{name}: neither text nor tokens", kind="Bad Request", param=name)
    return texts


def _is_tokens(value: Sequence[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _plain(
    random_: random.Random, config: EngineConfig, body: Mapping[str, Any], most: int
) -> Answer:
    """Plain text, as long as it comes; vLLM's ``min_tokens`` and ``ignore_eos`` make it longer."""
    least = (_limit(body, "min_tokens") or 0) if body.get("min_tokens") else 0
    if least > most:
        raise Refused(
            f"min_tokens must be less than or equal to max_tokens={most}, got {least}.",
            param="min_tokens",
        )
    tokens = natural_length(random_, config.mean_output_tokens, config.sigma_output_tokens)
    if body.get("ignore_eos") is True:
        return Answer(pieces(random_, most), "length")
    return Answer(pieces(random_, max(tokens, least)), "stop")


def _structured(body: Mapping[str, Any], random_: random.Random) -> Answer | None:
    form = body.get("response_format")
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "json_object":
        text = '{"simulated":true}'
    elif kind == "json_schema" and isinstance(form, Mapping):
        schema = (form.get("json_schema") or {}).get("schema") or {}
        text = orjson.dumps(fitting(schema, random_)).decode()
    else:
        return None
    return Answer(cut(text), "stop")


def _tool_call(
    body: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any],
    prompt: str,
    random_: random.Random,
) -> Answer | None:
    """A call of one tool: the named one, else one that the prompt names, else the first.

    Left to itself (``auto``) the engine calls when a user spoke last, and answers when a tool did.
    """
    choice = body.get("tool_choice", "auto")
    functions = [t["function"] for t in tools if isinstance(t, dict) and t.get("function")]
    if not functions or choice == "none":
        return None
    if choice == "auto" and messages[-1].get("role") != "user":
        return None
    named = choice["function"]["name"] if isinstance(choice, dict) else None
    last = str(messages[-1].get("content", "")).lower()
    chosen = next(
        (f for f in functions if f["name"] == named),
        next((f for f in functions if f["name"].lower() in last), functions[0]),
    )
    arguments = fitting(chosen.get("parameters") or {"type": "object"}, random_)
    return Answer(cut(orjson.dumps(arguments).decode()), "tool_calls", chosen["name"])


def _ended(answer: Answer, body: Mapping[str, Any], most: int) -> Answer:
    """The answer as the caller's limits end it."""
    if len(answer.parts) > most:
        answer.parts = answer.parts[:most]
        answer.finish_reason = "length"
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if stops and answer.tool is None:
        stopped = stop_at(answer.parts, [str(s) for s in stops])
        if stopped is not None:
            answer.parts = stopped
            answer.finish_reason = "stop"
    return answer


def _asked(
    body: Mapping[str, Any], prompt: str, tokens: int, answers: list[Answer], logprobs: bool
) -> Asked:
    options = body.get("stream_options")
    options = options if isinstance(options, Mapping) else {}
    return Asked(
        prompt=prompt,
        prompt_tokens=tokens,
        answers=answers,
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        logprobs=logprobs,
    )
