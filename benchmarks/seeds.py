"""The publications Joulegate started from: every row of theirs beside what we predict.

Rows are those of ``data/seeds``; its README lists the errors of the prints. Absolute joules are
compared where the boundary allows (GPU energy); else ratios, which are what the findings are.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from estimators.hardware import GPUS, idle_power_w
from estimators.points import Figures, figures, subject_of
from estimators.prior import Prior
from estimators.rice import Rice, Sample, devices, fitted
from estimators.types import Backend, ModelFacts

WH_J, KWH_J = 3600.0, 3.6e6
# CodeCarbon's GPU, CPU and RAM at rest on an eight-L4 machine do not scale with a request; only
# ratios of rows measured alike are compared (wetzel_*).
_BIGCODEBENCH_TASKS = 1140
_BIGCODEBENCH_PROMPT = 150.0  # tokens of an instruction, middle of the published data set
_WETZEL = {
    "llama-3.1-70b": 70.6,
    "mistral-nemo-2407": 12.25,
    "llama-3.1-8b": 8.03,
}
_WETZEL_BATCH = 64.0  # vLLM fed with everything at once; bounded by the L4's memory


class Line(NamedTuple):
    """One published row, and ours."""

    table: str
    what: str
    published: float
    predicted: float
    unit: str

    @property
    def off(self) -> float:
        """(predicted - published) / published; nan where nothing was predicted."""
        return self.predicted / self.published - 1.0 if self.published else math.nan


def lines(data: Path, prior: Prior) -> Iterator[Line]:
    """Every row of the seeds that states something an estimator of cost can predict."""
    seeds = data / "seeds"
    yield from _batch(seeds, prior)
    yield from _bigcodebench(seeds, prior)
    yield from _wetzel_engine(seeds, prior)
    yield from _wetzel_sizes(seeds, prior)
    yield from _wetzel_lengths(seeds, prior)
    yield from _wetzel_precisions(seeds, prior)
    yield from _rice(data)


def rice_of(data: Path) -> Rice:
    """R-ICE fitted on what it was fitted on: HELM's idealised times, duplicate curves once."""
    seen: set[tuple[float, ...]] = set()
    prefill = []
    for row in read(data / "energy" / "helm_prompt_encoding.csv"):
        if row["kind"] != "idealized" or not row["params_billions"]:
            continue
        values = (
            float(row["params_billions"]),
            float(row["prompt_tokens"]),
            float(row["prompt_encoding_s"]),
        )
        if values not in seen:
            seen.add(values)
            prefill.append(Sample(*values))
    tokens = {
        (float(row["params_billions"]), float(row["runtime_per_output_token_s"]))
        for row in read(data / "energy" / "helm_per_output_token.csv")
        if row["kind"] == "idealized" and row["params_billions"]
    }
    return fitted(prefill, sorted(tokens))


def _batch(seeds: Path, prior: Prior) -> Iterator[Line]:
    """Buis table 5.18 calls it batch size and sees no effect: requests came one by one."""
    sizes = {
        "qwen2.5-coder-7b-instruct": ModelFacts(params_b=7.6),
        "llama-3.1-8b-instruct": ModelFacts(params_b=8.03),
        "deepseek-coder-v2-lite-16b": ModelFacts(params_b=15.7, active_params_b=2.4),
    }
    for row in read(seeds / "buis_t5_18_batch.csv"):
        output = float(row["latency_min"]) * 60 * float(row["throughput_tok_s"])
        found = above_idle(prior, "L40S", sizes[row["model"]], "bf16", 1.0, output)
        yield Line(
            "buis 5.18",
            f"{row['model']} batch {row['batch_size']}",
            float(row["energy_kwh"]),
            found / KWH_J,
            "kWh",
        )


class Run(NamedTuple):
    """One model's whole BigCodeBench run."""

    table: str
    name: str
    energy_kwh: float
    predicted_kwh: float
    pass_at_1: float
    pass_at_kwh: float


def bigcodebench_runs(seeds: Path, prior: Prior) -> Iterator[Run]:
    """Every run of the table, with our joules beside its own."""
    for row in read(seeds / "buis_t5_bigcodebench.csv"):
        size = float(row["params_b"])
        output = float(row["latency_min"]) * 60 * float(row["throughput_tok_s"])
        precision = row["precision"].split("-")[0]
        found = above_idle(prior, row["gpu"], ModelFacts(params_b=size), precision, 1.0, output)
        yield Run(
            f"buis {row['source_table']}",
            f"qwen2.5-coder {size:g}B {row['variant']} {row['precision']}",
            float(row["energy_kwh"]),
            found / KWH_J,
            float(row["pass_at_1"]),
            float(row["pass_at_kwh"]),
        )


def _bigcodebench(seeds: Path, prior: Prior) -> Iterator[Line]:
    for run in bigcodebench_runs(seeds, prior):
        yield Line(run.table, run.name, run.energy_kwh, run.predicted_kwh, "kWh")


