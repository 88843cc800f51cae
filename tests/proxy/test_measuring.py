"""Learning in the proxy: windows teach, what was taught is told, and is there after a restart."""

import pytest

from meters.simulated_physics import LLAMA_8B_BF16, EngineConfig, Job
from meters.simulated_traffic import simulate
from meters.types import StepPhysics, Window
from proxy.measuring import Learning


class Engine:
    name = "llama@bf16"
    group = "llama"
    node = "gpu-a"

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
