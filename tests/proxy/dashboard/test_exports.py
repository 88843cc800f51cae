"""Page, API, CSV, Parquet and PDF say the same, under every grouping."""

from __future__ import annotations

import csv
import io
import re
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

from meters.intensity import IntensityBook
from meters.intensity.table import AnnualTable
from meters.ledger import Ledger
from meters.ourselves import OwnSums
from meters.types import Evidence, Window
from proxy.dashboard import exports
from proxy.dashboard.lines import SUMMED, Line
from proxy.dashboard.numbers import Numbers
from proxy.dashboard.pages import Dashboard, router, written
from proxy.dashboard.report_pdf import as_pdf
from proxy.dashboard.sites import Site, Sites
from proxy.dashboard.snapshot import GROUPINGS, SERIES, Snapshot, Snapshots, is_genuine
from proxy.dashboard.viewers import Viewer
from tests.browser import served
from tests.proxy.dashboard.conftest import snapshots_of
from tests.proxy.dashboard.test_account import DAY, HOUR_S, divided, record
from tests.seed_ledger import MONTH

QUERY = "period=2026-10"


@pytest.fixture(scope="module")
def snapshot(snapshots: Snapshots) -> Snapshot:
    return snapshots.of("search", MONTH)


def rows_of(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return list(csv.DictReader(io.StringIO("\n".join(lines))))


def get(url: str, person: str = "ada") -> bytes:
    request = urllib.request.Request(url, headers={"cookie": f"person={person}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return bytes(answer.read())


def tables_of(html: str) -> list[list[list[str]]]:
    """The cells of every table of a page, as a reader sees them."""
    found = []
    for table in re.findall(r"<table.*?</table>", html, re.S):
        rows = re.findall(r"<tr.*?</tr>", table, re.S)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
        found.append([[re.sub(r"<[^>]+>", "", c).strip() for c in row] for row in cells])
    return found


@pytest.mark.parametrize("name", [*GROUPINGS, *SERIES])
def test_page_api_csv_parquet_and_pdf_are_the_same(
    site: str, snapshot: Snapshot, name: str
) -> None:
    base = f"{site}/dashboard/search"
    api = msgspec.json.decode(get(f"{base}/export.json?{QUERY}"))["snapshot"]
    lines = msgspec.convert(api["lines"][name], tuple[Line, ...])
    assert lines == snapshot.lines[name]
    assert api["hash"] == snapshot.hash

    written_csv = [
        r for r in rows_of(get(f"{base}/export.csv?{QUERY}").decode()) if r["grouping"] == name
    ]
    for row, line in zip(written_csv, lines, strict=True):
        assert row["key"] == exports.guarded(line.key)
        assert Decimal(row["co2e_location_kg"]) * 10**9 == line.operational_ug
        assert round(Decimal(row["facility_kwh"]) * 3_600_000_000_000) == line.facility_uj
        assert int(row["requests"]) == line.requests

    table = pq.read_table(io.BytesIO(get(f"{base}/export.parquet?{QUERY}"))).to_pylist()
    mine = [r for r in table if r["grouping"] == name]
    for row, line in zip(mine, lines, strict=True):
        for field in SUMMED:
            if field != "market_ug":
                assert row[field] == getattr(line, field)

    n = Numbers("en")
    if name in ("hour",):
        return  # pages and paper show days and the hours of the day, not 745 rows
    pdf = pdf_text(get(f"{base}/export.pdf?{QUERY}"))
    for line in lines:
        assert exports.kg(line.operational_ug) in pdf
    page = "overview" if name == "day" else "requests"
    shown = tables_of(get(f"{base}/{page}?{QUERY}").decode())
    body = next(t for t in shown if t[0][0] == name and len(t[0]) == 10)
    assert len(body) == len(lines) + 2  # head and total
    for row, line in zip(body[1:-1], lines, strict=True):
        assert (row[1], row[6], row[7]) == (
            n.plain(line.requests),
            "–" if line.is_unknown else n.kwh(line.facility_uj),
            written_kg(n, line),
        )
    assert body[-1][7] == n.kg(snapshot.total.operational_ug)


def written_kg(n: Numbers, line: Line) -> str:
    """What a page writes of a line: a dash where no request of it has a figure."""
    return "–" if line.is_unknown else n.kg(line.operational_ug)


@pytest.mark.parametrize("ending", ["csv", "json", "parquet", "pdf"])
def test_a_members_files_have_no_lines_by_key(site: str, snapshot: Snapshot, ending: str) -> None:
    keys = [line.key for line in snapshot.lines["key"] if line.key.startswith("sk-")]
    assert len(keys) > 1
    url = f"{site}/dashboard/search/export.{ending}?{QUERY}"
    for person, sees in (("ada", True), ("max", False)):
        body = get(url, person)
        text = pdf_text(body) if ending == "pdf" else body.decode("utf-8", "replace")
        if ending == "parquet":
            table = pq.read_table(io.BytesIO(body))
            text = f"{table.to_pylist()} {table.schema.metadata}"
        assert all((key in text) is sees for key in keys), person
        if ending != "pdf":
            assert ("lines by key, which are for leads" in text) is not sees


def test_what_nobody_has_a_figure_of_is_a_dash_and_not_nothing() -> None:
    n = Numbers("en")
    assert written_kg(n, Line(key="unknown", requests=3, unknown_requests=3)) == "–"
    assert written_kg(n, Line(key="cache", requests=3)) == "0.000"
    known = Line(key="x", requests=3, unknown_requests=3, active_uj=1, operational_ug=10**9)
    assert written_kg(n, known) == "1.000"


def test_a_month_without_any_figure_is_not_known_on_the_page_and_in_every_file(
    tmp_path: Path,
) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    none = dict.fromkeys(("energy_j", "energy_low_j", "energy_high_j", "node", "zone", "pue"))
    lost = {"backend": "api", "group": "api", "evidence": Evidence.UNKNOWN, **none}
    others = record(3, 5, team="other")  # on a node whose host is read, and hardware known
    ledger.write(
        [record(1, 5, **lost), record(2, 6, **lost), others],
        [divided(5, {"r3": 100.0})],
        [
            Window(
                window_id=f"w5{Evidence.METERED}",
                node="n",
                start_s=float(DAY.start_s + 5 * HOUR_S),
                end_s=float(DAY.start_s + 6 * HOUR_S),
                energy_j=100.0,
                host_energy_j=50.0,
                evidence=Evidence.METERED,
            )
        ],
    )
    sites = Sites(
        nodes={"n": Site(node="n", zone="FR", pue=1.3, gpus=2)}, hosted=frozenset({"api"})
    )
    snapshots = Snapshots(ledger, IntensityBook(AnnualTable()), sites)
    s = snapshots.of("t", DAY)
    assert (s.total.requests, s.total.unknown_requests) == (2, 2)
    text = exports.as_csv(s).decode()
    assert "# range_80_percent_kg: not known" in text
    assert "# without_figure: 2 of 2 requests" in text
    for row in rows_of(text):
        energy = [row[name] for name in exports.COLUMNS if name.endswith(("_kwh", "_kg"))]
        assert not any(energy[:7]) or (row["requests"], energy[0]) == ("0", "0"), row
    [charge] = rows_of(exports.as_focus(s).decode())
    assert not any(charge[name] for name in charge if name.endswith(("Kwh", "Kg")))
    scopes = {row["scope"]: row["location_based_t"] for row in rows_of(exports.as_esrs(s).decode())}
    assert scopes["Scope 2"] == "0"  # nothing of ours served anything
    assert scopes["Scope 3, category 1"] == scopes["Scope 3, category 2"] == ""
    rows = pq.read_table(io.BytesIO(exports.as_parquet(s))).to_pylist()
    assert rows[0]["active_uj"] is rows[0]["operational_ug"] is None
    pdf = pdf_text(as_pdf(s, Numbers("en")))
    assert "CO2e not known" in pdf
    assert "0 g" not in pdf
    app = FastAPI()
    app.include_router(router(Dashboard(snapshots), lambda: Viewer(name="root", role="admin")))
    with served(app) as url:
        for page in ("overview", "report"):
            shown = get(f"{url}/dashboard/t/{page}?period={DAY.name}&tz=UTC").decode()
            assert "CO₂e not known" in shown
            assert not re.search(r"(?<![\d.])0\u202f(g|J)\b", shown)
            drivers = [row for table in tables_of(shown) for row in table if row[0] == "api"]
            assert drivers
            assert not any("0.000" in row for row in drivers)
    ledger.close()


def pdf_text(body: bytes) -> str:
    return "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(body)).pages)


@pytest.mark.parametrize("name", [*GROUPINGS, *SERIES])
def test_the_csv_sums_to_its_own_total(snapshot: Snapshot, name: str) -> None:
    rows = rows_of(exports.as_csv(snapshot).decode())
    total = next(r for r in rows if r["grouping"] == "total")
    for column in ("co2e_location_kg", "co2e_embodied_kg", "requests", "output_tokens"):
        parts = sum(Decimal(r[column]) for r in rows if r["grouping"] == name)
        assert parts == Decimal(total[column])
    joules = sum(
        round(Decimal(r["facility_kwh"]) * 3_600_000_000_000) for r in rows if r["grouping"] == name
    )
    assert joules == snapshot.total.facility_uj


@pytest.mark.parametrize("ending", exports.FORMATS)
def test_every_export_says_what_it_is(snapshot: Snapshot, ending: str) -> None:
    body = written(snapshot, ending)
    text = pdf_text(body) if ending == "pdf" else body.decode("utf-8", "replace")
    flat = " ".join(text.split())
    for words in (
        snapshot.hash,
        snapshot.set_version,
        "Energy of GPUs that served requests",
        "Electricity Maps",
        "no instruments supplied",
    ):
        assert words in flat, words


def test_focus_has_its_columns_and_the_footprint_beside_them(snapshot: Snapshot) -> None:
    rows = rows_of(exports.as_focus(snapshot).decode())
    assert (
        sum(Decimal(r["x_Co2eLocationKg"]) for r in rows) * 10**9 == snapshot.total.operational_ug
    )
    assert {r["x_Co2eMarketKg"] for r in rows} == {""}
    assert {(r["BilledCost"], r["BillingCurrency"]) for r in rows} == {("0", "XXX")}
    for column in exports.FOCUS_MANDATORY:  # of FOCUS 1.2; of these only ChargeClass may be null
        assert {bool(r[column]) for r in rows} == {column != "ChargeClass"}, column
    assert rows[0]["ChargePeriodStart"] == "2026-09-30T22:00:00Z"
    low = sum(float(r["x_Co2eLowKg"]) for r in rows)
    assert low == pytest.approx(snapshot.range.low_ug / 1e9, rel=1e-6)


def test_focus_says_of_each_charge_where_it_was_and_under_which_tags(snapshot: Snapshot) -> None:
    rows = rows_of(exports.as_focus(snapshot).decode())
    for zone in snapshot.lines["zone"]:
        mine = [r for r in rows if r["RegionId"] == ("" if zone.key == "world" else zone.key)]
        assert sum(Decimal(r["x_Co2eLocationKg"]) for r in mine) * 10**9 == zone.operational_ug
        tokens = zone.prompt_tokens + zone.output_tokens
        assert sum(int(r["ConsumedQuantity"]) for r in mine) == tokens
    for model in snapshot.lines["model"]:
        mine = [r for r in rows if r["SkuId"] == exports.guarded(model.key)]
        assert sum(Decimal(r["x_Co2eLocationKg"]) for r in mine) * 10**9 == model.operational_ug
    tags = [msgspec.json.decode(r["Tags"]) for r in rows]
    assert {"answers": True, "ranking": True} in tags
    assert all(value is True for each in tags for value in each.values())
    assert {r["ResourceId"] for r in rows} >= {"llama-3.3-70b@fp8", "node-a"}


def test_the_esrs_sheet_is_gross_by_scope_and_empty_where_not_supplied(snapshot: Snapshot) -> None:
    rows = rows_of(exports.as_esrs(snapshot).decode())
    assert [r["scope"] for r in rows] == [
        "Scope 2",
        "Scope 3, category 1",
        "Scope 3, category 2",
        "Scope 3, category 3",
    ]
    location = [r["location_based_t"] for r in rows]
    assert (Decimal(location[0]) + Decimal(location[1])) * 10**12 == snapshot.total.operational_ug
    assert (location[3], rows[0]["market_based_t"]) == ("", "")


def test_a_simulated_snapshot_says_so_in_every_file(snapshot: Snapshot) -> None:
    pretend = msgspec.structs.replace(snapshot, simulated=True)
    for ending in ("csv", "json", "parquet", "esrs", "pdf"):
        body = written(pretend, ending)
        text = pdf_text(body) if ending == "pdf" else body.decode("utf-8", "replace")
        assert "SIMULATED" in text, ending
    assert "simulated" in exports.file_name(pretend, "focus.csv")


def test_the_hash_covers_every_figure(snapshot: Snapshot) -> None:
    assert is_genuine(snapshot)
    again = msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot)
    assert is_genuine(again)
    more = msgspec.structs.replace(snapshot.total, operational_ug=snapshot.total.operational_ug + 1)
    assert not is_genuine(msgspec.structs.replace(snapshot, total=more))


def test_words_that_a_spreadsheet_would_run_are_only_words() -> None:
    assert exports.guarded("=HYPERLINK(1)") == "'=HYPERLINK(1)"
    assert exports.guarded("llama") == "llama"


@given(st.integers(0, 10**17))
def test_written_decimals_are_the_whole_numbers(amount: int) -> None:
    assert round(Decimal(exports.kwh(amount)) * 3_600_000_000_000) == amount
    assert Decimal(exports.kg(amount)) * 10**9 == amount


REQUEST = st.fixed_dictionaries(
    {
        "hour": st.integers(0, 23),
        "group": st.sampled_from(["a", "b", "ü, =c"]),
        "tags": st.sets(st.sampled_from(["x", "y", "z"])).map(lambda t: tuple(sorted(t))),
        "key_id": st.sampled_from([None, "k1", "k2"]),
        "project": st.sampled_from([None, "p"]),
        "zone": st.sampled_from(["FR", "DE", None]),
        "energy_j": st.one_of(st.none(), st.floats(0.001, 1e7)),
        "share_j": st.one_of(st.none(), st.floats(0.0, 1e6)),
        "prompt_tokens": st.integers(0, 10**6),
    }
)


class Turn:
    """A dashboard on a socket over one ledger after another."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.dashboard = Dashboard(self._snapshots())

    def _snapshots(self) -> Snapshots:
        sites = Sites(nodes={"n": Site(node="n", zone="FR", pue=1.3, gpus=2)}, hosted=frozenset())
        book = IntensityBook(AnnualTable())
        return Snapshots(self.ledger, book, sites, clock=lambda: DAY.end_s + 1e7)

    def take(self, folder: str, asked: list[dict[str, Any]]) -> None:
        self.ledger.close()
        self.ledger = Ledger(f"{folder}/ledger.db")
        by_hour: dict[int, dict[str, float]] = {}
        records = []
        for number, given_values in enumerate(asked):
            values = dict(given_values)
            hour, share_j = values.pop("hour"), values.pop("share_j")
            values |= {"energy_low_j": values["energy_j"], "energy_high_j": values["energy_j"]}
            records.append(record(number, hour, **values))
            if share_j is not None:
                by_hour.setdefault(hour, {})[f"r{number}"] = share_j
        windows = [divided(hour, shares, 1000.0) for hour, shares in by_hour.items()]
        self.ledger.write(records, windows)
        self.dashboard.snapshots = self._snapshots()


@pytest.fixture(scope="module")
def turn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Turn, str]]:
    made = Turn(Ledger(str(tmp_path_factory.mktemp("turn") / "ledger.db")))
    app = FastAPI()
    app.include_router(router(made.dashboard, lambda: Viewer(name="root", role="admin")))
    with served(app) as url:
        yield made, url
    made.ledger.close()


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(REQUEST, min_size=1, max_size=12))
def test_whatever_was_asked_page_api_csv_and_pdf_agree_under_every_grouping(
    turn: tuple[Turn, str], asked: list[dict[str, Any]]
) -> None:
    made, url = turn
    with TemporaryDirectory() as folder:
        made.take(folder, asked)
        base, query = f"{url}/dashboard/t", f"period={DAY.name}&tz=UTC"
        api = msgspec.json.decode(get(f"{base}/export.json?{query}"))["snapshot"]
        total = msgspec.convert(api["total"], Line)
        rows = rows_of(get(f"{base}/export.csv?{query}").decode())
        pdf = pdf_text(get(f"{base}/export.pdf?{query}"))
        shown = tables_of(get(f"{base}/requests?{query}").decode())
        n = Numbers("en")
        assert total.requests == len(asked)
        for name in GROUPINGS:
            lines = msgspec.convert(api["lines"][name], tuple[Line, ...])
            for field in SUMMED:  # tags too: a request with several counts in parts
                assert sum(getattr(x, field) for x in lines) == getattr(total, field), (name, field)
            of_name = [r for r in rows if r["grouping"] == name]
            assert [r["co2e_location_kg"] for r in of_name] == [
                exports.kg(x.known("operational_ug")) for x in lines
            ]
            body = next(t for t in shown if t[0][0] == name and len(t[0]) == 10)
            assert [row[7] for row in body[1:-1]] == [written_kg(n, x) for x in lines]
            assert all(exports.kg(x.operational_ug) in pdf for x in lines)
        focus = rows_of(get(f"{base}/export.focus?{query}").decode())
        grams = sum(Decimal(r["x_Co2eLocationKg"] or 0) for r in focus)
        assert grams * 10**9 == total.operational_ug
        tokens = total.prompt_tokens + total.output_tokens
        assert sum(int(r["ConsumedQuantity"]) for r in focus) == tokens


def test_every_export_says_how_many_points_its_grade_stands_for(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    ledger.write([record(1, 1)], [divided(1, {"r1": 5.0})])
    snapshot = snapshots_of(ledger).of("t", DAY)
    points = round(snapshot.score * 100)
    assert 0 < points <= 100
    assert f"grade_points_of_100: {points}" in exports.as_csv(snapshot).decode()
    said = msgspec.json.decode(exports.as_json(snapshot))["about"]
    assert said["grade_points_of_100"] == str(points)
    assert f"Grade {snapshot.grade}, {points} of 100." in pdf_text(as_pdf(snapshot, Numbers("en")))


def test_every_export_says_what_joulegate_itself_used_and_no_sum_has_it(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    ledger.write([record(1, 1)], [divided(1, {"r1": 5.0})])
    without = snapshots_of(ledger).of("t", DAY)
    used = OwnSums(energy_uj=3_600_000_000, metered_uj=1_800_000_000)
    ledger.keep_own("replica 1", {int(DAY.start_s): used, int(DAY.end_s): used})
    with_own = snapshots_of(ledger).of("t", DAY)
    assert with_own.total == without.total
    assert with_own.reconciliation == without.reconciliation
    line = "joulegate_itself: 0.001 kWh by its processes, 0.0005 of it metered"
    assert line in exports.as_csv(with_own).decode()
    said = msgspec.json.decode(exports.as_json(with_own))
    assert said["about"]["joulegate_itself"].startswith("0.001 kWh")
    assert said["snapshot"]["own_metered_uj"] == used.metered_uj
