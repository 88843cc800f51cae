"""Plain counters and histograms say to Prometheus what prometheus_client's own would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from proxy.tallies import Spread, Tally

BOUNDS = (0.01, 0.5, 1, 30)
VALUES = st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 100)), max_size=20)


def text_of(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if "_created" not in line)


@given(VALUES)
def test_they_read_like_the_librarys_own(values: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("joules", "Energy.", ["who"], ours)
    spread = Spread("seconds", "Time.", ["who"], BOUNDS, ours)
    counter = Counter("joules", "Energy.", ["who"], registry=theirs)
    histogram = Histogram("seconds", "Time.", ["who"], buckets=BOUNDS, registry=theirs)
    for who, value in values:
        tally.add((who,), value)
        spread.observe((who,), value)
        counter.labels(who).inc(value)
        histogram.labels(who).observe(value)
    assert text_of(ours) == text_of(theirs)


def test_one_without_labels_is_there_from_the_start_and_never_falls() -> None:
    registry = CollectorRegistry()
    tally = Tally("keys", "Keys.", [], registry)
    assert registry.get_sample_value("keys_total") == 0
    tally.add((), 2)
    with pytest.raises(ValueError, match="never falls"):
        tally.add((), -1)
    assert registry.get_sample_value("keys_total") == 2
