"""`joulegate eval` over a running proxy: answers, checks, a judge, metered energy, and what is
saved is loaded. Real sockets, real proxy."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meters import simulated_engine
from meters.simulated_physics import LLAMA_8B_BF16, EngineConfig
from proxy import serving
from proxy.__main__ import main
from proxy.evaluating import Client
from tests.fakes import answers
from tests.fakes.upstream import Received, Script, Upstream
from tests.joulegate_server import KEY, TEAMS, Joulegate, Start, write

# Little idle power: until a meter has seen an engine idle, requests share that too.
QUIET = msgspec.structs.replace(LLAMA_8B_BF16, idle_power_w=20.0)
SUM = '{"prompt": "2+2? Only the number.", "check": {"exact": "4"}}'


def saying(text: str) -> Script:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return answers.answer({**answers.CHAT, "choices": [{**choice, "finish_reason": "stop"}]})


def counting(right: bool) -> Callable[[Received], Script]:
    def script(request: Received) -> Script:
        messages: Any = request.json()["messages"]
        text = messages[-1]["content"]
        if "tides" in text:
            return saying("the golden moon" if right else "no idea")
        return saying("4" if right or text.endswith("1.") else "5")

    return script


def verdict(request: Received) -> Script:
    messages: Any = request.json()["messages"]
    text = messages[-1]["content"]
    first = text.index("golden") < text.index("<|end of A|>")
    return saying("[[A>>B]]" if first else "[[B>A]]")


@pytest.fixture
def servers() -> Iterator[dict[str, Upstream]]:
    with Upstream(counting(False)) as a, Upstream(counting(True)) as b, Upstream(verdict) as judge:
        yield {"small": a, "large": b, "judge": judge}


def config_of(servers: dict[str, Upstream], **more: Any) -> dict[str, Any]:
    facts = {"gpu": "H100-SXM", "quality": 0.5}
    sizes = {"small": 1.0, "large": 70.0, "judge": 8.0}
    backends = [
        {**facts, "model": n, "name": n, "url": s.base_url, "params_b": sizes[n]}
        for n, s in servers.items()
    ]
    return {
        "backends": backends,
        "teams": TEAMS,
        "retries": {"health_check_s": 0},
        "log": {"level": "error"},
        **more,
    }


def run(running: Joulegate, tmp_path: Path, lines: list[str], *more: str) -> int:
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    call = ["eval", "--set", str(tmp_path / "set.jsonl"), "--url", running.address, "--key", KEY]
    call += ["--out", str(tmp_path / "out.jsonl"), "--wait-s", "0", "--json"]
    return main([*call, "--backend", "small", "--backend", "large", *more])


def sums(number: int) -> list[str]:
    return [SUM.replace("Only", f"Only the number, number {i}.") for i in range(number)]


def test_checked_answers_make_a_table_a_plot_and_a_table_of_qualities_that_a_config_loads(
    joulegate: Start,
    servers: dict[str, Upstream],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    running = joulegate(config_of(servers))
    assert run(running, tmp_path, sums(1), "--backend", "smal") == 1
    assert "There is no backend 'smal'. Did you mean 'small'?" in capsys.readouterr().err
    plot, saved = tmp_path / "front.svg", tmp_path / "quality.json"
    assert run(running, tmp_path, sums(12), "--plot", str(plot), "--save", str(saved)) == 0
    small, large = json.loads(capsys.readouterr().out)["backends"]
    assert (small["backend"], small["quality"]["mid"]) == ("small", 0.0)
    assert (large["backend"], large["quality"]["mid"]) == ("large", 1.0)
    assert small["energy_j"]["mid"] < large["energy_j"]["mid"]
    assert small["on_front"]
    assert large["on_front"]
    picture = ElementTree.fromstring(plot.read_text())
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"small", "large", "quality"} <= set(texts)
    # What was saved is what the estimates of a proxy start from.
    again = config_of(servers, quality_table=str(saved))
    facts = serving.prepare(str(write(again, tmp_path / "again")), environment={}).facts
    assert (facts["small"].quality, facts["large"].quality) == (0.0, 1.0)
    assert facts["judge"].quality == 0.5
    assert main(["check", str(tmp_path / "again" / "config.yaml")]) == 0
    assert "no quality" not in capsys.readouterr().out
    assert 0 < facts["large"].quality_error[""] < 0.1
    told = joulegate(again)
    body = {"model": "large", "messages": [{"role": "user", "content": "2+2?"}]}
    route = told.post(body, path="/v1/route", headers={"x-api-key": KEY}).json()
    assert route["candidates"][0]["quality"]["mid"] == 1.0


def test_a_table_without_a_quality_is_said_to_be_empty(
    joulegate: Start,
    servers: dict[str, Upstream],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = tmp_path / "quality.json"
    assert run(joulegate(config_of(servers)), tmp_path, sums(3), "--save", str(saved)) == 0
    assert json.loads(saved.read_text()) == {}
    assert f"{saved} is empty" in capsys.readouterr().err


def test_what_would_refuse_every_prompt_ends_the_run_and_it_goes_on_where_it_was(
    joulegate: Start,
    servers: dict[str, Upstream],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def with_requests(most: int) -> Joulegate:
        budget = {"per": "day", "requests": most}
        return joulegate(config_of(servers, teams={"t": {"keys": [KEY], "budgets": [budget]}}))

    assert run(with_requests(3), tmp_path, sums(3)) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "has used 3 of its 3 requests of this day" in told.err
    assert "What was answered is kept" in told.err
    assert run(with_requests(3), tmp_path, sums(3)) == 0
    assert sum(row["answered"] for row in json.loads(capsys.readouterr().out)["backends"]) == 6


def test_why_prompts_have_no_answer_is_said(
    joulegate: Start,
    servers: dict[str, Upstream],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    servers["large"].play(answers.answer({"error": {"message": "too\n long"}}, status=400))
    assert run(joulegate(config_of(servers)), tmp_path, sums(2)) == 0
    told = capsys.readouterr()
    assert "2 without an answer: too long" in told.err
    assert [row["failed"] for row in json.loads(told.out)["backends"]] == [0, 2]


def test_a_minute_that_is_full_is_waited_for() -> None:
    full = {"error": {"message": "full", "code": "rate_limit_exceeded"}}
    with Upstream(
        answers.answer(full, status=429, headers={"retry-after": "1"}), saying("4")
    ) as proxy:
        answer = Client(proxy.address, None).chat("small", [])
        assert len(proxy.received) == 2
    assert answer.body["choices"][0]["message"]["content"] == "4"
    assert answer.error is None
    assert answer.latency_s < proxy.received[1].at_s - proxy.received[0].at_s


def test_a_run_that_was_broken_off_goes_on_where_it_was(
    joulegate: Start,
    servers: dict[str, Upstream],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    running = joulegate(config_of(servers))
    assert run(running, tmp_path, sums(3)) == 0
    assert len(servers["small"].received) == 3
    kept = tmp_path / "out.jsonl"
    kept.write_bytes(kept.read_bytes() + b'{"item": "half')  # as a killed run leaves it
    capsys.readouterr()
    assert run(running, tmp_path, sums(5)) == 0
    assert len(servers["small"].received) == len(servers["large"].received) == 5
    assert [b["answered"] for b in json.loads(capsys.readouterr().out)["backends"]] == [5, 5]


def test_a_judge_compares_with_the_first_backend_in_both_orders(
    joulegate: Start,
    servers: dict[str, Upstream],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    running = joulegate(config_of(servers))
    lines = ['{"prompt": "Explain tides.", "check": {"judge": true}}']
    assert run(running, tmp_path, lines, "--judge", "judge") == 0
    rows = {b["backend"]: b for b in json.loads(capsys.readouterr().out)["backends"]}
    assert rows["small"]["quality"]["mid"] == 0.5
    assert rows["large"]["quality"]["mid"] == 1.0
    assert len(servers["judge"].received) == 2
    assert running.records(lambda r: r.tags == ("eval",))  # on the books like anything else


def test_prompts_for_a_judge_without_one_are_told(
    joulegate: Start,
    servers: dict[str, Upstream],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    running = joulegate(config_of(servers))
    judged = json.dumps({"prompt": "Explain tides.", "check": {"judge": True}})
    assert run(running, tmp_path, [judged]) == 0
    assert "1 prompts have no score: name their --judge" in capsys.readouterr().err


def test_a_failing_backend_is_counted_and_tried_again_next_time(
    joulegate: Start,
    servers: dict[str, Upstream],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    servers["large"].play(answers.failure(400, "broken", "broken"))
    running = joulegate(config_of(servers))
    assert run(running, tmp_path, sums(1)) == 0
    rows = {b["backend"]: b for b in json.loads(capsys.readouterr().out)["backends"]}
    assert (rows["large"]["failed"], rows["large"]["quality"]) == (1, None)
    servers["large"].play(counting(True))
    assert run(running, tmp_path, sums(1)) == 0
    rows = {b["backend"]: b for b in json.loads(capsys.readouterr().out)["backends"]}
    assert (rows["large"]["failed"], rows["large"]["answered"]) == (0, 1)


def test_what_a_user_can_mend_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set.jsonl").write_text(SUM)
    call = ["eval", "--set", str(tmp_path / "set.jsonl"), "--out", str(tmp_path / "o")]
    assert main([*call, "--url", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert main(["eval", "--set", str(tmp_path / "none"), "--url", "x"]) == 1
    assert "Name a readable file" in capsys.readouterr().err


def test_a_config_is_served_meanwhile_and_energy_is_the_metered_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with simulated_engine.start(EngineConfig(model="m", physics=QUIET)) as engine:
        backend = {
            "model": "m",
            "name": "m",
            "url": f"{engine.url}/v1",
            "simulated": True,
            "meter": {"kind": "simulated", "url": engine.url, "window_s": 0.5},
        }
        config = write({"backends": [backend]}, tmp_path / "served")
        prompts = tmp_path / "set.jsonl"
        lines = [
            {"prompt": f"Number {i}", "check": {"regex": "simulated"}, "max_tokens": 30}
            for i in range(3)
        ]
        prompts.write_text("\n".join(json.dumps(line) for line in lines))
        out = ["--out", str(tmp_path / "out.jsonl"), "--json"]
        assert main(["eval", "--set", str(prompts), "--config", str(config), *out]) == 0
        (row,) = json.loads(capsys.readouterr().out)["backends"]
        assert (row["backend"], row["answered"], row["quality"]["mid"]) == ("m", 3, 1.0)
        assert row["evidence"] == "simulated"
        true_j = engine.engine.totals.active_energy_j
        assert 0 < row["energy_j"]["mid"] * 3 < 2 * true_j
