"""Published measurements of energy and time as rows the estimator can be fitted to and judged on.

Reads the CSV files of ``../shared/data/energy``; its README says what each column is. Only
sources with a licence are read here.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import msgspec

from estimators.hardware import GPUS
from estimators.types import Backend, ModelFacts

# Prompt tokens are not published with these runs; middles of the data sets used (see the README).
_V3_PROMPTS = {"gpqa": 250.0, "lm-arena-chat": 100.0, "sourcegraph-fim": 1500.0}
_V2_PROMPT = 200.0
_V1_PROMPT = 200.0

SOURCES = {
    "mlenergy_v3_llm.csv": ("ml-energy/leaderboard @ 0cd52dab", "Apache-2.0 (data card)"),
    "mlenergy_v2_llm.csv": ("ml-energy/leaderboard-v2 @ c3af7f31", "Apache-2.0"),
    "mlenergy_v1_llm.csv": ("ml-energy/leaderboard-v2 @ c3af7f31, legacy", "Apache-2.0"),
    "consumer_gpu_vllm.csv": ("hholtmann/llm-consumer-gpu-benchmark @ 59e35419", "MIT"),
    "argonne_power.csv": ("argonne-lcf/LLM-Inference-Bench @ 4211f5d4", "BSD-3-Clause"),
}
_QUANTISED = {
    "nvidia/Qwen3-8B-NVFP4": "Qwen/Qwen3-8B",
    "RedHatAI/gemma-3-12b-it-quantized.w4a16": "google/gemma-3-12b-it",
    "holtmann/gemma-3-12b-it-NVFP4": "google/gemma-3-12b-it",
}
_PRECISIONS = {"bfloat16": "bf16", "w4a16": "int4"}
_GPU_NAMES = {
    "NVIDIA A100-SXM4-40GB": "A100-40GB-SXM",
    "NVIDIA H100 80GB HBM3": "H100-SXM",
    "H100": "H100-SXM",
    "rtx5060ti": "RTX-5060Ti-16GB",
    "rtx5090": "RTX-5090",
    "Nvidia A100 GPU": "A100-40GB-SXM",
    "Nvidia H100 GPU": "H100-SXM",
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measured operating point; a figure that was not published is nan."""

    source: str  # v3 | v2 | v1 | consumer | argonne
    architecture: str  # what is held out together
    curve: str  # model, task, GPU and count: points along it differ in load only
    backend: Backend
    batch: float
    prompt: float
    output: float
    energy_j: float  # of one request, all GPUs
    time_s: float  # engine time of one request: 1 / requests a second
    step_s: float = math.nan  # time between two tokens of one sequence
    ttft_s: float = math.nan
    ttft_median_s: float = math.nan  # of the same requests
    latency_s: float = math.nan  # to the last token, where nothing waited
    # The mean batch by Little's law, where the engine's gauge was read too seldom to be trusted, or
    # what memory holds of a configured one: what constants are fitted with. Judged is always on
    # ``batch``, which is what a user has.
    steady_batch: float = math.nan

    @property
    def gpu(self) -> str:
        """Our name of the card it ran on."""
        assert self.backend.gpu is not None
        return self.backend.gpu.name


def read_rows(data: Path) -> list[Row]:
    """Every usable row of the sources above. Raises FileNotFoundError."""
    folder = data / "energy"
    facts = {row["model_id"]: row for row in _read(folder / "model_arch.csv")}
    return [
        *_v3(folder, facts),
        *_v2(folder, facts),
        *_v1(folder),
        *_consumer(folder, facts),
        *_argonne(folder, facts),
    ]


def fingerprint(data: Path) -> str:
    """One hash over the files read."""
    total = hashlib.sha256()
    for name in (*SOURCES, "model_arch.csv"):
        total.update((data / "energy" / name).read_bytes())
    return total.hexdigest()[:16]


def _v3(folder: Path, facts: dict[str, dict[str, str]]) -> Iterator[Row]:
    for row in _read(folder / "mlenergy_v3_llm.csv"):
        if row["task"] not in _V3_PROMPTS:  # images and video: unknown prompt lengths
            continue
        output = float(row["avg_output_len"])
        backend = _backend(
            facts[row["model_id"]], row["weight_precision"], row["gpu_model"], row["num_gpus"]
        )
        yield Row(
            source="v3",
            architecture=row["arch_key"],
            curve="|".join(
                (row["model_id"], row["task"], row["num_gpus"], row["weight_precision"])
            ),
            backend=msgspec.structs.replace(backend, engine="vllm", engine_version="0.11.1"),
            batch=float(row["avg_batch_size"]),
            prompt=_V3_PROMPTS[row["task"]],
            output=output,
            energy_j=float(row["energy_per_token_joules"]) * output,
            time_s=output / float(row["output_throughput_tokens_per_sec"]),
            step_s=float(row["median_itl_ms"]) / 1e3,
        )


