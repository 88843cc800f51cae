"""`joulegate replay`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy.__main__ import main

CONFIG = """
backends:
  - {model: m, precision: bf16, gpu: H100-SXM, params_b: 8, url: "http://127.0.0.1:9/v1",
     quality: 0.80, intensity_g_per_kwh: 400}
  - {model: m, precision: fp8, gpu: H100-SXM, params_b: 8, url: "http://127.0.0.1:9/v1",
     quality: 0.79, intensity_g_per_kwh: 400}
policies:
  mine: {objective: energy, limits: {min_quality: 97 % of asked, judge: expected}}
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    config, trace = tmp_path / "config.yaml", tmp_path / "trace.csv"
    config.write_text(CONFIG)
    rows = "".join(f"{n / 2},300,{50 + n}\n" for n in range(40))
    trace.write_text(f"timestamp,prompt_tokens,output_tokens\n{rows}")
    return str(config), str(trace)


def test_policies_are_printed_side_by_side(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, trace = files
    arguments = ["replay", "--trace", trace, "--config", config, "--asked", "m"]
    assert main([*arguments, "--policy", "pinned", "--policy", "mine", "--json"]) == 0
    pinned, mine = json.loads(capsys.readouterr().out)["policies"]
    assert pinned["backends"] == {"m@bf16": 40}
    assert mine["backends"] == {"m@fp8": 40}
    assert mine["moves"] == {"m@bf16 -> m@fp8": 40}
    assert mine["active_energy_j"] < pinned["active_energy_j"]
    assert main([*arguments, "--policy", "pinned", "--policy", "mine"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Simulated;")
    assert "40 moved m@bf16 -> m@fp8" in text


def test_carbon_is_that_of_the_config_s_grid(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, trace = files
    path = Path(config)
    path.write_text(path.read_text().replace(", intensity_g_per_kwh: 400", ""))
    found = {}
    for zone in ("DE", "FR"):
        path.write_text(path.read_text().partition("carbon:")[0] + f"carbon: {{zone: {zone}}}\n")
        assert main(["replay", "--trace", trace, "--config", config, "--json"]) == 0
        found[zone] = json.loads(capsys.readouterr().out)["policies"][0]["carbon_g"]
    assert found["DE"] > 3 * found["FR"] > 0  # coal against nuclear power


def test_what_a_user_can_mend_is_said(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, trace = files
    assert main(["replay", "--trace", trace, "--config", config, "--policy", "mien"]) == 1
    assert "There is no policy 'mien'. Did you mean 'mine'?" in capsys.readouterr().err
    assert main(["replay", "--trace", trace, "--config", config, "--policy", "xyz"]) == 1
    assert "There is no policy 'xyz'. Known: balanced, " in capsys.readouterr().err
    bad = Path(trace).with_name("bad.csv")
    bad.write_text("timestamp,prompt_tokens,output_tokens\nyesterday,1,2\n")
    assert main(["replay", "--trace", str(bad), "--config", config]) == 1
    assert "line 2: 'yesterday' is no time stamp; write seconds" in capsys.readouterr().err
    assert main(["replay", "--trace", "none.csv", "--config", config]) == 1
    assert "Name a readable CSV file" in capsys.readouterr().err


def test_engines_sleep_after_a_time_that_can_be(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    trace, config = files
    replay = ["replay", "--trace", trace, "--config", config, "--sleep-after-s", "-1"]
    assert main(replay) == 1
    assert "--sleep-after-s should be 0 or more." in capsys.readouterr().err


def test_every_request_that_would_move_can_be_had_as_a_list(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, trace = files
    moved = tmp_path / "moved.csv"
    arguments = ["replay", "--trace", trace, "--config", config, "--asked", "m"]
    arguments += ["--policy", "pinned", "--policy", "mine", "--moved", str(moved)]
    assert main(arguments) == 0
    assert "80 % intervals: " in capsys.readouterr().out
    rows = moved.read_text().splitlines()
    assert rows[0] == "policy,at_s,team,task,asked,prompt_tokens,from,to"
    assert rows[1] == "mine,0.000,,,m,300,m@bf16,m@fp8"
    assert len(rows) == 41


def test_the_limits_of_teams_that_were_made_at_run_time_are_kept(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, trace = files
    state = f"state_dir: {tmp_path / 'state'}\n"
    Path(config).write_text(CONFIG + state)
    rows = "".join(f"{n},300,50,vision\n" for n in range(20))
    Path(trace).write_text(f"timestamp,prompt_tokens,output_tokens,team\n{rows}")
    limits = tmp_path / "limits.yaml"
    limits.write_text("limits: {backends: ['m@bf16']}\n")
    made = ["teams", "--config", config, "create", "vision", "--settings", str(limits)]
    assert main(made) == 0
    capsys.readouterr()
    replayed = ["replay", "--trace", trace, "--config", config, "--asked", "m"]
    assert main([*replayed, "--policy", "least_energy", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["policies"]
    assert result["backends"] == {"m@bf16": 20}


def test_the_config_s_estimator_estimates(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, trace = files
    text, found = Path(config).read_text(), {}
    for name in ("energy", "r-ice"):
        Path(config).write_text(f"{text}estimator: {name}\n")
        arguments = ["replay", "--trace", trace, "--config", config, "--asked", "m", "--json"]
        assert main(arguments) == 0
        found[name] = json.loads(capsys.readouterr().out)["policies"][0]
    assert found["energy"]["energy_per_request_j"] != found["r-ice"]["energy_per_request_j"]


def test_rules_on_hours_and_tags_and_answer_budgets_are_replayed(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, trace = files
    Path(config).write_text(
        CONFIG
        + """
  night: {objective: quality, rules: [{when: {hour: 2-3}, objective: energy}]}
  batch: {objective: quality, rules: [{when: {tag: batch}, objective: energy}]}
  brief:
    objective: energy
    answer_budgets: [{name: brief, directive: Be brief., output_factor: 0.5}]
  left: {rules: [{when: {budget_left: < 5 %}, objective: quality}]}
teams:
  berlin: {keys: [sk-berlin-0123456789], timezone: Europe/Berlin, answer_budgets: true}
  utc: {keys: [sk-utc-01234567890], answer_budgets: false}
"""
    )
    rows = [
        f"2026-11-22T01:{20 * team + n:02}:00,100,200,{name},{'batch' if n < 3 else ''}\n"
        for team, name in enumerate(("berlin", "utc"))
        for n in range(8)
    ]
    Path(trace).write_text("timestamp,prompt_tokens,output_tokens,team,tags\n" + "".join(rows))
    arguments = ["replay", "--trace", trace, "--config", config, "--asked", "m", "--json"]
    names = ("pinned", "night", "batch", "brief", "left")
    assert main([*arguments, *(f"--policy={name}" for name in names)]) == 0
    shown = capsys.readouterr()
    _, night, batch, brief, _ = json.loads(shown.out)["policies"]
    assert night["backends"] == {"m@bf16": 8, "m@fp8": 8}  # two o'clock in Berlin alone
    assert batch["backends"] == {"m@bf16": 10, "m@fp8": 6}
    assert brief["backends"] == {"m@fp8": 8, "m@fp8+brief": 8}
    assert brief["moves"] == {"m@bf16 -> m@fp8": 8, "m@bf16 -> m@fp8+brief": 8}
    assert main([*arguments, "--policy", "mine"]) == 0
    whole = json.loads(capsys.readouterr().out)["policies"][0]
    # Half of the answers are half as long, and one by one decoding is nearly all they take.
    assert 0.7 < brief["active_energy_j"] / whole["active_energy_j"] < 0.85
    assert shown.err == "left: rules on what is left of a budget do not apply\n"
