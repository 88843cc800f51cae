"""A header says what kind of task it is, or how good backends are, and the decision follows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.joulegate_server import KEY, TEAMS, Joulegate, Start

BOUND = "sk-bound"
TASKS = {"code": 0.3, "chat": 0.8}


def config_of(**more: Any) -> dict[str, Any]:
    backends = [
        {
            "model": "m",
            "precision": precision,
            "url": "http://127.0.0.1:9/v1",
            "gpu": "H100-SXM",
            "params_b": 8.0,
            "quality_by_task": tasks,
        }
        for precision, tasks in (("bf16", {"code": 0.9, "chat": 0.9}), ("int4", TASKS))
    ]
    return {
        "backends": backends,
        "policies": {"p": {"limits": {"min_quality": "85 % of m@bf16"}}},
        "default_policy": "p",
        "teams": {**TEAMS, "bound": {"keys": [BOUND], "limits": {"min_quality": 0.5}}},
        "retries": {"health_check_s": 0},
        **more,
    }


def route(running: Joulegate, key: str = KEY, **headers: str) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "Tell me about the sea."}]}
    sent = {"x-api-key": key, **{f"x-joulegate-{k}": v for k, v in headers.items()}}
    return running.post(body, path="/v1/route", headers=sent)


def quality(reply: Any, name: str) -> float:
    (found,) = [c for c in reply.json()["candidates"] if c["backend"] == name]
    return float(found["quality"]["mid"])


def test_the_kind_of_task_can_be_said(joulegate: Start) -> None:
    running = joulegate(config_of())
    assert route(running).json()["chosen"] == "m@int4"
    said = route(running, task="code")
    assert quality(said, "m@int4") == pytest.approx(0.3)
    assert said.json()["chosen"] == "m@bf16"


def test_a_stated_quality_takes_the_place_of_the_predicted_one(joulegate: Start) -> None:
    running = joulegate(config_of())
    said = route(running, quality="m@int4=0.2")
    assert quality(said, "m@int4") == 0.2
    assert said.json()["chosen"] == "m@bf16"
    said = route(running, task="code", quality="m@int4=0.9")
    assert said.json()["chosen"] == "m@int4"


def test_nobody_talks_their_way_past_their_teams_limit(joulegate: Start) -> None:
    running = joulegate(config_of())
    said = route(running, BOUND, task="code", quality="m@int4=1.0,m@bf16=0.95")
    assert quality(said, "m@int4") == pytest.approx(0.3)
    assert said.json()["chosen"] == "m@bf16"
    assert route(running, BOUND, quality="m=0.1").status == 422  # worse may be said


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("task", "poetry"),
        ("quality", "m@int4"),
        ("quality", "m@int4=2"),
        ("quality", "=0.5"),
        ("quality", "m=nan"),
        ("quality", ",".join(["m=0.5"] * 33)),
    ],
)
def test_what_cannot_be_read_is_a_400(joulegate: Start, header: str, value: str) -> None:
    reply = route(joulegate(config_of()), **{header: value})
    assert reply.status == 400
    assert reply.code == "invalid_header"
