"""What one replica's windows taught reaches the others, through files and through a real Redis."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meters.simulated_physics import LLAMA_8B_BF16
from proxy.lessons import Lessons
from proxy.siblings import Board, FileBoard, RedisBoard
from proxy.store_redis import connect
from tests.proxy.test_measuring import PRIOR, learning, run, teach  # noqa: F401 - a fixture
from tests.servers import start_redis_cluster


@pytest.fixture(params=["files", "redis", "cluster"])
async def board(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "files":
        yield FileBoard(tmp_path / "board")
        return
    nodes = start_redis_cluster() if request.param == "cluster" else []
    url = nodes[0].url if nodes else request.getfixturevalue("redis_url")
    made = RedisBoard(connect(url, 5.0), prefix=f"test:{tmp_path.name}")
    yield made
    await made.close()
    for node in nodes:
        node.close()


async def test_a_replica_that_gets_no_windows_learns_from_one_that_does(
    board: Board,
    run: Any,  # noqa: F811
) -> None:
    first, second = learning(None), learning(None)
    teach(first, run)
    lessons = [Lessons("a", board, first), Lessons("b", board, second)]
    for one in lessons:
        await one.exchange()
    learnt = second.learnt("llama@bf16")
    assert learnt is not None
    assert learnt.step_j == pytest.approx(LLAMA_8B_BF16.step_j, rel=0.05)
    assert second.physics("gpu-a") is not PRIOR
    assert second.take(first.taught()) == 0, "it knows that already"
    assert first.take(second.taught()) == 0


def test_who_learnt_from_more_windows_keeps_what_it_knows(run: Any) -> None:  # noqa: F811
    little, much = learning(None), learning(None)
    teach(much, run)
    some = run.windows[: len(run.windows) // 4]
    teach(little, SimpleNamespace(windows=some, activities=run.activities))
    assert much.take(little.taught()) == 0
    assert little.take(much.taught()) == 1


def test_what_cannot_be_read_or_is_nobody_s_is_passed_by() -> None:
    made = learning(None)
    assert made.take({"gpu-a": {"prior": {}}, "elsewhere": {}}) == 0
    assert made.taught() == {}
