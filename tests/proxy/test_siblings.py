"""Replicas know each other's requests, through files and through a real Redis."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from meters.types import Activity
from proxy import siblings
from proxy.app import siblings_of
from proxy.settings import MetersSettings, Server, Settings
from proxy.siblings import Board, FileBoard, RedisBoard, Siblings
from proxy.store_redis import connect


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
    first = Siblings("a", board, lambda: [activity("r1"), activity("r2", node="m")], reads=True)
    second = Siblings("b", board, lambda: [activity("r3", end_s=None)], reads=True)
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
    first = Siblings("a", board, lambda: mine, reads=False)
    second = Siblings("b", board, lambda: [], reads=True)
    await first.exchange()
    mine[:] = [activity("r2")]
    await first.exchange()
    await second.exchange()
    assert [a.request_id for a in second.known] == ["r2"]


async def test_what_is_known_reaches_as_far_as_the_slowest_replica_told(board: Board) -> None:
    slow = Siblings("a", board, lambda: [], reads=False)
    reader = Siblings("b", board, lambda: [], reads=True)
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
    first = Siblings("a", board, lambda: [activity("r1")], reads=False)
    second = Siblings("b", board, lambda: [], reads=True)
    await first.exchange()
    monkeypatch.setattr(siblings, "STALE_S", -1.0)
    await second.exchange()
    await second.exchange()
    assert second.known == []


async def test_garbage_of_another_version_is_passed_over(tmp_path: Path) -> None:
    board = FileBoard(tmp_path)
    (tmp_path / "old.activities").write_bytes(b"\xc1 not ours")
    second = Siblings("b", board, lambda: [], reads=True)
    await second.exchange()
    assert second.known == []


async def test_a_board_that_is_gone_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "board"
    folder.write_text("in the way")
    first = Siblings("a", FileBoard(folder), lambda: [activity("r1")], reads=True)
    first.start()
    try:
        await asyncio.sleep(0)
        os.unlink(folder)
        deadline_s = time.monotonic() + 5
        while not (folder / "a.activities").exists():
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.01)
    finally:
        await first.stop()


@pytest.mark.parametrize(("tokens", "reading"), [({}, [0]), ({"gpu-1": "a token"}, [0, 1, 2])])
async def test_every_worker_that_may_get_a_window_knows_the_others_requests(
    tmp_path: Path, tokens: dict[str, str], reading: list[int]
) -> None:
    settings = Settings(
        state_dir=str(tmp_path),
        server=Server(workers=3),
        meters=MetersSettings(tokens=tokens),
    )
    accounts = SimpleNamespace(published=list)
    made = [siblings_of(settings, f"r{n}", n, accounts) for n in range(3)]  # type: ignore[arg-type]
    assert [n for n, one in enumerate(made) if one is not None and one.reads] == reading
