"""A lead's way through the dashboard, in a real browser over a real socket."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from estimators.energy import EnergyEstimator
from estimators.hardware import GPUS
from estimators.types import Backend, ModelFacts
from meters.ledger import Ledger
from meters.types import Evidence, StepPhysics
from proxy.dashboard.links import PAGES
from proxy.dashboard.snapshot import Snapshots
from tests import browser as chromium
from tests.proxy.dashboard.conftest import NOW_S, app_of, snapshots_of
from tests.seed_ledger import MONTH, fill, hourly_book

pytestmark = pytest.mark.skipif(
    chromium.path() is None, reason="no Chromium: run python -m tests.prepare as root"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.chromium() as found:
        yield found


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Without JavaScript: every page must work so."""
    made = browser.new_context(java_script_enabled=False, locale="en-GB")
    made.set_default_timeout(10_000)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def test_a_lead_finds_a_month_sees_why_it_rose_and_opens_a_receipt(page: Page, site: str) -> None:
    page.goto(f"{site}/dashboard")
    expect(page).to_have_url(re.compile("/dashboard/search/overview"))
    page.get_by_role("link", name="← 2026-09").click()
    page.get_by_role("link", name="2026-10 →").click()
    expect(page.locator(".headline")).to_contain_text(re.compile(r"[\d.]+.k?g CO₂e"))
    expect(page.locator("main")).to_contain_text("Requests are refused by what their GPUs take")
    page.get_by_role("link", name="Each model on both sides").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Why")
    page.get_by_role("link", name="llama-3.3-70b").first.click()
    expect(page.get_by_text("model = llama-3.3-70b")).to_be_visible()
    chromium.click_through(page.locator("[aria-label=Requests] tbody a").first)
    expect(page.get_by_role("heading", level=1)).to_contain_text("Receipt req-")
    for words in ("metered", "g/kWh", "PUE", "counterfactual", "sample-1", "nvml"):
        expect(page.locator("main")).to_contain_text(words)


def test_regions_are_compared_by_what_this_periods_energy_would_be_there(
    page: Page, site: str, snapshots: Snapshots
) -> None:
    page.goto(f"{site}/dashboard/search/where?period=2026-10&lang=en")
    facility_kwh = snapshots.of("search", MONTH).total.facility_uj / 3.6e12
    rows = page.locator("[aria-label='Regions compared']").first.locator("tbody tr")
    grams = [float(x.replace(",", "")) for x in rows.locator("td:nth-child(2)").all_inner_texts()]
    kg = [float(x.replace(",", "")) for x in rows.locator("td:nth-child(3)").all_inner_texts()]
    assert len(kg) > 5
    assert kg == sorted(kg)
    for each, kilograms in zip(grams, kg, strict=True):
        assert kilograms == pytest.approx(facility_kwh * each / 1000, rel=0.03)


def test_the_plan_says_of_each_row_what_it_stands_on(page: Page, snapshots: Snapshots) -> None:
    own = Backend(
        name="llama-3.3-70b@fp8",
        group="llama-3.3-70b",
        precision="fp8",
        gpu=GPUS["H100-SXM"],
        num_gpus=2,
        model=ModelFacts(params_b=70.6),
        zone="DE",
        pue=1.2,
    )
    physics = StepPhysics(
        idle_power_w=240.0,
        step_j=30.0,
        token_j=0.5,
        context_j=1e-5,
        prefill_j=0.3,
        step_s=0.03,
        token_s=1e-4,
        context_s=1e-8,
        prefill_s=1e-4,
    )
    app = app_of(
        snapshots,
        estimator=EnergyEstimator(learnt={own.name: physics}.get),
        gpus=GPUS,
        backends=lambda: [own],
    )
    with chromium.served(app) as url:
        page.goto(f"{url}/dashboard/search/plan?period=2026-10&lang=de")
        expect(page.locator("#params_b")).to_have_value("70,6")
        rows = page.locator("[aria-label='Configurations compared'] tbody tr")
        expect(rows.first).to_contain_text("calibrated")
        expect(rows.first).to_contain_text("metered on llama-3.3-70b@fp8")
        other = rows.filter(has_text="on sglang")
        expect(other).to_contain_text(re.compile(r"benchmarks × \d+,\d\d, as metered on"))
        page.locator("#num_gpus").fill("4")
        page.get_by_role("button", name="Compare").click()
        expect(rows.first).not_to_contain_text("metered")
        page.get_by_role("link", name=own.name).click()
        expect(rows.first).to_contain_text("metered on")


