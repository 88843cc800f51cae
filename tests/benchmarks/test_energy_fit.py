"""Fitting and holding back, on the published measurements where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.energy_rows import fingerprint, read_rows
from benchmarks.grey_fit import fit, predict
from benchmarks.holdouts import folds, relative
from benchmarks.seed_findings import findings
from benchmarks.seeds import Line, lines
from estimators.artefacts import load_prior

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "energy").exists(), reason="the published measurements are not here"
)


@pytest.fixture(scope="module")
def published() -> list[Line]:
    return list(lines(DATA, load_prior()))


@pytest.fixture(scope="module")
def found() -> list[Line]:
    return list(findings(DATA, load_prior()))


@needs_data
def test_no_fold_sees_what_it_is_judged_on() -> None:
    rows = read_rows(DATA)
    for fold in folds(rows):
        assert fold.held
        assert not set(fold.held) & set(fold.seen)
        seen = [rows[i] for i in fold.seen]
        for i in fold.held:
            row = rows[i]
            if fold.tier in ("new_model", "both_new") and row.source != "consumer":
                assert all(
                    other.architecture != row.architecture
                    for other in seen
                    if other.source != "consumer"
                )
            if fold.tier in ("new_gpu", "both_new"):
                assert all(other.gpu != row.gpu for other in seen if other.source == row.source), (
                    fold.name
                )


@needs_data
def test_constants_are_not_fitted_to_more_caches_than_memory_holds() -> None:
    rows = [row for row in read_rows(DATA) if row.source == "argonne"]
    capped = [row for row in rows if np.isfinite(row.steady_batch)]
    # Llama 2 7B keeps 1.07 GB for 2,048 tokens, and an A100 of 40 GB has room for 21 of them.
    assert {(row.architecture, row.batch) for row in capped} == {
        ("llama2-7b", 32.0),
        ("llama2-7b", 64.0),
    }
    assert all(20.0 < row.steady_batch < 22.0 for row in capped)


@needs_data
def test_the_committed_prior_was_fitted_on_this_data() -> None:
    assert load_prior().about["data_sha256"] == fingerprint(DATA)


@needs_data
def test_a_fit_beats_the_data_sheets_on_architectures_it_has_not_seen() -> None:
    rows = [row for row in read_rows(DATA) if row.source == "v2"]
    held = [row for row in rows if row.architecture in ("mistral-7b", "phi3-medium")]
    seen = [row for row in rows if row.architecture not in ("mistral-7b", "phi3-medium")]
    said = predict(fit(seen, load_prior().constants, 5, 0), held)
    measured = np.log([row.energy_j for row in held])
    assert relative(measured - said.energy).mean() < 0.15


@needs_data
def test_no_table_of_the_publications_is_left_out(published: list[Line], found: list[Line]) -> None:
    printed = {line.table for line in [*published, *found]}
    assert printed >= {
        *("buis 4.1", "buis 5.18", "buis 5.24", "buis 5.29", "buis 5.34", "buis 5.40"),
        *("buis 5.5-13", "buis pass/kWh", "pareto", "enrichment", "wetzel 6.3"),
        *(f"wetzel {number}" for number in (4, 5, 6, 7, 8, 10, 11, 12)),
        *("r-ice II", "r-ice III", "r-ice V"),
    }
    assert len(list((DATA / "seeds").glob("*.csv"))) == 16


@needs_data
def test_the_findings_of_the_publications_hold(found: list[Line]) -> None:
    by_name = {(line.table, line.what): line for line in found}
    square = by_name["wetzel 6", "part of the square at 1796 tokens"]
    assert square.predicted == pytest.approx(square.published, rel=0.25)
    assert by_name["wetzel 7", "input, straight line"].predicted > 0.97
    enriched = [line.predicted for line in found if line.table == "enrichment"]
    assert min(enriched) > 1.15
    assert max(enriched) < 1.8
    front = [line for line in found if line.table == "pareto"]
    assert sum(line.published == line.predicted for line in front) >= 0.9 * len(front)


@needs_data
def test_every_published_row_has_a_prediction(published: list[Line]) -> None:
    assert len({line.table for line in published}) >= 10
    assert all(np.isfinite(line.predicted) and line.predicted > 0 for line in published)
