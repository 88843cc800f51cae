"""What a snapshot states beside its lines: scopes, SCI, who pays for idle, how sure it is."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from meters.intensity import IntensityBook, Observation, Tier
from meters.intensity.table import AnnualTable
from meters.ledger import Ledger
from meters.types import Evidence
from proxy.dashboard.periods import Period, parse
from proxy.dashboard.queries import RequestFilter, request_rows, user_uses
from proxy.dashboard.sites import Instrument, Site, Sites
from proxy.dashboard.snapshot import Snapshot, Snapshots
from tests.proxy.dashboard.test_account import (
    BOOK,
    DAY,
    HOUR_S,
    SITE,
    divided,
    record,
    snapshot,
)

JOULES = 3.6e6
LADDER = (
    Tier.HOURLY,
    Tier.ESTIMATED,
    Tier.LIVE,
    Tier.LAST_VALUE,
    Tier.CLIMATOLOGY,
    Tier.ANNUAL_ZONE,
    Tier.ANNUAL_COUNTRY,
    Tier.WORLD,
)


def test_the_scope_rows_are_the_footprint_and_hardware_is_apart(tmp_path: Path) -> None:
    api = record(1, 5, backend="gpt", group="gpt", node=None)
    contract = {"FR": Instrument(g_per_kwh=10.0, what="a contract")}
    sites = Sites(nodes={"n": SITE}, hosted=frozenset({"gpt"}), instruments=contract)
    s = snapshot(tmp_path, [api, record(2, 5)], [divided(5, {"r2": JOULES})], sites=sites)
    own, hosted, hardware, upstream = s.scopes
    assert (own.scope, hosted.scope) == ("Scope 2", "Scope 3, category 1")
    assert (hardware.scope, upstream.scope) == ("Scope 3, category 2", "Scope 3, category 3")
    assert None not in (own.location_ug, hosted.location_ug)
    assert (own.location_ug or 0) + (hosted.location_ug or 0) == s.total.operational_ug
    assert (own.market_ug or 0) + (hosted.market_ug or 0) == s.total.market_ug
    assert hosted.market_ug == pytest.approx((hosted.location_ug or 0) / 10, abs=1)
    assert hardware.location_ug == s.total.embodied_ug > 0
    assert (upstream.location_ug, upstream.market_ug) == (None, None)


def test_sci_is_operational_and_embodied_by_request_and_by_million_tokens(tmp_path: Path) -> None:
    s = snapshot(tmp_path, [record(1, 5), record(2, 5)], [divided(5, {"r1": JOULES})])
    whole_g = (s.total.operational_ug + s.total.embodied_ug) / 1e6
    assert s.total.embodied_ug > 0
    assert s.sci_g_per_request == pytest.approx(whole_g / 2)
    assert s.sci_g_per_mtok == pytest.approx(whole_g / (2 * 17) * 1e6)
    nothing = snapshot(tmp_path, [], [], team="nobody")
    assert (nothing.sci_g_per_request, nothing.sci_g_per_mtok) == (None, None)


@pytest.mark.parametrize(
    ("site", "of"),
    [
        (Site(node="n", owner="u"), {"t": 0, "u": 800}),
        (Site(node="n"), {"t": 200, "u": 600}),
        (Site(node="n", entitled=("t",)), {"t": 800, "u": 0}),
        (Site(node="n", entitled=("nobody",)), {"t": 0, "u": 0}),
    ],
    ids=["dedicated", "shared", "entitled", "platform"],
)
def test_idle_is_its_owners_or_its_users_or_the_platforms(
    tmp_path: Path, site: Site, of: dict[str, int]
) -> None:
    """Two weeks before, team u caused three times what t did; a week before, a third of it."""
    ledger = Ledger(str(tmp_path / "ledger.db"))
    ledger.write(
        [record(1, -300), record(2, -300, team="u"), record(3, -24), record(4, -24, team="u")],
        [
            divided(-300, {"r1": 10.0, "r2": 90.0}),
            divided(-24, {"r3": 30.0, "r4": 30.0}),
            divided(5, {}, idle_j=800.0),
        ],
    )
    made = Snapshots(ledger, BOOK, Sites(nodes={"n": site}))
    found = {team: made.of(team, DAY) for team in of}
    ledger.close()
    assert {team: s.total.idle_uj // 10**6 for team, s in found.items()} == of
    reconciled = found["t"].reconciliation
    assert reconciled.platform_uj == 800 * 10**6 - sum(of.values()) * 10**6
    assert reconciled.balanced


def stood_on(tier: Tier, folder: Path) -> Snapshot:
    """One metered request at five o'clock whose intensity is from that step of the ladder."""
    zone = {Tier.ANNUAL_COUNTRY: "SE-SE3", Tier.WORLD: "QQ"}.get(tier, "FR")
    book = IntensityBook(AnnualTable(zones={"FR": 100.0}))
    older = {Tier.LIVE: 1, Tier.LAST_VALUE: 4, Tier.CLIMATOLOGY: 9}.get(tier, 0)
    if tier not in (Tier.ANNUAL_ZONE, Tier.ANNUAL_COUNTRY, Tier.WORLD):
        last_s = DAY.start_s + (5 - older) * HOUR_S
        book.put(
            Observation(
                zone="FR",
                hour_s=last_s - n * HOUR_S,
                g_per_kwh=100.0,
                source="file",
                estimated=tier is Tier.ESTIMATED,
            )
            for n in range(10 * 24)
        )
    folder.mkdir()
    window = divided(5, {"r1": JOULES})
    ledger = Ledger(str(folder / "ledger.db"))
    ledger.write([record(1, 5, zone=zone)], [window])
    made = Snapshots(ledger, book, Sites(nodes={"n": Site(node="n", zone=zone, pue=1.0)}))
    found = made.of("t", DAY)
    ledger.close()
    return found


