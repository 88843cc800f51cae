"""The simulated engine as a client meets it: over HTTP, with the openai client and raw sockets."""

import json
import re
import threading
import urllib.request

import openai
import pytest

from meters.clock import ScaledClock
from meters.simulated_engine import SimulatedMeter, demonstration_pair, start
from meters.simulated_physics import EngineConfig
from meters.types import Evidence, MeterUnavailable

MODEL = "llama-3.1-8b"
HELLO = [{"role": "user", "content": "What is the weather in Berlin?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    for name in ("get_time", "get_weather")
]


@pytest.fixture(scope="module")
def engine():
    with start(EngineConfig(max_model_len=4096), ScaledClock(50)) as started:
        yield started


@pytest.fixture(scope="module")
def client(engine):
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def page(engine, path):
    with urllib.request.urlopen(engine.url + path) as answer:
        return answer.read().decode()


def counter(engine, name):
    return float(re.search(rf"^{name}{{[^}}]*}} (\S+)$", page(engine, "/metrics"), re.M)[1])


def test_an_answer_says_that_it_is_simulated_and_counts_its_tokens(client):
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=30)
    assert "simulated" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 30
    assert answer.usage.prompt_tokens > 5


def test_the_same_prompt_gets_the_same_answer(client):
    one, two = (client.chat.completions.create(model=MODEL, messages=HELLO) for _ in range(2))
    assert one.choices[0].message.content == two.choices[0].message.content
    assert one.choices[0].finish_reason == "stop"


def test_a_stream_carries_what_the_whole_answer_says_and_usage_when_asked(client):
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, n=2)
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts = {0: "", 1: ""}
    reasons = {}
    usage = None
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
        usage = chunk.usage or usage
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {0: "stop", 1: "stop"}
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_a_tool_that_the_prompt_asks_for_is_called_with_fitting_arguments(client):
    ask = [{"role": "user", "content": "call get_weather for Berlin"}]
    call = client.chat.completions.create(model=MODEL, messages=ask, tools=TOOLS).choices[0]
    assert call.finish_reason == "tool_calls"
    assert call.message.tool_calls[0].function.name == "get_weather"
    assert isinstance(json.loads(call.message.tool_calls[0].function.arguments)["city"], str)
    parts = [
        chunk.choices[0].delta.tool_calls[0]
        for chunk in client.chat.completions.create(
            model=MODEL, messages=ask, tools=TOOLS, stream=True
        )
        if chunk.choices and chunk.choices[0].delta.tool_calls
    ]
    assert parts[0].function.name == "get_weather"
    joined = "".join(part.function.arguments for part in parts)
    assert joined == call.message.tool_calls[0].function.arguments


def test_after_a_tool_has_answered_it_answers_in_text(client):
    said = [*HELLO, {"role": "tool", "tool_call_id": "1", "content": "sunny"}]
    answer = client.chat.completions.create(model=MODEL, messages=said, tools=TOOLS)
    assert answer.choices[0].message.tool_calls is None


def test_structured_output_fits_its_schema(client):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 4},
            "kind": {"enum": ["a", "b"]},
            "count": {"type": "integer", "minimum": 3, "maximum": 5},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 2},
            "maybe": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        },
        "required": ["name", "kind", "count", "tags", "maybe"],
        "$defs": {"tag": {"type": "object", "properties": {"on": {"const": True}}}},
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, response_format=form)
    value = json.loads(answer.choices[0].message.content)
    assert len(value["name"]) <= 4
    assert value["kind"] in ("a", "b")
    assert 3 <= value["count"] <= 5
    assert value["tags"] == [{"on": True}] * 2
    assert isinstance(value["maybe"], bool)


def test_a_stop_string_ends_the_answer_before_it(client):
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, stop=["model"])
    assert answer.choices[0].message.content == "This text is simulated: no "
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [({"min_tokens": 900}, {"stop", "length"}), ({"ignore_eos": True}, {"length"})],
)
def test_an_answer_goes_on_for_as_long_as_vllms_parameters_say(client, asked, reason):
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=1000, extra_body=asked
    )
    assert answer.usage.completion_tokens >= 900
    assert answer.choices[0].finish_reason in reason


def test_completions_embeddings_tokens_and_logprobs(client, engine):
    both = client.completions.create(model=MODEL, prompt=["one", "two"], max_tokens=3, logprobs=1)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert len(both.choices[0].logprobs.tokens) == 3
    chat = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2, logprobs=True)
    assert len(chat.choices[0].logprobs.content) == 2
    same = client.embeddings.create(model=MODEL, input=["a", "a", "b"]).data
    assert same[0].embedding == same[1].embedding != same[2].embedding
    request = urllib.request.Request(
        f"{engine.url}/tokenize", json.dumps({"model": MODEL, "messages": HELLO}).encode()
    )
    with urllib.request.urlopen(request) as answer:
        counted = json.load(answer)
    assert counted["count"] == len(counted["tokens"]) == chat.usage.prompt_tokens


