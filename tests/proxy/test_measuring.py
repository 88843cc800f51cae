"""Learning in the proxy: windows teach, what was taught is told, and is there after a restart."""

import msgspec
import pytest

from meters.local import host
from meters.simulated_physics import LLAMA_8B_BF16, EngineConfig, Job
from meters.simulated_traffic import simulate
from meters.types import Activity, StepPhysics, Window
from proxy.measuring import Learning, Measuring, meter_settings, sharing
from proxy.settings import BackendSettings, MeterSource, Settings
from tests.waiting import until


class Engine:
    name = "llama@bf16"
    group = "llama"
    node = "gpu-a"
    url = "http://gpu-a:8000/v1"

    class facts:  # noqa: N801
        engine = "vllm"
        engine_version = "0.33"
        group = "llama"
        precision = "bf16"


class Pool:
    engines = (Engine,)
    by_name = {"llama@bf16": Engine}  # noqa: RUF012


PRIOR = StepPhysics(
    **{name: 1.4 * getattr(LLAMA_8B_BF16, name) for name in StepPhysics.__struct_fields__}
)


def learning(path):
    made = Learning(Pool(), path)
    made.prior = lambda _: PRIOR
    return made


@pytest.fixture(scope="module")
def run():
    jobs = [
        Job(
            request_id=str(i),
            prompt_tokens=50 + 37 * i % 900,
            output_tokens=20 + 53 * i % 400,
            arrival_s=0.4 * i if i % 100 < 60 else 0.4 * (i - i % 100) + 0.1 * (i % 100),
        )
        for i in range(300)
    ]
    return simulate(EngineConfig(), jobs, node="gpu-a")


def teach(made, run):
    for window in run.windows:
        known = [a for a in run.activities if a.start_s < window.end_s]
        known = [a for a in known if a.end_s >= window.start_s]
        divided = made.divide(window, known, made.physics("gpu-a"))
        assert divided.metered_j == window.energy_j
        made.observe(window, known)


def test_windows_teach_and_the_lesson_survives_a_restart(tmp_path, run):
    made = learning(tmp_path / "steps.json")
    assert made.physics("gpu-a") is PRIOR
    assert made.learnt("llama@bf16") is None
    teach(made, run)
    learnt = made.learnt("llama@bf16")
    assert learnt.step_j == pytest.approx(LLAMA_8B_BF16.step_j, rel=0.05)
    made.save()
    again = learning(tmp_path / "steps.json")
    assert again.learnt("llama@bf16").step_j == pytest.approx(learnt.step_j, rel=0.03)


def test_an_engine_that_changes_precision_starts_from_the_prior_of_what_it_serves_now(run):
    class Served:
        engine, engine_version, group, precision = "vllm", "0.33", "llama", "bf16"

    class Now(Engine):
        facts = Served

    pool = Pool()
    pool.engines, pool.by_name = (Now,), {"llama@bf16": Now}
    light = StepPhysics(
        **{name: 0.5 * getattr(PRIOR, name) for name in StepPhysics.__struct_fields__}
    )
    made = Learning(pool, None)
    made.prior = lambda facts: PRIOR if facts.precision == "bf16" else light
    for window in run.windows[:-1]:
        made.observe(window, [])
    assert made.learners["gpu-a"].prior is PRIOR
    Served.precision = "fp8"
    made.observe(run.windows[-1], [])
    assert made.learners["gpu-a"].prior is light


def test_an_engine_that_is_out_of_reach_for_a_while_is_no_other_one(run):
    class Facts(Engine.facts):
        engine_version = None

    class Unsaid(Engine):
        facts = Facts

    made = learning(None)
    made.pool.engines = (Unsaid,)
    *windows, last = [msgspec.structs.replace(w, engine_version="0.33.0") for w in run.windows]
    for window in windows:
        made.observe(window, [])
    learner = made.learners["gpu-a"]
    before = learner.windows
    silent = dict.fromkeys(("prompt_tokens", "generated_tokens", "steps", "engine_version"))
    made.observe(msgspec.structs.replace(last, **silent), [])
    assert made.learners["gpu-a"] is learner
    assert learner.windows > before / 2 > 0


def test_the_same_object_is_told_until_it_matters(tmp_path, run):
    made = learning(None)
    teach(made, run)
    before = made.learnt("llama@bf16")
    last = run.windows[-1]
    quiet = Window(
        window_id="quiet",
        node="gpu-a",
        start_s=last.end_s,
        end_s=last.end_s + 1,
        energy_j=100.0,
    )
    made.divide(quiet, [], made.physics("gpu-a"))
    made.observe(quiet, [])
    assert made.learnt("llama@bf16") is before


def test_a_broken_file_starts_anew_and_says_so(tmp_path, caplog):
    path = tmp_path / "steps.json"
    path.write_text("{not json")
    assert learning(path).learnt("llama@bf16") is None
    assert "learning starts anew" in caplog.text


