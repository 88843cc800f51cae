"""Streams of providers that speak Anthropic's Messages themselves, as the litellm SDK hands them
over.

The SDK's own module for them imports all of litellm's proxy server, whose dependencies are not
here, and goes on reading, and paying for, an answer whose client has left. This one takes its
place under its name: it has what the SDK asks that module for, and passes bytes on.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

INSTEAD_OF = "litellm.llms.anthropic.messages.native.streaming_iterator"


class BaseAnthropicMessagesStreamingIterator:
    """The events of an answer, as bytes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes what would be logged, and logs nothing."""

    def get_async_streaming_response_iterator(
        self, httpx_response: Any, *_: Any, **__: Any
    ) -> AsyncIterator[bytes]:
        return _bytes_of(httpx_response)

    async def async_sse_wrapper(self, completion_stream: Any) -> AsyncIterator[bytes]:
        """Events that came in a framing of the provider's own, such as Bedrock's."""
        async for event in completion_stream:
            yield _framed(event) if isinstance(event, Mapping) else event


class AnthropicMessagesStreamingResponse:
    """A stream with what the SDK says beside it."""

    def __init__(self, completion_stream: AsyncIterator[bytes], hidden_params: Any) -> None:
        self.completion_stream = completion_stream
        self.hidden_params = self._hidden_params = hidden_params

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.completion_stream

    async def aclose(self) -> None:
        closing = getattr(self.completion_stream, "aclose", None)
        if closing is not None:
            await closing()


def anthropic_messages_stream_hidden_params(_: object) -> dict[str, object]:
    return {}


def closing_superseded_attempt() -> bool:
    return False


async def _bytes_of(response: Any) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_bytes():
            yield chunk
    finally:
        await response.aclose()


def _framed(event: Mapping[str, object]) -> bytes:
    return f"event: {event.get('type', 'message')}\ndata: {json.dumps(event)}\n\n".encode()
