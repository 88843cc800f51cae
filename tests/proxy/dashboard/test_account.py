from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meters.carbon import HOST_PER_GPU_J
from meters.intensity import IntensityBook, Observation
from meters.intensity.table import AnnualTable
from meters.ledger import Ledger
from meters.types import Attribution, Evidence, Share, UsageRecord, Window
from proxy.dashboard import account as cells
from proxy.dashboard import exports
from proxy.dashboard import lines as summed
from proxy.dashboard.frozen import FrozenSnapshots
from proxy.dashboard.lines import SUMMED, Line
from proxy.dashboard.links import PAGES
from proxy.dashboard.periods import parse
from proxy.dashboard.sites import Instrument, Site, Sites
from proxy.dashboard.snapshot import GROUPINGS, SERIES, Snapshot, Snapshots
from tests.browser import served
from tests.proxy.dashboard.conftest import app_of
from tests.seed_ledger import MONTH
from tests.servers import new_database

DAY = parse("2026-06-01", "UTC")
HOUR_S = 3600


def record(number: int, hour: int, **more: object) -> UsageRecord:
    start_s = DAY.start_s + hour * HOUR_S + 10.0
    values: dict[str, object] = {
        "request_id": f"r{number}",
        "start_s": start_s,
        "end_s": start_s + 1,
        "team": "t",
        "backend": "b@fp8",
        "group": "b",
        "node": "n",
        "zone": "FR",
        "pue": 1.5,
        "prompt_tokens": 10,
        "output_tokens": 7,
        "energy_j": 100.0,
        "energy_low_j": 80.0,
        "energy_high_j": 130.0,
        "evidence": Evidence.CALIBRATED,
    }
    return UsageRecord(**{**values, **more})  # type: ignore[arg-type]


def divided(
    hour: int,
    by_request: dict[str, float],
    idle_j: float = 0.0,
    evidence: Evidence = Evidence.METERED,
) -> Attribution:
    start_s = DAY.start_s + hour * HOUR_S
    name = f"w{hour}{evidence}"
    return Attribution(
        window_id=name,
        node="n",
        start_s=float(start_s),
        end_s=float(start_s + HOUR_S),
        metered_j=sum(by_request.values()) + idle_j,
        idle_j=idle_j,
        external_j=0.0,
        unattributed_j=0.0,
        shares=tuple(Share(name, r, j) for r, j in by_request.items()),
        evidence=evidence,
    )


BOOK = IntensityBook(AnnualTable(zones={"FR": 100.0, "DE": 500.0}))
SITE = Site(node="n", zone="DE", pue=1.5, gpus=2)


def snapshot(
    tmp_path: Path,
    records: list[UsageRecord],
    attributions: list[Attribution],
    windows: list[Window] | None = None,
    sites: Sites | None = None,
    simulated: bool | None = None,
    team: str = "t",
) -> Snapshot:
    ledger = Ledger(str(tmp_path / "l.db"))
    ledger.write(records, attributions, windows or [])
    made = Snapshots(ledger, BOOK, sites or Sites(nodes={"n": SITE})).of(team, DAY, simulated)
    ledger.close()
    return made


def test_a_metered_request_is_its_energy_times_pue_times_the_zones_grams(tmp_path: Path) -> None:
    s = snapshot(tmp_path, [record(1, 5)], [divided(5, {"r1": 3.6e6})])
    host_uj = round(3.6e12 * HOST_PER_GPU_J)
    assert s.total.active_uj == 3_600_000_000_000
    assert s.total.host_uj == host_uj
    assert s.total.operational_ug == 150_000_000 + round(host_uj * 1.5 * 100 / 3.6e6)
    assert s.total.overhead_uj == 1_800_000_000_000 + round(host_uj * 0.5)
    assert dict(s.evidence) == {
        "metered": 150_000_000,
        "modelled": s.total.operational_ug - 150_000_000,
    }


