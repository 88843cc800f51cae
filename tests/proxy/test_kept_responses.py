"""Responses that a backend keeps, and what goes on from them."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from proxy.kept_responses import KeptResponses
from tests.fakes import answers
from tests.fakes.upstream import RESET, Received, Script, Upstream
from tests.joulegate_server import KEY, TEAMS, Start, config_of

OTHER = "sk-other-0123456789abcdef"
BIOLOGY = {"keys": [OTHER]}
FIRST = ("tiny-0", "tiny-1")  # names of the two backends


def response(name: str) -> dict[str, object]:
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "tiny",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def events(name: str) -> list[bytes]:
    return [
        answers.event({"type": kind, "sequence_number": number, "response": response(name)})
        for number, kind in enumerate(("response.created", "response.completed"))
    ]


@pytest.fixture
def upstreams() -> Iterator[dict[str, Upstream]]:
    with Upstream() as one, Upstream() as other:
        yield {"tiny-0": one, "tiny-1": other}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_goes_on_from_a_response_goes_to_the_backend_that_has_it(
    joulegate: Start, upstreams: dict[str, Upstream], stream: bool
) -> None:
    running = joulegate(config_of(*(upstreams[name].base_url for name in FIRST)))
    client = openai.OpenAI(base_url=running.base_url, api_key="any", max_retries=0)
    for name in FIRST:
        script = answers.stream(events(name)) if stream else answers.answer(response(name))
        upstreams[name].play(script, answers.answer(response(f"{name}-next")))
        given = client.responses.create(model=name, input="hello", stream=stream)
        if isinstance(given, openai.Stream):
            list(given)
    before = {name: len(upstreams[name].received) for name in FIRST}
    for name in FIRST:
        going_on = client.responses.create(
            model="tiny", input="and?", previous_response_id=f"resp_{name}"
        )
        assert going_on.id == f"resp_{name}-next"
    assert {name: len(upstreams[name].received) for name in FIRST} == {
        name: count + 1 for name, count in before.items()
    }


def test_what_nobody_knows_is_sent_where_policy_says(
    joulegate: Start, upstreams: dict[str, Upstream]
) -> None:
    running = joulegate(config_of(upstreams["tiny-0"].base_url))
    upstreams["tiny-0"].play(answers.failure(404, "not_found", "No such response."))
    for unknown in ("resp_of_before", None, 7):
        reply = running.post(
            {"model": "tiny", "input": "x", "previous_response_id": unknown}, path="/v1/responses"
        )
        assert (reply.status, reply.code) == (404, "not_found")


def test_a_response_is_known_to_its_own_team_alone() -> None:
    kept = KeptResponses()
    kept.note("physics", "one", b'{"object":"response","id" : "resp_1"}')
    kept.note("physics", "two", b'{"id":"chatcmpl-1"}')
    assert kept.holder("physics", b'"resp_1"') == "one"
    assert kept.holder("biology", b'"resp_1"') is None
    assert kept.holder("physics", b'"chatcmpl-1"') is None


def test_a_response_is_read_cancelled_and_deleted_where_it_is_kept(
    joulegate: Start, upstreams: dict[str, Upstream]
) -> None:
    addresses = [upstreams[name].base_url for name in FIRST]
    running = joulegate(config_of(*addresses, teams={**TEAMS, "biology": BIOLOGY}))
    client = openai.OpenAI(base_url=running.base_url, api_key=KEY, max_retries=0)
    kept, read = upstreams["tiny-1"], list[Received]()
    queued = {**response("tiny-1"), "status": "queued"}

    def page(request: Received) -> Script:
        read.append(request)
        if request.target.endswith("stream=true"):
            return answers.stream(events("tiny-1"))
        listed = {"object": "list", "data": [], "has_more": False}
        items = request.path.endswith("input_items")
        return answers.answer(listed if items else response("tiny-1"))

    one = "/v1/responses/resp_tiny-1"
    kept.pages |= {one: page, f"{one}/input_items": page}
    kept.play(
        answers.answer(queued),
        answers.answer({**queued, "status": "cancelled"}),
        answers.answer({"id": "resp_tiny-1", "object": "response", "deleted": True}),
    )
    asked = client.responses.create(model="tiny-1", input="hello", background=True)
    assert asked.status == "queued"
    assert client.responses.retrieve(asked.id).status == "completed"
    kinds = [event.type for event in client.responses.retrieve(asked.id, stream=True)]
    assert kinds == ["response.created", "response.completed"]
    assert list(client.responses.input_items.list(asked.id)) == []
    assert client.responses.cancel(asked.id).status == "cancelled"
    client.responses.delete(asked.id)
    assert [r.target for r in read] == [one, f"{one}?stream=true", f"{one}/input_items"]
    changed = [(r.method, r.target) for r in kept.received[1:]]
    assert changed == [("POST", f"{one}/cancel"), ("DELETE", one)]
    assert KEY not in repr([r.headers for r in [*read, *kept.received]])
    other = openai.OpenAI(base_url=running.base_url, api_key=OTHER, max_retries=0)
    with pytest.raises(openai.NotFoundError, match="not known here"):
        other.responses.retrieve(asked.id)
    assert len(read) == 3


def test_a_response_whose_backend_is_gone_is_told_so(
    joulegate: Start, upstreams: dict[str, Upstream]
) -> None:
    upstream = upstreams["tiny-0"]
    running = joulegate(config_of(upstream.base_url))
    upstream.play(answers.answer(response("tiny-0")))
    upstream.pages["/v1/responses/resp_tiny-0"] = lambda _: (RESET,)
    running.post({"model": "tiny", "input": "x"}, path="/v1/responses")
    reply = running.get("/v1/responses/resp_tiny-0")
    assert (reply.status, reply.code) == (503, "upstream_unreachable")


def test_no_client_is_sent_elsewhere_with_its_key(
    joulegate: Start, upstreams: dict[str, Upstream]
) -> None:
    upstream, one = upstreams["tiny-0"], "/v1/responses/resp_tiny-0"
    running = joulegate(config_of(upstream.base_url))
    upstream.play(answers.answer(response("tiny-0")))
    elsewhere = {"location": "http://127.0.0.1:9/"}
    upstream.pages[one] = lambda _: answers.answer({}, status=307, headers=elsewhere)
    running.post({"model": "tiny", "input": "x"}, path="/v1/responses")
    reply = running.get(one)
    assert (reply.status, reply.header("location")) == (502, None)


@pytest.mark.parametrize("complete", [True, False])
def test_a_kept_response_whose_stream_breaks_off_says_so(
    joulegate: Start, upstreams: dict[str, Upstream], complete: bool
) -> None:
    upstream, one = upstreams["tiny-0"], "/v1/responses/resp_tiny-0"
    running = joulegate(config_of(upstream.base_url))
    upstream.play(answers.answer(response("tiny-0")))
    sent = events("tiny-0")[: 2 if complete else 1]
    upstream.pages[one] = lambda _: answers.stream([*sent, RESET], end=False)
    client = openai.OpenAI(base_url=running.base_url, api_key="any", max_retries=0)
    client.responses.create(model="tiny", input="hello")
    stream = client.responses.retrieve("resp_tiny-0", stream=True)
    if complete:
        assert len(list(stream)) == 2
    else:
        with pytest.raises(openai.APIError, match="broke off"):
            list(stream)