def test_a_window_that_cannot_be_used_is_left_undivided(tmp_path):
    made = learning(None)
    bad = Window(window_id="w", node="gpu-a", start_s=1.0, end_s=0.0, energy_j=5.0)
    divided = made.divide(bad, [], None)
    assert divided.shares == ()
    assert divided.metered_j == 5.0


def test_nodes_nobody_serves_are_unknown():
    made = learning(None)
    assert made.physics("elsewhere") is None


def test_what_cannot_be_kept_is_no_failure(tmp_path, run, caplog):
    made = learning(tmp_path / "steps.json")
    teach(made, run)
    (tmp_path / "steps.new").mkdir()
    made.save()
    assert "could not be kept" in caplog.text


class Other(Engine):
    name = "small@bf16"
    group = "small"
    url = "http://gpu-a:8001/v1"


class Alias(Engine):
    name = "llama-adapter@bf16"


class Shared:
    engines = (Engine, Alias, Other)
    by_name = {engine.name: engine for engine in engines}  # noqa: RUF012


def test_engines_that_share_a_gpu_divide_its_windows_and_learn_when_alone(run):
    made = Learning(Shared())
    made.prior = lambda _: PRIOR
    last_s = run.windows[-1].end_s
    for window in run.windows:
        known = [
            msgspec.structs.replace(a, engine=Alias.name)  # the same engine by another name
            for a in run.activities
            if a.start_s < window.end_s and a.end_s >= window.start_s
        ]
        divided = made.divide(window, known, None)
        made.observe(window, known)
        shares = sum(share.energy_j for share in divided.shares)
        parts = shares + divided.idle_j + divided.external_j + divided.unattributed_j
        assert parts == window.energy_j
    learnt = made.learnt(Engine.name)
    assert learnt.step_j == pytest.approx(LLAMA_8B_BF16.step_j, rel=0.05)
    assert made.learnt(Alias.name) is learnt
    assert made.learnt(Other.name) is None
    both = [
        Activity(
            request_id=engine.name, node="gpu-a", start_s=last_s, first_token_s=last_s + 0.1,
            end_s=last_s + 0.9, prompt_tokens=100.0, output_tokens=100.0, engine=engine.name,
        )
        for engine in (Engine, Other)
    ]  # fmt: skip
    window = Window(
        window_id="both", node="gpu-a", start_s=last_s, end_s=last_s + 1.0, energy_j=500.0
    )
    before = {key: one.windows for key, one in made.learners.items()}
    divided = made.divide(window, both, None)
    made.observe(window, both)
    assert {share.request_id for share in divided.shares} == {Engine.name, Other.name}
    assert {key: one.windows for key, one in made.learners.items()} == before


def test_devices_named_under_two_nodes_are_read_once(caplog):
    backends = [
        BackendSettings(
            model=name,
            url=f"http://127.0.0.1:1/{name}/v1",
            meter=MeterSource(kind="rapl", devices=d),
        )
        for name, d in (("one", []), ("other", ["0"]))
    ]
    measuring = Measuring(Settings(backends=backends), Shared(), lambda window: None)
    measuring.start()
    try:
        assert [meter.node for meter in measuring.meters] == [backends[0].full_name]
        assert "counted twice" in caplog.text
    finally:
        measuring.stop()


def test_the_joules_of_this_machine_are_not_put_beside_simulated_ones():
    source = MeterSource(kind="simulated", url="http://127.0.0.1:1/energy")
    assert host(meter_settings(BackendSettings(model="one"), source, "gpu")) is None


def test_engines_on_one_node_are_all_asked_for_their_counters():
    backends = [
        BackendSettings(model="one", url="http://a:1/v1", node="gpu"),
        BackendSettings(model="alias", url="http://a:1/v1", node="gpu"),
        BackendSettings(model="other", url="http://a:2/v1", node="gpu"),
        BackendSettings(model="alone", url="http://b:1/v1"),
    ]
    assert sharing(Settings(backends=backends)) == {
        "gpu": {
            backends[0].full_name: "http://a:1/metrics",
            backends[2].full_name: "http://a:2/metrics",
        }
    }


def test_one_process_at_a_time_reads_the_meters_of_a_state_folder(tmp_path, caplog):
    backend = BackendSettings(
        model="tiny", url="http://127.0.0.1:9/v1", meter=MeterSource(kind="none")
    )
    settings = Settings(backends=[backend], state_dir=str(tmp_path))
    first, second = (Measuring(settings, Pool(), lambda _: None) for _ in range(2))
    second._turn._every_s = 0.02
    first.start()
    second.start()
    second.restart(settings)  # as a reload does
    assert [len(one.meters) for one in (first, second)] == [1, 0]
    assert caplog.text.count("Another process reads the meters") == 1
    first.restart(settings)
    first.stop()
    until(lambda: second.meters)
    second.stop()
    third = Measuring(settings, Pool(), lambda _: None)
    third.start()
    assert len(third.meters) == 1
    third.stop()
    assert not third.meters