def test_every_step_down_the_ladder_is_recorded_and_lowers_the_grade(tmp_path: Path) -> None:
    found = {tier: stood_on(tier, tmp_path / tier.value) for tier in LADDER}
    assert set(LADDER) == set(Tier)
    for tier, s in found.items():
        assert [name for name, _ in s.tiers] == [tier.value]
        assert list(s.factors[0].tiers) == [tier.value]
    scores = [s.score for s in found.values()]
    assert all(a > b for a, b in pairwise(scores)), scores
    grades = [s.grade for s in found.values()]
    assert grades == sorted(grades)
    assert grades[0] < grades[-1]
    wide = [(s.range.high_ug - s.range.mid_ug) / s.range.mid_ug for s in found.values()]
    assert wide == sorted(wide)


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
def test_a_day_whose_clock_changes_has_all_its_hours_and_no_other(
    tmp_path: Path, day: str, hours: int
) -> None:
    berlin: Period = parse(day, "Europe/Berlin")
    first = (berlin.start_s - DAY.start_s) // HOUR_S
    ledger = Ledger(str(tmp_path / "ledger.db"))
    ledger.write([record(n, first + n) for n in range(-3, 30)])
    s = Snapshots(ledger, BOOK).of("t", berlin)
    ledger.close()
    assert (berlin.end_s - berlin.start_s) // HOUR_S == s.total.requests == hours
    assert len(s.lines["hour"]) == hours
    assert [(line.key, line.requests) for line in s.lines["day"]] == [(day, hours)]


def test_savings_are_corrected_only_by_what_had_been_predicted(tmp_path: Path) -> None:
    """Images, say, are metered and never predicted: their energy is no error of predictions."""
    known = {
        "carbon_g": 1.0,
        "counterfactual_energy_j": 200.0,
        "counterfactual_carbon_g": 2.0,
        "energy_low_j": 99.0,
        "energy_high_j": 101.0,
    }
    bare = {"energy_j": None, "energy_low_j": None, "energy_high_j": None}
    image = record(2, 5, endpoint="images.generations", evidence=Evidence.UNKNOWN, **bare)
    s = snapshot(tmp_path, [record(1, 5, **known), image], [divided(5, {"r1": 100.0, "r2": 900.0})])
    (route,) = s.savings
    assert route.mid_g == pytest.approx(1.0)


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Asia/Kathmandu", "America/St_Johns"])
def test_requests_are_listed_in_the_day_in_which_they_are_summed(tmp_path: Path, zone: str) -> None:
    """Where local midnight is within an hour of the roll-ups, before it and after it."""
    day = parse("2026-06-01", zone)
    ledger = Ledger(str(tmp_path / "ledger.db"))
    ledger.write(
        [
            record(number, 0, start_s=edge_s + minutes * 60.0, end_s=edge_s + 7200.0)
            for number, (edge_s, minutes) in enumerate(
                [(day.start_s, 5), (day.start_s, 10), (day.start_s + 7200, 0), (day.end_s, -5)]
            )
        ]
    )
    s = Snapshots(ledger, BOOK).of("t", day)
    listed = request_rows(
        ledger, RequestFilter(team="t", start_s=float(day.start_s), end_s=float(day.end_s))
    )
    of_users = user_uses(ledger, "t", day.start_s, day.end_s)
    ledger.close()
    assert s.total.requests == 2
    assert len(listed) == s.total.requests == sum(use.requests for use in of_users)
