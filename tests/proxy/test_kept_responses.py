"""Responses that a backend keeps, and what goes on from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import openai
import pytest

from proxy.kept_responses import KeptResponses
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Config, Joulegate, config_of

Start = Callable[[Config], Joulegate]
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
