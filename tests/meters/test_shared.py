"""Several engines on one GPU: its windows are divided among the requests of all of them."""

import msgspec
import pytest

from benchmarks.attribution import ENGINES, Scenario, on_one_gpu, play
from meters.attribution import Divider, attribute_all
from meters.shared import of_engine
from meters.types import Activity, EngineWork, Window

PHYSICS = {"one": ENGINES["8b"], "other": ENGINES["small"]}


@pytest.fixture(scope="module")
def seen():
    return on_one_gpu(
        play(Scenario("one", "8b", 24, 400), 5), play(Scenario("other", "small", 8, 300), 6)
    )


def errors(seen, found):
    truth = seen.truth_j
    return sorted(abs(found[i] - truth[i]) / truth[i] for i in found)


def of(energies, engine):
    return sum(j for i, j in energies.items() if i.startswith(engine + " "))


def found_by(seen, windows, physics=None):
    books = attribute_all(windows, seen.activities, physics)
    for a in books.attributions:
        shares = sum(share.energy_j for share in a.shares)
        assert shares + a.idle_j + a.external_j + a.unattributed_j == a.metered_j
    return books.request_j(a.request_id for a in seen.activities)


TOLD = {f"simulated/{name}": known for name, known in PHYSICS.items()}


@pytest.mark.parametrize(("physics", "off"), [(TOLD, 0.03), (None, 0.06)])
def test_each_request_gets_what_it_caused_whoever_served_it(seen, physics, off):
    found = found_by(seen, seen.windows, physics)
    relative = errors(seen, found)
    assert relative[len(relative) // 2] < 0.05
    assert relative[int(len(relative) * 0.95)] < 0.15
    for engine in PHYSICS:  # one of them uses a tenth of the other
        assert of(found, engine) == pytest.approx(of(seen.truth_j, engine), rel=off)


def test_without_each_engines_own_counters_it_is_found_from_what_the_proxy_saw(seen):
    blind = [msgspec.structs.replace(w, engines=()) for w in seen.windows]
    relative = errors(seen, found_by(seen, blind, TOLD))
    assert relative[len(relative) // 2] < 0.05
    assert relative[int(len(relative) * 0.95)] < 0.15


def test_one_window_at_a_time_as_the_proxy_does(seen):
    divider, found = Divider(), {a.request_id: 0.0 for a in seen.activities}
    for window in seen.windows:
        active = [a for a in seen.activities if a.start_s < window.end_s > window.start_s]
        active = [a for a in active if a.end_s is None or a.end_s >= window.start_s]
        divided, works = divider.divide_shared(window, active, PHYSICS)
        assert set(works) >= {a.engine for a in active}
        for share in divided.shares:
            found[share.request_id] += share.energy_j
    relative = errors(seen, found)
    assert relative[len(relative) // 2] < 0.05
    assert relative[int(len(relative) * 0.95)] < 0.15


def test_one_engines_foreign_traffic_is_not_charged_to_the_other():
    mixed = on_one_gpu(
        play(Scenario("one", "8b", 24, 400, external=0.3), 5),
        play(Scenario("other", "small", 8, 300), 6),
    )
    books = attribute_all(mixed.windows, mixed.activities)
    foreign_j = sum(
        joules
        for shares in mixed.run.truth_j.values()
        for request_id, joules in shares.items()
        if mixed.run.jobs[request_id].external
    )
    assert sum(a.external_j for a in books.attributions) == pytest.approx(foreign_j, rel=0.1)
    found = books.request_j(a.request_id for a in mixed.activities)
    assert of(found, "other") == pytest.approx(
        sum(j for i, j in mixed.truth_j.items() if i.startswith("other ")), rel=0.08
    )


def test_an_idle_engine_leaves_all_to_the_one_at_work():
    window = Window(
        window_id="w", node="n", start_s=0.0, end_s=1.0, energy_j=400.0, idle_power_w=100.0
    )
    alone = Activity(
        request_id="r", node="n", start_s=0.1, first_token_s=0.2, end_s=0.9,
        prompt_tokens=50.0, output_tokens=90.0, engine="one",
    )  # fmt: skip
    divided, _ = Divider().divide_shared(window, [alone], PHYSICS)
    assert divided.idle_j == pytest.approx(100.0, abs=1e-5)
    assert [s.request_id for s in divided.shares] == ["r"]
    assert divided.external_j == 0.0


def test_counts_are_an_engines_own_or_unknown():
    window = Window(
        window_id="w", node="n", start_s=0.0, end_s=1.0, energy_j=1.0, steps=30.0,
        engines=(EngineWork(engine="one", steps=10.0, version="1"),),
    )  # fmt: skip
    assert of_engine(window, "one").steps == 10.0
    assert of_engine(window, "one").engine_version == "1"
    assert of_engine(window, "other").steps is None
