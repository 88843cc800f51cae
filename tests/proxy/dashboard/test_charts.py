from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dashboard import charts

amounts = st.floats(0, 1e6)


def write(value: float) -> str:
    return f"{value:.2f} kg"


def drawn(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(markup)


@given(st.lists(st.tuples(amounts, amounts), min_size=1, max_size=31))
def test_days_stay_inside_their_frame(days: list[tuple[float, float]]) -> None:
    layers = [("active", "active", [a for a, _ in days]), ("idle", "idle", [b for _, b in days])]
    labels = [f"2026-10-{n + 1:02d}" for n in range(len(days))]
    picture = drawn(charts.stacked_days(labels, layers, write, "days", marker=5.0))
    _, _, width, height = map(float, picture.attrib["viewBox"].split())
    for rect in picture.iter("rect"):
        x, y, w, h = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        assert -0.02 <= x <= x + w <= width + 0.02
        assert -0.02 <= y <= y + h <= height + 0.02


def test_heights_are_in_proportion() -> None:
    picture = drawn(charts.stacked_days(["a", "b"], [("active", "x", [1.0, 2.0])], write, "t"))
    low, high = (float(rect.attrib["height"]) for rect in picture.iter("rect"))
    assert high == pytest.approx(2 * low, rel=1e-2)


def test_less_goes_left_and_more_goes_right() -> None:
    picture = drawn(charts.diverging([("grid", -2.0), ("volume", 1.0)], write, "why"))
    left, right = list(picture.iter("rect"))
    assert (left.attrib["class"], right.attrib["class"]) == ("less", "more")
    end = float(left.attrib["x"]) + float(left.attrib["width"])
    assert end == pytest.approx(float(right.attrib["x"]))
    assert float(left.attrib["width"]) == pytest.approx(2 * float(right.attrib["width"]), rel=1e-2)


def test_every_chart_has_a_title_and_its_figures_in_words() -> None:
    for markup in (
        charts.stacked_days(["a"], [("active", "x", [1.0])], write, "title"),
        charts.diverging([("grid", -2.0)], write, "title"),
        charts.evidence_bar([("metered", 3.0)], "title", "100 % metered"),
        charts.meter(1.0, 2.0, 3.0, 4.0, "title", "1 of 4"),
        charts.heat(["Oct"], [[1.0] * 24], write, "title"),
        charts.columns([1.0] * 24, write, "title"),
    ):
        picture = drawn(markup)
        assert picture.attrib["role"] == "img"
        assert picture.find("title") is not None
        assert (picture.findtext("desc") or "").strip()
        assert "style" not in picture.attrib


def test_names_are_escaped() -> None:
    assert "<script>" not in charts.diverging([("<script>", 1.0)], write, "</title><script>")


@pytest.mark.parametrize("value", [0.0, 0.00031, 0.9, 1.0, 9.5, 10.0, 99.0, 123456.0])
def test_the_top_of_an_axis_is_at_or_above_and_not_far(value: float) -> None:
    top = charts.nice_top(value)
    assert value <= top <= max(value * 2.1, 1.0)
