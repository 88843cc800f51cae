"""Attribution: the books balance to the last bit, and the truth is found."""

import math
import random
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meters.attribution import QUANTUM_J, Divider, attribute, attribute_all
from meters.simulated_physics import LLAMA_8B_BF16, EngineConfig, Job
from meters.simulated_traffic import simulate
from meters.types import Activity, Around, EngineWork, Evidence, Window

finite = st.floats(0, 1e6, allow_nan=False)
maybe = st.one_of(st.none(), finite)
times = st.floats(-50, 150, allow_nan=False)

windows = st.builds(
    Window,
    window_id=st.text("abcdef", min_size=1, max_size=3),
    node=st.sampled_from(["a", "b"]),
    start_s=times,
    end_s=times,
    energy_j=st.floats(-10, 1e6),
    idle_power_w=st.one_of(st.none(), st.floats(0, 1e4)),
    prompt_tokens=maybe,
    cached_prompt_tokens=maybe,
    generated_tokens=maybe,
    steps=maybe,
    engines=st.lists(
        st.builds(EngineWork, engine=st.sampled_from("xy"), steps=maybe, generated_tokens=maybe),
        max_size=2,
    ).map(tuple),
)
activities = st.builds(
    Activity,
    request_id=st.text("abcdef", min_size=1, max_size=2),
    node=st.sampled_from(["a", "b", "unknown"]),
    start_s=times,
    first_token_s=st.one_of(st.none(), times),
    end_s=st.one_of(st.none(), times),
    prompt_tokens=finite,
    cached_prompt_tokens=finite,
    output_tokens=finite,
    progress=st.lists(st.tuples(times, finite), max_size=3).map(tuple),
    engine=st.sampled_from(["", "x"]),
)


@given(st.lists(windows, max_size=12), st.lists(activities, max_size=12), st.booleans())
@settings(max_examples=80)
def test_the_books_balance_exactly_whatever_comes_in(some_windows, some_activities, physics_known):
    names = ("a", "a/", "a/x", "a/y")
    physics = dict.fromkeys(names, LLAMA_8B_BF16) if physics_known else None
    books = attribute_all(some_windows, some_activities, physics)
    assert len(books.attributions) + books.refused.total() == len(some_windows)
    for a in books.attributions:
        shares = [s.energy_j for s in a.shares]
        parts = [*shares, a.idle_j, a.external_j, a.unattributed_j]
        assert all(math.isfinite(part) for part in parts)
        assert all(part > 0 for part in shares)
        assert min(a.idle_j, a.external_j, a.unattributed_j) >= 0
        # Exactly, in real arithmetic and in floating point, in this order and in the other.
        assert sum(map(Fraction, parts)) == Fraction(a.metered_j)
        assert sum(parts) == a.metered_j == sum(reversed(parts))
    assert books.attributed_j + books.idle_j + books.unattributed_j == books.metered_j
    by_request = books.request_j(a.request_id for a in some_activities)
    assert sum(by_request.values()) == books.attributed_j


@given(st.lists(windows, max_size=8), st.lists(activities, max_size=8), st.randoms())
@settings(max_examples=200)
def test_the_order_of_requests_changes_nothing(some_windows, some_activities, order):
    unique = list({a.request_id: a for a in some_activities}.values())
    shuffled = unique.copy()
    order.shuffle(shuffled)
    one, other = (attribute_all(some_windows, a) for a in (unique, shuffled))
    ids = [a.request_id for a in unique]
    assert one.request_j(ids) == other.request_j(ids)


def window(start_s=0.0, end_s=1.0, energy_j=300.0, **more):
    return Window(
        window_id=more.pop("window_id", f"{start_s}-{end_s}"),
        node="a",
        start_s=start_s,
        end_s=end_s,
        energy_j=energy_j,
        idle_power_w=100.0,
        **more,
    )


def activity(request_id="r", start_s=0.1, first_token_s=0.2, end_s=0.9, **more):
    return Activity(
        request_id=request_id,
        node="a",
        start_s=start_s,
        first_token_s=first_token_s,
        end_s=end_s,
        prompt_tokens=more.pop("prompt_tokens", 100.0),
        output_tokens=more.pop("output_tokens", 50.0),
        **more,
    )


def test_one_request_alone_gets_all_that_is_above_idle():
    divided = attribute(window(energy_j=180.0), [activity()], LLAMA_8B_BF16)
    assert divided.idle_j == 100.0
    assert divided.shares[0].energy_j == 80.0
    assert divided.unattributed_j == 0.0


