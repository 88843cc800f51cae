"""Every way to say no, over a real socket: OpenAI's shape, the right status, a usage record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from meters import simulated_engine
from meters.simulated_physics import EngineConfig
from tests.fakes import answers
from tests.fakes.upstream import CUT, HANG, RESET, Upstream, refusing_address
from tests.joulegate_server import KEY, TEAMS, Joulegate, Start, config_of

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


# -- the caller's --------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", [None, "Bearer sk-wrong", "Basic abc", "Bearer "])
def test_a_missing_or_wrong_key_is_a_401(
    joulegate: Start, upstream: Upstream, authorization: str | None
) -> None:
    running = joulegate(config_of(upstream.base_url, teams=TEAMS))
    headers = {} if authorization is None else {"authorization": authorization}
    refused = running.post(ASK, headers=headers)
    assert (refused.status, refused.code) == (401, "invalid_api_key")
    assert upstream.received == []
    record = running.record(refused.header("x-request-id"))
    assert (record.outcome, record.error_code) == ("refused", "invalid_api_key")
    assert running.get("/v1/models", **headers).status == 401


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key"])
def test_a_key_is_taken_from_each_place_clients_put_it(
    joulegate: Start, upstream: Upstream, name: str
) -> None:
    running = joulegate(config_of(upstream.base_url, teams=TEAMS))
    value = f"Bearer {KEY}" if name == "authorization" else KEY
    assert running.post(ASK, headers={name: value}).status == 200
    sent = upstream.wait_for(1)[0]
    assert KEY not in repr(sent.headers)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_clients_of_anthropics_api_are_told_in_its_own_shape(
    joulegate: Start, upstream: Upstream, path: str
) -> None:
    running = joulegate(config_of(upstream.base_url, teams=TEAMS))
    for headers, model, status, kind, code in (
        ({"x-api-key": "sk-wrong"}, "tiny", 401, "authentication_error", "invalid_api_key"),
        ({"x-api-key": KEY}, "other", 404, "not_found_error", "model_not_found"),
        ({"x-api-key": KEY}, 7, 400, "invalid_request_error", "invalid_type"),
    ):
        refused = running.post({**ASK, "model": model}, path=path, headers=headers)
        told = refused.json()
        assert (refused.status, told["type"]) == (status, "error")
        assert (told["error"]["type"], told["error"]["code"]) == (kind, code)
        assert told["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/vector_stores", "/v1/conversations", "/v1/messages/batches"])
def test_a_path_that_only_a_backend_may_have_is_told_apart_from_ours(
    running: Joulegate, upstream: Upstream, path: str
) -> None:
    refused = running.post({"name": "notes"}, path=path)
    assert (refused.status, refused.code) == (400, "missing_required_parameter")
    assert f"itself has nothing at POST {path}" in refused.json()["error"]["message"]
    assert upstream.received == []


def test_what_moderates_by_default_needs_no_model(joulegate: Start, upstream: Upstream) -> None:
    upstream.play(answers.answer({"id": "modr-1", "model": "m", "results": []}))
    other = config_of(upstream.base_url)
    served = config_of({"url": upstream.base_url, "model": "omni-moderation-latest"})
    for config, status in ((other, 400), (served, 200)):
        running = joulegate(config)
        assert running.post({"input": "hi"}, path="/v1/moderations").status == status
    assert [request.body for request in upstream.received] == [b'{"input":"hi"}']
    (record,) = running.records()
    assert (record.endpoint, record.model_asked) == ("moderations", "omni-moderation-latest")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/models/tiny", "GET"),
        ("OPTIONS", "/v1/models", "GET"),
        ("GET", "/v1/route", "POST"),
    ],
)
def test_a_wrong_method_is_told_which_is_right(
    running: Joulegate, method: str, path: str, allowed: str
) -> None:
    refused = running.get(path, method=method)
    assert (refused.status, refused.code) == (405, "method_not_allowed")
    assert refused.header("allow") == allowed
    assert refused.json()["error"]["message"].endswith(f"Use {allowed}.")


def test_an_unknown_model_is_a_404_that_names_the_known(running: Joulegate) -> None:
    refused = running.post({**ASK, "model": "gpt-nonesuch"})
    assert (refused.status, refused.code) == (404, "model_not_found")
    assert "tiny" in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "model"
    assert running.record(refused.header("x-request-id")).model_asked == "gpt-nonesuch"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"text"', "invalid_json"),
        (b'{"model": "tiny", "messages": \xff}', "invalid_json"),
        (b'{"messages": []}', "missing_required_parameter"),
        (b'{"model": "tiny"}', "missing_required_parameter"),
        (b'{"model": "tiny", "input": "hi"}', "unsupported_parameter"),
        (b'{"model": "tiny", "messages": "hi"}', "invalid_type"),
        (b'{"model": 7, "messages": []}', "invalid_type"),
        (b'{"model": "tiny", "messages": [], "max_tokens": "many"}', "invalid_type"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"model": "tiny", "messages": ' + b"[" * 100_000, "invalid_json"),
    ],
)
def test_a_body_that_makes_no_sense_is_a_400(
    running: Joulegate, upstream: Upstream, body: bytes, code: str
) -> None:
    refused = running.post(body)
    assert (refused.status, refused.code) == (400, code)
    assert upstream.received == []
    assert running.record(refused.header("x-request-id")).outcome == "refused"


def test_a_responses_request_sent_to_chat_is_told_where_it_belongs(running: Joulegate) -> None:
    refused = running.post({"model": "tiny", "input": "hi"})
    assert refused.status == 400
    assert "/v1/responses" in refused.json()["error"]["message"]


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_over_the_limit_is_a_413(joulegate: Start, upstream: Upstream, framing: str) -> None:
    running = joulegate(config_of(upstream.base_url, server={"max_body_bytes": 4096}))
    body = b'{"model": "tiny", "messages": [], "padding": "' + b"x" * 8192 + b'"}'
    connection = running.connect()
    pieces: Any = iter([body[:100], body[100:]]) if framing == "chunked" else body
    connection.request(
        "POST", "/v1/chat/completions", pieces, {}, encode_chunked=framing == "chunked"
    )
    assert connection.getresponse().status == 413
    assert upstream.received == []


def test_a_limit_that_nothing_meets_is_a_422_with_each_reason(
    joulegate: Start, upstream: Upstream
) -> None:
    good = {"url": upstream.base_url, "gpu": "H100-SXM", "params_b": 8.0}
    running = joulegate(config_of({**good, "quality": 0.3}, {**good, "quality": 0.5}))
    refused = running.post(ASK, headers={"x-joulegate-min-quality": "0.9"})
    assert (refused.status, refused.code) == (422, "no_backend_within_limits")
    rejected = refused.json()["error"]["joulegate"]["rejections"]
    assert {one["backend"] for one in rejected} == {"tiny-0", "tiny-1"}
    assert refused.header("x-should-retry") == "false"
    assert upstream.received == []


def test_whether_a_prompt_is_too_long_for_all_is_for_the_engine_with_most_room_to_say(
    joulegate: Start,
) -> None:
    engines = [EngineConfig(model="tiny", max_model_len=room) for room in (256, 1024)]
    with simulated_engine.start(engines[0]) as small, simulated_engine.start(engines[1]) as large:
        settings = {"gpu": "H100-SXM", "params_b": 8.0, "upstream_model": "tiny"}
        running = joulegate(
            config_of(
                {**settings, "url": f"{small.url}/v1", "context_tokens": 256, "quality": 0.5},
                {**settings, "url": f"{large.url}/v1", "context_tokens": 1024, "quality": 0.5},
            )
        )
        client = openai.OpenAI(base_url=running.base_url, api_key="any", max_retries=0)
        long = [{"role": "user", "content": "word " * 2_000}]
        with pytest.raises(openai.BadRequestError, match="maximum context length is 1024") as said:
            client.chat.completions.create(model="tiny", messages=long)  # type: ignore[arg-type]
        assert said.value.response.headers["x-joulegate-backend"] == "tiny-1"
        with pytest.raises(openai.BadRequestError, match="maximum context length is 256"):
            client.chat.completions.create(model="tiny-0", messages=long)  # type: ignore[arg-type]
        record = running.record(said.value.response.headers["x-request-id"])
        assert record.energy_j == 0.0

        # and no limit is given up for it
        asked = {"model": "tiny", "messages": long}
        for header in ({"x-joulegate-min-quality": "0.9"}, {"x-joulegate-max-energy-j": "1e-6"}):
            refused = running.post(asked, headers=header)
            assert (refused.status, refused.code) == (422, "no_backend_within_limits")


def test_images_go_to_who_reads_them_else_to_who_was_not_said_to_be_blind(
    joulegate: Start, upstream: Upstream
) -> None:
    def asked(*reads: bool | None) -> tuple[int, str | None]:
        backends = [{"url": upstream.base_url, "supports_images": sees} for sees in reads]
        reply = joulegate(config_of(*backends)).post(picture)
        return reply.status, reply.header("x-joulegate-backend")

    url = {"url": "data:image/png;base64,aGk="}
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": url}]
    picture = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    assert asked(None, True) == (200, "tiny-1")
    assert asked(False, None) == (200, "tiny-1")
    assert asked(None) == (200, "tiny-0")
    assert asked(False) == (422, None)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-joulegate-policy": "no-such-policy"},
        {"x-joulegate-max-energy-j": "little"},
        {"x-joulegate-min-quality": "2"},
        {"x-joulegate-max-ttft-ms": "-1"},
    ],
)
def test_a_header_that_cannot_be_read_is_a_400_that_names_it(
    running: Joulegate, headers: dict[str, str]
) -> None:
    refused = running.post(ASK, headers=headers)
    assert (refused.status, refused.code) == (400, "invalid_header")
    assert refused.json()["error"]["param"] == next(iter(headers))


@pytest.mark.parametrize(
    "refused",
    [
        lambda running: running.post({"model": "tiny"}),
        lambda running: running.post({**ASK, "model": "nobody"}),
        lambda running: running.post(ASK, headers={"x-joulegate-min-quality": "2"}),
        lambda running: running.post(ASK, headers={"x-joulegate-max-energy-j": "0"}),
    ],
)
def test_a_refusal_says_under_which_policy_and_that_its_energy_is_not_known(
    running: Joulegate, refused: Callable[[Joulegate], Any]
) -> None:
    reply = refused(running)
    assert reply.status in (400, 404, 422)
    assert reply.header("x-joulegate-policy") == "least_energy"
    assert reply.header("x-joulegate-evidence") == "unknown"
    assert reply.header("x-joulegate-energy-j") is None
    assert reply.header("x-joulegate-cache") == "off"
    assert reply.header("x-joulegate-overhead-ms")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing-here", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/nonesuch", 404),
        ("GET", "/v1/usage/req_nonesuch", 404),
    ],
)
def test_other_routes_fail_in_the_same_shape(
    running: Joulegate, method: str, path: str, status: int
) -> None:
    refused = running.get(path, method=method)
    assert refused.status == status
    assert refused.code


# -- the upstream's ------------------------------------------------------------------------------

PROVIDER_SAYS = {
    **answers.PROVIDER_HEADERS,
    "retry-after": "7",
    "retry-after-ms": "7000",
    "x-should-retry": "true",
    "x-odd-header": "Grüß".encode().decode("latin-1"),
}


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429, 500, 503])
def test_an_upstream_s_own_error_arrives_unchanged(
    running: Joulegate, upstream: Upstream, status: int
) -> None:
    body = b'{"error" : {"message":"No \\u00fc.", "type":"t", "param":null, "code":"own", "x":1e2}}'
    upstream.play(answers.answer(body, status, {**PROVIDER_SAYS, "x-request-id": "theirs"}))
    failed = running.post(ASK)
    assert failed.status == status
    assert failed.body == body
    for name, value in PROVIDER_SAYS.items():
        assert failed.header(name) == value
    assert failed.header("x-request-id") != "theirs"
    record = running.record(failed.header("x-request-id"))
    assert (record.status, record.outcome) == (status, "failed")


OWN = answers.event({"detail": "No."})


@pytest.mark.parametrize(
    "script",
    [
        answers.stream([b"event: error\n" + OWN], 429),
        answers.stream([b"event: error\n" + OWN + answers.event("[DONE]")], 400),
        answers.answer({"error": {"message": "No.", "code": 502}}),  # as OpenRouter may
    ],
    ids=["in an event", "with an end", "with the status of an answer"],
)
def test_an_upstream_s_error_is_one_however_it_is_sent(
    running: Joulegate, upstream: Upstream, script: Any
) -> None:
    upstream.play(script)
    failed = running.post({**ASK, "stream": True})
    assert b"No." in failed.body
    assert running.record(failed.header("x-request-id")).outcome == "failed"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_key_or_a_model_that_one_backend_does_not_know_is_another_s_chance(
    joulegate: Start, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    said = "The model `tiny` does not exist."  # as vLLM says once it serves another
    with Upstream(answers.failure(status, "NotFoundError", said)) as one:
        with Upstream(answers.answer(answers.CHAT)) as two:
            running = joulegate(config_of(one.base_url, {"url": two.base_url, "quality": 0.1}))
            assert {running.post(ASK).status for _ in range(4)} == {200}
            pinned = running.post({**ASK, "model": "tiny-0"})
        assert one.received
    assert (pinned.status, said in pinned.body.decode()) == (status, True)
    assert f"backend tiny-0 answers {status}" in caplog.text


def test_what_a_backend_was_not_made_for_is_no_failure_of_it(
    running: Joulegate, upstream: Upstream
) -> None:
    # as llama.cpp answers where it was started for chats
    upstream.play(answers.failure(501, "not_supported_error", "It does not support embeddings."))
    failed = running.post({"model": "tiny", "input": "hi"}, path="/v1/embeddings")
    assert (failed.status, failed.code) == (501, "not_supported_error")
    assert running.proxy is not None
    assert running.proxy.pool.engines[0].failures_in_a_row == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusing_upstream_is_a_503_with_retry_after(joulegate: Start, stream: bool) -> None:
    with refusing_address() as address:
        running = joulegate(config_of(f"{address}/v1"))
        failed = running.post({**ASK, "stream": stream})
    assert (failed.status, failed.code) == (503, "upstream_unreachable")
    assert int(failed.header("retry-after") or "") >= 1
    assert "127.0.0.1" not in failed.body.decode()
    record = running.record(failed.header("x-request-id"))
    assert (record.outcome, record.error_code) == ("failed", "upstream_unreachable")
    assert record.energy_j == 0.0  # nothing ran, and that is known


@pytest.mark.parametrize("end", [CUT, RESET])
@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_dies_before_its_first_byte_is_a_503(
    running: Joulegate, upstream: Upstream, end: Any, stream: bool
) -> None:
    upstream.play([end])
    failed = running.post({**ASK, "stream": stream})
    assert (failed.status, failed.code) == (503, "upstream_unreachable")
    assert failed.header("retry-after")


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_hangs_is_a_504(
    joulegate: Start, upstream: Upstream, stream: bool
) -> None:
    running = joulegate(config_of(upstream.base_url, time={"first_byte_s": 0.2}))
    upstream.play([HANG])
    failed = running.post({**ASK, "stream": stream})
    assert (failed.status, failed.code) == (504, "upstream_timeout")
    assert upstream.wait_for(1)[0].gone.wait(2)
    assert running.record(failed.header("x-request-id")).outcome == "failed"


GARBAGE = {
    "not HTTP": [b"SSH-2.0-OpenSSH_9.2\r\n", CUT],
    "not JSON": answers.answer(b"<html>It works!</html>", headers={"content-type": "text/html"}),
    "an empty answer": answers.answer(b""),
    "a body shorter than it says": [answers.head(content_length="100") + b'{"id"', CUT],
    "a status that is none": answers.answer(answers.CHAT, 999),
    "a head that never ends": [b"HTTP/1.1 200 OK\r\nx: " + b"x" * 200_000, CUT],
}


@pytest.mark.parametrize("script", GARBAGE.values(), ids=GARBAGE.keys())
def test_an_upstream_that_answers_garbage_is_a_502(
    running: Joulegate, upstream: Upstream, script: Any
) -> None:
    upstream.play(script)
    failed = running.post(ASK)
    assert (failed.status, failed.code) == (502, "upstream_failed")
    assert running.record(failed.header("x-request-id")).outcome == "failed"


def test_the_openai_client_raises_the_class_that_belongs_to_each(
    running: Joulegate, upstream: Upstream
) -> None:
    expected = {
        400: openai.BadRequestError,
        401: openai.AuthenticationError,
        404: openai.NotFoundError,
        422: openai.UnprocessableEntityError,
        429: openai.RateLimitError,
        500: openai.InternalServerError,
    }
    with openai.OpenAI(base_url=running.base_url, api_key="x", max_retries=0) as client:
        for status, kind in expected.items():
            upstream.play(answers.failure(status, "own_code", "Said the provider."))
            with pytest.raises(kind) as raised:
                client.chat.completions.create(**ASK)  # type: ignore[call-overload]
            assert raised.value.code == "own_code"


def test_every_answer_has_one_request_id_of_its_own(running: Joulegate, upstream: Upstream) -> None:
    upstream.play(answers.answer(answers.CHAT, headers={"x-request-id": "theirs"}))
    replies = [
        running.post(ASK),
        running.post({**ASK, "stream": True}),
        running.post(b"{"),
        running.post({**ASK, "model": "nonesuch"}),
        running.get("/v1/models"),
        running.get("/nothing"),
        running.get("/health/live"),
        running.get("/metrics"),
    ]
    ids = [one.header("x-request-id") for one in replies]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    assert "theirs" not in ids
