from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.dashboard.decomposition import Bars, Group, decompose

groups = st.builds(
    Group, st.integers(0, 10**7), st.integers(0, 10**15), st.integers(0, 10**14)
).filter(lambda g: g.requests > 0 or (g.energy_uj == 0 and g.carbon_ug == 0))
periods = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), groups, max_size=4)
idles = st.integers(0, 10**14)


@given(periods, periods, idles, idles)
def test_the_bars_sum_exactly_to_the_change(
    before: dict[str, Group], after: dict[str, Group], idle0: int, idle1: int
) -> None:
    change = sum(g.carbon_ug for g in after.values()) + idle1
    change -= sum(g.carbon_ug for g in before.values()) + idle0
    assert decompose(before, after, idle0, idle1).total_ug == change


@given(periods, idles)
def test_nothing_changed_means_no_bars(period: dict[str, Group], idle: int) -> None:
    assert decompose(period, period, idle, idle) == Bars(
        volume_ug=0, mix_ug=0, efficiency_ug=0, grid_ug=0, idle_ug=0
    )


def only(bars: Bars) -> dict[str, int]:
    return {name: ug for name, ug in bars.named() if abs(ug) > 1}


def test_each_cause_alone_gives_its_own_bar_alone() -> None:
    before = {"a": Group(100, 10**9, 10**8), "b": Group(100, 10**8, 10**7)}
    twice = {"a": Group(200, 2 * 10**9, 2 * 10**8), "b": Group(200, 2 * 10**8, 2 * 10**7)}
    dirtier = {"a": Group(100, 10**9, 2 * 10**8), "b": Group(100, 10**8, 2 * 10**7)}
    thriftier = {"a": Group(100, 5 * 10**8, 5 * 10**7), "b": Group(100, 5 * 10**7, 5 * 10**6)}
    assert only(decompose(before, twice)) == {"volume": 11 * 10**7}
    assert only(decompose(before, dirtier)) == {"grid": 11 * 10**7}
    assert only(decompose(before, thriftier)) == {"efficiency": -55 * 10**6}
    assert only(decompose(before, before, 5, 500)) == {"idle": 495}


def test_a_move_to_a_smaller_model_is_mix() -> None:
    before = {"large": Group(90, 9 * 10**9, 9 * 10**8), "small": Group(10, 10**8, 10**7)}
    after = {"large": Group(10, 10**9, 10**8), "small": Group(90, 9 * 10**8, 9 * 10**7)}
    bars = decompose(before, after)
    assert only(bars) == {"model mix": 19 * 10**7 - 91 * 10**7}


def test_a_model_that_appears_or_goes_is_mix_and_a_first_period_is_volume() -> None:
    base = {"a": Group(100, 10**9, 10**8)}
    both = {"a": Group(100, 10**9, 10**8), "new": Group(0, 0, 0)}
    assert only(decompose(base, both)) == {}
    bars = decompose(base, base | {"new": Group(1, 10, 777)})
    assert (bars.efficiency_ug, bars.grid_ug, bars.volume_ug + bars.mix_ug) == (0, 0, 777)
    assert only(decompose({}, base)) == {"volume": 10**8}
    assert only(decompose(base, {})) == {"volume": -(10**8)}