def above_idle(
    prior: Prior, gpu: str, model: ModelFacts, precision: str, batch: float, output: float
) -> float:
    """GPU joules above idle of a whole run of BigCodeBench, as measured there."""
    each = output / _BIGCODEBENCH_TASKS
    found = seed_figures(prior, gpu, 1, model, precision, batch, _BIGCODEBENCH_PROMPT, each)
    idle_j = idle_power_w(GPUS[gpu]) * found.latency_s.mid / batch
    return max(0.0, found.energy_j.mid - idle_j) * _BIGCODEBENCH_TASKS


def _wetzel_engine(seeds: Path, prior: Prior) -> Iterator[Line]:
    rows = {row["engine"]: row for row in read(seeds / "wetzel_t04_serving_engine.csv")}
    published = float(rows["vllm"]["total_wh"]) / float(rows["transformers"]["total_wh"])
    model = ModelFacts(params_b=8.03, layers=32, kv_heads=8, head_dim=128)
    vllm = seed_figures(prior, "L4", 1, model, "bf16", 32.0, 200.0, 100.0).energy_j.mid
    plain = seed_figures(
        prior, "L4", 1, model, "bf16", 4.0, 200.0, 100.0, engine="transformers"
    ).energy_j.mid
    yield Line("wetzel 4", "vllm over transformers", published, vllm / plain, "ratio")


def _wetzel_sizes(seeds: Path, prior: Prior) -> Iterator[Line]:
    rows = list(read(seeds / "wetzel_t05_model_size.csv"))
    base = rows[-1]  # 7B on one GPU
    ours = {}
    for row in rows:
        gpus = int(row["num_gpus"])
        model = ModelFacts(params_b=float(row["params_b"]))
        ours[row["params_b"], gpus] = seed_figures(
            prior, "L4", gpus, model, "bf16", _WETZEL_BATCH, 200.0, 300.0
        ).energy_j.mid
    for row in rows[:-1]:
        key = (row["params_b"], int(row["num_gpus"]))
        yield Line(
            "wetzel 5",
            f"code-llama {row['params_b']}B on {row['num_gpus']} L4 over 7B on 1",
            float(row["energy_wh"]) / float(base["energy_wh"]),
            ours[key] / ours[base["params_b"], int(base["num_gpus"])],
            "ratio",
        )


def _wetzel_lengths(seeds: Path, prior: Prior) -> Iterator[Line]:
    model = ModelFacts(params_b=8.03, layers=32, kv_heads=8, head_dim=128)

    def one(prompt: float, output: float) -> float:
        return seed_figures(
            prior, "L4", 1, model, "bf16", _WETZEL_BATCH, prompt, output
        ).energy_j.mid

    outputs = list(read(seeds / "wetzel_t06_output_tokens.csv"))
    middle = outputs[3]
    for row in outputs:
        yield Line(
            "wetzel 6",
            f"{row['avg_output_tokens']} output tokens over {middle['avg_output_tokens']}",
            float(row["energy_wh_per_10000_prompts"])
            / float(middle["energy_wh_per_10000_prompts"]),
            one(150.0, float(row["avg_output_tokens"]))
            / one(150.0, float(middle["avg_output_tokens"])),
            "ratio",
        )
    inputs = list(read(seeds / "wetzel_t07_input_tokens.csv"))
    middle = inputs[3]
    for row in inputs:
        yield Line(
            "wetzel 7",
            f"{row['avg_input_tokens']} input tokens over {middle['avg_input_tokens']}",
            float(row["energy_wh_per_100000_output_tokens"])
            / float(middle["energy_wh_per_100000_output_tokens"]),
            one(float(row["avg_input_tokens"]), 300.0)
            / one(float(middle["avg_input_tokens"]), 300.0),
            "ratio",
        )


def _wetzel_precisions(seeds: Path, prior: Prior) -> Iterator[Line]:
    """Precision on unchanged hardware and number of GPUs, apart; prompt enrichment as printed."""
    rows = list(read(seeds / "wetzel_t11_energy_quantization.csv"))
    for row in rows:
        same = [
            other
            for other in rows
            if other["model"] == row["model"] and other["num_gpus"] == row["num_gpus"]
        ]
        base = same[0]
        if base is row:
            continue
        size = _WETZEL[row["model"]]
        ours = [
            seed_figures(
                prior,
                "L4",
                int(one["num_gpus"]),
                ModelFacts(params_b=size),
                one["precision"].split("-")[0],
                _WETZEL_BATCH,
                200.0,
                500.0,
            ).energy_j.mid
            for one in (row, base)
        ]
        yield Line(
            "wetzel 11",
            f"{row['model']} {row['precision']} over {base['precision']}, {row['num_gpus']} L4",
            float(row["energy_wh"]) / float(base["energy_wh"]),
            ours[0] / ours[1],
            "ratio",
        )


