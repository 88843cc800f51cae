"""Every number of the first screen is a link to the rows that it is made of; on every other page
it is one, or its row is headed by one, or it is no sum and leads to the method."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from meters.ledger import Ledger
from proxy.dashboard.accounting import combine
from proxy.dashboard.links import PAGES
from proxy.dashboard.numbers import Numbers
from proxy.dashboard.periods import parse
from proxy.dashboard.queries import PAGE_ROWS, RequestFilter, request_rows
from proxy.dashboard.snapshot import Snapshots, range_rows
from tests import browser as chromium
from tests.proxy.dashboard.conftest import PEOPLE
from tests.proxy.dashboard.test_account import DAY, record
from tests.seed_ledger import MONTH, TIME_ZONE

pytestmark = pytest.mark.skipif(
    chromium.path() is None, reason="no Chromium: run python -m tests.prepare as root"
)
QUERY = "period=2026-10&lang=en"
# Not figures of the team: the title's period, a unit, an axis, and what an advice assumes.
BESIDE = "h1, thead, text.axis, .assumed, summary"
NUMBERS = f"""() => {{
  const found = [];
  const all = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  while (all.nextNode()) {{
    const at = all.currentNode.parentElement;
    if (!/[0-9]/.test(all.currentNode.textContent) || !at.checkVisibility()) continue;
    if (at.closest('{BESIDE}') || at.closest('title, desc')) continue;
    const link = at.closest('a');
    found.push([all.currentNode.textContent.trim(), link && link.getAttribute('href'),
                link ? link.tabIndex : -1]);
  }}
  return found;
}}"""
BARS = """() => [...document.querySelectorAll('svg.evidence rect, svg.why rect, svg.days rect')]
  .map(r => [r.textContent, r.closest('a') && r.closest('a').getAttribute('href')])"""

# On the other pages a row's heading may be the link of its numbers, a table's foot is the sum of
# rows that lead on, and what is no sum of requests (a factor, an assumption) stands apart.
APART = f"{BESIDE}, h3, dt, th, code, form"
LOST = f"""() => {{
  for (const folded of document.querySelectorAll('main details')) folded.open = true;
  const lost = [], apart = [];
  const all = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  const leads = row => row.querySelector('a[href]');
  while (all.nextNode()) {{
    const at = all.currentNode.parentElement;
    if (!/[0-9]/.test(all.currentNode.textContent) || !at.checkVisibility()) continue;
    const unit = at.closest('.assumed');
    if (unit) apart.push(unit);
    if (unit || at.closest('a[href], {APART}') || at.closest('title, desc')) continue;
    const row = at.closest('tbody tr');
    if (row && row.querySelector('th a[href]')) continue;
    if (at.closest('tfoot') && [...at.closest('table').tBodies[0].rows].every(leads)) continue;
    lost.push(all.currentNode.textContent.trim());
  }}
  const method = e => e.closest('section, .card, p').querySelector('a[href*="/method"]');
  return [lost, apart.filter(e => !method(e)).map(e => e.textContent.trim().slice(0, 60)),
          [...document.querySelectorAll('main a[href*="/dashboard/"]')]
            .map(a => a.getAttribute('href'))];
}}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.chromium() as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(locale="en-GB")
    context.set_default_timeout(10_000)
    yield context.new_page()
    context.close()


def test_every_number_of_the_first_screen_leads_to_its_rows(page: Page, site: str) -> None:
    page.goto(f"{site}/dashboard/search/overview?{QUERY}")
    numbers = page.evaluate(NUMBERS)
    assert len(numbers) > 50
    assert [text for text, href, _ in numbers if not href] == []
    assert all(place == 0 for _, _, place in numbers), "reachable with the keyboard"
    links = {href for _, href, _ in numbers} | {href for _, href in page.evaluate(BARS)}
    assert None not in links, "a bar without its rows"
    for href in sorted(links):
        assert re.match(r"/dashboard/search/[a-z]+\?period=2026-", href), href
        assert page.request.get(f"{site}{href}").status == 200, href
        page.goto(f"{site}{href}")
        at = page.locator(f"#{href.partition('#')[2]}" if "#" in href else "main")
        assert at.locator("tbody tr, p").count() > 0, href
        if "#" not in href:
            assert at.locator("tbody tr").count() > 0, href