def test_the_method_page_says_how_good_estimates_were(page: Page, site: str) -> None:
    page.goto(f"{site}/dashboard/search/method?period=2026-10&lang=en")
    rows = page.locator("[aria-label='Estimates against meters'] tbody tr")
    backends = rows.locator("th").all_inner_texts()
    assert len(backends) == len(set(backends)) >= 2
    for row in rows.all():
        error = float(row.locator("td").nth(1).inner_text().rstrip("\u202f%"))
        assert 0.0 < error < 60.0
        assert "sample-1" in row.inner_text()


def test_a_frozen_link_shows_what_was_frozen_with_its_hash(page: Page, site: str) -> None:
    page.goto(f"{site}/dashboard/search/overview?period=2026-10")
    chromium.click_through(page.get_by_role("button", name="Freeze"))
    expect(page).to_have_url(re.compile(r"/frozen/[0-9a-f]{64}$"))
    expect(page.locator("#hash")).to_have_text(page.url.rsplit("/", 1)[1])
    expect(page.locator("main")).to_contain_text("Figures made today are the same")


def test_each_export_downloads_with_the_hash_of_the_page(page: Page, site: str) -> None:
    page.goto(f"{site}/dashboard/search/report?period=2026-10")
    named = re.search(r"sha256\s+([0-9a-f]{64})", page.locator("footer").inner_text())
    assert named is not None
    for ending in ("csv", "json", "parquet", "focus", "esrs", "pdf"):
        with page.expect_download() as download:
            page.locator("footer").get_by_role("link", name=ending, exact=True).click()
        assert named[1][:8] in download.value.suggested_filename
        assert Path(download.value.path()).stat().st_size > 500


@pytest.mark.parametrize("name", [*PAGES, "export.csv", "requests/req-1", "freeze", "frozen/00"])
def test_other_teams_pages_refuse(page: Page, site: str, name: str) -> None:
    answer = page.request.get(f"{site}/dashboard/support/{name}?period=2026-10")
    assert answer.status in (404, 405)
    assert "llama" not in answer.text()


def test_a_receipt_of_another_team_is_not_found_under_ones_own(
    page: Page, site: str, ledger: Ledger
) -> None:
    from sqlalchemy import select

    from meters.schema import requests

    with ledger.database.read() as connection:
        theirs = connection.scalar(
            select(requests.c.request_id).where(requests.c.team == "support").limit(1)
        )
    assert page.request.get(f"{site}/dashboard/search/requests/{theirs}").status == 404


def test_members_see_sums_but_no_keys_and_no_single_requests(
    context: BrowserContext, site: str
) -> None:
    context.add_cookies([{"name": "person", "value": "max", "url": site}])
    page = context.new_page()
    page.goto(f"{site}/dashboard/search/overview?period=2026-10")
    expect(page.locator(".headline")).to_contain_text("CO₂e")
    assert "sk-sea1" not in page.content()
    page.goto(f"{site}/dashboard/search/requests?period=2026-10")
    assert "sk-sea1" not in page.content()
    assert "req-" not in page.locator("main").inner_text()


def test_forms_from_elsewhere_or_without_a_token_are_refused(page: Page, site: str) -> None:
    url = f"{site}/dashboard/search/freeze"
    form = {"period": "2026-10", "tz": "UTC", "token": "1.2"}
    assert page.request.post(url, form=form).status == 403
    for odd in ("²³.x", "99999999999.é"):
        assert page.request.post(url, form=form | {"token": odd}).status == 403
    page.goto(f"{site}/dashboard/search/overview?period=2026-10")
    token = page.locator("input[name=token]").get_attribute("value")
    good = form | {"token": str(token)}
    elsewhere = {"origin": "https://elsewhere.example"}
    assert page.request.post(url, form=good, headers=elsewhere).status == 403
    assert page.request.post(url, form=good).status == 200


AXE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}


