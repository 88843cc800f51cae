"""A lead's whole way through the running product, in a real browser: sign in, find a month, see why
it rose, open a receipt, freeze a link, take every export, print. And another team's lead gets none
of it."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from pypdf import PdfReader

from proxy.dashboard import exports
from proxy.dashboard.links import PAGES
from proxy.dashboard.periods import Period, this_month
from tests import browser as chromium
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Config, Joulegate, config_of
from tests.seed_ledger import fill

pytestmark = pytest.mark.skipif(
    chromium.path() is None, reason="no Chromium: run python -m tests.prepare as root"
)
LEAD, OTHER = "sk-lead-of-search-0123456789", "sk-lead-of-support-0123456789"
ZONE = "Europe/Berlin"


def team(key: str) -> dict[str, object]:
    return {"keys": [{"key": key, "role": "lead"}], "timezone": ZONE}


@pytest.fixture
def month() -> Period:
    """The last month that is over."""
    return this_month(time.time(), ZONE).previous


@pytest.fixture
def running(
    joulegate: Callable[[Config], Joulegate], tmp_path: Path, month: Period
) -> Iterator[Joulegate]:
    """The product over the books of two months."""
    state = tmp_path / "books"
    start_s = month.previous.start_s
    hours = (month.end_s - start_s) // 3600
    fill(state / "ledger.db", start_s, hours, scale=0.06).close()
    with Upstream(answers.like_an_engine(), pages=answers.engine_pages()) as upstream:
        config = config_of(upstream.base_url)
        config |= {
            "state_dir": str(state),
            "teams": {"search": team(LEAD), "support": team(OTHER)},
        }
        yield joulegate(config)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium.chromium() as found:
        yield found


def signed_in(browser: Browser, wanted: str, key: str) -> Page:
    """A page of someone who wanted that one and had to sign in first, without any script."""
    context = browser.new_context(java_script_enabled=False, locale="en-GB")
    context.set_default_timeout(15_000)
    page = context.new_page()
    page.goto(wanted)
    expect(page.get_by_role("heading", level=1)).to_contain_text("Sign in")
    page.locator("#key").fill(key)
    page.get_by_role("button", name="Sign in").first.click()
    return page


def test_a_lead_from_the_door_to_the_printed_page(
    browser: Browser, running: Joulegate, month: Period
) -> None:
    root = f"http://127.0.0.1:{running.port}/dashboard"
    page = signed_in(browser, f"{root}/search/overview?period={month.next.name}&lang=en", LEAD)
    expect(page).to_have_url(re.compile(f"/search/overview.period={month.next.name}&lang=en"))

    page.locator("a[rel=prev]").click()
    expect(page).to_have_url(re.compile(re.escape(month.name)))
    expect(page.locator(".headline")).to_contain_text("CO₂e")
    rose = page.locator(".delta").inner_text()
    assert "▲" in rose or "▼" in rose

    page.get_by_role("link", name="Each model on both sides").click()
    causes = page.locator("main table").first
    for cause in ("volume", "model mix", "efficiency", "grid", "idle", "sum to it exactly"):
        expect(causes).to_contain_text(cause)
    parts = [
        float(x.replace("−", "-"))
        for x in causes.locator("tbody td:nth-child(2)").all_inner_texts()
    ]
    whole = causes.locator("tfoot td").first.inner_text()
    assert sum(parts) == pytest.approx(float(whole.replace("−", "-")), abs=3e-6)

    page.locator("main a", has_text="llama-3.3-70b").first.click()
    page.locator("[aria-label=Requests] tbody a").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Receipt req-")
    for words in (
        "GPUs, caused by this request",
        "Host (CPU, memory)",
        "With idle share",
        "Embodied, apart",
        "Range of the active figure",
        "g/kWh",
        "provider",
        "estimated",
        "PUE",
        "estimator version",
        "counterfactual",
        "Window shares",
        "input",
        "output",
    ):
        expect(page.locator("main")).to_contain_text(words)

    page.goto(f"{root}/search/overview?period={month.name}")
    page.get_by_role("button", name="Freeze").click()
    expect(page).to_have_url(re.compile(r"/frozen/[0-9a-f]{64}$"))
    frozen, sha256 = page.url, page.url.rsplit("/", 1)[1]
    for words in (sha256, "Factor set", "ledger"):
        expect(page.locator(".note")).to_contain_text(words)

    for ending in exports.FORMATS:
        with page.expect_download() as download:
            page.locator(".note").get_by_role("link", name=ending, exact=True).click()
        assert sha256[:8] in download.value.suggested_filename
        body = Path(download.value.path()).read_bytes()
        text = (
            "".join(p.extract_text() for p in PdfReader(io.BytesIO(body)).pages)
            if (ending == "pdf")
            else body.decode("utf-8", "replace")
        )
        assert sha256 in text, ending

    page.goto(f"{root}/search/report?period={month.name}")
    page.emulate_media(media="print")
    assert page.locator("nav.pages").is_hidden()
    printed = PdfReader(io.BytesIO(page.pdf(format="A4")))
    paper = "".join(p.extract_text() for p in printed.pages)
    assert "Report: search" in paper
    assert "SIMULATED" not in paper
    assert "Scope 2" in paper

    theirs = signed_in(browser, root, OTHER)
    expect(theirs).to_have_url(re.compile("/dashboard/support/overview"))
    receipt_id = "req-1"
    for name in (*PAGES, "export.csv", "export.pdf", f"requests/{receipt_id}", f"frozen/{sha256}"):
        answer = (
            theirs.goto(f"{root}/search/{name}?period={month.name}")
            if "export" not in (name)
            else theirs.request.get(f"{root}/search/{name}?period={month.name}")
        )
        assert answer is not None
        assert answer.status == 404, name
    assert page.goto(frozen).status == 200  # type: ignore[union-attr]


def test_nobody_sees_anything_without_signing_in(
    browser: Browser, running: Joulegate, month: Period
) -> None:
    page = browser.new_page()
    for name in (*PAGES, "requests/req-1"):
        page.goto(f"http://127.0.0.1:{running.port}/dashboard/search/{name}?period={month.name}")
        expect(page.get_by_role("heading", level=1)).to_contain_text("Sign in")
