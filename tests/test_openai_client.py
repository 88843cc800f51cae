"""The ``openai`` client, changed in nothing but base_url and key, through Joulegate to llama.cpp:
an inference engine that we did not write. No fake anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.joulegate_server import ADMIN, KEY, TEAMS, Joulegate, in_thread
from tests.llama_cpp import CALL_AT_ONCE, Engine

HELLO: list[Any] = [{"role": "user", "content": "Grüß Gott, wie viel Energie braucht das? 🦉"}]
WEATHER: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Graz", "Linz"]}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture(scope="module")
def running(
    llama_cpp: Engine,
    llama_cpp_embeddings: Engine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Joulegate]:
    config = {
        "backends": [
            {"model": "tiny-random", "url": llama_cpp.base_url, "engine": "llama.cpp"},
            {"model": "tiny-embedding", "url": llama_cpp_embeddings.base_url}
            | {"upstream_model": "tiny-random", "engine": "llama.cpp"},
        ],
        "teams": TEAMS,
        "log": {"level": "error"},
    }
    server, stop = in_thread(config, Path(tmp_path_factory.mktemp("joulegate")))
    yield server
    stop()


@pytest.fixture
def client(running: Joulegate) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=running.base_url, api_key=KEY, max_retries=0) as client:
        yield client


def test_a_chat_is_answered_and_put_on_the_books(client: openai.OpenAI, running: Joulegate) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny-random", messages=HELLO, max_tokens=8, temperature=0
    )
    answer = raw.parse()
    assert answer.usage is not None
    record = running.record(raw.headers["x-request-id"])
    assert record.team == "physics"
    assert record.output_tokens == answer.usage.completion_tokens
    assert record.prompt_tokens == answer.usage.prompt_tokens
    assert record.usage_source == "upstream"
    assert raw.headers["x-joulegate-backend"] == "tiny-random@bf16"


def test_a_stream_says_the_same_as_a_whole_answer(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.chat.completions.create(
            model="tiny-random",
            messages=HELLO,
            max_tokens=30,
            temperature=0,
            extra_headers={"cache-control": "no-store"},
            extra_body={"grammar": "root ::= [a-z ]{24}"},  # llama.cpp's own, passed through
            **more,
        )

    whole = ask().choices[0]
    chunks = list(ask(stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(text) == 24
    assert text == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_only_when_asked(
    client: openai.OpenAI, running: Joulegate
) -> None:
    stream = client.chat.completions.create(
        model="tiny-random",
        messages=HELLO,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    request_id = stream.response.headers["x-request-id"]
    *_, last = stream
    assert last.choices == []
    assert last.usage is not None
    assert running.record(request_id).output_tokens == last.usage.completion_tokens


def test_a_stream_that_did_not_ask_for_usage_is_counted_all_the_same(
    client: openai.OpenAI, running: Joulegate
) -> None:
    stream = client.chat.completions.create(
        model="tiny-random", messages=HELLO, max_tokens=8, stream=True
    )
    assert all(chunk.usage is None for chunk in stream)
    record = running.record(stream.response.headers["x-request-id"])
    assert record.usage_source == "upstream"
    assert record.output_tokens
    assert record.ttft_s is not None
    assert record.latency_s is not None
    assert 0 < record.ttft_s <= record.latency_s


def test_tools_are_called_and_their_answers_taken(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny-random", "tools": WEATHER, "max_tokens": 400}
    asked["temperature"] = 0  # else the noise may take its time
    answer = client.chat.completions.create(
        messages=HELLO,
        tool_choice="required",
        parallel_tool_calls=False,
        logit_bias=CALL_AT_ONCE,
        **asked,
    )
    said = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert said.tool_calls
    call = said.tool_calls[0]
    assert call.type == "function"
    assert json.loads(call.function.arguments)["city"] in ("Graz", "Linz")
    told = {"role": "tool", "tool_call_id": call.id, "content": "Rain."}
    again = client.chat.completions.create(
        messages=[*HELLO, said.model_dump(exclude_none=True), told],
        tool_choice="none",
        **asked | {"max_tokens": 4},
    )
    assert again.usage is not None
    assert answer.usage is not None
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens


def test_tools_are_called_in_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny-random",
        messages=HELLO,
        tools=WEATHER,
        tool_choice="required",
        parallel_tool_calls=False,
        logit_bias=CALL_AT_ONCE,
        max_tokens=400,
        temperature=0,
        stream=True,
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    calls = [call for delta in deltas for call in delta.tool_calls or () if call.index == 0]
    assert calls[0].function is not None
    assert calls[0].function.name == "get_weather"
    arguments = "".join(c.function.arguments or "" for c in calls if c.function)
    assert json.loads(arguments)["city"] in ("Graz", "Linz")


def test_structured_output_follows_its_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny-random",
        messages=HELLO,
        max_tokens=100,
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


def test_several_choices_with_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny-random", messages=HELLO, max_tokens=6, n=2, logprobs=True, top_logprobs=2
    )
    assert sorted(choice.index for choice in answer.choices) == [0, 1]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert len(logprobs.content[0].top_logprobs) == 2


def test_a_plain_completion_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny-random", "prompt": "Once", "max_tokens": 6}
    asked["extra_body"] = {"grammar": "root ::= [a-z ]{4}"}
    whole = client.completions.create(**asked, temperature=0)
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 6
    chunks = list(client.completions.create(**asked, temperature=0, stream=True))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text


def test_embeddings_of_several_inputs(client: openai.OpenAI, running: Joulegate) -> None:
    raw = client.embeddings.with_raw_response.create(
        model="tiny-embedding", input=["Grüß Gott", "Owl"], encoding_format="float"
    )
    answer = raw.parse()
    assert [one.index for one in answer.data] == [0, 1]
    assert len(answer.data[0].embedding) == 64
    assert running.record(raw.headers["x-request-id"]).prompt_tokens == answer.usage.prompt_tokens


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"tiny-random", "tiny-embedding", "tiny-random@bf16", "auto"} <= set(names)
    assert client.models.retrieve("tiny-random@bf16").id == "tiny-random@bf16"


def test_azure_s_client_needs_no_other_change(running: Joulegate) -> None:
    endpoint = running.base_url.removesuffix("/v1")
    with openai.AzureOpenAI(
        azure_endpoint=endpoint, api_key=KEY, api_version="2024-10-21", max_retries=0
    ) as azure:
        said = azure.chat.completions.create(model="tiny-random", messages=HELLO, max_tokens=4)
        assert said.choices[0].message.content
        streamed = azure.chat.completions.create(
            model="tiny-random", messages=HELLO, max_tokens=4, stream=True
        )
        assert [chunk.model for chunk in streamed]
        found = azure.embeddings.create(model="tiny-embedding", input="Strom")
        assert found.data[0].embedding
        assert "tiny-random" in [model.id for model in azure.models.list()]
        with pytest.raises(openai.NotFoundError, match="tiny-random"):
            azure.chat.completions.create(model="nobody's", messages=HELLO)
    newer = f"{endpoint}/openai/v1/"  # where Azure serves OpenAI's own client
    with openai.OpenAI(base_url=newer, api_key=KEY, max_retries=0) as client:
        assert client.chat.completions.create(model="tiny-random", messages=HELLO, max_tokens=4)


def test_the_client_s_own_errors_are_raised(running: Joulegate, client: openai.OpenAI) -> None:
    stranger = openai.OpenAI(base_url=running.base_url, api_key="sk-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refused, stranger:
        stranger.models.list()
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-nonesuch", messages=HELLO)
    assert unknown.value.code == "model_not_found"


def test_metrics_count_what_was_served(client: openai.OpenAI, running: Joulegate) -> None:
    client.completions.create(model="tiny-random", prompt="Once", max_tokens=2)
    page = running.get("/metrics", authorization=f"Bearer {ADMIN}")
    assert page.status == 200
    assert b'joulegate_requests_total{backend="tiny-random@bf16"' in page.body
