"""What a hold-out proves, from requests through the running proxy and from the ledger."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from meters.arms import ArmSums
from meters.ledger import Ledger
from meters.types import UsageRecord
from proxy.__main__ import main
from proxy.savings import compared, mean, validated
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Start
from tests.proxy.two_backends import ASK, both, decided, large, small
from tests.waiting import until

__all__ = ["large", "small"]  # fixtures


def record(number: int, arm: str, energy_j: float, session: str | None = None) -> UsageRecord:
    return UsageRecord(
        request_id=f"r{number}",
        start_s=1000.0 + number,
        end_s=1001.0 + number,
        team="t",
        backend="m",
        energy_j=energy_j,
        arm=arm,
        session=session,
    )


def test_a_hold_out_in_the_running_proxy_proves_its_savings(
    joulegate: Start,
    small: Upstream,
    large: Upstream,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    policies = {"saving": {"hold_out": 0.4}}
    running = joulegate(both(small, large, policies=policies, default_policy="saving"))
    replies = [running.post(ASK) for _ in range(60)]
    arms = {"hold_out": "m@large", "treated": "m@small"}
    for reply in replies:
        arm = running.record(reply.header("x-request-id")).arm
        assert arm is not None
        assert reply.header("x-joulegate-backend") == arms[arm]
    held = [r for r in replies if r.header("x-joulegate-backend") == "m@large"]
    assert 10 <= len(held) <= 40
    assert "as if we were not there" in decided(running, held[0]).reason
    for days in ("0", "x", "%C2%B2", "9" * 5000):
        assert running.get(f"/v1/savings?days={days}").status == 400

    def savings() -> Any:
        return running.get("/v1/savings?days=1").json()["data"]

    until(lambda: sum(one["held_out"] + one["treated"] for one in savings()) == 60)
    (one,) = savings()
    assert one["held_out"] == len(held)
    assert one["saved"] == pytest.approx(1 - one["treated_j"] / one["held_out_j"])
    assert 0.7 < one["saved"] < 1.0  # 8 billion parameters instead of 70
    assert one["saved_low"] <= one["saved"] <= one["saved_high"]
    assert one["validates"]
    config = tmp_path / "joulegate-0" / "config.yaml"
    assert main(["savings", "--config", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["held_out"] == len(held)
    assert main(["savings", "--config", str(config)]) == 0
    assert "% saved (" in capsys.readouterr().out
    assert main(["savings", "--config", str(config), "--policy", "other"]) == 1


def test_without_hold_out_nothing_is_held_out(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, default_policy="least_energy"))
    for _ in range(20):
        reply = running.post(ASK)
        assert reply.header("x-joulegate-backend") == "m@small"
        assert running.record(reply.header("x-request-id")).arm is None


def test_the_interval_covers_the_truth_as_often_as_it_says(ledger_url: str) -> None:
    dice, covered, rounds = random.Random(7), 0, 40
    ledger = Ledger(ledger_url)
    number = 0
    for turn in range(rounds):
        records = []
        for conversation in range(80):
            arm, mid = ("hold_out", 10.0) if conversation % 4 == 0 else ("treated", 7.0)
            level = mid * dice.uniform(0.5, 1.5)  # requests of a conversation are alike
            for _ in range(dice.randint(1, 8)):
                number += 1
                name = f"{turn}/{conversation}"
                one = record(number, arm, level * dice.uniform(0.9, 1.1), session=name)
                records.append(one)
        before = records[0].start_s
        ledger.write(records)
        (found,) = validated(ledger, before, records[-1].start_s + 0.5)
        assert found.saved_low is not None
        assert found.saved_high is not None
        covered += found.saved_low <= 0.3 <= found.saved_high
    ledger.close()
    assert 0.62 * rounds <= covered <= 0.95 * rounds  # of 80 %


def test_simulated_requests_are_compared_apart(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    real = [record(n, ("hold_out", "treated")[n % 2], 10.0 - 5.0 * (n % 2)) for n in range(8)]
    ledger.write(real)
    (found,) = validated(ledger, 0.0, 1e9, team="t")
    assert (found.simulated, found.held_out, found.treated, found.saved) == (False, 4, 4, 0.5)
    assert validated(ledger, 0.0, 1e9, team="other") == []
    ledger.close()


def test_one_conversation_proves_nothing() -> None:
    alone = ArmSums(
        arm="hold_out",
        simulated=False,
        conversations=1,
        requests=9,
        energy_j=90.0,
        metered=0,
        nn=81.0,
        ee=8100.0,
        ne=810.0,
    )
    assert compared(False, alone, alone).saved is None
    assert compared(False, None, alone).saved is None
    two = ArmSums(
        arm="hold_out",
        simulated=False,
        conversations=2,
        requests=2,
        energy_j=20.0,
        metered=0,
        nn=2.0,
        ee=8.0**2 + 12.0**2,
        ne=20.0,
    )
    assert mean(two) == (10.0, pytest.approx(2.0))  # half the difference of the two


def test_few_conversations_leave_a_wide_interval_that_covers_as_often_as_it_says() -> None:
    dice, covered = random.Random(11), 0

    def arm(name: str, conversations: int) -> ArmSums:
        joules = [dice.lognormvariate(0.0, 0.5) for _ in range(conversations)]
        return ArmSums(
            arm=name,
            simulated=False,
            conversations=conversations,
            requests=conversations,
            energy_j=sum(joules),
            metered=0,
            nn=float(conversations),
            ee=sum(j * j for j in joules),
            ne=sum(joules),
        )

    for _ in range(1000):
        found = compared(False, arm("treated", 20), arm("hold_out", 3))
        assert found.saved_low is not None
        assert found.saved_high is not None
        covered += found.saved_low <= 0.0 <= found.saved_high
    assert 760 <= covered <= 900
