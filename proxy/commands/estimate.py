"""Say what requests would cost on engines described in a file: energy, latency, with 80 % bands.

Reads JSON Lines: {"id", "params_b", "active_params_b"?, "precision", "layers"?, "hidden_size"?,
"kv_heads"?, "head_dim"?, "gpu", "num_gpus"?, "engine"?, "engine_version"?, "concurrency"?,
"prompt_tokens", "output_tokens"}; an unknown GPU may come with "gpu_facts". Writes one line each:
{"id", "energy_j", "marginal_energy_j", "ttft_s", "latency_s", "evidence"}; joules are those of all
GPUs together for that request. Nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec
from threadpoolctl import threadpool_limits

from estimators.artefacts import BadArtefact, load_prior
from estimators.choices import ESTIMATORS
from estimators.hardware import GPUS, gpu_named, idle_power_w
from estimators.models import WEIGHT_BYTES, UnknownPrecision, precision_named
from estimators.points import Figures, figures, subject_of
from estimators.prior import Prior
from estimators.rice_estimator import built_in, rice_figures
from estimators.types import Backend, Band, GpuFacts, ModelFacts
from meters.types import Evidence
from proxy.commands import CommandError
from proxy.commands.progress import progress
from proxy.jsonl import numbered_lines

EXAMPLE = "joulegate estimate --batch requests.jsonl"


class DataSheet(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a GPU can do; the long names are those of published tables."""

    memory_gb: float | None = None
    mem_bandwidth_gbs: float | None = None
    fp16_tflops: float | None = None
    fp16_bf16_tensor_tflops_dense: float | None = None
    tdp_w: float | None = None
    fp8_tflops: float | None = None
    fp8_tflops_dense: float | None = None
    int8_tflops: float | None = None
    int8_tops_dense: float | None = None
    fp4_tflops: float | None = None
    fp4_tflops_dense: float | None = None
    idle_w: float | None = None
    link_gbs: float | None = None
    name: str | None = None
    gpu: str | None = None
    spec_source: str | None = None
    idle_source: str | None = None
    idle_quality: str | None = None


