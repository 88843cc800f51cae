"""Every page and the paper in German and French: no decimal is left as English writes it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page
from pypdf import PdfReader

from meters.ledger import Ledger
from policies.types import Decision, Rejection
from proxy.dashboard.links import PAGES
from proxy.dashboard.numbers import LANGUAGES, Numbers
from proxy.dashboard.pages import written
from proxy.dashboard.snapshot import Snapshots
from tests import browser as chromium
from tests.proxy.dashboard.conftest import Ready, app_of, snapshots_of
from tests.seed_ledger import MONTH

# A point between digits that stand alone: no name ("llama-3.3-70b"), version or date ("1.10.2026").
# German groups thousands with a point, so there three digits after it are a group unless a 0 leads.
ALONE, END = r"(?<![\w.:@,-])", r"(?![\w@-]|[.,]\d)"
ENGLISH = {
    "de": re.compile(
        rf"{ALONE}(?:\d+\.(?:\d{{1,2}}|\d{{4,}})|0\.\d+|\d{{1,3}}(?:,\d{{3}})+\.\d+){END}"
    ),
    "fr": re.compile(
        rf"{ALONE}(?:\d+\.\d+|\d{{1,3}}(?:,\d{{3}})+\.\d+|\d{{1,3}}(?:,\d{{3}}){{2,}}){END}"
    ),
}
# everything a reader meets: text, also inside what is folded or only spoken, and fields
WORDS = """() => {
  const skipped = 'script, style, code, .code, input[type=hidden], footer, option';
  const found = [];
  const all = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (all.nextNode())
    if (!all.currentNode.parentElement.closest(skipped)) found.push(all.currentNode.textContent);
  for (const e of document.querySelectorAll('[aria-label], input:not([type=hidden])'))
    found.push(e.getAttribute('aria-label') || e.value || '');
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium.path() is None:
        pytest.skip("no Chromium: run python -m tests.prepare as root")
    with chromium.chromium() as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    made = browser.new_page()
    made.set_default_timeout(10_000)
    yield made
    made.close()


def left_english(language: str, texts: list[str]) -> list[str]:
    return [text.strip() for text in texts if ENGLISH[language].search(text)]


@pytest.mark.parametrize("language", ["de", "fr"])
@pytest.mark.parametrize("name", [*PAGES, "receipt", "frozen", "books?node=node-a"])
def test_no_page_writes_a_decimal_as_english_does(
    page: Page, everything: str, language: str, name: str
) -> None:
    base, query = f"{everything}/dashboard/search", f"period=2026-10&lang={language}"
    if name == "receipt":
        page.goto(f"{base}/requests?{query}&model=llama-3.3-70b")
        chromium.click_through(page.locator("[aria-label=Requests] tbody a").first)
    elif name == "frozen":
        page.goto(f"{base}/overview?{query}")
        chromium.click_through(page.get_by_role("button", name="Freeze"))
        page.goto(f"{page.url}?lang={language}")
    else:
        more = "&params_b=17.5" if name == "plan" else ""
        page.goto(f"{base}/{name}{'&' if '?' in name else '?'}{query}{more}")
    texts = page.evaluate(WORDS)
    decimals = sum(bool(re.search(r"\d,\d", text)) for text in texts)
    assert decimals > 2 or name == "users", "decimals of its own, but where nothing is shown"
    assert left_english(language, texts) == []


@pytest.mark.parametrize("language", ["de", "fr"])
def test_the_paper_writes_decimals_as_its_reader_does(snapshots: Snapshots, language: str) -> None:
    body = written(snapshots.of("search", MONTH), "pdf", language)
    text = "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(body)).pages)
    lines = [line for line in text.splitlines() if "Attribution" not in line]
    assert re.search(r"metered \d+,\d+ kWh", text)
    assert re.search(r"0,43 x GPU energy \(0,25/0,58", " ".join(text.split()))
    assert left_english(language, lines) == []


def test_what_is_looked_for_is_found_in_english(page: Page, everything: str) -> None:
    page.goto(f"{everything}/dashboard/search/overview?period=2026-10&lang=en")
    for language in ENGLISH:
        assert len(left_english(language, page.evaluate(WORDS))) > 10


@given(st.sampled_from(LANGUAGES), st.floats(0, 1e9), st.integers(1, 6))
def test_a_decimal_in_words_of_ours_is_written_as_a_figure_is(
    language: str, value: float, digits: int
) -> None:
    n = Numbers(language)
    plain = f"{value:.{digits}f}"
    assert (
        n.prose(f"It took {plain} J ({plain}/{plain}).")
        == f"It took {n.exact(plain)} J ({n.exact(plain)}/{n.exact(plain)})."
    )
    if value < 1000:
        assert n.exact(plain) == n.plain(float(plain), digits)


@pytest.mark.parametrize(
    "words", ["llama-3.3-70b", "ecologits 0.11.3", "qwen2.5:7b", "v1.2", "a@1.5", "MPL-2.0"]
)
def test_names_and_versions_stay_what_they_are(words: str) -> None:
    assert Numbers("de").prose(f"On {words}, or not.") == f"On {words}, or not."


def test_one_of_a_thing_is_not_many(page: Page, tmp_path: Path) -> None:
    """A ledger with one request, and every page of it."""
    made = one_request(tmp_path)
    many = re.compile(
        r"(?<![\d.,\u202f–-])1[ \u202f](requests|tokens|hits|days|times|attempts|users)\b"
    )
    with chromium.served(app_of(snapshots_of(made), studies=Ready())) as url:
        for name in [*PAGES, "requests?by=day"]:
            sign = "&" if "?" in name else "?"
            page.goto(f"{url}/dashboard/search/{name}{sign}period=2026-10&lang=en")
            found = [text for text in page.evaluate(WORDS) if many.search(text)]
            assert found == [], name
        page.goto(f"{url}/dashboard/search/overview?period=2026-10&lang=en")
        assert page.get_by_role("link", name="1 request: each of them").count() == 1
    made.close()


def one_request(folder: Path) -> Ledger:
    from proxy.dashboard.sample import sample_hours

    hour = next(
        hour for hour in sample_hours(MONTH.start_s + 8 * 3600, 9, scale=1.0) if hour.records
    )
    ledger = Ledger(str(folder / "one.db"))
    mine = next(r for r in hour.records if r.team == "search" and r.node)
    ledger.write([mine], [], [])
    return ledger


def test_sentences_of_a_decision_are_in_the_readers_decimals() -> None:
    from policies.explanation import explained

    decision = Decision(
        policy="p",
        chosen="llama-3.3-70b",
        reason="the least energy, 12.5 J",
        order=("llama-3.3-70b", "b"),
        rejections=(Rejection(backend="b", code="dominated", message="takes 13.75 J"),),
        moving_energy_j=3.25,
    )
    n = Numbers("de")
    said = " ".join(n.prose(each) for each in explained(decision))
    assert "12,5 J" in said
    assert "13,75 J" in said
    assert "3,25 J" in said
    assert "llama-3.3-70b" in said