def test_a_metered_host_takes_the_place_of_the_model(tmp_path: Path) -> None:
    window = Window(
        window_id="w5metered",
        node="n",
        start_s=DAY.start_s + 5.0 * HOUR_S,
        end_s=DAY.start_s + 6.0 * HOUR_S,
        energy_j=1000.0,
        host_energy_j=250.0,
    )
    s = snapshot(tmp_path, [record(1, 5)], [divided(5, {"r1": 1000.0})], [window])
    assert s.total.host_uj == 250_000_000
    assert [e for e, _ in s.evidence] == ["metered"]


def test_requests_without_a_share_keep_their_estimate_and_its_evidence(tmp_path: Path) -> None:
    s = snapshot(tmp_path, [record(1, 5), record(2, 6)], [divided(5, {"r1": 50.0})])
    assert s.total.active_uj == 50_000_000 + 100_000_000
    assert {e for e, _ in s.evidence} == {"metered", "calibrated", "modelled"}
    by = {line.key: line.requests for line in s.lines["evidence"]}
    assert (by["metered"], by["calibrated"]) == (1, 1)


def test_unknown_is_counted_as_unknown_and_never_as_zero(tmp_path: Path) -> None:
    bare = {"energy_j": None, "energy_low_j": None, "energy_high_j": None}
    lost = record(1, 5, evidence=Evidence.UNKNOWN, **bare)
    refused = record(2, 5, backend=None, node=None, outcome="refused", **bare)
    s = snapshot(tmp_path, [lost, refused, record(3, 5)], [])
    assert (s.total.requests, s.total.unknown_requests) == (3, 1)
    assert s.covered == pytest.approx(2 / 3)
    # means are of those with a figure
    assert s.total.ug_per_1k_requests == pytest.approx(s.total.operational_ug / 2 * 1e3)
    whole_g = (s.total.operational_ug + s.total.embodied_ug) / 1e6
    assert s.sci_g_per_request == pytest.approx(whole_g / 2)
    nothing = Line(key="", requests=3, unknown_requests=3, prompt_tokens=5)
    assert nothing.ug_per_1k_requests is None
    by = {line.key: line for line in s.lines["evidence"]}
    assert by["unknown"].unknown_requests == 1


def test_simulated_traffic_is_a_book_of_its_own(tmp_path: Path) -> None:
    pretend = record(9, 5, simulated=True, evidence=Evidence.SIMULATED)
    mixed = [divided(5, {"r1": 1000.0}), divided(5, {"r9": 7777.0}, 500.0, Evidence.SIMULATED)]
    real = snapshot(tmp_path, [record(1, 5), pretend], mixed)
    assert (real.simulated, real.total.active_uj, real.total.requests) == (False, 1_000_000_000, 1)
    assert "simulated" not in dict(real.evidence)
    assert real.reconciliation.metered_uj == 1_000_000_000
    other = snapshot(tmp_path, [], [], simulated=True)
    assert (other.total.active_uj, other.total.idle_uj) == (7_777_000_000, 500_000_000)
    assert [e for e, _ in other.evidence] == ["simulated"]


def test_a_period_with_nothing_real_shows_the_simulated_book_and_says_so(tmp_path: Path) -> None:
    pretend = record(9, 5, simulated=True, evidence=Evidence.SIMULATED)
    s = snapshot(tmp_path, [pretend], [divided(5, {"r9": 7.0}, 0.0, Evidence.SIMULATED)])
    assert s.simulated
    refused = record(1, 5, backend=None, group=None, node=None, energy_j=None, outcome="refused")
    assert snapshot(tmp_path, [refused], []).simulated  # a model that there is none of, say
    assert not snapshot(tmp_path, [record(2, 5)], []).simulated


def test_a_real_record_on_a_simulated_meter_is_simulated(tmp_path: Path) -> None:
    s = snapshot(tmp_path, [record(1, 5)], [divided(5, {"r1": 7.0}, 0.0, Evidence.SIMULATED)])
    assert s.total.active_uj == 0