def test_idle_is_idle_also_while_the_engine_is_busy_and_when_nobody_is_there():
    empty = attribute(window(energy_j=130.0), [], LLAMA_8B_BF16)
    assert (empty.idle_j, empty.shares, empty.unattributed_j) == (100.0, (), 30.0)


def test_a_meter_that_reads_less_than_idle_leaves_nothing_to_divide():
    divided = attribute(window(energy_j=60.0), [activity()], LLAMA_8B_BF16)
    assert (divided.idle_j, divided.shares) == (60.0, ())


def test_equal_requests_get_equal_shares_and_longer_ones_more():
    pair = [activity("one"), activity("two"), activity("long", prompt_tokens=4_000.0)]
    shares = {s.request_id: s.energy_j for s in attribute(window(), pair, LLAMA_8B_BF16).shares}
    assert shares["one"] == pytest.approx(shares["two"], abs=2 * QUANTUM_J)
    assert shares["long"] > 1.5 * shares["one"]


def test_a_request_pays_in_every_window_it_was_in_and_not_elsewhere():
    three = [window(s, s + 1.0, 180.0) for s in (0.0, 1.0, 2.0)]
    books = attribute_all(three, [activity(end_s=1.5)], {"a": LLAMA_8B_BF16})
    assert [len(a.shares) for a in books.attributions] == [1, 1, 0]


def test_a_cached_prompt_costs_its_request_less():
    pair = [
        activity("cold", prompt_tokens=2_000.0),
        activity("warm", prompt_tokens=2_000.0, cached_prompt_tokens=1_900.0),
    ]
    shares = {s.request_id: s.energy_j for s in attribute(window(), pair, LLAMA_8B_BF16).shares}
    assert shares["cold"] > 1.3 * shares["warm"]


def test_a_request_still_in_flight_is_charged_for_what_it_did_so_far():
    running = activity(end_s=None, output_tokens=20.0)
    divided = attribute(window(energy_j=180.0), [running], LLAMA_8B_BF16)
    assert divided.shares[0].energy_j == 80.0


def test_an_answer_that_was_not_streamed_is_charged_where_it_was_generated():
    whole = activity(first_token_s=None, start_s=0.0, end_s=4.0, output_tokens=400.0)
    four = [window(s, s + 1.0, 400.0) for s in (0.0, 1.0, 2.0, 3.0)]
    books = attribute_all(four, [whole], {"a": LLAMA_8B_BF16})
    assert [a.shares[0].energy_j for a in books.attributions] == [300.0] * 4


def test_watched_progress_says_where_the_tokens_fell():
    halting = activity(
        start_s=0.0, first_token_s=0.1, end_s=1.9, output_tokens=101.0, progress=((1.0, 91.0),)
    )
    steady = activity("steady", start_s=0.0, first_token_s=0.1, end_s=1.9, output_tokens=101.0)
    two = [window(s, s + 1.0, 400.0) for s in (0.0, 1.0)]
    books = attribute_all(two, [halting, steady], {"a": LLAMA_8B_BF16})
    first, second = ({s.request_id: s.energy_j for s in a.shares} for a in books.attributions)
    assert first["r"] > first["steady"]
    assert second["r"] < second["steady"]


def test_energy_far_beyond_what_requests_can_have_used_is_not_charged_to_them():
    divided = attribute(window(energy_j=100_000.0), [activity()], LLAMA_8B_BF16)
    assert divided.unattributed_j > 90_000


def test_bad_windows_are_refused_or_repaired_and_counted():
    books = attribute_all(
        [
            window(2.0, 3.0),
            window(0.0, 1.0, window_id="first"),
            window(0.0, 1.0, window_id="again"),
            window(5.0, 6.0, window_id="first"),
            window(8.0, 7.0),
            window(9.0, 10.0, -1.0),
            window(2.2, 3.1),
            window(2.8, 3.8, 300.0),
            window(3.79, 4.8),
            msgspec.structs.replace(window(20.0, 21.0), energy_j=math.nan),
        ],
        [],
    )
    assert books.refused == {"duplicated": 2, "unreadable": 2, "negative": 1, "overlapping": 1}
    assert books.repaired == {"out_of_order": 1, "trimmed": 1}
    kept = [(a.start_s, a.end_s, round(a.metered_j)) for a in books.attributions]
    assert kept == [(0.0, 1.0, 300), (2.0, 3.0, 300), (3.0, 3.8, 240), (3.8, 4.8, 300)]
    with pytest.raises(ValueError, match="negative"):
        attribute(window(energy_j=-1.0), [], LLAMA_8B_BF16)


