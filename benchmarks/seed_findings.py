"""What the publications found beyond joules per row: shapes, domains, enrichment, grids, fronts.

The same rows as seeds.py reads, for what needs another estimator than that of energy: parameters
from shapes, quality, carbon intensity; and findings that are a relation between rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.seeds import (
    Line,
    above_idle,
    bigcodebench_runs,
    read,
    seed_figures,
)
from estimators.model_config import facts_from_config
from estimators.prior import Prior
from estimators.quality_priors import published_prior
from estimators.types import ModelFacts
from meters.intensity.table import AnnualTable

_COUNTRIES = {
    "Iceland": "IS",
    "Sweden": "SE",
    "Switzerland": "CH",
    "France": "FR",
    "Germany": "DE",
    "East Canada": "CA-QC",
    "West Canada": "CA-BC",
    "Brazil": "BR",
    "USA": "US",
    "New Zealand": "NZ",
    "Japan": "JP",
    "Australia": "AU",
    "India": "IN",
}
_DOMAINS = ("computation", "cryptography", "network", "system", "time", "visualization")
# Tokens of guidance put before a prompt: as long as an answer of a large model to Arena-Hard
# (619-697 on average, danielwetzel/arena-hard-auto). The thesis does not print its own.
_GUIDANCE, _PROMPT, _ANSWER = 650.0, 90.0, 700.0
_SIZES = {"llama-3.1-70b": 70.6, "mistral-nemo-2407": 12.25, "llama-3.1-8b": 8.03}
_BATCH = 64.0


def findings(data: Path, prior: Prior) -> Iterator[Line]:
    """Every row of the seeds that seeds.lines has not."""
    seeds = data / "seeds"
    yield from _architectures(seeds)
    yield from _domains(seeds, prior)
    yield from _pareto(seeds, prior)
    yield from _shapes_of_length(seeds, prior)
    yield from _mixed_factors(seeds, prior)
    yield from _enrichment(seeds, prior)
    yield from _scores(seeds)
    yield from _regions(seeds)


def _architectures(seeds: Path) -> Iterator[Line]:
    """Parameters counted from the shape, with the right forms (the README lists the wrong ones)."""
    for row in read(seeds / "buis_t4_01_architectures.csv"):
        config: dict[str, object] = {
            "hidden_size": int(row["hidden_size"]),
            "num_hidden_layers": int(row["layers"]),
            "num_attention_heads": int(row["heads"]),
            "num_key_value_heads": int(row["kv_heads"]),
            "head_dim": int(row["head_dim"]),
            "intermediate_size": int(row["intermediate_size"]),
            "vocab_size": int(row["vocab"]),
        }
        if row["moe"] != "no":  # 64 routed + 2 shared experts of 1408; 6 per token
            config |= {
                "n_routed_experts": 64,
                "n_shared_experts": 2,
                "moe_intermediate_size": 1408,
                "num_experts_per_tok": 6,
                "first_k_dense_replace": 1,
            }
        facts = facts_from_config(config)
        yield Line("buis 4.1", row["model"], float(row["params_b"]), facts.params_b, "B params")


def _domains(seeds: Path, prior: Prior) -> Iterator[Line]:
    """Per cent of energy by domain at equal length, and by one token more.

    What is predicted of a request knows its length, not its domain: at equal length ours is no
    difference. Domains act through the answer's length, which the length predictor reads.
    """
    sizes = {
        "qwen2.5-coder-7b-instruct": (ModelFacts(params_b=7.6), 174.67 * 60 * 39.43),
        "llama-3.1-8b-instruct": (ModelFacts(params_b=8.03), 201.23 * 60 * 38.14),
        "deepseek-coder-v2-lite-16b": (
            ModelFacts(params_b=15.7, active_params_b=2.4),
            108.25 * 60 * 61.52,
        ),
    }
    for row in read(seeds / "buis_t5_05_13_domain_ols.csv"):
        name = f"{row['model']} batch {row['batch_size']}"
        model, tokens = sizes[row["model"]]
        more = above_idle(prior, "L40S", model, "bf16", 1.0, 1.1 * tokens)
        less = above_idle(prior, "L40S", model, "bf16", 1.0, 0.9 * tokens)
        each = math.log(more / less) / (0.2 * tokens / 1140.0)
        yield Line("buis 5.5-13", f"{name}: a token", float(row["solution_tokens"]), each, "ln J")
        for domain in _DOMAINS:
            published = math.exp(float(row[domain]))
            yield Line("buis 5.5-13", f"{name}: {domain}", published, 1.0, "x, equal length")
        published = float(row["log_energy_lag1"])
        yield Line("buis 5.5-13", f"{name}: the task before", published, math.nan, "not modelled")


def _pareto(seeds: Path, prior: Prior) -> Iterator[Line]:
    """Which runs no other beats in both pass@1 and energy: by their joules, and by ours."""
    runs = list(bigcodebench_runs(seeds, prior))
    passed = [run.pass_at_1 for run in runs]
    theirs = _front([run.energy_kwh for run in runs], passed)
    ours = _front([run.predicted_kwh for run in runs], passed)
    for run, one, other in zip(runs, theirs, ours, strict=True):
        yield Line("pareto", run.name, float(one), float(other), "on the front")
    for run in runs:
        predicted = run.pass_at_1 / run.predicted_kwh
        yield Line("buis pass/kWh", run.name, run.pass_at_kwh, predicted, "1/kWh")


def _front(cost: Sequence[float], score: Sequence[float]) -> list[bool]:
    """Whom nobody beats with less energy. Theirs has two digits: runs printed alike beat nobody."""
    points = list(zip(cost, score, strict=True))
    return [not any(c < cost_i and s >= score_i for c, s in points) for cost_i, score_i in points]


def _shapes_of_length(seeds: Path, prior: Prior) -> Iterator[Line]:
    """Energy is quadratic in the output and linear in the input: R² of each, theirs and ours."""
    model = ModelFacts(params_b=8.03, layers=32, kv_heads=8, head_dim=128)
    rows = list(read(seeds / "wetzel_t06_output_tokens.csv"))
    x = np.array([float(row["avg_output_tokens"]) for row in rows])
    theirs = np.array([float(row["energy_wh_per_10000_prompts"]) for row in rows])
    ours = np.array(
        [seed_figures(prior, "L4", 1, model, "bf16", _BATCH, 150.0, v).energy_j.mid for v in x]
    )
    for degree, name in ((1, "output, straight line"), (2, "output, quadratic")):
        yield Line("wetzel 6", name, _r2(x, theirs, degree), _r2(x, ours, degree), "R²")
    published, predicted = (
        float(np.polyfit(x, y, 2)[0] * x[-1] ** 2 / y[-1]) for y in (theirs, ours)
    )
    yield Line("wetzel 6", "part of the square at 1796 tokens", published, predicted, "of all")
    rows = list(read(seeds / "wetzel_t07_input_tokens.csv"))
    x = np.array([float(row["avg_input_tokens"]) for row in rows])
    theirs = np.array([float(row["energy_wh_per_100000_output_tokens"]) for row in rows])
    ours = np.array(
        [seed_figures(prior, "L4", 1, model, "bf16", _BATCH, v, 300.0).energy_j.mid for v in x]
    )
    yield Line("wetzel 7", "input, straight line", _r2(x, theirs, 1), _r2(x, ours, 1), "R²")


def _r2(x: np.ndarray, y: np.ndarray, degree: int) -> float:
    left = y - np.polyval(np.polyfit(x, y, degree), x)
    return float(1.0 - (left**2).sum() / ((y - y.mean()) ** 2).sum())


def _mixed_factors(seeds: Path, prior: Prior) -> Iterator[Line]:
    """Section 6.3's factors mix precision with the number of GPUs: as printed, and taken apart."""
    model = ModelFacts(params_b=70.6)

    def one(precision: str, gpus: int) -> float:
        found = seed_figures(prior, "L4", gpus, model, precision, _BATCH, 200.0, 500.0)
        return found.energy_j.mid

    base = one("bf16", 8)
    changed = {
        "bf16->fp8": one("fp8", 4) / base,
        "bf16->int4": one("int4", 4) / base,
        "fp8->bf16": base / one("fp8", 4),
        "int4->bf16": base / one("int4", 4),
    }
    for row in read(seeds / "wetzel_s63_factors.csv"):
        if row["change"] in changed:
            yield Line(
                "wetzel 6.3",
                f"llama-3.1-70b {row['change']}, 8 and 4 L4",
                float(row["energy_factor"]),
                changed[row["change"]],
                "ratio",
            )
    rows = {
        (row["model"], row["precision"], row["num_gpus"]): float(row["energy_wh"])
        for row in read(seeds / "wetzel_t11_energy_quantization.csv")
    }
    for precision in ("fp8", "int4-awq"):
        for name, size in _SIZES.items():
            few = [gpus for n, p, gpus in rows if (n, p) == (name, precision)]
            some, all_ = min(few, key=int), max(few, key=int)
            ours = [
                seed_figures(
                    prior,
                    "L4",
                    int(gpus),
                    ModelFacts(params_b=size),
                    precision.split("-")[0],
                    _BATCH,
                    200.0,
                    500.0,
                ).energy_j.mid
                for gpus in (some, all_)
            ]
            yield Line(
                "wetzel 11",
                f"{name} {precision}: {some} L4 over {all_}",
                rows[name, precision, some] / rows[name, precision, all_],
                ours[0] / ours[1],
                "ratio",
            )


