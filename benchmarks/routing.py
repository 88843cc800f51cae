"""Quality and length prediction against the controls, on outcomes of many models.

    make bench-routing ARGS=--quick

Learns with ``estimators.quality_fit.learn`` from a part of each set and judges on the rest:
prompts of known tasks (no passage on both sides), then whole tasks left out. What ``learn`` chooses
it chooses on inner folds. Its structure (stems, directions, gate rules) was chosen by looking at
random splits of these same sets, so these figures are optimistic; outcomes that nobody has looked
at are the clean test.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from benchmarks.routing_scores import area_of, area_of_hull, hull_of, pinball, recovered
from benchmarks.routing_sets import NAMES, OutcomeSet, lengths_of, load, split
from benchmarks.routing_unseen import LeftOut, guesses_of, line_of, summary, tasks_left_out
from estimators.quality_fit import Scored, learn
from estimators.quality_model import QualityModel
from estimators.text import coarse_task, read

Matrix = NDArray[np.float64]
Index = NDArray[np.int64]
_SPLITS_OF_FEW = 10
Router = Callable[[OutcomeSet, Index, Index], Matrix]


def rows_of(data: OutcomeSet, rows: Index, labels: bool = True) -> Iterator[Scored]:
    for i in rows:
        for m, model in enumerate(data.models):
            score = data.scores[i, m]
            length = np.nan if data.lengths is None else data.lengths[i, m]
            if not (np.isnan(score) and np.isnan(length)):
                yield Scored(
                    data.texts[i],
                    model,
                    None if np.isnan(score) else float(score),
                    None if np.isnan(length) else float(length),
                    data.tasks[i] if labels else None,
                )


def learnt_from(data: OutcomeSet, learnt: Index, labels: bool = True) -> QualityModel:
    return learn(rows_of(data._replace(lengths=None), learnt, labels))


def ours(data: OutcomeSet, learnt: Index, judged: Index) -> Matrix:
    return guesses_of(learnt_from(data, learnt), data, judged)


def ours_unlabelled(data: OutcomeSet, learnt: Index, judged: Index) -> Matrix:
    return guesses_of(learnt_from(data, learnt, False), data, judged)


def ridge(data: OutcomeSet, learnt: Index, judged: Index) -> Matrix:
    words, filled, mean = _tfidf(data, learnt)
    model = Ridge(alpha=5.0, solver="sparse_cg").fit(words[learnt], filled[learnt] - mean)
    return np.asarray(mean + model.predict(words[judged]))


def clusters(data: OutcomeSet, learnt: Index, judged: Index) -> Matrix:
    words, filled, mean = _tfidf(data, learnt)
    axes = TruncatedSVD(min(64, len(learnt) - 1), random_state=0).fit(words[learnt])
    places = axes.transform(words)
    places /= np.linalg.norm(places, axis=1, keepdims=True) + 1e-9
    found = KMeans(32, n_init=2, random_state=0).fit(places[learnt])
    kind = found.predict(places)
    table = np.array(
        [
            (filled[learnt][kind[learnt] == k].sum(0) + 10 * mean)
            / ((kind[learnt] == k).sum() + 10)
            for k in range(32)
        ]
    )
    return np.asarray(table[kind[judged]])


def _tfidf(data: OutcomeSet, learnt: Index) -> tuple[Matrix, Matrix, Matrix]:
    mean = np.nanmean(data.scores[learnt], axis=0)
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2))
    words.fit([data.texts[i] for i in learnt])
    return words.transform(data.texts), np.where(np.isnan(data.scores), mean, data.scores), mean


def task_known(data: OutcomeSet, learnt: Index, judged: Index) -> Matrix:
    """Means of each task where a prompt's own is told, which no prompt does: what knowing kinds
    perfectly would be worth."""
    mean = np.nanmean(data.scores[learnt], axis=0)
    away = np.nan_to_num(data.scores[learnt] - mean)
    names, kind = np.unique(np.array(data.tasks), return_inverse=True)
    onehot = np.eye(len(names))[kind[learnt]]
    return np.asarray((mean + onehot.T @ away / (onehot.sum(0)[:, None] + 20.0))[kind[judged]])


ROUTERS: dict[str, Router] = {
    "k-means 32": clusters,
    "TF-IDF ridge": ridge,
    "ours": ours,
    "ours, unlabelled": ours_unlabelled,
    "task known": task_known,
}


def worth(data: OutcomeSet, guesses: Matrix, learnt: Index, judged: Index) -> float:
    scores = data.scores[judged]
    if len(data.models) == 2:
        return recovered(guesses[:, 1] - guesses[:, 0], scores)
    hull = hull_of(data.costs, np.nanmean(data.scores[learnt], axis=0))
    return area_of(guesses, hull, data.costs, scores)


def controls(data: OutcomeSet, learnt: Index, judged: Index) -> dict[str, float]:
    scores = data.scores[judged]
    known = np.nanmean(data.scores[learnt], axis=0)
    truth = np.where(np.isnan(scores), np.nanmean(scores, axis=0), scores)
    if len(data.models) == 2:
        return {"random": 0.5, "best single": 0.5, "hull": 0.5}
    hull = hull_of(data.costs, known)
    return {
        "random": float(np.nanmean(scores)),
        "best single": float(np.nanmean(scores[:, hull.models[-1]])),
        "hull": area_of_hull(hull, data.costs, scores),
        "oracle": area_of(truth, hull, data.costs, scores),
    }


def sampling_error(data: OutcomeSet, guesses: Matrix, learnt: Index, judged: Index) -> float:
    """Standard error of one part's worth over which prompts happened to be in it."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(judged), len(judged)) for _ in range(100)]
    return float(np.std([worth(data, guesses[d], learnt, judged[d]) for d in drawn]))


