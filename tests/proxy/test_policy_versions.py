"""Versions of policies: read again without a restart, named in decisions, kept for later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from policies.records import decision_from_json, replay_decision
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Config, Joulegate, in_thread
from tests.proxy.two_backends import ASK, both, large, small

__all__ = ["large", "small"]  # fixtures
Process = Callable[[Config], Joulegate]


def mine(objective: str) -> dict[str, Any]:
    policies = {
        "base": {"objective": objective},
        "mine": {
            "about": f"the best {objective}",
            "rules": [{"when": {"tag": "x"}, "use": "base"}],
            "objective": objective,
        },
    }
    return {"policies": policies, "default_policy": "mine"}


def test_a_policy_is_read_again_without_a_restart_and_each_decision_names_its_version(
    joulegate_process: Process, small: Upstream, large: Upstream, tmp_path: Path
) -> None:
    config = both(small, large, **mine("energy"), log={"level": "warning"})
    running = joulegate_process(config)
    before = running.post(ASK)
    assert before.header("x-joulegate-backend") == "m@small"
    path = tmp_path / "joulegate-0" / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **mine("quality")}))
    running.hang_up("was read again")
    after = running.post(ASK)
    assert after.header("x-joulegate-backend") == "m@large"
    receipts = [
        running.get(f"/v1/usage/{reply.header('x-request-id')}").json() for reply in (before, after)
    ]
    assert receipts[0]["policy_version"] != receipts[1]["policy_version"]
    texts = [receipt["policy_text"]["about"] for receipt in receipts]
    assert texts == ["the best energy", "the best quality"]
    for receipt in receipts:
        assert receipt["decision"]["version"] == receipt["policy_version"]


def test_an_old_decision_replays_by_its_own_version_after_a_restart(
    small: Upstream, large: Upstream, tmp_path: Path
) -> None:
    running, stop = in_thread(both(small, large, **mine("energy")), tmp_path)
    try:
        tagged = running.post(ASK, headers={"x-joulegate-tags": "x"})
        old = running.record(tagged.header("x-request-id"))
    finally:
        stop()
    running, stop = in_thread(both(small, large, **mine("quality")), tmp_path)
    try:
        assert running.post(ASK).header("x-joulegate-backend") == "m@large"
        assert running.proxy is not None
        assert old.decision is not None
        book, record = running.proxy.router.book, decision_from_json(old.decision)
        policy = book.as_of(record.policy, record.version)
        assert policy is not None
        assert policy is not book.policies["mine"]
        assert replay_decision(record, {"mine": policy}) == record.decision
        assert book.as_of("mine", "00000000") is None
    finally:
        stop()
