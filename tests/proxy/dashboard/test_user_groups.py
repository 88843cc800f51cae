from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, expect

from meters.ledger import Ledger
from meters.types import UsageRecord
from proxy.dashboard.lines import IDLE_LINE, SUMMED, Line, add
from proxy.dashboard.periods import parse
from proxy.dashboard.sites import Sites
from proxy.dashboard.snapshot import Snapshots
from proxy.dashboard.user_groups import LARGEST_PART, LEAST_USERS, NO_USER
from tests import browser as chromium
from tests.proxy.dashboard.conftest import app_of
from tests.proxy.dashboard.test_account import BOOK, SITE, divided, record
from tests.proxy.dashboard.test_exports import rows_of
from tests.proxy.dashboard.test_pages import AXE

JUNE = parse("2026-06", "UTC")
OVER_S = JUNE.end_s + 86_400.0


def hashed(number: int) -> str:
    return f"{number:018x}"


def asked(joules: list[tuple[int, float]]) -> list[UsageRecord]:
    """A request for each user and joules; user 0 names nobody."""
    return [
        record(
            number,
            number % 24,
            energy_j=joule,
            team="search",
            tags=("x",) if number % 3 else ("y", "z"),
            user_hash=hashed(user) if user else None,
        )
        for number, (user, joule) in enumerate(joules)
    ]


def snapshots_of(folder: Path, joules: list[tuple[int, float]], now_s: float = OVER_S) -> Snapshots:
    ledger = Ledger(str(folder / "users.db"))
    ledger.write(asked(joules), [divided(3, {"r3": 50.0}, 20.0)])
    sites = Sites(nodes={"n": SITE}, hosted=frozenset())
    return Snapshots(ledger, BOOK, sites, clock=lambda: now_s)


def users_in(line: Line) -> int:
    found = re.search(r"(\d+) users$", line.key)
    return int(found[1]) if found else 0


@settings(max_examples=25)
@given(
    joules=st.lists(st.tuples(st.integers(0, 30), st.floats(0.001, 1e5)), min_size=1, max_size=60)
)
def test_groups_sum_to_the_total_and_none_is_small_or_one_users(
    tmp_path_factory: pytest.TempPathFactory, joules: list[tuple[int, float]]
) -> None:
    snapshots = snapshots_of(tmp_path_factory.mktemp("users"), joules)
    lines = snapshots.user_groups("search", JUNE, False)
    users = {user for user, _ in joules if user}
    if lines is None:
        largest = max((sum(j for u, j in joules if u == user) for user in users), default=0.0)
        whole = sum(j for u, j in joules if u)
        assert len(users) < LEAST_USERS or largest > (LARGEST_PART - 0.2) * whole
    else:
        assert len(users) >= LEAST_USERS
        groups = [line for line in lines if users_in(line)]
        assert sum(map(users_in, groups)) == len(users)
        assert min(map(users_in, groups)) >= LEAST_USERS
        assert {line.key for line in lines} - {g.key for g in groups} <= {NO_USER, IDLE_LINE}
        total = snapshots.of("search", JUNE).total
        for field in SUMMED:
            assert getattr(add("", lines), field) == getattr(total, field), field
    snapshots.ledger.close()


EVEN = [(user, 100.0 + user) for user in range(1, 24)]


def test_users_fall_into_quarters_the_heaviest_first(tmp_path: Path) -> None:
    lines = snapshots_of(tmp_path, EVEN).user_groups("search", JUNE, False)
    assert lines is not None
    assert [line.key for line in lines] == [
        "group 4 of 4, 6 users",
        "group 3 of 4, 6 users",
        "group 2 of 4, 6 users",
        "group 1 of 4, 5 users",
        IDLE_LINE,
    ]
    per_user = [line.operational_ug / users_in(line) for line in lines if users_in(line)]
    assert per_user == sorted(per_user, reverse=True)


@pytest.mark.parametrize(
    "joules",
    [
        EVEN[: LEAST_USERS - 1],
        [*EVEN, (99, 1e6)],
        [(0, 10.0)] * 20,
    ],
    ids=["too few", "one is most of it", "nobody is named"],
)
def test_nothing_is_shown_that_would_be_about_one(
    tmp_path: Path, joules: list[tuple[int, float]]
) -> None:
    assert snapshots_of(tmp_path, joules).user_groups("search", JUNE, False) is None


