"""Engines' metrics pages: every dialect of the table, restarts, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from meters.dialects import DIALECTS
from meters.engines import (
    UnknownPage,
    detect,
    difference,
    differences,
    parse,
    restarted,
    together,
)
from meters.types import EngineCounters

RECORDINGS = Path(__file__).parent.parent / "recordings" / "engines"


def recording(name: str) -> bytes:
    return (RECORDINGS / name).read_bytes()


VLLM_V0 = """
vllm:num_requests_running{model_name="m"} 3.0
vllm:num_requests_swapped{model_name="m"} 1.0
vllm:num_requests_waiting{model_name="m"} 4.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
vllm:cpu_cache_usage_perc{model_name="m"} 0.0
vllm:prompt_tokens_total{model_name="m"} 1000.0
vllm:generation_tokens_total{model_name="m"} 400.0
vllm:iteration_tokens_total_count{model_name="m"} 77.0
"""
EARLY_V1 = """
vllm:num_requests_running{model_name="m"} 3.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.5
vllm:gpu_prefix_cache_hits_total{model_name="m"} 32.0
vllm:prompt_tokens_total{model_name="m"} 1000.0
"""
SGLANG = """
sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 2.0
sglang:num_running_reqs{dp_rank="0",tp_rank="1"} 2.0
sglang:num_running_reqs{dp_rank="1",tp_rank="2"} 3.0
sglang:num_queue_reqs{dp_rank="0",tp_rank="0"} 1.0
sglang:token_usage{dp_rank="0",tp_rank="0"} 0.1
sglang:token_usage{dp_rank="1",tp_rank="2"} 0.3
sglang:realtime_tokens_total{dp_rank="0",tp_rank="0",mode="prefill_compute"} 100.0
sglang:realtime_tokens_total{dp_rank="0",tp_rank="1",mode="prefill_compute"} 100.0
sglang:realtime_tokens_total{dp_rank="0",tp_rank="0",mode="prefill_cache"} 900.0
sglang:realtime_tokens_total{dp_rank="0",tp_rank="0",mode="decode"} 55.0
sglang:prompt_tokens_total{model_name="m"} 700.0
sglang:generation_tokens_total{model_name="m"} 40.0
"""
OLD_SGLANG = """
sglang:num_running_reqs{model_name="m"} 2.0
sglang:prompt_tokens_total{model_name="m"} 700.0
sglang:generation_tokens_total{model_name="m"} 40.0
"""
TRTLLM = """
trtllm_prompt_tokens_total{model_name="m",engine_type="trtllm"} 640.0
trtllm_generation_tokens_total{model_name="m",engine_type="trtllm"} 320.0
trtllm_prompt_cached_tokens_total{model_name="m",engine_type="trtllm"} 64.0
trtllm_num_requests_running{model_name="m",engine_type="trtllm"} 5.0
trtllm_num_requests_waiting{model_name="m",engine_type="trtllm"} 0.0
trtllm_kv_cache_utilization{model_name="m",engine_type="trtllm"} 0.2
"""
TGI = """
tgi_queue_size 3
tgi_batch_current_size 4
tgi_request_input_length_sum 128
tgi_request_generated_tokens_sum 8123
tgi_batch_inference_count{method="prefill"} 150
tgi_batch_inference_count{method="decode"} 4500
"""


def test_vllm_as_it_is_today() -> None:
    seen = parse(recording("vllm-0.32-metrics-busy.txt"), at_s=7.0)
    assert (seen.prompt_tokens, seen.cached_prompt_tokens) == (4380.0, 512.0)
    assert (seen.generated_tokens, seen.steps) == (12894.0, 888.0)
    assert (seen.running, seen.waiting) == (16.0, 0.0)
    assert seen.kv_usage == pytest.approx(0.0019533634)
    assert seen.asleep is False
    assert seen.started_s == pytest.approx(1795183039.57)
    assert seen.late == ()
    assert seen.at_s == 7.0


def test_work_that_is_exported_but_not_counted_is_unknown() -> None:
    seen = parse(recording("vllm-0.32-metrics-busy.txt"))
    assert (seen.flops, seen.read_bytes) == (None, None)
    page = recording("vllm-0.32-metrics-busy.txt").decode()
    page = page.replace('per_gpu_total{engine="0",model_name="tiny"} 0.0', "per_gpu_total 5e9")
    assert parse(page).flops == 5e9


def test_a_sleeping_engine_says_so() -> None:
    page = recording("vllm-0.32-metrics-idle.txt").decode()
    awake = 'vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="awake"} '
    assert awake in page
    assert parse(page).asleep is False
    assert parse(page.replace(awake + "1.0", awake + "0.0")).asleep is True


def test_llama_cpp_leaves_cached_tokens_out_of_its_prompt_counter() -> None:
    seen = parse(recording("llamacpp-metrics.txt"))
    assert (seen.prompt_tokens, seen.cached_prompt_tokens) == (51.0, 31.0)
    assert (seen.generated_tokens, seen.steps) == (952.0, 952.0)
    assert seen.late == ("generated_tokens",)
    assert seen.asleep is None


def test_older_vllm_counts_swapped_requests_as_waiting() -> None:
    assert detect(VLLM_V0) == "vllm-v0"
    seen = parse(VLLM_V0)
    assert (seen.running, seen.waiting, seen.kv_usage) == (3.0, 5.0, 0.25)
    assert (seen.prompt_tokens, seen.generated_tokens, seen.steps) == (1000.0, 400.0, 77.0)
    assert seen.cached_prompt_tokens is None


def test_the_first_names_of_the_v1_engine_are_known_too() -> None:
    assert detect(EARLY_V1) == "vllm"
    seen = parse(EARLY_V1)
    assert (seen.kv_usage, seen.cached_prompt_tokens, seen.steps) == (0.5, 32.0, None)


def test_sglang_ranks_of_one_engine_are_not_counted_twice() -> None:
    seen = parse(SGLANG)
    assert seen.running == 5.0
    assert (seen.prompt_tokens, seen.cached_prompt_tokens) == (1000.0, 900.0)
    assert seen.generated_tokens == 55.0
    assert seen.kv_usage == pytest.approx(0.2)
    assert seen.late == ()


def test_counters_that_wait_for_a_requests_end_are_marked_late() -> None:
    assert set(parse(OLD_SGLANG).late) == {"prompt_tokens", "generated_tokens"}
    assert "generated_tokens" in parse(TRTLLM).late
    assert "generated_tokens" in parse(TGI).late


def test_tensorrt_llm_and_tgi() -> None:
    trt, tgi = parse(TRTLLM), parse(TGI)
    assert (trt.prompt_tokens, trt.cached_prompt_tokens, trt.running) == (640.0, 64.0, 5.0)
    assert (tgi.steps, tgi.running, tgi.waiting) == (4650.0, 4.0, 3.0)
    assert (tgi.generated_tokens, tgi.prompt_tokens) == (8123.0, 128.0)


@pytest.mark.parametrize(
    ("page", "name"),
    [(VLLM_V0, "vllm-v0"), (SGLANG, "sglang"), (TRTLLM, "tensorrt-llm"), (TGI, "tgi")],
)
def test_the_dialect_is_told_from_the_page(page: str, name: str) -> None:
    assert detect(page) == name
    assert parse(page) == parse(page, name)
    assert parse(page.replace(":", "_")).running == parse(page).running


def test_recorded_pages_name_their_engines() -> None:
    assert detect(recording("vllm-0.32-metrics-busy.txt")) == "vllm"
    assert detect(recording("llamacpp-metrics.txt")) == "llama.cpp"


def test_several_engines_behind_one_page_are_added_up() -> None:
    page = recording("vllm-0.32-metrics-busy.txt").decode()
    second = "\n".join(
        line.replace('engine="0"', 'engine="1"')
        for line in page.splitlines()
        if line.startswith("vllm:")
    )
    one, both = parse(page), parse(f"{page}\n{second}\n")
    assert both.generated_tokens == 2 * (one.generated_tokens or 0)
    assert both.steps == 2 * (one.steps or 0)
    assert both.running == 32.0
    assert both.kv_usage == one.kv_usage  # a share, not a count


def test_a_page_without_a_series_gives_none_never_zero() -> None:
    seen = parse("vllm:num_requests_running 1\n")
    assert seen.running == 1.0
    assert (seen.prompt_tokens, seen.generated_tokens, seen.waiting) == (None, None, None)


@pytest.mark.parametrize("page", ["", "up 1\n", "<html></html>", "[]", '{"detail":"Not Found"}'])
def test_a_page_of_no_engine_says_what_to_do(page: str) -> None:
    with pytest.raises(UnknownPage, match=r"Check the metrics URL|/prometheus/metrics"):
        parse(page)


def test_an_unknown_dialect_names_the_known_ones() -> None:
    with pytest.raises(UnknownPage, match=r"vllm-v0, sglang"):
        parse("", "vlm")


def test_the_difference_of_two_looks() -> None:
    idle = parse(recording("vllm-0.32-metrics-idle.txt"), at_s=10.0)
    busy = parse(recording("vllm-0.32-metrics-busy.txt"), at_s=12.0)
    done = difference(idle, busy)
    assert done is not None
    assert done.seconds == 2.0
    assert done.steps == 888.0 - (idle.steps or 0)
    assert done.generated_tokens == 12894.0 - (idle.generated_tokens or 0)
    assert done.running == (16.0 + (idle.running or 0)) / 2


def test_late_counters_say_nothing_about_an_interval() -> None:
    before = parse(recording("llamacpp-metrics.txt"), at_s=1.0)
    done = difference(before, before)
    assert done is not None
    assert done.generated_tokens is None
    assert done.steps == 0.0


def test_a_restart_is_seen_by_the_start_time_and_by_a_counter_that_fell() -> None:
    busy = parse(recording("vllm-0.32-metrics-busy.txt"))
    page = recording("vllm-0.32-metrics-busy.txt").decode()
    fell = parse(page.replace("vllm:generation_tokens_total{", "vllm:gone{"))
    assert not restarted(busy, fell)  # a series that vanished is unknown, not less
    later = parse(page.replace("1.79518303957e+09", "1.79518309957e+09"))
    assert restarted(busy, later)
    assert difference(busy, later) is None
    less = parse(page.replace("} 12894.0", "} 12.0"))
    assert restarted(busy, less)


def test_every_row_finds_its_own_prefix() -> None:
    for row in DIALECTS.values():
        marks = row.marks or (f"{row.prefix}x",)
        assert detect(f"{row.running[0]} 1\n{marks[0]} 1\n") == row.name


def test_engines_that_share_devices_are_summed_and_each_is_kept() -> None:
    def look(at_s: float, **pages: int) -> EngineCounters:
        seen = {
            name: parse(f"vllm:generation_tokens_total{{}} {n}\n", at_s=at_s)
            for name, n in pages.items()
        }
        return together(seen)

    before, after = look(0.0, one=100, other=5), look(1.0, one=160, other=25)
    done = difference(before, after)
    assert done is not None
    assert done.generated_tokens == 80
    each = {did.engine: did.generated_tokens for did in differences(before, after)}
    assert each == {"one": 60, "other": 20}
    # one restarts: its own count is unknown, and so is the sum; the other's is not
    anew = differences(before, look(1.0, one=160, other=2))
    assert {did.engine: did.generated_tokens for did in anew} == {"one": 60, "other": None}
    missing = together({"one": after.engines["one"]}, all_of_them=False)
    assert missing.generated_tokens is None