def _v2(folder: Path, facts: dict[str, dict[str, str]]) -> Iterator[Row]:
    for row in _read(folder / "mlenergy_v2_llm.csv"):
        if not row["task"].startswith("llm_"):
            continue
        output = float(row["avg_output_len"])
        backend = _backend(facts[row["model_id"]], "bf16", row["gpu_model"], row["num_gpus"])
        yield Row(
            source="v2",
            architecture=row["arch_key"],
            curve="|".join((row["model_id"], row["gpu_model"], row["num_gpus"])),
            backend=msgspec.structs.replace(backend, engine="vllm", engine_version="0.5.4"),
            batch=float(row["avg_batch_size"]),
            prompt=_V2_PROMPT,
            output=output,
            energy_j=float(row["energy_per_token_joules"]) * output,
            time_s=output / float(row["output_throughput_tokens_per_sec"]),
            step_s=float(row["avg_tpot_s"]),
        )


def _v1(folder: Path) -> Iterator[Row]:
    gpus = {"A100": GPUS["A100-40GB-SXM"], "V100": GPUS["V100-SXM2-16GB"]}
    for row in _read(folder / "mlenergy_v1_llm.csv"):
        yield Row(
            source="v1",
            architecture="v1-" + row["model_id"],
            curve="|".join((row["model_id"], row["gpu_model"])),
            backend=Backend(
                name=row["model_id"],
                group=row["model_id"],
                precision="fp16",
                engine="transformers",
                gpu=gpus[row["gpu_model"]],
                model=ModelFacts(params_b=float(row["params_billions"])),
            ),
            batch=1.0,
            prompt=_V1_PROMPT,
            output=float(row["response_length_tokens"]),
            energy_j=float(row["energy_per_response_joules"]),
            time_s=float(row["latency_s"]),
        )


def _consumer(folder: Path, facts: dict[str, dict[str, str]]) -> Iterator[Row]:
    for row in _read(folder / "consumer_gpu_vllm.csv"):
        if not row["running_mean"]:  # without a batch the row says nothing about a load
            continue
        known = facts[_QUANTISED.get(row["model_id"], row["model_id"])]
        batch = float(row["running_mean"])
        steady = float(row["request_latency_ms_mean"]) / 1e3 * float(row["request_throughput"])
        steady -= float(row["waiting_mean"])
        trusted = abs(math.log(max(steady, 0.1) / batch)) < 0.2 or float(row["waiting_mean"]) > 1.0
        backend = _backend(known, row["precision"], row["gpu_model"], row["num_gpus"])
        at_once = 1e-3 if float(row["waiting_mean"]) < 0.5 else math.nan  # seconds a millisecond
        yield Row(
            source="consumer",
            architecture=known["arch_key"],
            curve=row["run"],
            backend=msgspec.structs.replace(
                backend, engine="vllm", engine_version=row["vllm_version"]
            ),
            batch=batch,
            steady_batch=math.nan if trusted else steady,
            prompt=float(row["input_tokens_mean"]),
            output=float(row["output_tokens_mean"]),
            energy_j=float(row["energy_per_request_j"] or "nan"),
            time_s=1.0 / float(row["request_throughput"]),
            step_s=float(row["itl_ms_mean"]) / 1e3,
            ttft_s=float(row["ttft_ms_mean"]) * at_once,
            ttft_median_s=float(row["ttft_ms_p50"]) * at_once,
            latency_s=float(row["request_latency_ms_mean"]) * at_once,
        )


def _argonne(folder: Path, facts: dict[str, dict[str, str]]) -> Iterator[Row]:
    names = {
        "meta-llama/Llama-2-7b-hf": "meta-llama/Llama-2-7b-hf",
        "meta-llama/Meta-Llama-3-8B": "meta-llama/Meta-Llama-3-8B",
    }
    engines = {"vLLM": ("vllm", None), "TensorRT-LLM": ("tensorrt-llm", None)}
    for row in _read(folder / "argonne_power.csv"):
        if row["framework"] not in engines or row["model_id"] not in names:
            continue
        known = facts[names[row["model_id"]]]
        engine, version = engines[row["framework"]]
        backend = _backend(known, "fp16", row["gpu_model"], row["num_gpus"])
        batch = float(row["batch_size"])
        tokens = float(row["input_tokens"]) + float(row["output_tokens"])
        # The A100 cannot keep so many caches of a model without grouped queries: they take turns.
        assert backend.gpu is not None
        free = 0.9e9 * backend.gpu.memory_gb - 2e9 * float(known["params_total_b"])
        fits = free / (tokens * float(known["kv_bytes_per_token"]))
        yield Row(
            source="argonne",
            architecture=known["arch_key"],
            curve="|".join((row["model_id"], row["gpu_model"], row["framework"])),
            backend=msgspec.structs.replace(backend, engine=engine, engine_version=version),
            batch=batch,
            steady_batch=fits if batch > fits else math.nan,
            prompt=float(row["input_tokens"]),
            output=float(row["output_tokens"]),
            energy_j=float(row["energy_per_request_joules"]),
            time_s=float(row["batch_latency_s"]) / batch,
        )


def _backend(facts: dict[str, str], precision: str, gpu: str, num_gpus: str) -> Backend:
    return Backend(
        name=facts["model_id"],
        group=facts["arch_key"],
        precision=_PRECISIONS.get(precision, precision),
        gpu=GPUS[_GPU_NAMES[gpu]],
        num_gpus=int(float(num_gpus)),
        model=ModelFacts(
            params_b=float(facts["params_total_b"]),
            active_params_b=float(facts["params_active_b"]),
            layers=int(facts["layers"]),
            kv_heads=int(facts["kv_heads"]),
            head_dim=int(facts["head_dim"]),
        ),
    )


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