def seen_tasks(data: OutcomeSet, repeats: int, most: int | None) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for seed in range(repeats):
        learnt, judged = split(data.groups, 0.67, seed)
        if most is not None:
            learnt = np.random.default_rng(seed).permutation(learnt)[:most]
        for name, value in controls(data, learnt, judged).items():
            found.setdefault(name, []).append(value)
        for name, router in ROUTERS.items():
            guesses = router(data, learnt, judged)
            found.setdefault(name, []).append(worth(data, guesses, learnt, judged))
            if name == "ours":
                shuffled = np.random.default_rng(seed).permutation(guesses)
                found.setdefault("shuffled", []).append(worth(data, shuffled, learnt, judged))
                if len(data.models) == 2:
                    error = sampling_error(data, guesses, learnt, judged)
                    found.setdefault("of sampling", []).append(error)
    return found


def lead(found: dict[str, list[float]]) -> str:
    """What is learnt less the best of what it is to beat, split by split."""
    rivals = ("random", "best single", "hull", "k-means 32", "TF-IDF ridge")
    best = max(rivals, key=lambda name: float(np.mean(found[name])))
    less = np.array(found["ours"]) - np.array(found[best])
    return f"ours less {best}: {less.mean():+.4f}±{less.std() / len(less) ** 0.5:.4f}"


