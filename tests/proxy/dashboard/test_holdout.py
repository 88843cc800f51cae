from __future__ import annotations

import random
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI

from meters.intensity import IntensityBook
from meters.intensity.table import AnnualTable
from meters.ledger import Ledger
from meters.types import Evidence
from proxy.dashboard.holdout import HoldOut, _with_saving
from proxy.dashboard.pages import Dashboard, router
from proxy.dashboard.periods import parse
from proxy.dashboard.snapshot import Snapshots
from proxy.dashboard.viewers import Viewer
from tests.browser import served
from tests.proxy.dashboard.test_account import record

WEEK = parse("2026-06-01..2026-06-07", "UTC")


def experiment(folder: Path, treated_j: float, held_out_j: float, days: int = 7) -> HoldOut | None:
    """A ledger with 40 requests a day, of which one in ten is held out."""
    dice = random.Random(5)
    ledger = Ledger(str(folder / "ledger.db"))
    ledger.write(
        [
            record(
                day * 100 + n,
                24 * day + n % 24,
                arm="hold_out" if n % 10 == 0 else "treated",
                energy_j=(held_out_j if n % 10 == 0 else treated_j) * dice.uniform(0.8, 1.2),
            )
            for day in range(days)
            for n in range(40)
        ]
        + [record(9_999, 1)]  # in no arm: no part of the experiment
    )
    snapshots = Snapshots(ledger, IntensityBook(AnnualTable()))
    found = snapshots.of("t", WEEK).holdout
    ledger.close()
    return found


def test_a_saving_that_is_there_is_measured_with_its_share(tmp_path: Path) -> None:
    found = experiment(tmp_path, 70.0, 100.0)
    assert found is not None
    assert (found.requests, found.treated) == (28, 252)
    assert found.share == pytest.approx(0.1)
    assert found.saved == pytest.approx(0.3, abs=0.05)
    assert found.validates


def test_none_that_is_not_there_is_not(tmp_path: Path) -> None:
    found = experiment(tmp_path, 100.0, 100.0)
    assert found is not None
    assert found.saved_low is not None
    assert found.saved_high is not None
    assert found.saved_low < 0.0 < found.saved_high
    assert not found.validates


def test_what_took_more_is_told_as_more_and_not_as_no_difference(tmp_path: Path) -> None:
    worse = experiment(tmp_path, 150.0, 100.0)
    assert worse is not None
    assert worse.refutes
    part, low, high, which = worse.difference or (0.0, 0.0, 0.0, "")
    assert (round(part, 1), which) == (0.5, "more")
    assert 0.0 < low < part < high
    ledger = Ledger(str(tmp_path / "ledger.db"))
    asked = {"counterfactual_backend": "a", "counterfactual_energy_j": 20.0, "carbon_g": 1e-3}
    ledger.write(
        [record(500 + n, n % 24, counterfactual_carbon_g=1e-4, **asked) for n in range(90)]
    )
    snapshots = Snapshots(ledger, IntensityBook(AnnualTable()))
    app = FastAPI()
    app.include_router(router(Dashboard(snapshots), lambda: Viewer(name="root", role="admin")))
    with served(app) as url:
        of_week = f"{url}/dashboard/t/{{}}?period={WEEK.name}&tz=UTC"
        texts = [
            re.sub(r"<[^>]+>", "", urllib.request.urlopen(of_week.format(page)).read().decode())
            for page in ("savings", "report", "export.csv")
        ]
    for text in texts:
        assert re.search(r"others took \d\d\.\d\s?% more energy", text)
        assert "includes zero" not in text
    assert "The range excludes zero: nothing was saved." in texts[0]
    assert "no: it took more" in texts[0]
    ledger.close()


def test_what_failed_or_has_no_figure_is_no_request_of_no_energy(tmp_path: Path) -> None:
    """Half of what was treated has no figure, or failed before it took any: nothing was saved."""
    ledger = Ledger(str(tmp_path / "ledger.db"))
    bare = {"energy_j": None, "energy_low_j": None, "energy_high_j": None}
    ledger.write(
        [
            record(day * 100 + n, 24 * day + n % 24, arm="treated" if n % 2 else "hold_out", **more)
            for day in range(7)
            for n in range(40)
            for more in [
                {} if n % 4 != 1 else {**bare, "evidence": Evidence.UNKNOWN}
                if n % 8 == 1 else {"outcome": "failed", "energy_j": 0.0}
            ]
        ]
    )  # fmt: skip
    found = Snapshots(ledger, IntensityBook(AnnualTable())).of("t", WEEK).holdout
    ledger.close()
    assert found is not None
    assert (found.requests, found.treated) == (140, 140)
    assert found.saved == pytest.approx(0.0)


def test_two_days_are_too_few_to_say(tmp_path: Path) -> None:
    found = experiment(tmp_path, 70.0, 100.0, days=2)
    assert found is not None
    assert found.saved is None
    assert not found.validates


def test_three_days_of_no_difference_prove_a_saving_one_time_in_ten() -> None:
    """The range is one of 80 %: a tenth lies below it, however few days there are."""
    dice = np.random.default_rng(5)
    counts = np.array([[36.0] * 3, [4.0] * 3])
    proved = covered = 0
    for _ in range(600):
        joules = np.array([[dice.lognormal(0, 0.7, int(n)).sum() for n in row] for row in counts])
        found = _with_saving(HoldOut(requests=12, treated=108), counts, joules)
        assert found.saved_low is not None
        assert found.saved_high is not None
        proved += found.validates
        covered += found.saved_low <= 0.0 <= found.saved_high
    assert 0.77 * 600 <= covered <= 0.89 * 600
    assert proved <= 0.115 * 600


def test_without_an_experiment_there_is_nothing_to_say(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    ledger.write([record(1, 1)])
    assert Snapshots(ledger, IntensityBook(AnnualTable())).of("t", WEEK).holdout is None
    ledger.close()
