"""Outcomes of several models on the same prompts, as tables, and honest ways to split them.

Reads the parquet files of a routing folder (prompts and scores joined on prompt_id). Prompts that
share a passage of twelve words that is not a template stay on the same side of a split.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Index = NDArray[np.int64]

NAMES = (
    "mmlu",
    "gsm8k",
    "routerbench",
    "mmlupro",
    "llmrouter",
    "zeroeval",
    "alpacaeval",
)


class OutcomeSet(NamedTuple):
    """Scores and lengths of ``models`` on ``texts``; nan where nothing was seen."""

    name: str
    texts: list[str]
    tasks: list[str]
    models: list[str]
    scores: Matrix  # (N, M)
    lengths: Matrix | None
    costs: Matrix  # (M,) of one answer: dollars or billions of parameters
    groups: Index  # prompts that share passages have the same number
    energy_j: Matrix | None = None  # (N, M)


def load(folder: Path, name: str, most: int | None = None) -> OutcomeSet:
    """One set; ``most`` takes that many prompts at random."""
    if name in ("mmlu", "gsm8k"):
        return _pair(folder, name, most)
    prompts = pd.read_parquet(folder / f"{name}_prompts.parquet").drop_duplicates("prompt")
    prompts = prompts.set_index("prompt_id")
    suffix = "_scores_decoded" if name == "greenserv" else "_scores"
    rows = pd.read_parquet(folder / f"{name}{suffix}.parquet")
    score = "ae2_pref_vs_gpt4_1106" if name == "alpacaeval" else "score"
    scores = _table(rows, score)
    kept = scores.columns[scores.notna().mean() > (0.1 if name == "greenserv" else 0.9)]
    scores = scores[kept].dropna(how="all")
    order = prompts.index.intersection(scores.index)
    order = _sample(order, most)
    prompts, scores = prompts.loc[order], scores.loc[order]
    lengths = None
    if "out_tokens" in rows:
        lengths = _table(rows, "out_tokens").reindex(index=order, columns=kept).to_numpy(float)
    energy = None
    if name == "greenserv":
        # the source publishes energy per token; where no energy of the answer can be derived,
        # it is that times the tokens the benchmark asked for
        asked = rows["prompt_id"].map(prompts["max_new_tokens"])
        rows["energy_j"] = rows["energy_J_derived"].fillna(
            rows["energy_per_token_J_derived"] * asked
        )
        energy = _table(rows, "energy_j").reindex(index=order, columns=kept).to_numpy(float)
    task = next(c for c in ("category", "task", "dataset") if c in prompts)
    texts = prompts["prompt"].tolist()
    return OutcomeSet(
        name,
        texts,
        prompts[task].astype(str).tolist(),
        list(kept),
        scores.to_numpy(float),
        lengths,
        _costs(name, rows, list(kept)),
        passages(texts),
        energy,
    )


def lengths_of(folder: Path, name: str) -> OutcomeSet:
    """A set for lengths only, with every model that has them: "chat", "arena", or one of NAMES."""
    if name == "arena":
        prompts = pd.read_parquet(folder / "arenahard01_prompts.parquet").set_index("prompt_id")
        rows = pd.read_parquet(folder / "arenahard01_wetzel_answers.parquet")
        rows = rows.drop_duplicates(["prompt_id", "model"])  # one run each
        lengths = _table(rows, "out_tokens").loc[prompts.index]
    else:
        prompts = pd.read_parquet(folder / f"{name}_prompts.parquet").drop_duplicates("prompt")
        prompts = prompts.set_index("prompt_id")
        lengths = _table(pd.read_parquet(folder / f"{name}_scores.parquet"), "out_tokens")
        lengths = lengths.loc[lengths.index.intersection(prompts.index)]
        prompts = prompts.loc[lengths.index]
    task = next((c for c in ("category", "task") if c in prompts), None)
    texts = prompts["prompt"].tolist()
    return OutcomeSet(
        name,
        texts,
        prompts[task].astype(str).tolist() if task else [""] * len(texts),
        list(lengths.columns),
        np.full(lengths.shape, np.nan),
        lengths.to_numpy(float),
        np.ones(lengths.shape[1]),
        passages(texts),
    )


def passages(texts: list[str], words: int = 12, template: int = 20) -> Index:
    """A number for each text, the same for texts that share a passage of so many words, unless
    more than ``template`` texts have it."""
    holders: dict[int, list[int]] = {}
    for number, text in enumerate(texts):
        found = re.findall(r"\w+", text.lower())
        for start in range(max(len(found) - words + 1, 1)):
            key = crc32(" ".join(found[start : start + words]).encode("utf-8", "surrogatepass"))
            mine = holders.setdefault(key, [])
            if not mine or mine[-1] != number:
                mine.append(number)
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for mine in holders.values():
        if 1 < len(mine) <= template:
            for other in mine[1:]:
                parent[root(other)] = root(mine[0])
    return np.array([root(i) for i in range(len(texts))])


def split(groups: Index, share: float, seed: int) -> tuple[Index, Index]:
    """Rows to learn from and rows to judge by; no group on both sides."""
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    learnt = np.isin(groups, names[: round(share * len(names))])
    return np.flatnonzero(learnt), np.flatnonzero(~learnt)


def _table(rows: Any, value: str) -> Any:
    return rows.pivot_table(index="prompt_id", columns="model", values=value, aggfunc="mean")


def _sample(order: Any, most: int | None) -> Any:
    if most is None or len(order) <= most:
        return order
    return order[np.sort(np.random.default_rng(0).permutation(len(order))[:most])]


def _pair(folder: Path, name: str, most: int | None) -> OutcomeSet:
    rows = pd.read_parquet(folder / "routellm_pair.parquet")
    rows = rows[(rows.dataset == name) & ~rows.contaminated].drop_duplicates("prompt")
    rows = rows.iloc[_sample(np.arange(len(rows)), most)]
    lengths = rows[["out_tokens_weak", "out_tokens_strong"]].to_numpy(float)
    texts = rows.prompt.tolist()
    return OutcomeSet(
        name,
        texts,
        rows.category.astype(str).tolist(),
        ["mixtral-8x7b", "gpt-4-1106"],
        rows[["score_weak_mixtral8x7b", "score_strong_gpt4_1106"]].to_numpy(float),
        None if np.isnan(lengths).all() else lengths,
        np.array([0.0, 1.0]),
        passages(texts),
    )


# Where a name does not say its size: rough list prices on the same scale (100 for ten dollars a
# million output tokens). Only the order of magnitude matters: it is the axis of the hull.
_NAMED = {
    "gpt-4o-mini": 6,
    "gpt-4o": 100,
    "gpt-4-turbo": 300,
    "gpt-4": 300,
    "gpt-3.5": 15,
    "o1-mini": 120,
    "o1": 600,
    "opus": 750,
    "sonnet": 150,
    "haiku": 12,
    "claude": 80,
    "gemini-1.5-pro": 50,
    "gemini-1.5-flash": 3,
    "gemini": 50,
    "mistral-large": 60,
    "nemo": 12,
    "deepseek": 21,
    "phi-3": 3.8,
    "reka-core": 60,
    "reka-flash": 21,
}


def _costs(name: str, rows: Any, models: list[str]) -> Matrix:
    if "cost_usd" in rows:
        return np.asarray(_table(rows, "cost_usd")[models].mean(), dtype=float)
    return np.array([_size(model.lower()) for model in models])


def _size(model: str) -> float:
    experts = re.search(r"(\d+)x(\d+)b", model)
    if experts:
        return 2.0 * float(experts[2])  # two of them at a time
    for known in sorted(_NAMED, key=len, reverse=True):
        if known in model:
            return float(_NAMED[known])
    size = re.search(r"(\d+(?:\.\d+)?)b(?![a-z])", model)
    return float(size[1]) if size else 50.0
