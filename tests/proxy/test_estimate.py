"""`joulegate estimate --batch`, as scripts use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from estimators.points import _at_load, _grids
from proxy.__main__ import main

LLAMA = {
    "id": "llama",
    "params_b": 8.03,
    "precision": "bf16",
    "layers": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "gpu": "H100-SXM",
    "num_gpus": 1,
    "engine": "vllm",
    "engine_version": "0.11.1",
    "concurrency": 64.0,
    "prompt_tokens": 100,
    "output_tokens": 395,
}


def estimates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *lines: dict[str, Any]
) -> list[dict[str, Any]]:
    file = tmp_path / "batch.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["estimate", "--batch", str(file)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_says_what_was_measured_of_llama_on_one_h100(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [said] = estimates(tmp_path, capsys, LLAMA)
    assert set(said) == {
        "id",
        "energy_j",
        "marginal_energy_j",
        "ttft_s",
        "latency_s",
        "evidence",
    }
    # 46.9 J at batch 64 (ml-energy/leaderboard, lm-arena-chat)
    assert said["energy_j"]["mid"] == pytest.approx(46.9, rel=0.1)
    assert said["energy_j"]["low"] < 46.9 < said["energy_j"]["high"]
    # 11.5 ms between tokens
    assert said["latency_s"]["mid"] == pytest.approx(395 * 0.0115, rel=0.2)
    assert said["evidence"] == "benchmark"
    assert said["marginal_energy_j"]["mid"] < said["energy_j"]["mid"]


def test_not_knowing_the_load_widens_the_band(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, unknown = estimates(
        tmp_path,
        capsys,
        {**LLAMA, "concurrency": 8},
        {key: value for key, value in LLAMA.items() if key != "concurrency"},
    )
    assert unknown["energy_j"]["high"] > 2 * known["energy_j"]["high"]
    assert unknown["energy_j"]["low"] < 0.5 * known["energy_j"]["low"]


def test_the_other_estimator_needs_no_load_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_text(json.dumps({**LLAMA, "concurrency": None}))
    assert main(["estimate", "--batch", str(file), "--estimator", "r-ice"]) == 0
    [said] = map(json.loads, capsys.readouterr().out.splitlines())
    assert 0 < said["energy_j"]["low"] < said["energy_j"]["mid"]


def test_an_unknown_gpu_is_taken_from_its_data_sheet_and_without_one_stays_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = {"memory_gb": 80, "mem_bandwidth_gbs": 3350, "fp16_tflops": 989, "tdp_w": 700}
    known, described, unknown = estimates(
        tmp_path,
        capsys,
        LLAMA,
        {**LLAMA, "gpu": "Hopper like", "gpu_facts": sheet},
        {**LLAMA, "gpu": "Hopper like"},
    )
    assert described["energy_j"]["mid"] == pytest.approx(known["energy_j"]["mid"], rel=0.05)
    assert unknown["energy_j"] is None
    assert unknown["evidence"] == "unknown"


def test_the_sheet_of_a_known_gpu_need_not_say_what_is_known_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = {"mem_bandwidth_gbs": 3350, "fp16_tflops": 989, "tdp_w": 700}
    fp8 = {**LLAMA, "precision": "fp8", "prompt_tokens": 8000, "output_tokens": 10}
    known, described = estimates(tmp_path, capsys, fp8, {**fp8, "gpu_facts": sheet})
    assert described == known  # its fp8 rate above all


def test_a_model_that_does_not_fit_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_text(json.dumps({**LLAMA, "params_b": 70.6, "gpu": "L4"}))
    assert main(["estimate", "--batch", str(file)]) == 0
    assert "141 GB of weights do not fit into the 24 GB of 1 L4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"concurency": 3}, "concurrency"),
        ({"gpu_facts": {"mem_bandwith_gbs": 1}}, "mem_bandwidth_gbs"),
        ({"params_b": 0}, "params_b"),
        ({"output_tokens": -1}, "output_tokens"),
        ({"gpu_facts": {"mem_bandwidth_gbs": 0, "tdp_w": 300, "fp16_tflops": 1}}, "gpu_facts"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_change(
    change: dict[str, Any], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_text(json.dumps({**LLAMA, **change}))
    assert main(["estimate", "--batch", str(file)]) == 1
    assert word in capsys.readouterr().err


def test_a_precision_or_a_sheet_that_tells_too_little_leaves_the_figures_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = {"gpu": "New", "gpu_facts": {"mem_bandwidth_gbs": 3350, "tdp_w": 700}}
    unheard, untold, usual = estimates(
        tmp_path, capsys, {**LLAMA, "precision": "bf17"}, {**LLAMA, **sheet}, LLAMA
    )
    assert unheard["evidence"] == untold["evidence"] == "unknown"
    assert unheard["energy_j"] is untold["energy_j"] is None
    assert usual["energy_j"] is not None  # those after it are answered


def test_more_tokens_never_add_less_to_an_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = {**LLAMA, "params_b": 3, "gpu": "RTX-4090", "precision": "awq"}
    lengths = (1, 2, 3, 5, 20, 100, 1000, 8193, 20000)
    for load in (4, 64):
        for fixed, grows in (
            ("prompt_tokens", "output_tokens"),
            ("output_tokens", "prompt_tokens"),
        ):
            lines = ({**card, "concurrency": load, fixed: 3000, grows: n} for n in lengths)
            said = estimates(tmp_path, capsys, *lines)
            added_j = [one["marginal_energy_j"]["mid"] for one in said]
            assert added_j == sorted(added_j)


def test_what_one_more_adds_falls_gradually_from_an_idle_engine_to_a_busy_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = (1, 1.01, 1.5, 2)
    said = estimates(tmp_path, capsys, *({**LLAMA, "concurrency": load} for load in loads))
    alone_j, hardly_more_j, half_j, two_j = (one["marginal_energy_j"]["mid"] for one in said)
    assert two_j < half_j < hardly_more_j < alone_j < 1.1 * hardly_more_j


def test_a_saturated_engine_takes_all_of_one_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {**LLAMA, "params_b": 7, "gpu": "A100-80GB-SXM", "engine_version": "0.5.4"}
    larger = {**LLAMA, "params_b": 671, "num_gpus": 3, "concurrency": 1000, "prompt_tokens": 1}
    for said in estimates(tmp_path, capsys, {**old, "concurrency": 700}, larger):
        assert said["marginal_energy_j"]["mid"] > 0.5 * said["energy_j"]["mid"]
        assert said["marginal_energy_j"]["high"] <= said["energy_j"]["high"]


def test_a_first_token_on_an_idle_engine_takes_what_was_measured_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Llama-2-70B on H100s, batch 1, by GPUs and prompt (Mutinifni/splitwise-sim)
    measured_s = {(2, 512): 0.084, (2, 2048): 0.310, (4, 128): 0.049, (8, 1024): 0.078}
    llama2 = {**LLAMA, "params_b": 69, "layers": 80, "precision": "fp16", "concurrency": 1}
    lines = [{**llama2, "num_gpus": n, "prompt_tokens": prompt} for n, prompt in measured_s]
    for said, first_s in zip(estimates(tmp_path, capsys, *lines), measured_s.values(), strict=True):
        assert 0.5 * first_s < said["ttft_s"]["mid"] < 2 * first_s


def test_what_is_in_the_batch_draws_no_more_than_the_limit_and_no_less_than_idle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        LLAMA | {"prompt_tokens": prompt, "output_tokens": output, "concurrency": load}
        for load in (1, 2, 32, 512)
        for prompt in (0, 500, 8000)
        for output in (1, 2, 30, 3000)
    ]
    for asked, said in zip(lines, estimates(tmp_path, capsys, *lines), strict=True):
        rate = asked["concurrency"] / said["latency_s"]["mid"]  # Little's law
        assert 70 < said["energy_j"]["mid"] * rate < 1.001 * 700, asked
        assert said["ttft_s"]["mid"] <= said["latency_s"]["mid"]


def test_a_count_may_be_written_as_any_whole_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, same = estimates(tmp_path, capsys, LLAMA | {"num_gpus": 2}, LLAMA | {"num_gpus": 2.0})
    assert plain == same
    file = tmp_path / "batch.jsonl"
    file.write_text(json.dumps(LLAMA | {"num_gpus": 1.5}))
    assert main(["estimate", "--batch", str(file)]) == 1
    assert "num_gpus must be a whole number above 0" in capsys.readouterr().err


def test_a_byte_order_mark_is_no_mistake_and_mistakes_are_told_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "batch.jsonl"
    wrong = {**LLAMA, "num_gpus": 0}
    file.write_text(f"\ufeff{json.dumps(LLAMA)}\n\n{json.dumps(wrong)}\n", encoding="utf-8")
    assert main(["estimate", "--batch", str(file)]) == 1
    printed, said = capsys.readouterr()
    assert json.loads(printed)["id"] == "llama"
    assert "line 3: num_gpus" in said


def test_a_line_is_answered_alike_alone_and_among_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        LLAMA | {"prompt_tokens": prompt, "output_tokens": output, "concurrency": load}
        for load in (1.0, 1.5, 64.0, None)
        for prompt, output in ((9000, 20), (100, 395), (101, 390), (0, 3000))
    ]
    together = estimates(tmp_path, capsys, *lines, LLAMA | {"gpu": "L40S"}, *lines)
    assert together[: len(lines)] == together[-len(lines) :]
    _grids.cache_clear()
    _at_load.cache_clear()
    assert (
        together[: len(lines)]
        == [estimates(tmp_path, capsys, line)[0] for line in lines[::-1]][::-1]
    )
