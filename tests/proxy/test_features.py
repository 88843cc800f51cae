"""What routing reads of a body, and that the rest is left alone."""

from __future__ import annotations

import base64
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import features
from proxy.errors import ApiError


def test_reads_what_routing_needs() -> None:
    request = features.peek(
        b'{"model":"m","messages":[],"max_tokens":5,"max_completion_tokens":7,"stream":true,'
        b'"stream_options":{"include_usage":true},"unknown":{"a":1e400}}'
    )
    assert (request.model, request.output_limit, request.stream) == ("m", 7, True)
    assert request.wants_usage


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"model": "m"} x', "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'{"model": 5}', "invalid_type"),
        (b'{"model": "m", "max_tokens": "nine"}', "invalid_type"),
        (b"[" * 100_000, "invalid_json"),
    ],
)
def test_what_no_api_would_take_is_a_400(body: bytes, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        features.peek(body)
    assert (caught.value.status, caught.value.code) == (400, code)


@given(st.binary(max_size=300))
def test_garbage_is_an_answer_or_a_400(body: bytes) -> None:
    try:
        prompt = features.prompt_of(features.peek(body))
    except ApiError as error:
        prompt, status = None, error.status
    assert status == 400 if prompt is None else prompt.messages >= 0


def test_a_responses_request_sent_to_chat_is_told_where_to_go() -> None:
    with pytest.raises(ApiError, match="/v1/responses"):
        features.require_chat(features.peek(b'{"model":"m","input":"x"}'))


def test_collects_the_prompt_of_a_chat() -> None:
    body = json.dumps(
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is this"},
                        {"type": "image_url", "image_url": {"url": "http://x"}},
                    ],
                },
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
                },
            ]
        }
    ).encode()
    prompt = features.prompt_of(features.peek(body))
    assert prompt.text.split("\n") == ["be brief", "what is this", "", "f {}"]
    assert (prompt.last, prompt.messages, prompt.images) == ("what is this", 3, 1)
    assert "brief" not in repr(prompt)


@pytest.mark.parametrize(
    ("body", "text", "tokens"),
    [
        (b'{"prompt":"abc"}', "abc", 0),
        (b'{"prompt":["a","b"]}', "a\nb", 0),
        (b'{"prompt":[1,2,3]}', "", 3),
        (b'{"prompt":[[1,2],[3]]}', "", 3),
        (b'{"input":"abc"}', "abc", 0),
        (b'{"input":"abc","instructions":"be brief"}', "be brief\nabc", 0),
        (b'{"input":"abc","prompt":{"id":"kept elsewhere"}}', "abc", 0),
        (b'{"query":"abc","documents":["d",{"text":"e"}]}', "abc\nd\ne", 0),
    ],
)
def test_collects_other_prompts(body: bytes, text: str, tokens: int) -> None:
    prompt = features.prompt_of(features.peek(body))
    assert (prompt.text, prompt.overhead_tokens) == (text, tokens)


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        ({"prompt": "abc"}, 1),
        ({"prompt": "abc", "n": 2, "best_of": 5}, 5),
        ({"prompt": ["a", "b", "c"], "n": 2}, 6),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": []}, 1),
        ({"input": ["a", "b", "c"]}, 1),
        ({"input": "a", "prompt": {"id": "kept elsewhere"}}, 1),
        ({"messages": [{"role": "user", "content": "a"}], "n": 3}, 3),
    ],
)
def test_counts_the_answers_that_will_be_written(body: dict[str, object], answers: int) -> None:
    request = features.peek(json.dumps(body).encode())
    told = features.features_from(
        request,
        features.prompt_of(request),
        tokens=3,
        counted=True,
        task=None,
        text="",
        team="t",
    )
    assert told.n == answers


def collected(**body: object) -> features.Prompt:
    return features.prompt_of(features.peek(json.dumps(body).encode()))