@pytest.mark.parametrize("period", ["2026-06-01", "2026-06-01..2026-06-29"])
def test_only_whole_months_that_are_over(tmp_path: Path, period: str) -> None:
    snapshots = snapshots_of(tmp_path, EVEN)
    assert snapshots.user_groups("search", parse(period, "UTC"), False) is None
    snapshots.ledger.close()
    (tmp_path / "now").mkdir()
    before = snapshots_of(tmp_path / "now", EVEN, JUNE.end_s - 1.0)
    assert before.user_groups("search", JUNE, False) is None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, set[str]]]:
    """A team whose users are kept, and the setting of it."""
    on = {"search"}
    snapshots = snapshots_of(tmp_path_factory.mktemp("site"), EVEN)
    app = app_of(snapshots, OVER_S, user_groups=on.__contains__)
    with chromium.served(app) as url:
        yield url, on


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium.path() is None:
        pytest.skip("no Chromium: run python -m tests.prepare as root")
    with chromium.chromium() as found:
        yield found


def test_the_page_and_its_export_show_groups_to_a_lead_and_to_nobody_else(
    browser: Browser, site: tuple[str, set[str]]
) -> None:
    url, on = site
    base, query = f"{url}/dashboard/search", "period=2026-06&tz=UTC&lang=en"
    page = browser.new_context(bypass_csp=True).new_page()
    page.goto(f"{base}/overview?{query}")
    page.get_by_role("link", name="User groups").click()
    rows = page.locator("tbody tr")
    expect(rows.first).to_contain_text("group 4 of 4, 6 users")
    assert Axe().run(page, options=AXE).violations_count == 0
    with page.expect_download() as download:
        page.get_by_role("link", name="As CSV").click()
    text = Path(download.value.path()).read_text()
    assert "Groups of at least 5 users" in text
    total, *groups = rows_of(text)
    assert sum(int(row["requests"]) for row in groups) == int(total["requests"]) == len(EVEN)
    # nothing anywhere shows one of them
    others = ("overview", "requests", "report", "method", "export.json", "export.csv")
    seen = [page.request.get(f"{base}/{where}?{query}").text() for where in others]
    seen += [page.content(), text]
    page.goto(f"{base}/requests?{query}")
    chromium.click_through(page.locator("[aria-label=Requests] tbody a").first)
    seen.append(page.content())
    for user, _ in EVEN:
        assert not any(hashed(user) in each for each in seen)

    page.goto(f"{base}/users?period=2026-06&tz=UTC&lang=de")
    cells = page.locator("tbody td").all_inner_texts()
    assert any("," in cell for cell in cells)
    assert not any("." in cell for cell in cells)

    page.context.add_cookies([{"name": "person", "value": "max", "url": url}])
    page.goto(f"{base}/users?{query}")
    expect(page.locator("main")).to_contain_text("leads of the team only")
    assert page.get_by_role("link", name="User groups").count() == 0
    assert page.request.get(f"{base}/export.users?{query}").status == 404
    page.context.clear_cookies()

    assert page.request.get(f"{base}/export.users?period=2026-06-01&tz=UTC").status == 404
    on.clear()
    page.goto(f"{base}/users?{query}")
    expect(page.locator("main")).to_contain_text("Off for this team")
    assert page.get_by_role("link", name="User groups").count() == 0
    assert page.request.get(f"{base}/export.users?{query}").status == 404
    page.context.close()


def test_off_is_the_default(tmp_path: Path) -> None:
    from proxy.dashboard.pages import Dashboard
    from proxy.settings import Team

    assert Team().user_groups is False
    snapshots = Snapshots(Ledger(str(tmp_path / "ledger.db")), BOOK, clock=lambda: OVER_S)
    assert Dashboard(snapshots).user_groups("search") is False


def test_the_export_is_a_table(tmp_path: Path) -> None:
    from proxy.dashboard import exports

    snapshots = snapshots_of(tmp_path, EVEN)
    groups = snapshots.user_groups("search", JUNE, False)
    assert groups is not None
    body = exports.as_users(snapshots.of("search", JUNE), groups).decode()
    lines = [line for line in body.splitlines() if not line.startswith("#")]
    assert len(list(csv.DictReader(io.StringIO("\n".join(lines))))) == len(groups) + 1