def test_market_based_follows_the_instrument_and_is_otherwise_not_supplied(tmp_path: Path) -> None:
    contract = {"FR": Instrument(g_per_kwh=10.0, what="a contract")}
    args = [record(1, 5)], [divided(5, {"r1": 3.6e6})]
    s = snapshot(tmp_path, *args, sites=Sites(nodes={"n": SITE}, instruments=contract))
    assert s.total.market_ug == pytest.approx(s.total.operational_ug / 10, abs=2)
    none = snapshot(tmp_path, *args)
    assert none.scopes[0].market_ug is None
    assert not none.market_instruments


def test_embodied_accrues_while_idle_and_goes_where_the_energy_goes(tmp_path: Path) -> None:
    s = snapshot(tmp_path, [record(1, 5)], [divided(5, {"r1": 300.0}, idle_j=700.0)])
    whole_ug = 2 * SITE.embodied.mid * 1e6  # two GPUs, one hour
    assert s.total.embodied_ug == pytest.approx(whole_ug, abs=4)
    assert {ln.key: ln.embodied_ug for ln in s.lines["model"]}["(idle share)"] == pytest.approx(
        0.7 * whole_ug, abs=2
    )
    unknown = snapshot(tmp_path, [], [], sites=Sites(nodes={"n": Site(node="n")}))
    assert not unknown.embodied_known


def test_what_no_meter_saw_has_no_idle_energy_and_no_hardware_of_zero(tmp_path: Path) -> None:
    s = snapshot(tmp_path, [record(1, 5)], [])  # an estimate only
    assert s.total.active_uj > 0
    assert not s.embodied_known
    assert [scope.location_ug for scope in s.scopes if "hardware" in scope.what] == [None]
    [total, *_] = exports.rows(s)
    assert (total["idle_kwh"], total["co2e_embodied_kg"]) == ("", "")
    assert total["active_kwh"] != ""
    read = snapshot(tmp_path, [record(1, 5)], [divided(5, {"r1": 300.0})])
    assert exports.rows(read)[0]["idle_kwh"] == "0"


def test_hosted_apis_are_scope_3_and_get_no_host_of_their_own(tmp_path: Path) -> None:
    api = record(1, 5, backend="gpt", group="gpt", node=None, evidence=Evidence.MODELLED)
    s = snapshot(tmp_path, [api, record(2, 5)], [divided(5, {"r2": 1000.0})])
    assert s.scopes[1].location_ug == round(100e6 * 1.5 * 100 / 3.6e6)
    assert s.scopes[0].location_ug == s.total.operational_ug - (s.scopes[1].location_ug or 0)
    by = {line.key: line for line in s.lines["backend"]}
    assert (by["gpt"].host_uj, by["b@fp8"].host_uj > 0) == (0, True)


def test_an_api_that_is_no_longer_configured_stays_an_api(tmp_path: Path) -> None:
    api = record(1, 5, backend="gpt", group="gpt", node="gpt", evidence=Evidence.MODELLED)
    named = Sites(nodes={"n": SITE}, hosted=frozenset({"gpt"}), own=frozenset({"b@fp8"}))
    gone = Sites(nodes={"n": SITE}, hosted=frozenset(), own=frozenset({"b@fp8"}))
    args = [api, record(2, 5)], [divided(5, {"r2": 1000.0})]
    before, after = (snapshot(tmp_path, *args, sites=sites) for sites in (named, gone))
    assert after.scopes == before.scopes
    assert after.total == before.total
    engine = snapshot(tmp_path, [], [], sites=Sites(nodes={"n": SITE}, own=frozenset({"gpt"})))
    assert engine.scopes[1].location_ug == 0  # an engine of ours whose estimates are parametric
    assert {line.key: line.host_uj for line in engine.lines["backend"]}["gpt"] > 0