def _rice(data: Path) -> Iterator[Line]:
    seeds = data / "seeds"
    for row in read(seeds / "rice_t02_devices.csv"):
        yield Line(
            "r-ice II",
            row["model"],
            float(row["num_gpus"]),
            float(devices(float(row["params_b"]))),
            "devices",
        )
    yield from _rice_prefill(data)
    rice = rice_of(data)
    rows = list(read(seeds / "rice_t05_llm_perf_samples.csv"))
    for row in rows:
        # LLM-Perf asks for 64 tokens after a prompt of 256
        size = float(row["params_b"])
        seconds = rice.prefill_s(size, 256.0) + 64.0 * rice.token_s(size)
        yield Line("r-ice V", row["model"], float(row["predicted_latency_s"]), seconds, "s")
    # The unit of its energies is not joules: only ratios, here to the largest model.
    base, whole = rows[-1], rice.energy_j(float(rows[-1]["params_b"]), 256.0, 64.0)
    for row in rows[:-1]:
        published = float(row["predicted_energy_as_printed"])
        published /= float(base["predicted_energy_as_printed"])
        ours = rice.energy_j(float(row["params_b"]), 256.0, 64.0) / whole
        yield Line("r-ice V", f"{row['model']} over gpt-neox-20b", published, ours, "energy ratio")
    for row in rows:
        published = float(row["predicted_energy_as_printed"]) / float(row["energy_as_printed"])
        printed = float(row["predicted_latency_s"]) / float(row["latency_s"])
        yield Line(
            "r-ice V", f"{row['model']} energy, then time, over measured", published, printed, "x"
        )


def _rice_prefill(data: Path) -> Iterator[Line]:
    """Table III: MAPE of prefill time by algorithm, on curves none of which is split."""
    from sklearn.ensemble import (
        GradientBoostingRegressor,
        HistGradientBoostingRegressor,
        RandomForestRegressor,
    )
    from sklearn.linear_model import ElasticNet, LinearRegression, SGDRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR
    from sklearn.tree import DecisionTreeRegressor

    algorithms = {
        "random_forest": RandomForestRegressor(random_state=0),
        # stands in for XGBoost, which is no dependency: the same kind of histogram trees
        "xgboost": HistGradientBoostingRegressor(
            random_state=0, max_iter=400, min_samples_leaf=2, learning_rate=0.05
        ),
        "gradient_boosting": GradientBoostingRegressor(random_state=0),
        "decision_tree": DecisionTreeRegressor(random_state=0),
        "svr_rbf": make_pipeline(StandardScaler(), SVR(epsilon=0.01)),
        "svr_linear": make_pipeline(StandardScaler(), SVR(kernel="linear", epsilon=0.01)),
        "elastic_net": make_pipeline(StandardScaler(), ElasticNet(alpha=0.001)),
        "sgd": make_pipeline(StandardScaler(), SGDRegressor(random_state=0)),
        "linear": LinearRegression(),
    }
    rows = {
        (float(r["params_billions"]), float(r["prompt_tokens"]), float(r["prompt_encoding_s"]))
        for r in read(data / "energy" / "helm_prompt_encoding.csv")
        if r["kind"] == "idealized" and r["params_billions"]
    }
    given = np.array(sorted(rows))
    # As published: rows of a curve fall on both sides, which is why a forest looks so good.
    test = np.random.default_rng(0).random(len(given)) < 0.2
    for row in read(data / "seeds" / "rice_t03_prefill_algorithms.csv"):
        model = algorithms[row["algorithm"]]
        # Beside its R² of .976 the printed .60 of XGBoost can only be .060.
        published = 0.06 if row["algorithm"] == "xgboost" else float(row["mape"])
        model.fit(given[~test, :2], given[~test, 2])
        said = model.predict(given[test, :2])
        mape = float(np.mean(np.abs(said - given[test, 2]) / given[test, 2]))
        yield Line("r-ice III", row["algorithm"], published, mape, "MAPE")


def seed_figures(
    prior: Prior,
    gpu: str,
    num_gpus: int,
    model: ModelFacts,
    precision: str,
    batch: float,
    prompt: float,
    output: float,
    engine: str = "vllm",
) -> Figures:
    """Our figures of one request on one of the machines of the publications."""
    backend = Backend(
        name="seed",
        group="seed",
        precision=precision,
        engine=engine,
        engine_version="0.5.4",
        gpu=GPUS[gpu],
        num_gpus=num_gpus,
        model=model,
    )
    subject = subject_of(prior, backend, idle_power_w(GPUS[gpu]) * num_gpus)
    assert subject is not None
    return figures(prior, subject, batch, prompt, output)


def read(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="") as file:
        yield from csv.DictReader(file)
