from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request

from estimators.energy import EnergyEstimator
from estimators.hardware import GPUS
from meters.ledger import Ledger
from proxy.dashboard.advice import Option, Study
from proxy.dashboard.pages import Dashboard, router
from proxy.dashboard.sample import SITES
from proxy.dashboard.snapshot import Snapshots
from proxy.dashboard.viewers import Viewer
from proxy.dashboard.views import PolicyOutcome
from tests.browser import served
from tests.seed_ledger import MONTH, TIME_ZONE, hourly_book, two_months

NOW_S = float(MONTH.end_s - 10 * 86400)
BUDGETS_G = {"search": 9_000.0}
ATTRIBUTION = "Electricity Maps (https://www.electricitymaps.com), under the customer's licence"


@pytest.fixture(scope="session")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Two months of metered traffic of three teams."""
    made = two_months(tmp_path_factory.mktemp("ledger") / "ledger.db", scale=0.15)
    yield made
    made.close()


@pytest.fixture(scope="session")
def snapshots(ledger: Ledger) -> Snapshots:
    return snapshots_of(ledger)


def snapshots_of(ledger: Ledger, now_s: float = NOW_S) -> Snapshots:
    return Snapshots(
        ledger,
        hourly_book(),
        SITES,
        BUDGETS_G,
        {"electricity_maps": ATTRIBUTION},
        clock=lambda: now_s,
    )


PEOPLE = {
    "ada": Viewer(name="ada", role="lead", teams=("search",), time_zone=TIME_ZONE),
    "max": Viewer(name="max", role="member", teams=("search",), time_zone=TIME_ZONE),
    "root": Viewer(name="root", role="admin", time_zone=TIME_ZONE),
}


def viewer(request: Request) -> Viewer:
    """Whoever the cookie names; Ada without one. Stands for the application's sign-in."""
    return PEOPLE[request.cookies.get("person", "ada")]


def app_of(snapshots: Snapshots, now_s: float = NOW_S, **more: object) -> FastAPI:
    app = FastAPI()
    dashboard = Dashboard(snapshots, clock=lambda: now_s, **more)  # type: ignore[arg-type]
    app.include_router(router(dashboard, viewer))
    return app


@pytest.fixture(scope="session")
def site(snapshots: Snapshots) -> Iterator[str]:
    """The dashboard of the two months, on a real socket."""
    with served(app_of(snapshots)) as url:
        yield url


STUDY = Study(
    replayed=250,
    requests=1_250,
    options=(
        Option(
            kind="route",
            title="Let thrifty choose the backend",
            why="Replayed; quality {:2} instead of {:2}; first tokens within {:2} s.",
            figures=(0.71, 0.7, 1.25),
            effort="ask for auto",
            low=0.91,
            high=0.95,
        ),
    ),
)
OUTCOME = PolicyOutcome(
    policy="least_energy",
    energy_j=1.5e7,
    carbon_g=1234.5,
    low_g=1000.5,
    high_g=1500.25,
    quality=0.71,
    ttft_p95_s=1.25,
    money_usd=1234.5,
    replayed=250,
    requests=1_250,
)


class Ready:
    """A study that is there already."""

    def of(self, team: str, start_s: float, end_s: float) -> Study:
        return STUDY


@pytest.fixture(scope="session")
def everything(snapshots: Snapshots) -> Iterator[str]:
    """The dashboard with all that its pages can show."""
    app = app_of(
        snapshots,
        estimator=EnergyEstimator(),
        gpus=GPUS,
        studies=Ready(),
        replay=lambda team, start_s, end_s: [OUTCOME],
    )
    with served(app) as url:
        yield url