@pytest.mark.parametrize(
    "name",
    [*PAGES, "receipt", "frozen", "books?node=node-a", "requests?by=model", "why?by=key"],
)
def test_axe_finds_no_barrier_and_nothing_is_wider_than_the_screen(
    browser: Browser, everything: str, name: str
) -> None:
    made, site = browser.new_context(bypass_csp=True), everything
    page = made.new_page()
    if name == "receipt":
        page.goto(f"{site}/dashboard/search/requests?period=2026-10")
        chromium.click_through(page.locator("[aria-label=Requests] tbody a").first)
    elif name == "frozen":
        page.goto(f"{site}/dashboard/search/overview?period=2026-10")
        chromium.click_through(page.get_by_role("button", name="Freeze"))
    else:
        sign = "&" if "?" in name else "?"
        page.goto(f"{site}/dashboard/search/{name}{sign}period=2026-10")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        found = Axe().run(page, options=AXE)
        assert found.violations_count == 0, found.generate_report()
    fits(page)
    made.close()


def fits(page: Page) -> None:
    """Nothing is wider than the screen."""
    for width in (1440, 768, 320):
        page.set_viewport_size({"width": width, "height": 800})
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 0, (page.url, width)


def test_the_first_screen_is_under_300_kilobytes(page: Page, everything: str) -> None:
    answer = page.goto(f"{everything}/dashboard/search/overview?period=2026-10")
    assert answer is not None
    style = page.request.get(f"{everything}/dashboard/style.css")
    assert len(answer.body()) + len(style.body()) < 300_000


def test_on_paper_each_kind_of_evidence_has_a_grey_of_its_own_in_bar_and_legend(
    browser: Browser, everything: str
) -> None:
    page = browser.new_page()
    page.goto(f"{everything}/dashboard/search/overview?period=2026-10")
    page.emulate_media(media="print")
    look = """names => names.map(name => {
      const bar = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
      const key = document.createElement('span');
      bar.setAttribute('class', name);
      key.setAttribute('class', `key ${name}`);
      document.querySelector('svg.evidence').append(bar);
      document.querySelector('.legend').append(key);
      const style = getComputedStyle(key);
      return [getComputedStyle(bar).fill, style.backgroundColor, style.printColorAdjust];
    })"""
    kinds = ["e-metered", "e-calibrated", "e-benchmark", "e-modelled", "e-unknown", "e-simulated"]
    shown = page.evaluate(look, kinds)
    for kind, (bar, key, adjusted) in zip(kinds, shown, strict=True):
        red, green, blue = re.findall(r"\d+", bar)[:3]
        assert red == green == blue, kind
        assert (key, adjusted) == (bar, "exact"), kind
    assert len({bar for bar, _, _ in shown}) == len(kinds)
    layers = page.evaluate(look, ["active", "idle", "embodied"])
    assert len({bar for bar, _, _ in layers}) == 3
    assert all(key == bar and adjusted == "exact" for bar, key, adjusted in layers)
    page.close()


def test_strict_headers_and_no_script_at_all(page: Page, site: str) -> None:
    answer = page.goto(f"{site}/dashboard/search/overview?period=2026-10")
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<script" not in page.content()
    assert " style=" not in page.content()


@pytest.mark.parametrize(
    ("language", "digits"), [("en", r"\d+\.\d"), ("de", r"\d+,\d"), ("fr", r"\d+,\d")]
)
def test_numbers_are_written_as_the_reader_writes_them(
    page: Page, site: str, language: str, digits: str
) -> None:
    page.goto(f"{site}/dashboard/search/overview?period=2026-10&lang={language}")
    assert re.search(digits, page.locator(".headline").inner_text())


def test_it_prints_on_paper(browser: Browser, site: str) -> None:
    page = browser.new_page()
    page.goto(f"{site}/dashboard/search/report?period=2026-10")
    page.emulate_media(media="print")
    assert page.locator("nav.pages").is_hidden()
    assert page.pdf(format="A4")[:5] == b"%PDF-"
    page.close()


@pytest.mark.parametrize("name", ["overview", "report", "why", "savings", "plan", "method"])
def test_no_column_is_cut_off_on_a_page_of_a4(browser: Browser, everything: str, name: str) -> None:
    page = browser.new_page(viewport={"width": 688, "height": 1000})  # 210 mm less its margins
    page.goto(f"{everything}/dashboard/search/{name}?period=2026-10")
    page.emulate_media(media="print")
    tables = page.locator("main table").all()
    assert tables
    edges = [box["x"] + box["width"] for table in tables if (box := table.bounding_box())]
    assert max(edges) <= 688
    page.close()