def test_an_engine_that_was_taken_out_of_the_config_idled_where_it_was(tmp_path: Path) -> None:
    args = [record(1, 5)], [divided(5, {"r1": 100.0}, idle_j=900.0)]
    here = Site(node="n", zone="FR", pue=1.5)
    before = snapshot(tmp_path, *args, sites=Sites(nodes={"n": here}))
    after = snapshot(tmp_path, [], [], sites=Sites())
    assert after.total == before.total
    assert [f.zone for f in after.factors] == ["FR"]


def test_an_engine_and_an_api_that_both_answered_are_both_in_the_account(tmp_path: Path) -> None:
    """A cascade's first answer, metered at home, and the API's that replaced it."""
    both = record(
        1,
        5,
        backend="gpt",
        group="gpt",
        node="gpt",
        zone="DE",
        pue=1.0,
        evidence=Evidence.MODELLED,
        hosted_j=40.0,
        hosted_low_j=30.0,
        hosted_high_j=60.0,
    )
    home = Site(node="n", zone="FR", pue=1.5)
    sites = Sites(nodes={"n": home}, hosted=frozenset({"gpt"}), own=frozenset({"b@fp8"}))
    s = snapshot(tmp_path, [both], [divided(5, {"r1": 90.0})], sites=sites)
    assert s.total.active_uj == (90 + 40) * 10**6
    api_ug = 40e6 * 500 / 3.6e6
    assert s.scopes[1].location_ug == round(api_ug)
    drawn_ug = 90e6 * (1 + HOST_PER_GPU_J) * 1.5 * 100 / 3.6e6
    assert s.scopes[0].location_ug == pytest.approx(drawn_ug, abs=2)
    assert s.range.high_ug - s.range.mid_ug > 0.4 * api_ug


def test_intensities_set_by_hand_are_each_backends_own_and_contracts_hold_there(
    tmp_path: Path,
) -> None:
    clean, dirty = (Site(node=n, zone="FR", pue=1.0, g_per_kwh=g) for n, g in (("n", 0), ("m", 80)))
    sites = Sites(
        nodes={"n": clean, "m": dirty}, instruments={"FR": Instrument(g_per_kwh=8.0, what="x")}
    )
    bare = {"pue": 1.0, "energy_j": 3.6e6, "energy_low_j": 3.6e6, "energy_high_j": 3.6e6}
    s = snapshot(tmp_path, [record(1, 5, **bare), record(2, 5, node="m", **bare)], [], sites=sites)
    whole_ug = (1 + HOST_PER_GPU_J) * 1e6
    assert sorted(line.operational_ug for line in s.lines["zone"]) == pytest.approx(
        [0, 80 * whole_ug], abs=2
    )
    assert s.total.market_ug == pytest.approx(2 * 8 * whole_ug, abs=4)
    assert s.water_ml is not None  # the zone is known, whatever was set


def test_energy_counts_in_the_hour_in_which_it_was_drawn(tmp_path: Path) -> None:
    late = record(1, 5)
    s = snapshot(tmp_path, [late], [divided(5, {"r1": 1.0}), divided(6, {"r1": 2.0})])
    hours = {line.key: line.active_uj for line in s.lines["hour"]}
    assert hours == {"2026-06-01T05:00:00Z": 1_000_000, "2026-06-01T06:00:00Z": 2_000_000}


@pytest.mark.parametrize("team", ["search", "support", "research"])
@pytest.mark.parametrize("name", [*GROUPINGS, *SERIES])
def test_every_grouping_sums_to_the_total(snapshots: Snapshots, team: str, name: str) -> None:
    s = snapshots.of(team, MONTH)
    for field in SUMMED:
        assert sum(getattr(ln, field) for ln in s.lines[name]) == getattr(s.total, field), field