@pytest.mark.parametrize("name", [*PAGES, "books&node=node-a", "where&zone=DE&hour=13"])
def test_every_number_of_every_page_leads_to_its_rows_or_to_the_method(
    page: Page, everything: str, name: str
) -> None:
    name, _, more = name.partition("&")
    page.goto(f"{everything}/dashboard/search/{name}?{QUERY}&{more}")
    lost, unexplained, links = page.evaluate(LOST)
    assert lost == [], "numbers that lead nowhere"
    assert name == "method" or unexplained == []
    assert links or name == "users"
    asked = sorted({re.sub(r"requests/[^?]+", "requests/req-1", href) for href in links})
    for href in asked[:: max(1, len(asked) // 40)]:
        if "/requests/" not in href:
            assert page.request.get(f"{everything}{href}").status == 200, href


def amount(text: str) -> float:
    return float(text.replace(",", ""))


def test_an_hour_of_the_day_leads_to_its_hours_which_sum_to_it(page: Page, site: str) -> None:
    """October in Berlin has 32 hours that begin at two o'clock."""
    page.goto(f"{site}/dashboard/search/where?{QUERY}")
    page.get_by_text("Table view").first.click()
    two = page.locator("a.fig[href*='hour=2&'], a.fig[href$='hour=2']").first
    kwh = amount(two.inner_text())
    assert kwh > 0
    chromium.click_through(two)
    rows = page.locator("#by-hour tbody tr")
    assert rows.count() == 32
    assert amount(page.locator("#by-hour tfoot td").nth(5).inner_text()) == pytest.approx(kwh)
    each = [amount(row.locator("td").nth(5).inner_text()) for row in rows.all()]
    assert sum(each) == pytest.approx(kwh, rel=2e-3)
    count = amount(page.locator("#by-hour tfoot td").first.inner_text())
    listed = page.locator("[aria-label=Requests] tbody tr")
    assert 0 < listed.count() == count <= PAGE_ROWS
    assert all(re.search(r" 02:\d\d:", row.inner_text()) for row in listed.all())
    chromium.click_through(rows.nth(12).locator("a"))
    page.locator("#by-hour tbody tr").first.wait_for()
    assert page.locator("#by-hour tbody tr").count() == 1


def test_a_mean_intensity_leads_to_the_hours_that_it_is_the_mean_of(page: Page, site: str) -> None:
    page.goto(f"{site}/dashboard/search/where?{QUERY}")
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    cell = page.locator("td a[href*='zone=FR'][href*='hour=7'][href$='#figures']").last
    mean = amount(cell.inner_text())
    assert page.locator("svg.heat a[href*='zone=FR'][href*='hour=7'][href$='#figures']").count()
    chromium.click_through(cell)
    figures = page.locator("#figures tbody tr")
    assert figures.count() == 31
    each = [amount(row.locator("td").first.inner_text()) for row in figures.all()]
    assert sum(each) / 31 == pytest.approx(mean, abs=0.6)
    kinds = {row.locator("td").nth(1).inner_text() for row in figures.all()}
    assert kinds <= {"actual", "estimated or provisional"}


def test_rows_are_those_of_the_hour_the_arm_or_what_may_not_be_cached(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    ledger.write(
        [
            record(1, 1, arm="hold_out"),
            record(2, 2, arm="treated", cache="miss"),
            record(3, 26, cache="hit"),
            record(4, 26, cache="bypass"),
        ]
    )

    def found(**more: Any) -> list[str]:
        wanted = RequestFilter(team="t", start_s=0, end_s=1e12, **more)
        return sorted(row["request_id"] for row in request_rows(ledger, wanted))

    assert len(found()) == 4
    assert found(arm="hold_out") == ["r1"]
    assert "r4" in found(cache="never")
    assert not {"r2", "r3"} & set(found(cache="never"))
    assert found(hours_s=[DAY.start_s + 26 * 3600]) == ["r3", "r4"]
    assert found(hours_s=[]) == []
    ledger.close()


@pytest.mark.parametrize("person", sorted(PEOPLE))
def test_each_link_answers_everyone_who_sees_it(page: Page, site: str, person: str) -> None:
    page.context.add_cookies([{"name": "person", "value": person, "url": site}])
    page.goto(f"{site}/dashboard/search/overview?{QUERY}")
    for href in {href for _, href, _ in page.evaluate(NUMBERS)}:
        assert page.request.get(f"{site}{href}").status == 200, href


def follow(page: Page, site: str, where: str) -> None:
    page.goto(f"{site}/dashboard/search/overview?{QUERY}")
    chromium.click_through(page.locator(where).first)


def test_the_headline_is_the_total_of_its_rows(page: Page, site: str, snapshots: Snapshots) -> None:
    s, n = snapshots.of("search", MONTH), Numbers("en")
    follow(page, site, ".headline a")
    opened = page.locator("details[open]")
    expect(opened).to_have_attribute("id", "by-model")
    expect(opened.locator("tfoot td").nth(6)).to_have_text(n.kg(s.total.operational_ug))
    follow(page, site, ".headline small a")
    combined = page.locator("#range tfoot td").all_inner_texts()
    assert combined == [n.exact_kg(x) for x in (s.range.low_ug, s.range.mid_ug, s.range.high_ug)]


def test_the_rows_of_the_range_combine_to_it(snapshots: Snapshots) -> None:
    s = snapshots.of("search", MONTH)
    rows = range_rows(snapshots.account("search", MONTH, False))
    again = combine(row.part for row in rows)
    assert again.mid_ug == pytest.approx(s.total.operational_ug)
    assert (again.low_ug, again.high_ug) == pytest.approx((s.range.low_ug, s.range.high_ug))


def test_the_bars_are_the_sums_of_what_each_model_adds(
    page: Page, site: str, snapshots: Snapshots
) -> None:
    s, n = snapshots.of("search", MONTH), Numbers("en")
    assert s.bars is not None
    follow(page, site, "svg.why a")
    expect(page.locator("#added th[aria-current]")).to_have_text("volume")
    rows = [
        [
            0.0 if x == "–" else float(x.replace("−", "-"))
            for x in row.locator("td").all_inner_texts()
        ]
        for row in page.locator("#added tbody tr").all()
    ]
    for column, (name, ug) in zip(zip(*rows, strict=True), s.bars.named(), strict=True):
        assert sum(column) == pytest.approx(ug / 1e9, abs=5e-6), name
    sums = page.locator("#added tfoot td").all_inner_texts()
    assert sums == [n.exact_kg(ug) for _, ug in s.bars.named()]


def test_each_term_of_the_reconciliation_is_the_sum_of_its_nodes_and_of_their_days(
    page: Page, site: str, snapshots: Snapshots
) -> None:
    n, r = Numbers("en"), snapshots.of("search", MONTH).reconciliation
    follow(page, site, "a[href*='term=external']")
    expect(page.locator("th[aria-current]")).to_have_text("+ external")
    sums = page.locator("[aria-label='Books by node'] tfoot td").all_inner_texts()
    whole = (r.metered_uj, r.teams_uj, r.platform_uj, r.external_uj, r.residual_uj, r.pending_uj)
    assert [*sums[:2], *sums[3:]] == [n.kwh(uj) for uj in whole]
    nodes = page.locator("[aria-label='Books by node'] tbody tr")
    of_node = nodes.first.locator("td").all_inner_texts()
    chromium.click_through(nodes.first.locator("a"))
    days = page.locator("#times")
    assert days.locator("tfoot td").all_inner_texts() == of_node
    of_day = days.locator("tbody tr").nth(7).locator("td").all_inner_texts()
    chromium.click_through(days.locator("tbody tr").nth(7).locator("a"))
    assert page.locator("#times tbody tr").count() == 24
    assert page.locator("#times tfoot td").all_inner_texts() == of_day
    chromium.click_through(page.get_by_role("link", name="This team's requests on"))
    chromium.click_through(page.locator("[aria-label=Requests] tbody a").first)
    expect(page.get_by_role("heading", level=1)).to_contain_text("Receipt req-")


def test_nobody_sees_more_of_nodes_than_is_theirs(page: Page, site: str) -> None:
    page.goto(f"{site}/dashboard/nobody/books?{QUERY}")
    assert "node-a" not in page.content()
    page.context.add_cookies([{"name": "person", "value": "max", "url": site}])
    page.goto(f"{site}/dashboard/search/books?{QUERY}&node=node-a")
    expect(page.locator("[aria-label='Books by node']")).to_contain_text("node-a")
    assert page.locator("#times").count() == 0, "a member is told nothing of other teams' hours"
    page.context.add_cookies([{"name": "person", "value": "root", "url": site}])
    page.goto(f"{site}/dashboard/nobody/books?{QUERY}")
    expect(page.locator("main")).to_contain_text("node-a")


def test_rows_by_day_add_up_over_a_month_whose_clock_changes(snapshots: Snapshots) -> None:
    """October in Berlin has a day of 25 hours, March one of 23."""

    def by_day(node: str, hour_s: int) -> str:
        return parse("2026-10", TIME_ZONE).name

    whole = snapshots.node_books("search", MONTH, False, by_day)
    r = snapshots.of("search", MONTH).reconciliation
    assert len(whole) == 1
    assert whole[0].metered_uj == r.metered_uj
    row = whole[0]
    parts = row.teams_uj + row.platform_uj + row.external_uj + row.residual_uj + row.pending_uj
    assert parts == row.metered_uj
    assert 0 < row.mine_uj < row.teams_uj


@pytest.mark.parametrize("lever", ["route", "cache"])
def test_a_lever_leads_to_the_requests_that_have_its_counterfactual(
    page: Page, site: str, snapshots: Snapshots, lever: str
) -> None:
    page.goto(f"{site}/dashboard/search/requests?{QUERY}&saving={lever}")
    rows = page.locator("[aria-label=Requests] tbody tr")
    assert rows.count() > 0
    for row in rows.all():
        cells = row.locator("td").all_inner_texts()
        assert ("from the cache" in cells) is (lever == "cache")
        assert cells[-2].endswith("J")


def test_requests_without_a_counterfactual_are_as_many_as_is_said(
    page: Page, site: str, snapshots: Snapshots
) -> None:
    s = snapshots.of("search", MONTH)
    assert 0 < s.savings_without_figure < s.total.requests
    page.goto(f"{site}/dashboard/search/savings?{QUERY}")
    chromium.click_through(
        page.get_by_role("link", name=f"{s.savings_without_figure} of {s.total.requests}")
    )
    count = page.locator("[aria-label=Requests] tbody tr").count()
    while page.locator("a[rel=next]", has_text="Older").count():
        chromium.click_through(page.locator("a[rel=next]", has_text="Older"))
        count += page.locator("[aria-label=Requests] tbody tr").count()
    assert count == s.savings_without_figure
    page.goto(f"{site}/dashboard/search/savings?{QUERY}")
    chromium.click_through(page.get_by_role("link", name=f"{s.cache.hits} of {s.cache.cacheable}"))
    rows = page.locator("[aria-label=Requests] tbody tr")
    assert rows.count() == min(s.cache.hits, PAGE_ROWS)
    assert all("from the cache" in row.inner_text() for row in rows.all())


def test_a_live_report_leads_on_and_a_frozen_one_does_not(page: Page, site: str) -> None:
    page.goto(f"{site}/dashboard/search/report?{QUERY}")
    assert page.locator("main section a").count() > 10
    chromium.click_through(page.get_by_role("button", name="Freeze"))
    assert page.locator("main section a").count() == 0


def test_requests_without_a_figure_are_as_many_as_is_said(
    page: Page, site: str, snapshots: Snapshots
) -> None:
    lost = snapshots.of("search", MONTH.previous).total.unknown_requests
    assert lost > 0
    page.goto(f"{site}/dashboard/search/overview?period={MONTH.previous.name}&lang=en")
    chromium.click_through(page.get_by_role("link", name="of requests without a figure"))
    expect(page.locator("details[open]")).to_have_attribute("id", "by-evidence")
    assert page.locator("[aria-label=Requests] tbody tr").count() == lost


def test_numbers_look_like_numbers_until_they_are_pointed_at(page: Page, site: str) -> None:
    page.goto(f"{site}/dashboard/search/overview?{QUERY}")
    first = page.locator(".headline a").first
    colours = "e => [getComputedStyle(e).color, getComputedStyle(e.parentElement).color]"
    own, around = first.evaluate(colours)
    assert own == around
    style = "e => getComputedStyle(e).textDecorationStyle"
    assert first.evaluate(style) == "dotted"
    first.focus()
    first.hover()
    assert first.evaluate(style) == "solid"
    expect(first).to_have_accessible_name(re.compile(r"CO₂e: by model$"))
