"""Every number of the first screen is a link to the rows that it is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from proxy.dashboard.accounting import combine
from proxy.dashboard.numbers import Numbers
from proxy.dashboard.periods import parse
from proxy.dashboard.queries import PAGE_ROWS
from proxy.dashboard.snapshot import Snapshots, range_rows
from tests import browser as chromium
from tests.proxy.dashboard.conftest import PEOPLE
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


@pytest.mark.parametrize("person", sorted(PEOPLE))
def test_each_link_answers_everyone_who_sees_it(page: Page, site: str, person: str) -> None:
    page.context.add_cookies([{"name": "person", "value": person, "url": site}])
    page.goto(f"{site}/dashboard/search/overview?{QUERY}")
    for href in {href for _, href, _ in page.evaluate(NUMBERS)}:
        assert page.request.get(f"{site}{href}").status == 200, href


def follow(page: Page, site: str, where: str) -> None:
    page.goto(f"{site}/dashboard/search/overview?{QUERY}")
    page.locator(where).first.click()


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
    nodes.first.locator("a").click()
    days = page.locator("#times")
    assert days.locator("tfoot td").all_inner_texts() == of_node
    of_day = days.locator("tbody tr").nth(7).locator("td").all_inner_texts()
    days.locator("tbody tr").nth(7).locator("a").click()
    assert page.locator("#times tbody tr").count() == 24
    assert page.locator("#times tfoot td").all_inner_texts() == of_day
    page.get_by_role("link", name="This team's requests on").click()
    page.locator("[aria-label=Requests] tbody a").first.click()
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
    page.get_by_role("link", name=f"{s.savings_without_figure} of {s.total.requests}").click()
    count = page.locator("[aria-label=Requests] tbody tr").count()
    while page.locator("a[rel=next]", has_text="Older").count():
        page.locator("a[rel=next]", has_text="Older").click()
        count += page.locator("[aria-label=Requests] tbody tr").count()
    assert count == s.savings_without_figure
    page.goto(f"{site}/dashboard/search/savings?{QUERY}")
    page.get_by_role("link", name=f"{s.cache.hits} of {s.cache.cacheable}").click()
    rows = page.locator("[aria-label=Requests] tbody tr")
    assert rows.count() == min(s.cache.hits, PAGE_ROWS)
    assert all("from the cache" in row.inner_text() for row in rows.all())


def test_a_live_report_leads_on_and_a_frozen_one_does_not(page: Page, site: str) -> None:
    page.goto(f"{site}/dashboard/search/report?{QUERY}")
    assert page.locator("main section a").count() > 10
    page.get_by_role("button", name="Freeze").click()
    assert page.locator("main section a").count() == 0


def test_requests_without_a_figure_are_as_many_as_is_said(
    page: Page, site: str, snapshots: Snapshots
) -> None:
    lost = snapshots.of("search", MONTH.previous).total.unknown_requests
    assert lost > 0
    page.goto(f"{site}/dashboard/search/overview?period={MONTH.previous.name}&lang=en")
    page.get_by_role("link", name="of requests without a figure").click()
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
