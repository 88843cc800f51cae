"""``joulegate attribute``: files in, lines out, sums exact."""

import gzip
import json
import random

import pytest

from meters.simulated_physics import EngineConfig, Job
from meters.simulated_traffic import simulate
from proxy.__main__ import main

WINDOW = {
    "node": "n",
    "start_s": 0.0,
    "end_s": 1.0,
    "energy_j": 300.1,
    "idle_power_w": 100.0,
    "prompt_tokens": 100,
    "generated_tokens": 50,
}
REQUEST = {
    "request_id": "a",
    "node": "n",
    "start_s": 0.1,
    "first_token_s": 0.2,
    "end_s": 0.9,
    "prompt_tokens": 100,
    "output_tokens": 50,
}


def attribute(tmp_path, capsys, windows, requests):
    paths = []
    for name, lines in (("windows", windows), ("requests", requests)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        paths += [f"--{name}", str(path)]
    status = main(["attribute", *paths])
    captured = capsys.readouterr()
    return status, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_a_line_for_each_request_then_sums_that_add_up_exactly(tmp_path, capsys):
    random_ = random.Random(5)
    jobs = [
        Job(
            request_id=f"r{i}",
            prompt_tokens=random_.randrange(10, 900),
            output_tokens=random_.randrange(5, 300),
            arrival_s=random_.uniform(0, 20),
        )
        for i in range(150)
    ]
    run = simulate(EngineConfig(), jobs, node="n")
    windows = [
        {name: getattr(w, name) for name in (*WINDOW, "cached_prompt_tokens", "steps")}
        for w in run.windows
    ]
    requests = [{name: getattr(a, name) for name in REQUEST} for a in run.activities]
    status, lines, errors = attribute(tmp_path, capsys, windows, requests)
    *shares, sums = lines
    assert (status, errors) == (0, "")
    assert [line["request_id"] for line in shares] == [r["request_id"] for r in requests]
    assert sum(line["energy_j"] for line in shares) == sums["attributed_j"]
    parts = sums["attributed_j"] + sums["idle_j"] + sums["unattributed_j"]
    assert parts == sums["metered_j"] == pytest.approx(sum(w["energy_j"] for w in windows))
    truth = run.request_j()
    relative = sorted(abs(line["energy_j"] / truth[line["request_id"]] - 1) for line in shares)
    assert relative[len(relative) // 2] < 0.05


def test_a_misspelt_key_is_an_error_that_names_the_line_and_the_right_key(tmp_path, capsys):
    status, _, errors = attribute(tmp_path, capsys, [{**WINDOW, "stepps": 3}], [REQUEST])
    assert status == 1
    assert "windows.jsonl, line 1" in errors
    assert "'steps'" in errors


def test_what_cannot_be_used_is_said_and_the_books_still_balance(tmp_path, capsys):
    windows = [WINDOW, WINDOW, {**WINDOW, "start_s": 1.0, "end_s": 2.0, "energy_j": -5.0}]
    requests = [REQUEST, REQUEST, {**REQUEST, "request_id": "b", "node": "elsewhere"}]
    status, lines, errors = attribute(tmp_path, capsys, windows, requests)
    assert status == 0
    assert "1 duplicated, 1 negative" in errors
    assert "1 lines repeat a request_id" in errors
    assert "1 elsewhere" in errors
    assert [line.get("request_id") for line in lines] == ["a", "b", None]
    assert lines[1]["energy_j"] == 0
    sums = lines[-1]
    assert sums["metered_j"] == 300.1
    assert sums["attributed_j"] + sums["idle_j"] + sums["unattributed_j"] == 300.1


def test_unknown_idle_power_is_said(tmp_path, capsys):
    window = {key: value for key, value in WINDOW.items() if key != "idle_power_w"}
    _, lines, errors = attribute(tmp_path, capsys, [window], [REQUEST])
    assert "idle power of n is not given" in errors
    assert lines[-1]["idle_j"] == 0


def test_empty_files_give_empty_books(tmp_path, capsys):
    status, lines, _ = attribute(tmp_path, capsys, [], [])
    assert status == 0
    assert lines == [{"metered_j": 0.0, "attributed_j": 0.0, "idle_j": 0.0, "unattributed_j": 0.0}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"end_s": 0.05}, "1 ending before they begin"),
        ({"output_tokens": -3}, "1 with tokens below 0"),
        ({"cached_prompt_tokens": 500}, "1 with more cached tokens than prompt tokens"),
    ],
)
def test_requests_that_cannot_be_are_told_and_the_books_balance(tmp_path, capsys, change, words):
    other = {**REQUEST, "request_id": "b", **change}
    status, lines, errors = attribute(tmp_path, capsys, [WINDOW], [REQUEST, other])
    assert status == 0
    assert words in errors
    parts = ("attributed_j", "idle_j", "unattributed_j")
    assert sum(lines[-1][part] for part in parts) == pytest.approx(lines[-1]["metered_j"])


def test_a_window_that_no_node_could_draw_is_refused(tmp_path, capsys):
    windows = [WINDOW, WINDOW | {"start_s": 1.0, "end_s": 2.0, "energy_j": 1e300}]
    status, lines, told = attribute(tmp_path, capsys, windows, [REQUEST])
    assert status == 0
    assert lines[-1]["metered_j"] == 300.1
    assert "1 implausible" in told


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        (gzip.compress(b"{}"), "compressed with gzip. Unpack it"),
        ("{}".encode("utf-16"), "UTF-16. Save it as UTF-8"),
    ],
    ids=("gzip", "UTF-16"),
)
def test_a_file_in_another_form_is_named(tmp_path, capsys, packed, says):
    path = tmp_path / "windows"
    path.write_bytes(packed)
    assert main(["attribute", "--windows", str(path), "--requests", str(path)]) == 1
    assert says in capsys.readouterr().err


def test_names_may_be_numbers_and_come_back_as_such(tmp_path, capsys):
    windows, requests = [{**WINDOW, "node": 3}], [{**REQUEST, "node": 3, "request_id": 7}]
    status, lines, _ = attribute(tmp_path, capsys, windows, requests)
    assert status == 0
    assert lines[0]["request_id"] == 7
    assert lines[0]["energy_j"] > 0