rows = st.lists(
    st.tuples(
        st.integers(0, 23),
        st.sampled_from([(), ("a",), ("a", "b"), ("a", "b", "c")]),
        st.sampled_from(["k1", "k2", None]),
        st.sampled_from(["m1", "m2"]),
        st.floats(0, 1e5),
        st.booleans(),  # metered
        st.integers(0, 5000),
    ),
    max_size=12,
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows, idle_j=st.floats(0, 1e6))
def test_groupings_sum_to_the_total_and_the_books_balance_for_any_mix(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple], idle_j: float
) -> None:
    records, by_hour = [], {}
    for number, (hour, tags, key, model, energy_j, metered, tokens) in enumerate(rows):
        records.append(
            record(
                number,
                hour,
                tags=tags,
                key_id=key,
                group=model,
                backend=model,
                energy_j=energy_j,
                prompt_tokens=tokens,
            )
        )
        if metered:
            by_hour.setdefault(hour, {})[f"r{number}"] = energy_j
    windows = [divided(hour, by, idle_j) for hour, by in by_hour.items()]
    s = snapshot(tmp_path_factory.mktemp("any"), records, windows)
    assert s.reconciliation.balanced
    for name in (*GROUPINGS, *SERIES):
        for field in SUMMED:
            assert sum(getattr(ln, field) for ln in s.lines[name]) == getattr(s.total, field)


def test_tags_share_a_request_in_equal_parts(tmp_path: Path) -> None:
    s = snapshot(tmp_path, [record(1, 5, tags=("a", "b", "c"))], [divided(5, {"r1": 100.0})])
    parts = {line.key: line.active_uj for line in s.lines["tag"]}
    assert sorted(parts.values()) == [33_333_333, 33_333_333, 33_333_334]


def test_idle_of_all_teams_and_the_platform_closes_the_meter(snapshots: Snapshots) -> None:
    of = [snapshots.of(team, MONTH) for team in ("search", "support", "research")]
    r = of[0].reconciliation
    assert r.balanced
    metered = [sum(ln.active_uj for ln in s.lines["evidence"] if ln.key == "metered") for s in of]
    idle = sum(s.total.idle_uj for s in of)
    assert sum(metered) + idle + r.platform_uj + r.external_uj + r.residual_uj == r.metered_uj


def test_cells_are_empty_for_a_team_that_never_asked(snapshots: Snapshots) -> None:
    s = snapshots.of("nobody", MONTH)
    assert (s.total.requests, s.total.facility_uj, s.grade, s.bars) == (0, 0, "E", None)
    assert summed.IDLE_LINE not in [line.key for line in s.lines["model"]]


def test_a_restated_hour_changes_every_view_that_is_not_frozen(tmp_path: Path) -> None:
    book = IntensityBook(AnnualTable())

    def said(g_per_kwh: float) -> None:
        book.put(
            [
                Observation(
                    zone="FR",
                    hour_s=DAY.start_s + HOUR_S,
                    g_per_kwh=g_per_kwh,
                    source="electricity_maps",
                )
            ]
        )

    said(50.0)
    ledger = Ledger(str(tmp_path / "ledger.db"))
    ledger.write([record(1, 1)], [divided(1, {"r1": 90.0})])
    snapshots = Snapshots(ledger, book, clock=lambda: DAY.end_s + 1e6)
    frozen = FrozenSnapshots(ledger)
    before = snapshots.of("t", DAY)
    name = frozen.keep(before)
    said(100.0)
    after = snapshots.of("t", DAY)
    kept = frozen.find(name)
    ledger.close()
    assert after.total.operational_ug == pytest.approx(2 * before.total.operational_ug, abs=2)
    assert after.total.facility_uj == before.total.facility_uj  # energy never changes
    assert (after.set_version, after.hash) != (before.set_version, before.hash)
    assert after.ledger_version == before.ledger_version
    assert kept == before
    assert kept is not None
    assert (kept.set_version, kept.ledger_version) == (before.set_version, before.ledger_version)
    assert [(r.before_g_per_kwh, r.after_g_per_kwh) for r in book.restatements] == [(50.0, 100.0)]


