"""Replicas know each other's requests, through files and through a real Redis."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
import redis

from meters import simulated_engine
from meters.simulated_physics import EngineConfig
from meters.types import Activity
from proxy import siblings
from proxy.siblings import Board, FileBoard, RedisBoard, Siblings
from proxy.store_redis import connect
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Start, config_of
from tests.proxy.two_backends import both, large, small
from tests.waiting import until, until_in_loop

__all__ = ["large", "small"]  # fixtures


def activity(
    name: str, node: str = "n", start_s: float = 10.0, end_s: float | None = 12.0
) -> Activity:
    return Activity(request_id=name, node=node, start_s=start_s, end_s=end_s, output_tokens=3)


@pytest.fixture(params=["files", "redis"])
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Board:
    if request.param == "files":
        return FileBoard(tmp_path / "board")
    url = request.getfixturevalue("redis_url")
    return RedisBoard(connect(url, 2.0), prefix=f"test:{tmp_path.name}")


async def test_each_replica_knows_the_others_requests_and_not_its_own(board: Board) -> None:
    first = Siblings("a", board, lambda: [activity("r1"), activity("r2", node="m")])
    second = Siblings("b", board, lambda: [activity("r3", end_s=None)])
    await first.exchange()
    await second.exchange()
    await first.exchange()
    assert [a.request_id for a in second("n", 11, 13)] == ["r1"]
    assert [a.request_id for a in first("n", 11, 13)] == ["r3"]
    assert list(second("n", 12.5, 13)) == []  # over before
    assert [a.request_id for a in first("n", 100, 101)] == ["r3"]  # still in flight
    assert list(first("n", 5, 10)) == []  # not begun


async def test_a_damaged_board_in_redis_begins_anew(redis_url: str, tmp_path: Path) -> None:
    board = RedisBoard(connect(redis_url, 2.0), prefix=f"damaged:{tmp_path.name}")
    with redis.Redis.from_url(redis_url) as client:
        for key in (f"{{damaged:{tmp_path.name}}}", f"{{damaged:{tmp_path.name}}}:seen"):
            client.set(key, "garbage")
    assert await board.others("a") == []
    await board.publish("a", b"what it did")
    assert await board.others("b") == [b"what it did"]
    await board.close()


async def test_what_a_replica_published_is_replaced(board: Board) -> None:
    mine = [activity("r1")]
    first = Siblings("a", board, lambda: mine)
    second = Siblings("b", board, lambda: [])
    await first.exchange()
    mine[:] = [activity("r2")]
    await first.exchange()
    await second.exchange()
    assert [a.request_id for a in second.known] == ["r2"]


async def test_what_is_known_reaches_as_far_as_the_slowest_replica_told(board: Board) -> None:
    slow = Siblings("a", board, lambda: [])
    reader = Siblings("b", board, lambda: [])
    assert reader.until_s == 0.0
    before_s = time.time()
    await reader.exchange()
    assert reader.until_s >= before_s  # there is nobody else
    await slow.exchange()
    told_s = time.time()
    await asyncio.sleep(0.01)
    await reader.exchange()
    assert before_s <= reader.until_s <= told_s  # as far as the other one told
    await slow.stop()
    now_s = time.time()
    await reader.board.publish("c", b"\xc1 another version's")
    await reader.exchange()
    assert reader.until_s >= now_s  # who stopped is not waited for


async def test_a_dead_replica_is_forgotten(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Siblings("a", board, lambda: [activity("r1")])
    second = Siblings("b", board, lambda: [])
    await first.exchange()
    monkeypatch.setattr(siblings, "STALE_S", -1.0)
    await second.exchange()
    await second.exchange()
    assert second.known == []


async def test_garbage_of_another_version_is_passed_over(tmp_path: Path) -> None:
    board = FileBoard(tmp_path)
    (tmp_path / "old.activities").write_bytes(b"\xc1 not ours")
    second = Siblings("b", board, lambda: [])
    await second.exchange()
    assert second.known == []


async def test_a_board_that_is_gone_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "board"
    folder.write_text("in the way")
    first = Siblings("a", FileBoard(folder), lambda: [activity("r1")])
    first.start()
    try:
        await asyncio.sleep(0)
        os.unlink(folder)
        await until_in_loop((folder / "a.activities").exists)
    finally:
        await first.stop()


async def test_what_was_in_flight_is_not_for_ever_once_the_board_is_gone(tmp_path: Path) -> None:
    folder, heard = tmp_path / "board", list[int]()
    first = Siblings("a", FileBoard(folder), lambda: [activity("r1", end_s=None)])
    second = Siblings("b", FileBoard(folder), list, lambda known: heard.append(len(known)))
    await first.exchange()
    second.start()
    try:
        await until_in_loop(lambda: heard)
        assert heard[0] == 1
        (folder / "a.activities").unlink()
        (folder / "b.activities").unlink()
        folder.rmdir()
        folder.write_text("in the way")
        await until_in_loop(lambda: heard[-1] == 0)
        assert list(second("n", 100, 101)) == []
    finally:
        await second.stop()


def test_an_engine_is_as_busy_as_all_replicas_make_it(joulegate: Start, redis_url: str) -> None:
    """Also where its windows come to another replica, or nobody meters it."""
    with simulated_engine.start(EngineConfig(model="tiny")) as engine:
        config = config_of(f"{engine.url}/v1", redis={"url": redis_url})
        one, other = joulegate(config), joulegate(config)
        assert other.proxy is not None
        (there,) = other.proxy.pool.engines
        ask = {
            "model": "tiny",
            "stream": True,
            "messages": [{"role": "user", "content": "Tell me a long story."}],
            "min_tokens": 2000,
            "max_tokens": 2000,
        }
        going = [one.open(ask).getresponse() for _ in range(3)]
        until(lambda: there.load(time.monotonic()).running >= 3.0)  # known to the other replica
        for response in going:
            response.close()
        until(lambda: there.load(time.monotonic()).running == 0.0)


@pytest.mark.parametrize("named", [{"x-session-id": "a session"}, {}])
def test_a_conversation_is_held_where_it_was_also_by_another_replica(
    joulegate: Start, small: Upstream, large: Upstream, redis_url: str, named: dict[str, str]
) -> None:
    policies = {"agents": {"session": "hold"}}
    url = redis_url.rsplit("/", 1)[0] + f"/{8 - len(named)}"
    config = both(small, large, policies=policies, default_policy="agents", redis={"url": url})
    one, other = joulegate(config), joulegate(config)
    assert other.proxy is not None
    said = {"role": "user", "content": f"Tell me something. {named}"}
    first = one.post({"model": "m@large", "messages": [said]}, headers=named)
    assert first.header("x-joulegate-backend") == "m@large"
    answer = first.json()["choices"][0]["message"]
    known = other.proxy.router.conversations
    until(lambda: len(known) > 0)
    messages = [said, answer, {"role": "user", "content": "And then?"}]
    second = other.post({"model": "m", "messages": messages}, headers=named)
    assert second.header("x-joulegate-backend") == "m@large"
    new = other.post({"model": "m", "messages": [{"role": "user", "content": "Another thing."}]})
    assert new.header("x-joulegate-backend") == "m@small"
    ids = [reply.header("x-request-id") for reply in (first, second)]
    sessions = [r.record(one_id).session for r, one_id in zip((one, other), ids, strict=True)]
    assert sessions[1] == (sessions[0] or ids[0])  # in records it is one conversation
