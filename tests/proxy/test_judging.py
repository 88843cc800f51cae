"""Some answers are judged behind the request path: on the books, within the budget, with nothing
of the prompt left behind, and the quality estimates learn from it. Real sockets throughout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meters import simulated_engine
from meters.simulated_physics import LLAMA_8B_BF16, EngineConfig
from proxy.config_file import ConfigError
from proxy.judged import JudgedBook
from proxy.loading import load
from proxy.settings import OVERHEAD
from tests.fakes import answers
from tests.fakes.upstream import Gate, Received, Script, Upstream
from tests.joulegate_server import ADMIN, KEY, Joulegate, Start, write
from tests.waiting import until

# Little idle power: until a meter has seen an engine idle, requests share that too.
QUIET = msgspec.structs.replace(LLAMA_8B_BF16, idle_power_w=20.0)
SECRET = "the-heron-flies-at-dawn"
HARDWARE = {"gpu": "H100-SXM", "params_b": 8.03, "quality": 0.5}


def saying(text: str) -> Script:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return answers.answer({**answers.CHAT, "choices": [choice]})


def better(word: str) -> Callable[[Received], Script]:
    """A judge that prefers the answer with that word in it, wherever it stands."""

    def verdict(request: Received) -> Script:
        messages: Any = request.json()["messages"]
        text = messages[-1]["content"]
        first = text.index("<|answer A|>") < text.index(word) < text.index("<|end of A|>")
        return saying("Compared. [[A>B]]" if first else "Compared. [[B>A]]")

    return verdict


@pytest.fixture
def servers() -> Iterator[dict[str, Upstream]]:
    with (
        Upstream(saying("plain words")) as first,
        Upstream(saying("golden words")) as second,
        Upstream(better("golden")) as judge,
    ):
        yield {"first": first, "second": second, "judge": judge}


def config_of(servers: dict[str, Upstream], **more: Any) -> dict[str, Any]:
    allowed = more.pop("allowed", ["second", "judge"])
    share = more.pop("share", 1.0)
    backends = [
        {**HARDWARE, "model": name, "name": name, "url": server.base_url}
        for name, server in servers.items()
    ]
    return {
        "backends": backends,
        "teams": {
            "physics": {"keys": [KEY], "judging": {"share": share, "backends": allowed}},
            "operators": {"keys": [{"key": ADMIN, "role": "admin"}]},
        },
        "judging": {"judge": "judge"},
        "cache": {"enabled": False},
        "retries": {"health_check_s": 0},
        "log": {"level": "error"},
        **more,
    }


def ask(running: Joulegate, text: str = SECRET, model: str = "first", **more: Any) -> str:
    messages = [{"role": "user", "content": text}]
    body = {"model": model, "messages": messages, "max_tokens": 20, **more}
    reply = running.post(body, headers={"x-api-key": KEY})
    assert reply.status == 200, reply.body
    request_id = reply.header("x-request-id")
    assert request_id is not None
    return request_id


def counted(running: Joulegate, outcome: str, at_least: int = 1) -> float:
    """Waits until that many sampled requests came to that outcome."""
    assert running.proxy is not None
    sums = running.proxy.telemetry.judged.sums
    until(lambda: sums[(outcome,)] >= at_least, told=lambda: dict(sums))
    return sums[(outcome,)]


def test_a_second_answer_is_judged_in_both_orders_and_teaches_the_qualities(
    joulegate: Start, servers: dict[str, Upstream]
) -> None:
    running = joulegate(config_of(servers))
    for number in range(12):
        ask(running, f"{SECRET} {number}", stream=number % 2 == 0, temperature=0.5)
    counted(running, "judged", 12)
    assert len(servers["second"].received) == 12
    assert len(servers["judge"].received) == 24
    sent = servers["second"].received[0].json()
    assert (sent["stream"], sent["temperature"], sent["model"]) == (False, 0.5, "second")
    texts = [str(r.json()["messages"]) for r in servers["judge"].received[:2]]
    assert texts[0].index("plain") < texts[0].index("golden")
    assert texts[1].index("golden") < texts[1].index("plain")

    shown = running.get("/v1/judging", x_api_key=ADMIN).json()
    (task,) = shown["tasks"].values()
    best, worst = task
    assert (best["name"], worst["name"]) == ("second", "first")
    assert worst["high"] < 0.5 < best["low"]
    assert (best["games"], shown["prompts"]) == (24, 12)
    body = {"model": "second", "messages": [{"role": "user", "content": SECRET}]}
    route = running.post(body, path="/v1/route", headers={"x-api-key": KEY}).json()
    body["model"] = "first"
    other = running.post(body, path="/v1/route", headers={"x-api-key": KEY}).json()
    assert quality_of(route, "second") > 0.55
    assert quality_of(other, "first") < 0.45


def quality_of(route: Any, backend: str) -> float:
    (found,) = [c for c in route["candidates"] if c["backend"] == backend]
    return float(found["quality"]["mid"])


def test_every_call_is_on_the_books_on_a_line_of_its_own(
    joulegate: Start, servers: dict[str, Upstream]
) -> None:
    running = joulegate(config_of(servers))
    own = ask(running)
    counted(running, "judged")
    records = running.records(lambda record: record.team == OVERHEAD)
    assert [record.backend for record in records] == ["second", "judge", "judge"]
    for record in records:
        assert (record.project, record.tags, record.policy) == ("physics", (OVERHEAD,), OVERHEAD)
        assert (record.outcome, record.output_tokens) == ("ok", 3)
        assert record.energy_j is not None
        assert record.counterfactual_energy_j is None  # it saves nothing, and claims nothing
    assert running.record(own).team == "physics"


def metered(running: Joulegate) -> None:
    """Waits for the first closed window: what came before the first reading, no meter saw."""
    closed = b"joulegate_window_energy_joules_total{"
    until(lambda: closed in running.get("/metrics", x_api_key=ADMIN).body)


def test_the_energy_of_judging_is_metered_like_any_other(
    joulegate: Start, servers: dict[str, Upstream]
) -> None:
    with simulated_engine.start(EngineConfig(model="second", physics=QUIET)) as engine:
        config = config_of(servers)
        config["backends"][1] |= {
            "url": f"{engine.url}/v1",
            "simulated": True,
            "meter": {"kind": "simulated", "url": engine.url, "window_s": 0.5},
        }
        servers["judge"].play(saying("[[A=B]]"))
        running = joulegate(config)
        metered(running)
        ask(running)
        counted(running, "judged")
        (record,) = running.records(lambda r: r.team == OVERHEAD and r.backend == "second")
        receipt = running.metered(record.request_id)
        true_j = engine.engine.totals.active_energy_j
        assert receipt.energy_j is not None
        assert 0 < receipt.energy_j < 2 * true_j


def test_nothing_of_the_prompt_or_the_answers_is_kept(
    joulegate: Start, servers: dict[str, Upstream], tmp_path: Path
) -> None:
    running = joulegate(config_of(servers))
    ask(running)
    counted(running, "judged")
    proxy = running.proxy
    assert proxy is not None
    proxy.judging.book.save(proxy.judging.path)
    assert json.loads(proxy.judging.path.read_text())["prompts"] == 1
    words = (SECRET.encode(), b"golden", b"plain words")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not any(word in path.read_bytes() for word in words), path


@pytest.mark.parametrize(("new", "state"), [("first", "rolled_back"), ("second", "rolling")])
def test_a_canary_whose_answers_a_judge_finds_worse_is_rolled_back(
    joulegate: Start, servers: dict[str, Upstream], new: str, state: str
) -> None:
    rule = {"backend": new, "share": 0.5}
    limits = {"backends": ["first", "second"]}
    config = config_of(
        servers,
        allowed=["first", "second", "judge"],
        policies={"trial": {"objective": "quality", "limits": limits, "canary": rule}},
        default_policy="trial",
        judging={"judge": "judge", "max_energy_j_per_day": 1e9},
    )
    running = joulegate(config)
    assert running.proxy is not None
    for number in range(40):
        ask(running, f"{SECRET} {number}", model="auto")
        counted(running, "judged", number + 1)
    roll_out = running.proxy.canaries.roll_outs["trial"]
    assert roll_out.state == state
    assert ("judged comparisons" in roll_out.why) == (state == "rolled_back")
    assert roll_out.duels.fought == 40  # whichever of the two answered, the other was asked
    assert roll_out.canary.judged == 0


def test_the_answer_does_not_wait_for_its_judgement(
    joulegate: Start, servers: dict[str, Upstream]
) -> None:
    gate = Gate()
    servers["second"].play((gate, *saying("golden words")))
    running = joulegate(config_of(servers, judging={"judge": "judge", "waiting": 1}))
    for _ in range(4):
        ask(running)  # all answered while the second backend has said nothing
    assert gate.reached.wait(10)
    counted(running, "dropped")
    gate.open()
    counted(running, "judged")


@pytest.mark.parametrize(
    ("more", "outcome"),
    [
        ({"judging": {"judge": "judge", "max_energy_j_per_day": 0.001}}, "over_budget"),
        ({"allowed": ["judge"]}, "no_second"),
    ],
)
def test_nothing_is_sent_beyond_the_budget_or_the_backends_allowed(
    joulegate: Start, servers: dict[str, Upstream], more: dict[str, Any], outcome: str
) -> None:
    running = joulegate(config_of(servers, **more))
    ask(running)
    counted(running, outcome)
    assert servers["second"].received == servers["judge"].received == []


def test_what_a_team_allows_judging_does_not_widen_where_its_data_may_go(
    joulegate: Start, servers: dict[str, Upstream]
) -> None:
    config = config_of(servers)
    config["teams"]["physics"]["limits"] = {"backends": ["first", "judge"]}
    running = joulegate(config)
    ask(running)
    counted(running, "no_second")
    assert servers["second"].received == []


def test_is_off_unless_a_team_asks_for_it(joulegate: Start, servers: dict[str, Upstream]) -> None:
    config = config_of(servers)
    del config["teams"]["physics"]["judging"]
    running = joulegate(config)
    request_id = ask(running)
    assert running.record(request_id)
    assert running.proxy is not None
    assert running.proxy.telemetry.judged.sums == {}
    assert servers["second"].received == []


@pytest.mark.parametrize("said", ["I cannot say.", "[[A>B]] [[B>A]]"])
def test_a_judge_without_a_verdict_teaches_nothing(
    joulegate: Start, servers: dict[str, Upstream], said: str
) -> None:
    servers["judge"].play(saying(said))
    running = joulegate(config_of(servers))
    ask(running)
    counted(running, "unreadable")
    assert running.get("/v1/judging", x_api_key=ADMIN).json()["tasks"] == {}


def test_a_failing_second_backend_harms_nobody(
    joulegate: Start, servers: dict[str, Upstream]
) -> None:
    servers["second"].play(answers.failure(500, "broken", "broken"))
    running = joulegate(config_of(servers))
    ask(running)
    counted(running, "failed")
    assert servers["judge"].received == []


def test_only_administrators_see_the_standings(
    joulegate: Start, servers: dict[str, Upstream]
) -> None:
    running = joulegate(config_of(servers))
    assert running.get("/v1/judging", x_api_key=KEY).status == 403
    assert running.get("/v1/judging").status == 401


def test_what_was_judged_and_spent_outlives_a_restart_and_a_changed_backend_is_forgotten(
    joulegate: Start, servers: dict[str, Upstream]
) -> None:
    running = joulegate(config_of(servers))
    ask(running)
    counted(running, "judged")
    proxy = running.proxy
    assert proxy is not None
    book = proxy.judging.book
    book.save(proxy.judging.path)
    again = JudgedBook.load(proxy.judging.path)
    assert (again.games, again.expected, again.kinds) == (book.games, book.expected, book.kinds)
    assert again.spent_j == book.spent_j > 0
    again.notice("second", "another model")
    assert [list(games) for games in again.games.values()] == [[]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"judging": {}}, "names no backend"),
        ({"judging": {"judge": "nobody"}}, "'nobody'"),
        ({"allowed": ["second"]}, "add 'judge'"),
        ({"allowed": ["secnod", "judge"]}, "'secnod'"),
    ],
)
def test_contradictions_stop_the_start(
    servers: dict[str, Upstream], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load(str(write(config_of(servers, **change), tmp_path)), {})


def test_a_team_cannot_have_the_name_of_the_overhead(
    servers: dict[str, Upstream], tmp_path: Path
) -> None:
    config = config_of(servers)
    config["teams"][OVERHEAD] = {"keys": ["sk-x"]}
    with pytest.raises(ConfigError, match="line of the books"):
        load(str(write(config, tmp_path)), {})