@given(
    st.dictionaries(
        st.integers(100, 160),
        st.dictionaries(
            st.tuples(st.sampled_from("nm"), st.sampled_from(["a", "b", ""])),
            st.integers(0, 10**15),
        ),
    ),
    st.integers(95, 165),
    st.sampled_from([None, ("a",), ("c",)]),
)
def test_use_before_a_day_is_the_28_days_added_up(
    trailing: dict[int, dict[tuple[str, str], int]], day: int, entitled: tuple[str, ...] | None
) -> None:
    def caused(first: int, end: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for each in range(first, end):
            for (node, name), uj in trailing.get(each, {}).items():
                if node == "n" and name and uj:
                    found[name] = found.get(name, 0) + uj
        return found

    expected, late = caused(day - 28, day), caused(day - 7, day)
    if not expected:  # a first day counts itself
        expected = late = caused(day, day + 1)
    weights, lately = cells.Use(trailing).before("n", day, entitled)
    assert {name: uj for name, uj in weights.items() if uj} == expected
    assert lately is any(entitled is None or name in entitled for name in late)


def test_both_databases_give_the_same_account_and_every_page(
    tmp_path: Path, postgres_url: str
) -> None:
    def snapshot(url: str) -> Snapshot:
        ledger = Ledger(url)
        ledger.write(
            [
                record(
                    n,
                    n % 24,
                    group="ab"[n % 2],
                    tags=("x", "y")[: n % 3],
                    hosted_j=25.0 if n == 47 else None,  # an API took part
                )
                for n in range(60)
            ],
            [divided(hour, {f"r{hour}": 90.0, f"r{hour + 24}": 30.0}, 400.0) for hour in range(24)],
        )
        sites = Sites(nodes={"n": Site(node="n", zone="FR", gpus=2)})
        snapshots = Snapshots(ledger, IntensityBook(AnnualTable()), sites, clock=lambda: DAY.end_s)
        made = snapshots.of("t", DAY)
        frozen = FrozenSnapshots(ledger)
        assert frozen.find(frozen.keep(made)) == made
        with served(app_of(snapshots, DAY.end_s)) as site:
            for page in (*PAGES, "requests/r1"):
                asked = f"{site}/dashboard/t/{page}?period=2026-06-01&tz=UTC"
                request = urllib.request.Request(asked, headers={"cookie": "person=root"})
                with urllib.request.urlopen(request, timeout=20) as answer:
                    shown = answer.read().decode()
                if page == "requests":
                    (row,) = re.findall(r">r47<.*?</tr>", shown, re.S)
                    assert "55.0\u202fJ" in re.sub(r"<[^>]+>", " ", row)
                    assert "metered, calibrated" in row
        ledger.close()
        return made

    made = snapshot(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert made.total.requests == 60
    assert made.total.active_uj == (24 * 120 + 12 * 100 + 25) * 10**6
    assert made.total.idle_uj == 24 * 400 * 10**6
    assert made.reconciliation.balanced
    assert snapshot(new_database(postgres_url, "dashboard")) == made


def test_a_year_is_read_in_spans_and_is_the_sum_of_its_months(tmp_path: Path) -> None:
    start_s = parse("2026", "UTC").start_s
    ledger = Ledger(str(tmp_path / "year.db"))
    first = (DAY.start_s - start_s) // HOUR_S  # the hours of records are counted from DAY
    hours = [h - first for h in (0, 31 * 24, 32 * 24 - 1, 32 * 24, 200 * 24, 364 * 24 + 23)]
    ledger.write(
        [record(number, hour) for number, hour in enumerate(hours)],
        [divided(hour, {f"r{number}": 90.0}, 10.0) for number, hour in enumerate(hours)],
    )
    snapshots = Snapshots(ledger, IntensityBook(AnnualTable()), clock=lambda: start_s + 4e7)
    year = snapshots.of("t", parse("2026", "UTC")).total
    months = [snapshots.of("t", parse(f"2026-{m:02d}", "UTC")).total for m in range(1, 13)]
    ledger.close()
    assert year.requests == len(hours)
    for field in SUMMED:
        assert getattr(year, field) == sum(getattr(m, field) for m in months), field
