"""The bodies of the simulated engine's answers, shaped as vLLM 0.32 shapes them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from meters.simulated_physics import EngineConfig, Running
from meters.simulated_requests import Answer, Asked

DONE = b"data: [DONE]\n\n"


class Choice:
    """One planned answer and how much of it is there."""

    __slots__ = ("answer", "index", "running", "sent")

    def __init__(self, index: int, answer: Answer, running: Running) -> None:
        self.index = index
        self.answer = answer
        self.running = running
        self.sent = 0


class Shape:
    """Turns the choices of one request into bodies, whole or as server-sent events."""

    def __init__(
        self,
        request_id: str,
        created: int,
        config: EngineConfig,
        asked: list[Asked],
        choices: list[Choice],
        *,
        is_chat: bool,
    ) -> None:
        self.choices = choices
        self._asked = asked
        self._per_prompt = len(asked[0].answers)
        self._chat = is_chat
        self._head: dict[str, Any] = {
            "id": request_id,
            "object": "chat.completion" if is_chat else "text_completion",
            "created": created,
            "model": config.model,
        }
        self._chunk_head = self._head | ({"object": "chat.completion.chunk"} if is_chat else {})
        self._fingerprint = f"vllm-{config.version}"

    # -- whole -----------------------------------------------------------------------------

    def whole(self) -> bytes:
        """The body of an answer that is not streamed."""
        return orjson.dumps(
            self._head
            | {
                "choices": [self._whole_choice(choice) for choice in self.choices],
                "service_tier": None,
                "system_fingerprint": self._fingerprint,
                "usage": self._usage(),
                "prompt_logprobs": None,
                "kv_transfer_params": None,
            }
        )

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        answer = choice.answer
        text = "".join(answer.parts)
        asked = self._asked_of(choice)
        tail = {"finish_reason": answer.finish_reason, "stop_reason": None}
        if not self._chat:
            echo = asked.prompt if asked.echo else ""
            return {
                "index": choice.index,
                "text": echo + text,
                "logprobs": _text_logprobs(answer.parts) if asked.logprobs else None,
                **tail,
                "prompt_logprobs": None,
            }
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        if answer.tool is not None:
            message["content"] = None
            message["tool_calls"] = [
                {
                    "id": self._call_id(choice),
                    "type": "function",
                    "function": {"name": answer.tool, "arguments": text},
                }
            ]
        return {
            "index": choice.index,
            "message": message,
            "logprobs": _chat_logprobs(answer.parts) if asked.logprobs else None,
            **tail,
        }

    # -- streamed --------------------------------------------------------------------------

    def opening(self) -> Iterator[bytes]:
        """The events before the first token: a role for each choice of a chat."""
        if self._chat:
            for choice in self.choices:
                delta = {"role": "assistant", "content": ""}
                yield self._event([self._chunk_choice(choice, delta, None)], counted=True)

    def news(self, choice: Choice, produced: int) -> Iterator[bytes]:
        """The events for tokens that are there and were not sent yet."""
        answer = choice.answer
        produced = min(produced, len(answer.parts))
        if produced <= choice.sent:
            return
        first = choice.sent == 0
        parts = answer.parts[choice.sent : produced]
        choice.sent = produced
        reason = answer.finish_reason if produced == len(answer.parts) else None
        delta: Any = "".join(parts)
        if answer.tool is not None:
            call: dict[str, Any] = {"index": 0, "function": {"arguments": delta}}
            if first:
                call |= {"id": self._call_id(choice), "type": "function"}
                call["function"]["name"] = answer.tool
            delta = {"tool_calls": [call]}
        elif self._chat:
            delta = {"content": delta}
        one = self._chunk_choice(choice, delta, reason)
        if self._asked_of(choice).logprobs:
            one["logprobs"] = _chat_logprobs(parts) if self._chat else _text_logprobs(parts)
        yield self._event([one], counted=True)

    def closing(self) -> Iterator[bytes]:
        """The events after the last token."""
        if self._asked[0].include_usage:
            yield self._event([], usage=self._usage())
        yield DONE

    def _chunk_choice(self, choice: Choice, delta: Any, reason: str | None) -> dict[str, Any]:
        content = {"delta": delta} if self._chat else {"text": delta}
        return {"index": choice.index, **content, "logprobs": None, "finish_reason": reason}

    def _event(
        self, choices: list[Any], usage: dict[str, Any] | None = None, counted: bool = False
    ) -> bytes:
        chunk = self._chunk_head | {"choices": choices}
        if usage is not None:
            chunk["usage"] = usage
            chunk["system_fingerprint"] = self._fingerprint
        elif counted and self._asked[0].continuous_usage:
            chunk["usage"] = self._usage(sent=True)
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    # -- both ------------------------------------------------------------------------------

    def _asked_of(self, choice: Choice) -> Asked:
        return self._asked[choice.index // self._per_prompt]

    def _call_id(self, choice: Choice) -> str:
        return f"chatcmpl-tool-{self._head['id'][-16:]}-{choice.index}"

    def _usage(self, sent: bool = False) -> dict[str, Any]:
        prompt = sum(asked.prompt_tokens for asked in self._asked)
        output = sum(choice.sent if sent else len(choice.answer.parts) for choice in self.choices)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "total_tokens": prompt + output,
            "completion_tokens": output,
        }
        if not sent:
            # The later choices of one prompt find it cached; it was sent once.
            firsts = self.choices[:: self._per_prompt]
            cached = sum(choice.running.cached_tokens for choice in firsts)
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
            usage["completion_tokens_details"] = None
        return usage


def _chat_logprobs(parts: list[str]) -> dict[str, Any]:
    return {
        "content": [
            {"token": part, "logprob": -0.1, "bytes": list(part.encode()), "top_logprobs": []}
            for part in parts
        ]
    }


def _text_logprobs(parts: list[str]) -> dict[str, Any]:
    offsets = []
    at = 0
    for part in parts:
        offsets.append(at)
        at += len(part)
    return {
        "text_offset": offsets,
        "token_logprobs": [-0.1] * len(parts),
        "tokens": parts,
        "top_logprobs": [None] * len(parts),
    }