def _enrichment(seeds: Path, prior: Prior) -> Iterator[Line]:
    """A prompt enriched with guidance, over the plain one."""
    for row in read(seeds / "wetzel_t11_energy_quantization.csv"):
        model = ModelFacts(params_b=_SIZES[row["model"]])
        precision = row["precision"].split("-")[0]
        plain, guided = (
            seed_figures(
                prior, "L4", int(row["num_gpus"]), model, precision, _BATCH, prompt, _ANSWER
            ).energy_j.mid
            for prompt in (_PROMPT, _PROMPT + _GUIDANCE)
        )
        yield Line(
            "enrichment",
            f"{row['model']} {row['precision']}, {row['num_gpus']} L4",
            float(row["guided_energy_wh"]) / float(row["energy_wh"]),
            guided / plain,
            "ratio",
        )


def _scores(seeds: Path) -> Iterator[Line]:
    """Arena-Hard: what stands in for quality before any feedback; guided answers have no prior."""
    for table in ("wetzel_t08_arena_guidance.csv", "wetzel_t10_arena_quantization.csv"):
        number = int(table.split("_t")[1][:2])
        for row in read(seeds / table):
            precision = row.get("precision", "bf16")
            found = published_prior(row["model"].removesuffix("-2407"), precision, "chat")
            name = f"{row['model']} {row.get('precision', '')}".rstrip()
            ours = math.nan if found is None else 100.0 * found.mean
            published = float(row["arena_score"])
            yield Line(f"wetzel {number}", name, published, ours, "points, kept as they are")
            if row["guided_arena_score"]:
                guided = float(row["guided_arena_score"])
                yield Line(f"wetzel {number}", f"{name}, guided", guided, math.nan, "not predicted")


def _regions(seeds: Path) -> Iterator[Line]:
    table = AnnualTable()
    for row in read(seeds / "wetzel_t12_regions.csv"):
        found = table.annual(_COUNTRIES[row["country"]])
        published = float(row["carbon_intensity_g_per_kwh"])
        yield Line("wetzel 12", row["country"], published, found.g_per_kwh, f"g/kWh {found.tier}")