def joules(data: OutcomeSet, repeats: int) -> list[dict[str, tuple[float, float]]]:
    """GreenServ: accuracy and joules of the best single model, of a random one, and of ours at
    budgets of energy, kept in expectation."""
    assert data.energy_j is not None
    runs = []
    tasks = np.array(data.tasks)
    usable = np.flatnonzero(~np.isnan(data.scores).all(1))
    for seed in range(repeats):
        learnt, judged = split(data.groups[usable], 0.67, seed)
        learnt, judged = usable[learnt], usable[judged]
        scores, energy = _filled(data.scores, tasks, judged), _filled(data.energy_j, tasks, judged)
        known = _filled(data.scores, tasks, learnt).mean(0)
        cost_known = _filled(data.energy_j, tasks, learnt)
        best = int(known.argmax())
        # what an answer costs is known from its kind: the request says how long it may be
        by_task = {t: cost_known[tasks[learnt] == t].mean(0) for t in set(tasks[learnt])}
        costs = np.array([by_task[t] for t in tasks[judged]])
        run = {"best single": (float(scores[:, best].mean()), float(energy[:, best].mean()))}
        run["random"] = (float(scores.mean()), float(energy.mean()))
        guesses = ours(data._replace(energy_j=None), learnt, judged)
        rows = np.arange(len(judged))
        table = {t: np.nanmean(data.scores[learnt][tasks[learnt] == t], 0) for t in by_task}
        plain = np.array([table[t] for t in tasks[judged]])
        for title, guess, share in (
            *(("task means", plain, share) for share in (0.4, 0.5, 0.6)),
            *(("ours", guesses, share) for share in (0.3, 0.4, 0.5, 0.6)),
        ):
            budget = share * costs[:, best].mean()
            for price in np.geomspace(1e-7, 1.0, 400):
                chosen = (guess - price * costs).argmax(1)
                if costs[rows, chosen].mean() <= budget:
                    break
            run[f"{title}, {share:.0%} expected"] = (
                float(scores[rows, chosen].mean()),
                float(energy[rows, chosen].mean()),
            )
        runs.append(run)
    return runs


def _filled(values: Matrix, tasks: NDArray[np.str_], rows: Index) -> Matrix:
    """Cells that were not published get their model's mean on that task, of these rows."""
    part = values[rows].copy()
    for task in set(tasks[rows]):
        mine = tasks[rows] == task
        part[mine] = np.where(np.isnan(part[mine]), np.nanmean(part[mine], axis=0), part[mine])
    return part


def lengths(data: OutcomeSet, learnt: Index, judged: Index) -> dict[str, float]:
    assert data.lengths is not None
    model = learn(rows_of(data._replace(scores=np.full_like(data.scores, np.nan)), learnt))
    order = [model.backends.index(name) for name in data.models]
    found = model.predict_all([read(data.texts[i]) for i in judged])
    said = [each.lengths[order] for each in found if each.lengths is not None]
    low, mid, high, mean = np.moveaxis(np.array(said, dtype=float), 2, 0)
    came = data.lengths[judged]
    plain = np.nanmedian(data.lengths[learnt], axis=0)
    # How much longer than usual a prompt's answers are, of all models together, if it were known.
    usual = np.nanmean(np.log1p(data.lengths[learnt]), axis=0)
    common = np.nanmean(np.log1p(came) - usual, axis=1, keepdims=True)
    known = np.expm1(np.log1p(plain) + common)
    inside = np.where(np.isnan(came), np.nan, (came >= low) & (came <= high))
    size = np.nanmean(came)
    return {
        "prompts": len(judged),
        "mean tokens": float(size),
        "error of model medians": float(np.nanmean(np.abs(came - plain)) / size),
        "error": float(np.nanmean(np.abs(came - mid)) / size),
        "error knowing the prompt": float(np.nanmean(np.abs(came - known)) / size),
        "pinball 10": pinball(low, came, 0.1),
        "pinball 50": pinball(mid, came, 0.5),
        "pinball 90": pinball(high, came, 0.9),
        "inside 80 %": float(np.nanmean(inside)),
        "total": float(np.nanmean(np.where(np.isnan(came), np.nan, mean)) / size),
    }


