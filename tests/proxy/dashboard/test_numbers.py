from __future__ import annotations

import pytest
from babel.numbers import format_decimal
from hypothesis import given
from hypothesis import strategies as st

from proxy.dashboard.numbers import LANGUAGES, Numbers, language_of


@pytest.mark.parametrize(
    ("language", "wanted"),
    [("en", "1,234,567.80"), ("de", "1.234.567,80"), ("fr", "1\u202f234\u202f567,80")],
)
def test_grouping_and_decimals_follow_the_language(language: str, wanted: str) -> None:
    assert Numbers(language).plain(1_234_567.8, 2) == wanted


@pytest.mark.parametrize(
    ("ug", "wanted"),
    [
        (41.8e9, "41.8\u202fkg"),
        (620e6, "620\u202fg"),
        (1.2e12, "1.20\u202ft"),
        (5e3, "5.00\u202fmg"),
        (0, "0\u202fg"),
        (None, "–"),
        (-5.7e9, "−5.70\u202fkg"),
    ],
)
def test_masses_take_the_unit_that_reads_best(ug: float | None, wanted: str) -> None:
    assert Numbers("en").mass(ug) == wanted


def test_unknown_is_a_dash_and_never_zero() -> None:
    n = Numbers("en")
    for write in (
        n.plain,
        n.significant,
        n.short,
        n.mass,
        n.kg,
        n.kwh,
        n.energy,
        n.litres,
        n.percent,
    ):
        assert write(None) == "–"


def test_small_figures_in_columns_are_not_rounded_away() -> None:
    n = Numbers("en")
    assert (n.kg(41.8e9), n.kg(3.04e6), n.kwh(0)) == ("41.800", "0.00304", "0.000")


@pytest.mark.parametrize(
    ("now", "before", "wanted"),
    [(88, 100, "▼ 12\u202f%"), (112, 100, "▲ 12\u202f%"), (1, 0, "–"), (2500, 100, "▲ ×25")],
)
def test_changes_say_their_direction(now: float, before: float, wanted: str) -> None:
    assert Numbers("en").change(now, before) == wanted


@pytest.mark.parametrize(
    ("asked", "accepted", "found"),
    [
        ("de", "fr", "de"),
        (None, "fr-CA,fr;q=0.8,en;q=0.5", "fr"),
        (None, "ja,de;q=0.5", "de"),
        ("xx", None, "en"),
    ],
)
def test_the_link_goes_before_the_browser(
    asked: str | None, accepted: str | None, found: str
) -> None:
    assert language_of(asked, accepted) == found


@given(
    st.sampled_from(LANGUAGES),
    st.floats(-1e15, 1e15, allow_nan=False),
    st.integers(0, 9),
)
def test_figures_are_written_as_the_locale_data_say(
    language: str, value: float, digits: int
) -> None:
    locale = {"en": "en_GB", "de": "de_DE", "fr": "fr_FR"}[language]
    pattern = "#,##0" + ("." + "0" * digits if digits else "")
    wanted = format_decimal(value, format=pattern, locale=locale).replace("-", "−")
    written = Numbers(language).plain(value, digits)
    assert written == wanted or (written, wanted) == ("0", "−0")