class Asked(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One line of the batch."""

    id: str | int
    params_b: float
    active_params_b: float | None = None
    precision: str = "bf16"
    layers: float | None = None
    hidden_size: float | None = None
    kv_heads: float | None = None
    head_dim: float | None = None
    gpu: str
    gpu_facts: DataSheet | None = None
    num_gpus: float = 1.0
    engine: str = "vllm"
    engine_version: str | None = None
    concurrency: float | None = None
    prompt_tokens: float
    output_tokens: float


class Said(msgspec.Struct):
    """One line of the answer."""

    id: str | int
    energy_j: Band | None
    marginal_energy_j: Band | None
    ttft_s: Band | None
    latency_s: Band | None
    evidence: Evidence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", metavar="F", required=True, help="JSON Lines; - reads stdin")
    parser.add_argument(
        "--estimator",
        choices=tuple(ESTIMATORS),
        default="energy",
        help="r-ice: as published, without batching (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    try:
        prior = load_prior()
    except BadArtefact as error:
        raise CommandError(str(error)) from None
    # Products of a few hundred rows: a second thread costs more than it brings.
    with threadpool_limits(1):
        return _answer_all(prior, args.batch, args.estimator)


def _answer_all(prior: Prior, path: str, estimator: str) -> int:
    tell = progress("lines estimated")
    for number, asked in numbered_lines(path, Asked):
        try:
            said = answer(prior, asked, estimator)
        except CommandError as error:
            raise CommandError(f"{path}, line {number}: {error}") from None
        sys.stdout.write(line(said))
        lacking = unknown(asked) if said.evidence is Evidence.UNKNOWN else too_large(asked)
        if lacking is not None:
            print(f"joulegate: {path}, line {number}: {lacking}", file=sys.stderr)
        tell(number)
    return 0


def answer(prior: Prior, asked: Asked, estimator: str = "energy") -> Said:
    """The estimate of one line. Raises CommandError for figures that cannot be."""
    backend = backend_of(asked)
    if unknown(asked) is not None or backend.gpu is None:
        return Said(asked.id, None, None, None, None, Evidence.UNKNOWN)
    idle_w = idle_power_w(backend.gpu) * backend.num_gpus
    subject = subject_of(prior, backend, idle_w)
    assert subject is not None  # model and GPU are given
    request = (asked.concurrency, asked.prompt_tokens, asked.output_tokens)
    found: Figures
    if estimator == "r-ice":
        found = rice_figures(built_in(), asked.params_b, *request)
    else:
        found = figures(prior, subject, *request)
    return Said(
        asked.id,
        found.energy_j,
        found.marginal_energy_j,
        found.ttft_s,
        found.latency_s,
        Evidence.MODELLED if estimator == "r-ice" else Evidence.BENCHMARK,
    )


def unknown(asked: Asked) -> str | None:
    """Why nothing can be said of it, in words; None where it can."""
    try:
        precision_named(asked.precision)
    except UnknownPrecision as error:
        return str(error)
    if _gpu(asked) is not None:
        return None
    if asked.gpu_facts is not None:
        return (
            f"GPU {asked.gpu!r} is not known, and its gpu_facts need mem_bandwidth_gbs, "
            "fp16_tflops and tdp_w."
        )
    return f"GPU {asked.gpu!r} is not known; give gpu_facts, or one of {', '.join(GPUS)}."


def backend_of(asked: Asked) -> Backend:
    """The engine that a line describes; without a GPU where its name is not known."""
    if not asked.params_b > 0:
        raise CommandError("params_b must be more than 0.")
    if not (0 < asked.num_gpus < 1e6 and asked.num_gpus.is_integer()):
        raise CommandError("num_gpus must be a whole number above 0.")
    for key in (
        "active_params_b",
        "layers",
        "hidden_size",
        "kv_heads",
        "head_dim",
        "concurrency",
        "prompt_tokens",
        "output_tokens",
    ):
        value = getattr(asked, key)
        if value is not None and not 0 <= value < 1e12:
            raise CommandError(f"{key} must be 0 or more.")
    return Backend(
        name=str(asked.id),
        group=str(asked.id),
        precision=asked.precision,
        engine=asked.engine,
        engine_version=asked.engine_version,
        gpu=_gpu(asked),
        num_gpus=round(asked.num_gpus),
        model=ModelFacts(
            params_b=asked.params_b,
            active_params_b=asked.active_params_b or None,
            layers=_whole(asked.layers),
            hidden_size=_whole(asked.hidden_size) or None,
            kv_heads=_whole(asked.kv_heads),
            head_dim=_whole(asked.head_dim),
        ),
    )


def too_large(asked: Asked) -> str | None:
    """Why its GPUs cannot serve it, in words; None where they can."""
    gpu = _gpu(asked)
    if gpu is None or gpu.memory_gb <= 0:
        return None
    weights_gb = asked.params_b * WEIGHT_BYTES[precision_named(asked.precision)]
    held_gb = gpu.memory_gb * asked.num_gpus
    if weights_gb <= held_gb:
        return None
    return (
        f"{weights_gb:.0f} GB of weights do not fit into the {held_gb:.0f} GB of "
        f"{asked.num_gpus:.0f} {gpu.name}; the figures are of GPUs that had the room."
    )


def line(said: Said) -> str:
    """As one line of JSON, bands by name."""
    fields = {
        name: msgspec.structs.asdict(value) if isinstance(value, Band) else value
        for name, value in msgspec.structs.asdict(said).items()
    }
    return msgspec.json.encode(fields).decode() + "\n"


def _gpu(asked: Asked) -> GpuFacts | None:
    known = gpu_named(asked.gpu)
    sheet = asked.gpu_facts
    if sheet is None:
        return known
    given = {
        "memory_gb": sheet.memory_gb,
        "mem_bandwidth_gbs": sheet.mem_bandwidth_gbs,
        "fp16_tflops": sheet.fp16_tflops or sheet.fp16_bf16_tensor_tflops_dense,
        "tdp_w": sheet.tdp_w,
        "fp8_tflops": sheet.fp8_tflops or sheet.fp8_tflops_dense,
        "int8_tflops": sheet.int8_tflops or sheet.int8_tops_dense,
        "fp4_tflops": sheet.fp4_tflops or sheet.fp4_tflops_dense,
        "idle_w": sheet.idle_w,
        "link_gbs": sheet.link_gbs,
    }
    # Of a card that is known, what its sheet leaves out here is what it says there.
    rest = {"name": asked.gpu, "memory_gb": 0.0} if known is None else msgspec.structs.asdict(known)
    told: dict[str, Any] = {
        **rest,
        **{key: value for key, value in given.items() if value is not None},
    }
    needed = ("mem_bandwidth_gbs", "fp16_tflops", "tdp_w")
    if any(told.get(key) is None for key in needed):
        return None
    if not all(0 < told[key] < 1e9 for key in needed):
        raise CommandError(
            "gpu_facts needs mem_bandwidth_gbs, fp16_tflops and tdp_w above 0, in GB/s, TFLOPS, W."
        )
    return msgspec.convert(told, GpuFacts)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