def test_a_long_prompt_asked_twice_is_found_in_the_cache(client):
    long = [{"role": "user", "content": "the same words again " * 100}]
    cold, warm = (
        client.chat.completions.create(model=MODEL, messages=long, max_tokens=2).usage
        for _ in range(2)
    )
    assert cold.prompt_tokens_details.cached_tokens == 0
    assert warm.prompt_tokens_details.cached_tokens > 400


@pytest.mark.parametrize(
    ("change", "status", "kind", "words"),
    [
        ({"model": "nope"}, 404, "NotFoundError", "The model `nope` does not exist"),
        ({"messages": []}, 400, "BadRequestError", "empty conversation"),
        ({"max_tokens": 4, "extra_body": {"min_tokens": 5}}, 400, "BadRequestError", "min_tokens"),
        ({"max_tokens": 999_999}, 400, "BadRequestError", "cannot be greater than max_model_len"),
        ({"max_tokens": 0}, 400, "BadRequestError", "at least 1"),
        (
            {"messages": [{"role": "user", "content": "x" * 40_000}]},
            400,
            "BadRequestError",
            "maximum context length is 4096 tokens",
        ),
    ],
)
def test_errors_have_vllms_shape(client, change, status, kind, words):
    asked = {"model": MODEL, "messages": HELLO} | change
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(**asked)
    assert raised.value.status_code == status
    assert raised.value.body["type"] == kind
    assert raised.value.body["code"] == status
    assert words in raised.value.body["message"]


def test_a_client_that_goes_away_cancels_its_request():
    with start(EngineConfig(max_model_len=10**6, kv_tokens=10**6)) as engine:
        with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="any") as client:
            stream = client.chat.completions.create(
                model=MODEL,
                messages=HELLO,
                stream=True,
                response_format={
                    "type": "json_schema",
                    "json_schema": {
                        "name": "long",
                        "schema": {"type": "string", "minLength": 400_000},
                    },
                },
            )
            for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
            stream.close()
        while engine.engine.totals.aborted == 0:  # the suite's timeout is the limit
            page(engine, "/health")
        assert engine.engine.totals.generated_tokens < 10_000
        assert counter(engine, "vllm:num_requests_running") == 0
        assert 'finished_reason="abort",model_name' not in page(engine, "/metrics")
        assert 'finished_reason="abort"} 1.0' in page(engine, "/metrics")


def test_the_metrics_page_counts_what_was_served(client, engine):
    before = {
        name: counter(engine, name)
        for name in (
            "vllm:generation_tokens_total",
            "vllm:prompt_tokens_total",
            "vllm:iteration_tokens_total_count",
            "vllm:estimated_flops_per_gpu_total",
        )
    }
    usage = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20).usage
    after = {name: counter(engine, name) for name in before}
    gained = {name: after[name] - before[name] for name in before}
    assert gained["vllm:generation_tokens_total"] == 20
    assert gained["vllm:prompt_tokens_total"] == usage.prompt_tokens
    assert gained["vllm:iteration_tokens_total_count"] == 20
    assert gained["vllm:estimated_flops_per_gpu_total"] > 0
    assert counter(engine, "vllm:num_requests_waiting") == 0


def test_a_sleeping_engine_says_so_and_refuses(client, engine):
    def post(path):
        urllib.request.urlopen(urllib.request.Request(engine.url + path, b"")).close()

    post("/sleep")
    try:
        assert 'sleep_state="awake"} 0.0' in page(engine, "/metrics")
        with pytest.raises(openai.APIStatusError) as raised:
            client.chat.completions.create(model=MODEL, messages=HELLO)
        assert raised.value.status_code == 503
    finally:
        post("/wake_up")
    client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)


def test_the_model_list_and_headers_say_simulated(client, engine):
    assert client.models.list().data[0].owned_by == "joulegate-simulated"
    with urllib.request.urlopen(f"{engine.url}/version") as answer:
        assert answer.headers["x-joulegate-simulated"] == "true"
        assert "simulated" in json.load(answer)["version"]


def test_its_meter_reads_at_least_the_idle_power_and_never_goes_back(client, engine):
    near, far = engine.meter(), SimulatedMeter.at(engine.url)
    assert near.evidence is far.evidence is Evidence.SIMULATED
    readings = []
    done = threading.Event()

    def watch():
        while not done.is_set():
            readings.append(near.read()[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    far_before = far.read()[0]
    before = near.read()[0]
    client.chat.completions.create(model=MODEL, messages=HELLO, n=8)
    after = near.read()[0]
    far_after = far.read()[0]
    done.set()
    watcher.join()
    joules = [reading.energy_j for reading in readings]
    assert joules == sorted(joules)
    idle_j = 100.0 * (after.at_s - before.at_s)
    assert after.energy_j - before.energy_j > idle_j
    assert far_after.energy_j - far_before.energy_j >= after.energy_j - before.energy_j


def test_a_meter_without_its_engine_says_what_to_do():
    with pytest.raises(MeterUnavailable, match="start it"):
        SimulatedMeter.at("http://127.0.0.1:1")


def test_the_demonstration_pair_is_one_model_in_two_precisions():
    pair = demonstration_pair()
    assert list(pair) == ["llama-3.1-8b@bf16", "llama-3.1-8b@int4"]
    bf16, int4 = (config.physics for config in pair.values())
    assert int4.step_j < bf16.step_j