def priors(folder: Path) -> None:
    """Usual lengths by coarse task, from sets whose licence allows to fit what is shipped."""
    print("median tokens and deviation of log(1 + tokens), by coarse task")
    for name in ("arena", "mmlupro", "zeroeval"):
        data = lengths_of(folder, name)
        assert data.lengths is not None
        kinds = np.array([coarse_task(text) for text in data.texts])
        for kind in sorted(set(kinds)):
            logs = np.log1p(data.lengths[kinds == kind])
            print(
                f"  {name:10} {kind:11} {np.expm1(np.nanmedian(logs)):6.0f} {np.nanstd(logs):5.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/routing"))
    parser.add_argument("--quick", action="store_true", help="one split, fewer prompts")
    parser.add_argument("--only", default="", help="comma-separated names of sets")
    parser.add_argument("--priors", action="store_true", help="print the usual lengths and stop")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.priors:
        priors(args.data)
        return
    repeats = 1 if args.quick else 5
    most = 2000 if args.quick else None
    names = [name for name in args.only.split(",") if name] or [*NAMES, "greenserv", "lengths"]
    sets = [name for name in NAMES if name in names]
    loaded = {name: load(args.data, name, most) for name in sets}

    columns = ["random", "best single", "hull", "shuffled", *ROUTERS, "oracle", "of sampling"]
    if sets:
        print("Unseen prompts of seen tasks. Two models: APGR; more: mean quality over budgets.")
        print("Last: ours less the best of its rivals, on the same splits.")
        print('"of sampling": what the choice of prompts judged on leaves uncertain in one split.')
        print(f"{'':14}" + "".join(f"{column:>17}" for column in columns))
    for name, data in loaded.items():
        for limit in (1500, None) if name == "mmlu" else (None,):
            began = time.monotonic()
            found = seen_tasks(data, repeats, limit)
            title = f"{name} {limit}" if limit else name
            cells = [
                f"{np.mean(found[c]):.3f}±{np.std(found[c]) / max(len(found[c]) ** 0.5, 1):.3f}"
                if c in found
                else "-"
                for c in columns
            ]
            print(f"{title:14}" + "".join(f"{cell:>17}" for cell in cells), end="")
            print(f"   {lead(found)}   {time.monotonic() - began:.0f} s", flush=True)

    if sets:
        print("\nWhole tasks left out: mean quality over budgets less the hull as known when")
        print("learning; alone in a file, and among as many prompts of known tasks.")
    every: list[LeftOut] = []
    for name, data in loaded.items():
        if len(set(data.tasks)) < 2:
            continue
        found_out = []
        for one in tasks_left_out(data, 1500 if args.quick else 2500, learnt_from, ridge):
            found_out.append(one)
            print(f"{name:12}{line_of(one)}", flush=True)
        print(summary(name, found_out), flush=True)
        every.extend(found_out)
    if every:
        print(summary("all", every), flush=True)

    if "greenserv" in names:
        runs = joules(load(args.data, "greenserv"), max(repeats, 3))
        print("\nJoules (GreenServ, evaluation only): accuracy at joules a query")
        for title in runs[0]:
            accuracy, energy = np.nanmean([run[title] for run in runs], axis=0)
            best = np.mean([run["best single"][1] for run in runs])
            print(f"  {title:22} {accuracy:.3f} at {energy:6.1f} J ({energy / best:.0%})")

    if "lengths" in names:
        print("\nLengths: relative mean absolute error, pinball losses, coverage, total")
        for name in ("alpacaeval", "arena", "zeroeval", "routerbench", "mmlupro"):
            data = lengths_of(args.data, name)
            if args.quick and len(data.texts) > 1500:
                continue
            # A third of a few hundred prompts says little: more splits, and how they scatter.
            few = len(data.texts) < 1000 and repeats > 1
            results = [
                lengths(data, *split(data.groups, 0.67, seed))
                for seed in range(_SPLITS_OF_FEW if few else min(repeats, 3))
            ]
            cells = []
            for key in results[0]:
                came = [result[key] for result in results]
                scatter = f" ± {np.std(came, ddof=1):.2g}" if few else ""
                cells.append(f"{key} {np.mean(came):.3g}{scatter}")
            print(f"  {name:12} " + " · ".join(cells), flush=True)


if __name__ == "__main__":
    main()
