"""The ``openai`` client against vLLM itself, running on the CPU: called directly, and through
Joulegate. No fake, no recording."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.joulegate_server import KEY, TEAMS, Joulegate, in_thread
from tests.llama_cpp import Engine

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

HELLO: list[Any] = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def running(vllm_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joulegate]:
    config = {
        "backends": [
            {"model": "tiny-random", "url": vllm_engine.base_url, "engine": "vllm"},
        ],
        "teams": TEAMS,
        "log": {"level": "error"},
    }
    server, stop = in_thread(config, Path(tmp_path_factory.mktemp("joulegate")))
    yield server
    stop()


@pytest.fixture(params=["direct", "through Joulegate"])
def client(
    request: pytest.FixtureRequest, vllm_engine: Engine, running: Joulegate
) -> Iterator[openai.OpenAI]:
    base_url = vllm_engine.base_url if request.param == "direct" else running.base_url
    with openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
        yield client


def test_a_chat_is_answered_with_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny-random", messages=HELLO, max_tokens=8, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens > len(HELLO[0]["content"])
    assert answer.choices[0].finish_reason == "length"


def test_a_stream_carries_cumulative_usage_on_every_chunk(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny-random",
        messages=HELLO,
        max_tokens=8,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage]
    assert counts[-1] == 8
    assert counts == sorted(counts)
    assert len(counts) > 4


def test_several_choices_with_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny-random", messages=HELLO, max_tokens=3, n=2, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert len(logprobs.content[0].top_logprobs) == 2


def test_structured_output_follows_its_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny-random",
        messages=HELLO,
        max_tokens=64,
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "verdict",
                "schema": {
                    "type": "object",
                    "properties": {"sunny": {"type": "boolean"}},
                    "required": ["sunny"],
                    "additionalProperties": False,
                },
            },
        },
    )
    assert isinstance(json.loads(answer.choices[0].message.content or "")["sunny"], bool)


def test_a_named_tool_is_called(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny-random",
        messages=HELLO,
        max_tokens=128,
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "strict": True,  # else vLLM does not hold arguments to their schema
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"enum": ["Graz", "Linz"]}},
                        "required": ["city"],
                        "additionalProperties": False,
                    },
                },
            }
        ],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert json.loads(calls[0].function.arguments)["city"] in ("Graz", "Linz")


def test_a_plain_completion_is_answered(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny-random", prompt="Once", max_tokens=4)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert "tiny-random" in [model.id for model in client.models.list()]


def test_a_request_through_joulegate_is_on_the_books_as_vllm_counted_it(
    running: Joulegate,
) -> None:
    with openai.OpenAI(base_url=running.base_url, api_key=KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="tiny-random",
            messages=HELLO,
            max_tokens=9,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        assert list(stream)
        record = running.record(stream.response.headers["x-request-id"])
    assert record.usage_source == "upstream"
    assert record.output_tokens == 9
    assert record.prompt_tokens
    assert record.outcome == "ok"


def test_the_metrics_page_has_what_windows_are_read_from(
    client: openai.OpenAI, vllm_engine: Engine
) -> None:
    client.completions.create(model="tiny-random", prompt="Once", max_tokens=4)
    with urllib.request.urlopen(f"{vllm_engine.address}/metrics") as page:
        text = page.read().decode()
    for name in (
        "vllm:num_requests_running{",
        "vllm:kv_cache_usage_perc{",
        "vllm:prompt_tokens_total{",
        "vllm:generation_tokens_total{",
        "vllm:iteration_tokens_total_count{",
    ):
        assert name in text