def test_an_attribution_keeps_its_windows_evidence():
    simulated = window(evidence=Evidence.SIMULATED, meter="simulated")
    divided = attribute(simulated, [], LLAMA_8B_BF16)
    assert (divided.evidence, divided.meter) == (Evidence.SIMULATED, "simulated")


def traffic(seed=3, requests=500, external=0.0, in_flight=24, prompt_mean=5.5, **config):
    random_ = random.Random(seed)
    left = iter(range(requests))

    def job(at_s):
        return Job(
            request_id=f"r{next(left)}",
            prompt_tokens=1 + int(random_.lognormvariate(prompt_mean, 1.0)),
            output_tokens=1 + int(random_.lognormvariate(4.5, 0.8)),
            arrival_s=at_s,
            external=random_.random() < external,
        )

    def another(seq):
        try:
            yield job(seq.end_s + 0.02)
        except StopIteration:
            return

    first = [job(random_.random()) for _ in range(in_flight)]
    return simulate(EngineConfig(seed=seed, **config), first, on_end=another)


def errors(run, books):
    truth, found = run.request_j(), books.request_j(a.request_id for a in run.activities)
    return sorted(abs(found[i] - truth[i]) / truth[i] for i in found), truth, found


def test_the_true_energy_of_each_request_is_found_without_being_told_coefficients():
    run = traffic()
    relative, truth, found = errors(run, attribute_all(run.windows, run.activities))
    assert relative[len(relative) // 2] < 0.03
    assert relative[int(len(relative) * 0.95)] < 0.10
    long_ = [i for i in found if run.jobs[i].output_tokens > 150]
    assert sum(found[i] for i in long_) == pytest.approx(sum(truth[i] for i in long_), rel=0.03)


def test_without_a_step_counter_it_is_found_nearly_as_well():
    run = traffic()
    blind = [msgspec.structs.replace(w, steps=None) for w in run.windows]
    relative, _, _ = errors(run, attribute_all(blind, run.activities))
    assert relative[len(relative) // 2] < 0.05
    assert relative[int(len(relative) * 0.95)] < 0.15


def test_traffic_that_came_another_way_is_not_charged_to_ours():
    run = traffic(external=0.3)
    books = attribute_all(run.windows, run.activities)
    foreign = {i for i, job in run.jobs.items() if job.external}
    true_j = sum(j for w in run.truth_j.values() for i, j in w.items() if i in foreign)
    external_j = sum(a.external_j for a in books.attributions)
    assert external_j == pytest.approx(true_j, rel=0.05)
    relative, _, _ = errors(run, books)
    assert relative[len(relative) // 2] < 0.05


def test_others_long_prompts_are_not_charged_to_ours():
    random_ = random.Random(4)

    def job(i, at_s):
        theirs = at_s % 40 > 20 and random_.random() < 0.4
        prompt = 1 + int(random_.lognormvariate(5.5, 1.0))
        return Job(
            request_id=f"r{i}",
            prompt_tokens=10 * prompt if theirs else prompt,
            output_tokens=1 + int(random_.lognormvariate(4.5, 0.8)),
            arrival_s=at_s,
            external=theirs,
        )

    run = simulate(EngineConfig(seed=4, kv_tokens=10**6), [job(i, i / 9) for i in range(900)])
    for found in (
        attribute_all(run.windows, run.activities, {"simulated": LLAMA_8B_BF16}).request_j(
            a.request_id for a in run.activities
        ),
        live(run, 10, 3)[0],
    ):
        truth = run.request_j()
        relative = sorted(abs(found[i] - truth[i]) / truth[i] for i in found)
        assert relative[len(relative) // 2] < 0.02
        assert relative[int(len(relative) * 0.95)] < 0.08
        whole = sum(found.values()) / sum(truth[i] for i in found)
        assert whole == pytest.approx(1.0, abs=0.01)


def test_nothing_is_called_external_when_everything_came_through_here():
    books = attribute_all((run := traffic(in_flight=100)).windows, run.activities)
    assert sum(a.external_j for a in books.attributions) == 0.0


def test_idle_power_is_learnt_where_windows_without_requests_show_it():
    run = traffic(requests=200)
    untold = [msgspec.structs.replace(w, idle_power_w=None) for w in run.windows]
    last_s = run.windows[-1].end_s
    quiet = Window(
        window_id="quiet",
        node="simulated",
        start_s=last_s + 1,
        end_s=last_s + 3,
        energy_j=200.0,
        prompt_tokens=0.0,
        generated_tokens=0.0,
        steps=0.0,
    )
    books = attribute_all([*untold, quiet], run.activities)
    fit = books.fits["simulated"]
    assert fit.idle_known
    assert fit.physics.idle_power_w == pytest.approx(100.0, rel=0.02)


def live(run, behind=0, ahead=0):
    """The run's windows divided one at a time, among so many neighbours."""
    divider = Divider()
    total = {}
    external_j = 0.0
    for i, w in enumerate(run.windows):
        before = tuple(run.windows[max(0, i - behind) : i])
        after = tuple(run.windows[i + 1 : i + 1 + ahead])
        start_s, end_s = (before or (w,))[0].start_s, (after or (w,))[-1].end_s
        known = [a for a in run.activities if a.start_s < end_s and a.end_s >= start_s]
        divided, work = divider.divide(w, known, LLAMA_8B_BF16, Around(before, after))
        external_j += divided.external_j
        parts = [s.energy_j for s in divided.shares]
        parts += [divided.idle_j, divided.external_j, divided.unattributed_j]
        assert math.fsum(parts) == w.energy_j
        assert {s.window_id for s in divided.shares} <= {w.window_id}
        assert work.generated >= 0
        for share in divided.shares:
            total[share.request_id] = total.get(share.request_id, 0.0) + share.energy_j
    return total, external_j


def test_windows_divided_one_at_a_time_find_the_truth_too():
    run = traffic()
    found, external_j = live(run)
    truth = run.request_j()
    relative = sorted(abs(found[i] - truth[i]) / truth[i] for i in found)
    assert relative[len(relative) // 2] < 0.05
    assert relative[int(len(relative) * 0.95)] < 0.15
    assert external_j == 0.0


def error_p95(run, found):
    truth = run.request_j()
    relative = sorted(abs(found.get(i, 0.0) - j) / j for i, j in truth.items() if j > 0)
    return relative[int(len(relative) * 0.95)]


def test_beside_its_neighbours_a_window_is_divided_better():
    run = traffic(prompt_mean=8.0)
    alone, beside = (error_p95(run, live(run, *around)[0]) for around in ((0, 0), (10, 3)))
    assert beside < 0.6 * alone, (beside, alone)


def test_neighbours_that_cannot_be_used_are_left_out():
    run = traffic(requests=60)
    here, after = run.windows[3], run.windows[4]
    known = [a for a in run.activities if a.start_s < after.end_s and a.end_s >= here.start_s]
    broken = msgspec.structs.replace(run.windows[2], energy_j=-1.0)
    torn = Around((broken,), (msgspec.structs.replace(after, start_s=here.start_s), after))
    good = Around((), (after,))
    divided = [Divider().divide(here, known, LLAMA_8B_BF16, a)[0] for a in (torn, good)]
    assert divided[0] == divided[1]


def test_one_at_a_time_foreign_traffic_shows_after_some_windows():
    run = traffic(external=0.3, requests=800)
    _, external_j = live(run)
    true_j = sum(
        joules
        for shares in run.truth_j.values()
        for request_id, joules in shares.items()
        if run.jobs[request_id].external
    )
    assert external_j == pytest.approx(true_j, rel=0.25)


def test_a_window_that_cannot_be_used_says_why():
    with pytest.raises(ValueError, match="negative"):
        Divider().divide(window(energy_j=-1.0), [], None)


def test_energy_of_a_prompt_that_still_waits_draws_no_other_prompt_to_it() -> None:
    def second(number: int, above_j: float, steps: float) -> Window:
        return Window(
            window_id=str(number),
            node="n",
            start_s=float(number),
            end_s=number + 1.0,
            energy_j=100.0 + above_j,
            idle_power_w=100.0,
            steps=steps,
            generated_tokens=steps,
        )

    stream = Activity(
        request_id="stream", node="n", start_s=-1.0, first_token_s=-0.5, output_tokens=200.0
    )
    done = Activity(
        request_id="done", node="n", start_s=0.8, first_token_s=1.08, end_s=1.08,
        prompt_tokens=10_000.0, output_tokens=1.0,
    )  # fmt: skip
    waiting = Activity(request_id="waiting", node="n", start_s=1.0, prompt_tokens=20_000.0)

    def share_j(activities: list[Activity], after_j: float) -> float:
        around = Around((), (second(1, after_j, 60.0),))
        window = second(0, 350.0, 80.0)
        divided, _ = Divider().divide(window, activities, LLAMA_8B_BF16, around)
        return {share.request_id: share.energy_j for share in divided.shares}["done"]

    usual = share_j([stream, done], 240.0)
    assert share_j([stream, done, waiting], 520.0) == pytest.approx(usual, rel=0.2)
    # If nobody waits the energy says that it was done later.
    assert share_j([stream, done], 520.0) < 0.5 * usual