def test_collects_the_prompt_of_a_response() -> None:
    asked = {"role": "user", "content": [{"type": "input_text", "text": "what is this"}]}
    seen = {"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}
    first = collected(instructions="be brief", input=[asked, seen], tools=[{"name": "f"}])
    assert first.text.split("\n") == ["be brief", "what is this", "", '[{"name": "f"}]']
    assert (first.last, first.messages, first.images) == ("what is this", 2, 1)

    answered = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    ]
    output = {"type": "function_call_output", "call_id": "c", "output": "42"}
    then = collected(instructions="be brief", input=[asked, seen, *answered, output])
    assert then.text.split("\n")[3:] == ["hm", "f {}", "42"]
    assert then.last == "what is this"
    assert then.before == first.whole  # the same conversation, a turn later


def test_collects_the_prompt_of_a_message() -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    result = {
        "type": "tool_result",
        "tool_use_id": "t",
        "content": [{"type": "text", "text": "42"}, {"type": "image", "source": {}}],
    }
    prompt = collected(
        system=[{"type": "text", "text": "be brief"}],
        messages=[
            {"role": "user", "content": "what is this"},
            {"role": "assistant", "content": [{"type": "text", "text": "hm"}, call]},
            {"role": "user", "content": [result]},
        ],
    )
    assert prompt.text.split("\n") == ["be brief", "what is this", "hm", '{"a":1}', "42"]
    assert (prompt.last, prompt.messages, prompt.images) == ("what is this", 3, 1)


@pytest.mark.parametrize(("limit", "expected"), [(7, 7), (7.0, 7), (None, None), ("inf", None)])
def test_a_response_s_limit_is_a_limit_on_its_answer(limit: object, expected: int | None) -> None:
    body = json.dumps({"input": "x", "max_output_tokens": limit}).encode()
    assert features.peek(body).output_limit == expected


def test_embedded_files_are_cut_out_before_reading() -> None:
    data = base64.b64encode(b"x" * 400_000).decode()
    body = json.dumps(
        {
            "model": "m",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:image/png;base64,{data}"},
                        },
                        {"type": "text", "text": "hello"},
                    ],
                }
            ],
        }
    ).encode()
    skeleton, kept = features.elided(body)
    assert len(skeleton) < 1_000
    assert features.prompt_of(features.peek(skeleton)).last == "hello"
    assert [body[a:b] for a, b in kept] == [skeleton[: kept[0][1]], skeleton[kept[0][1] :]]


BULK = base64.b64encode(bytes(range(256)) * 2_000).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": BULK, "format": "wav"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BULK}},
        {"type": "input_file", "file_data": f"data:application/pdf;base64,{BULK}"},
    ],
    ids=["sound", "an image of a message", "a file"],
)
@pytest.mark.parametrize("space", ["", " "])
def test_sound_and_images_of_other_apis_are_cut_out_too(
    part: dict[str, object], space: str
) -> None:
    content = [{"type": "text", "text": "before"}, part, part, {"type": "text", "text": "after"}]
    asked = {"messages": [{"role": "user", "content": content}], "model": "m"}
    body = json.dumps(asked, separators=(",", f":{space}")).encode()
    skeleton, kept = features.elided(body)
    assert len(skeleton) < 1_000
    assert b"".join(body[a:b] for a, b in kept) == skeleton
    prompt = features.prompt_of(features.peek(skeleton))
    assert prompt.last == "before\nafter"
    assert features.peek(skeleton).model == "m"


@pytest.mark.parametrize(
    "data", ["some words " * 40_000, ["x"] * 90_000, 5, "short", 'with a " in it ' * 30_000]
)
def test_what_is_only_called_data_is_kept(data: object) -> None:
    body = json.dumps({"data": data, "padding": "p " * 150_000, "model": "m"}).encode()
    assert features.elided(body) == (body, [(0, len(body))])


@given(
    st.lists(
        st.sampled_from(
            [
                ";base64,",
                '"data":"',
                '"data": "',
                "A" * 5_000,
                '"',
                ",",
                "x" * 65_530,
                "\\",
                '"data"',
            ]
        ),
        max_size=12,
    )
)
def test_what_is_kept_are_parts_in_order_and_what_is_cut_out_is_base64(parts: list[str]) -> None:
    body = ("".join(parts) + " " * features.ELIDE_BYTES).encode()
    skeleton, kept = features.elided(body)
    assert skeleton == b"".join(body[a:b] for a, b in kept)
    edges = [edge for part in kept for edge in part]
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (0, len(body))
    for (_, start), (end, _) in itertools.pairwise(kept):
        assert b'"' not in body[start:end]
