"""Uploaded forms: found out what model they are for, and passed on as they came."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ApiError
from proxy.forms import form_of, is_form
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Start, config_of

SOUND = b"RIFF\x00\r\n--" + bytes(range(256)) * 40
TEXT = {"text": "Grüß Gott", "usage": {"type": "duration", "seconds": 3}}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


def form(boundary: bytes, *parts: tuple[bytes, bytes]) -> bytes:
    pieces = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (boundary, *part)
        for part in parts
    ]
    return b"".join(pieces) + b"--%s--\r\n" % boundary


def test_a_recording_is_transcribed_by_the_backend_of_its_model(
    joulegate: Start, upstream: Upstream
) -> None:
    upstream.play(answers.answer(TEXT))
    running = joulegate(config_of({"url": upstream.base_url, "upstream_model": "whisper-large"}))
    got = running.client().audio.transcriptions.create(
        model="tiny", file=("speech.wav", SOUND), language="de"
    )
    assert got.text == "Grüß Gott"
    (received,) = upstream.wait_for(1)
    assert received.target == "/v1/audio/transcriptions"
    assert SOUND in received.body
    assert b"whisper-large" in received.body
    assert b"tiny" not in received.body
    (record,) = running.records()
    assert record.endpoint == "audio.transcriptions"
    # No tokens were reported, and nobody can tell the energy: unknown, not nothing.
    assert (record.prompt_tokens, record.output_tokens, record.energy_j) == (None, None, None)
    assert record.outcome == "ok"


def test_plain_text_is_an_answer_to_a_recording_too(joulegate: Start, upstream: Upstream) -> None:
    upstream.play(answers.answer(b"Hello there\n", headers={"content-type": "text/plain"}))
    running = joulegate(config_of(upstream.base_url))
    got = running.client().audio.transcriptions.create(
        model="tiny", file=("speech.wav", SOUND), response_format="text"
    )
    assert got == "Hello there\n"


STREAMS: dict[str, tuple[str, dict[str, object]]] = {
    "a transcript": ("/v1/audio/transcriptions", {"type": "transcript.text.done", "text": "Hi"}),
    "an edited image": ("/v1/images/edits", {"type": "image_edit.completed", "b64_json": "AA=="}),
    "what nobody knows the end of": ("/v1/score", {"type": "score.last"}),
}


@pytest.mark.parametrize(("path", "last"), STREAMS.values(), ids=STREAMS.keys())
def test_streams_of_files_end_as_their_backend_ends_them(
    joulegate: Start, upstream: Upstream, path: str, last: dict[str, object]
) -> None:
    usage = {"input_tokens": 14, "output_tokens": 45, "total_tokens": 59}
    whole = answers.event({"type": "some.delta"}) + answers.event({**last, "usage": usage})
    upstream.play(answers.stream([whole]))
    running = joulegate(config_of(upstream.base_url))
    body = form(b"XX", (b"model", b"tiny"), (b"file", SOUND), (b"stream", b"true"))
    sort = {"content-type": "multipart/form-data; boundary=XX"}
    got = running.post(body, path=path, headers=sort)
    assert (got.status, got.body) == (200, whole)
    record = running.record(got.header("x-request-id"))
    assert (record.outcome, record.prompt_tokens, record.output_tokens) == ("ok", 14, 45)


def test_an_edited_image_is_metered_by_what_it_reports(
    joulegate: Start, upstream: Upstream
) -> None:
    usage = {"input_tokens": 40, "output_tokens": 90, "total_tokens": 130}
    upstream.play(answers.answer({"created": 1, "data": [{"b64_json": "AA=="}], "usage": usage}))
    running = joulegate(config_of(upstream.base_url))
    running.client().images.edit(model="tiny", image=("a.png", SOUND), prompt="Add a hat.")
    (received,) = upstream.wait_for(1)
    assert received.target == "/v1/images/edits"
    (record,) = running.records()
    assert (record.prompt_tokens, record.output_tokens) == (40, 90)
    assert record.energy_j is None


def test_other_routes_go_where_their_model_is_served(joulegate: Start, upstream: Upstream) -> None:
    upstream.play(answers.answer({"data": [{"score": 0.5}]}))
    other = {"model": "big", "name": "big", "url": "http://127.0.0.1:9/v1"}
    running = joulegate(config_of(upstream.base_url, other))
    body = {"model": "tiny", "text_1": "a", "text_2": "b"}
    assert running.post(body, path="/v1/score").status == 200
    (received,) = upstream.wait_for(1)
    assert (received.target, json.loads(received.body)) == ("/v1/score", body)
    refused = running.post({"text_1": "a"}, path="/v1/score")
    assert (refused.status, json.loads(refused.body)["error"]["code"]) == (
        400,
        "missing_required_parameter",
    )


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/../metrics",
        "/v1/%2e%2e/metrics",
        "/v1//score",
        "/v1/a/b/c/d/e",
        "/v1/SCORE",
    ],
)
def test_what_changes_an_engine_or_leads_elsewhere_is_not_passed_on(
    joulegate: Start, upstream: Upstream, path: str
) -> None:
    running = joulegate(config_of(upstream.base_url))
    assert running.post({"model": "tiny"}, path=path).status == 404
    assert upstream.received == []


def test_a_form_without_a_model_or_that_is_none_is_refused(
    joulegate: Start, upstream: Upstream
) -> None:
    running = joulegate(config_of(upstream.base_url))

    def refusal(body: bytes, sort: str = "multipart/form-data; boundary=XX") -> tuple[int, str]:
        reply = running.post(body, path="/v1/audio/transcriptions", headers={"content-type": sort})
        return reply.status, json.loads(reply.body)["error"]["code"]

    assert refusal(form(b"XX", (b"file", b"abc"))) == (400, "missing_required_parameter")
    assert refusal(b"nothing of the kind") == (400, "invalid_form")
    assert refusal(b"", "multipart/form-data; charset=x") == (400, "invalid_form")
    assert refusal(b"--XX\r\n", "multipart/form-data") == (400, "invalid_form")
    assert refusal(form(b"XX", (b"model", b"\xff"))) == (400, "invalid_form")
    assert upstream.received == []


@given(st.binary(max_size=300), st.text("abcdef-", min_size=1, max_size=30))
def test_any_file_passes_and_only_the_models_name_changes(content: bytes, model: str) -> None:
    boundary = b"f3c1-0-boundary"
    parts = ((b"file", content.replace(boundary, b"")), (b"model", model.encode()))
    body = form(boundary, *parts, (b"stream", b"true"))
    found = form_of(body, b"multipart/form-data; boundary=" + boundary)
    assert (found.model, found.stream) == (model, True)
    renamed = form(boundary, parts[0], (b"model", b"other/name"), (b"stream", b"true"))
    assert found.renamed(body, "other/name") == renamed


def test_only_forms_with_files_are_forms() -> None:
    assert is_form(b"multipart/form-data; boundary=x")
    assert not is_form(b"application/json")
    assert not is_form(b"application/x-www-form-urlencoded")
    with pytest.raises(ApiError):
        form_of(b"", b"multipart/form-data; boundary=")