def test_no_data_and_a_first_day_say_so_kindly(page: Page, tmp_path: Path) -> None:
    empty = Ledger(str(tmp_path / "empty.db"))
    with chromium.served(app_of(snapshots_of(empty))) as url:
        page.goto(f"{url}/dashboard/search/overview?period=2026-10")
        expect(page.locator("main")).to_contain_text("No request of this team was recorded")
        for name in PAGES:
            answer = page.goto(f"{url}/dashboard/search/{name}?period=2026-10")
            assert answer is not None
            assert answer.status == 200, name
            fits(page)
    empty.close()
    first = fill(tmp_path / "first.db", MONTH.start_s + 8 * 3600, 5, scale=1.0)
    with chromium.served(app_of(snapshots_of(first, MONTH.start_s + 14 * 3600.0))) as url:
        page.goto(f"{url}/dashboard/search/overview?period=2026-10")
        expect(page.locator("main")).to_contain_text("no change to explain")
        for name in PAGES:
            answer = page.goto(f"{url}/dashboard/search/{name}?period=2026-10")
            assert answer is not None
            assert answer.status == 200, name
            fits(page)
    first.close()


def test_simulated_traffic_has_a_loud_banner_on_every_page(page: Page, tmp_path: Path) -> None:
    made = fill(tmp_path / "sim.db", MONTH.start_s + 8 * 3600, 5, Evidence.SIMULATED, 1.0)
    with chromium.served(app_of(snapshots_of(made))) as url:
        for name in PAGES:
            page.goto(f"{url}/dashboard/search/{name}?period=2026-10")
            expect(page.locator(".loud")).to_contain_text("SIMULATED DATA")
        page.goto(f"{url}/dashboard/search/overview?period=2026-10")
        expect(page.locator(".legend").first).to_contain_text("SIMULATED")
        page.goto(f"{url}/dashboard/search/overview?period=2026-10&book=real")
        expect(page.locator("main")).to_contain_text("No request of this team was recorded")
    made.close()


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("period=yesterday", 400),
        ("period=2026-10&tz=Mars/Olympus", 400),
        ("period=2026-10&lang=xx", 200),
        ("period=2026-10&tag=%27%22%3E%3Cscript%3E", 200),
        ("period=2026-10&before=x|y", 200),
    ],
)
def test_odd_links_are_answered_and_echo_nothing_unescaped(
    page: Page, site: str, query: str, status: int
) -> None:
    answer = page.request.get(f"{site}/dashboard/search/requests?{query}")
    assert answer.status == status
    assert "<script>" not in answer.text()


def test_words_are_numbers_and_boundaries(page: Page, site: str, snapshots: Snapshots) -> None:
    words = re.compile(
        r"\b(green|eco-friendly|sustainab\w+|climate.neutral|trees?|car miles)\b", re.I
    )
    for name in PAGES:
        page.goto(f"{site}/dashboard/search/{name}?period=2026-10")
        assert not words.search(page.locator("body").inner_text()), name


def test_without_a_ledger_the_page_says_later(page: Page) -> None:
    nobody = Ledger("postgresql+psycopg://127.0.0.1:9/none", lazy=True)
    away = Snapshots(nobody, hourly_book(), clock=lambda: NOW_S)
    with chromium.served(app_of(away)) as url:
        answer = page.goto(f"{url}/dashboard/search/overview")
        assert answer is not None
        assert answer.status == 503
        expect(page.locator("main")).to_contain_text("cannot be read now")


def test_an_admin_begins_with_a_team_that_has_traffic(
    context: BrowserContext, snapshots: Snapshots
) -> None:
    names = ["aardvark", "research", "search"]
    app = app_of(snapshots, teams=lambda: names)
    with chromium.served(app) as url:
        context.add_cookies([{"name": "person", "value": "root", "url": url}])
        page = context.new_page()
        page.goto(f"{url}/dashboard")
        expect(page).to_have_url(re.compile("/dashboard/research/overview"))
        page.goto(f"{url}/dashboard/aardvark/overview?period=2026-10")
        expect(page.locator("main")).to_contain_text("No request of this team was recorded")
