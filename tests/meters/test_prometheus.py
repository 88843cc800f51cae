"""Single series out of a Prometheus page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meters.prometheus import Series, Wanted


def read(page: str, *names: str) -> list[Series]:
    return list(Wanted(names).read(page.encode()))


def test_only_whole_names_are_found() -> None:
    page = "tokens 1\ntokens_total 2\nmore_tokens 3\n# tokens 4\n"
    assert read(page, "tokens") == [Series("tokens", {}, 1.0)]


def test_labels_may_hold_braces_quotes_commas_and_newlines() -> None:
    page = 'a{m="x}, y=\\"1\\"",n="two\\nlines\\\\"} 5\n'
    assert read(page, "a") == [Series("a", {"m": 'x}, y="1"', "n": "two\nlines\\"}, 5.0)]


def test_time_stamps_and_exemplars_are_not_values() -> None:
    page = 'a{l="1"} 5 1700000000000\nb_total 6 # {trace_id="7"} 8 9\n'
    assert [s.value for s in read(page, "a", "b_total")] == [5.0, 6.0]


def test_what_is_no_number_is_left_out() -> None:
    assert read("a NaN\na +Inf\na soon\na 1e3\n", "a") == [Series("a", {}, 1000.0)]


def test_a_colon_written_as_underscore_is_found_under_the_name_asked_for() -> None:
    assert read("vllm_running 2\n", "vllm:running") == [Series("vllm:running", {}, 2.0)]


label_values = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=20)


@given(label_values, st.floats(allow_nan=False, allow_infinity=False))
def test_any_label_value_comes_back(label: str, value: float) -> None:
    escaped = label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    assert read(f'a{{x="{escaped}"}} {value!r}\n', "a") == [Series("a", {"x": label}, value)]
