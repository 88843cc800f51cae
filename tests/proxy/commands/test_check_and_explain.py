"""`joulegate check`, `explain` and `init`, as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy import discovery
from proxy.__main__ import main

CONFIG = """\
backends:
  - {model: llama, precision: bf16, url: "http://127.0.0.1:9/v1", gpu: H100-SXM, params_b: 8,
     quality: 0.9, api_key: sk-secret-upstream}
  - {model: llama, precision: int4, url: "http://127.0.0.1:9/v1", gpu: H100-SXM, params_b: 8,
     quality: 0.5}
teams: {search: {keys: [sk-secret-team], policy: careful, limits: {max_energy_j: 5000}}}
policies:
  careful:
    objective: energy
    limits: {min_quality: 0.7}
redis: {url: "redis://:hidden@127.0.0.1:9"}
"""
CHAT = {"model": "llama", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG + f"state_dir: {tmp_path / 'state'}\n")
    return path


def test_check_says_where_each_value_came_from_and_hides_secrets(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "backends[0].gpu" in shown
    assert "(line 2)" in shown
    assert "(default)" in shown
    for secret in ("sk-secret-upstream", "sk-secret-team", "hidden"):
        assert secret not in shown


def test_check_knows_that_an_engine_s_address_ends_with_v1(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(config), "--json"]) == 0
    assert "no path" not in capsys.readouterr().out
    config.write_text(CONFIG.replace("//127.0.0.1:9/v1", "//u:hidden@127.0.0.1:9", 1))
    assert main(["check", str(config), "--json"]) == 0
    (warned,) = [w for w in json.loads(capsys.readouterr().out)["warnings"] if "path" in w]
    assert warned.startswith("llama@bf16: its url has no path")
    assert warned.endswith("http://u:***@127.0.0.1:9/v1")


def test_check_warns_of_models_that_do_not_fit_and_of_another_precision_than_their_own(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {
        "model_type": "llama",
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "vocab_size": 128256,
        "quantization_config": {"quant_method": "awq", "bits": 4},
    }
    file = config.with_name("config.json")
    file.write_text(json.dumps(model))
    config.write_text(
        CONFIG.replace("gpu: H100-SXM, params_b: 8", f"gpu: L4, hf_config: {file}", 1)
    )
    assert main(["check", str(config), "--json"]) == 0
    warned = [w for w in json.loads(capsys.readouterr().out)["warnings"] if "bf16" in w]
    assert any("141 GB of weights do not fit into the 24 GB of 1 L4" in w for w in warned)
    assert any("hf_config says that the weights are int4" in w for w in warned)
    assert not any("llama@int4" in w and "fit" in w for w in warned)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("context_tokens: 1000000", "do not fit into the 80 GB"),
        ("active_params_b: 70", "cannot use 70 of 8 billion"),
        ("input_usd_per_mtok: 1", "without output_usd_per_mtok"),
    ],
)
def test_check_warns_of_figures_that_cannot_be_or_say_nothing_alone(
    more: str, words: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def warned() -> str:
        assert main(["check", str(config), "--json"]) == 0
        return "".join(json.loads(capsys.readouterr().out)["warnings"])

    assert words not in warned()
    config.write_text(CONFIG.replace("params_b: 8", f"params_b: 8, {more}", 1))
    assert words in warned()


def test_a_config_of_a_model_that_cannot_be_counted_is_a_mistake_in_the_config(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config.with_name("config.json")
    file.write_text('{"model_type": "t5", "d_model": 1024, "is_encoder_decoder": true}')
    config.write_text(CONFIG.replace("params_b: 8", f"hf_config: {file}", 1))
    assert main(["check", str(config)]) == 1
    assert "hf_config is not understood: an encoder and a decoder" in capsys.readouterr().err


def test_check_shows_the_tokens_of_a_budget(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = "teams: {search: {budgets: [{per: day, tokens: 12345}], keys"
    config.write_text(CONFIG.replace("teams: {search: {keys", budget))
    assert main(["check", str(config)]) == 0
    assert "12345" in capsys.readouterr().out


def test_check_reports_every_mistake_and_ends_with_1(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(CONFIG.replace("quality: 0.9", "qualty: 0.9").replace("int4", "int5"))
    assert main(["check", str(config), "--json"]) == 1
    output = capsys.readouterr()
    assert "line 3" in output.err
    assert "Did you mean 'quality'?" in output.err
    assert json.loads(output.out)["ok"] is False


def test_mistakes_that_leave_a_config_readable_are_all_told_at_once(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = CONFIG.replace("sk-secret-upstream", "os.environ/NOT_SET_ANYWHERE")
    wrong = wrong.replace("gpu: H100-SXM", "gpu: H10-SXM", 1).replace(
        "policy: careful", "policy: carful"
    )
    config.write_text(wrong + "fallbacks: {llama: [gpt-none]}\nestimator: magic\n")
    told = []
    for command in (["check", str(config)], ["serve", "--config", str(config)]):
        assert main(command) == 1
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert "5 mistakes" in told[0]
    for mistake in (
        "line 3: backends[0].api_key: the environment variable NOT_SET_ANYWHERE is not set",
        "the GPU 'H10-SXM' is not known by name. Did you mean 'H100-SXM'?",
        "line 6: teams.search.policy: there is no policy 'carful'. Did you mean 'careful'?",
        "there is no backend of model 'gpt-none'",
        "estimator",
    ):
        assert mistake in told[0]


def test_check_warns_of_an_address_that_is_not_listened_on_without_keys(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(more: str) -> bool:
        config.write_text(CONFIG.partition("teams:")[0] + more)
        assert main(["check", str(config), "--json"]) == 0
        return "without keys `joulegate serve` refuses it" in capsys.readouterr().out

    assert refused("server: {host: 0.0.0.0}\n")
    assert not refused("server: {host: 0.0.0.0}\nteams: {a: {keys: [{key: sk-a}]}}\n")
    assert not refused("server: {host: '::1'}\n")


def test_check_warns_of_a_grid_zone_that_nobody_knows(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def warned(carbon: str) -> list[str]:
        config.write_text(CONFIG + f"carbon: {carbon}\n")
        assert main(["check", str(config), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["warnings"]
        return [warning for warning in found if "zone" in warning]

    assert warned("{zone: US-CALIFORNIA-CISO}") == []  # of a known country
    (unknown,) = warned("{zone: gcp:europe-west33}")
    assert unknown.startswith("carbon: the zone 'gcp:europe-west33' is not known")
    assert unknown.endswith("did you mean 'gcp:europe-west3'?")
    assert warned("{zone: DE}") == warned("{zone: gcp:europe-west3}") == []
    assert warned("{zone: nowhere, intensity_g_per_kwh: 30}") == []


def test_the_energy_and_price_of_a_closed_api_need_no_more_than_its_address(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(
        'backends: [{model: gpt-4o-mini, url: "https://api.openai.com/v1", api_key: x}]\n'
        f"state_dir: {config.parent / 'state'}\n"
    )
    assert main(["check", str(config), "--json"]) == 0
    assert "no gpu" not in capsys.readouterr().out
    chat = config.parent / "chat.json"
    chat.write_text(json.dumps({**CHAT, "model": "gpt-4o-mini"}))
    assert main(["explain", str(chat), "--config", str(config), "--json"]) == 0
    (api,) = json.loads(capsys.readouterr().out)["candidates"]
    assert api["evidence"] == "modelled"
    assert api["energy_j"]["mid"] > 0
    assert api["money_usd"]["mid"] > 0


def test_check_finds_a_policy_that_cannot_be_meant(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(CONFIG.replace("objective: energy", "objektive: energy"))
    assert main(["check", str(config)]) == 1
    assert "line 9: policies.careful" in capsys.readouterr().err


def test_check_warns_of_a_limit_that_not_even_one_token_keeps(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(CONFIG.replace("{min_quality: 0.7}", "{max_ttft_s: 0.000001}"))
    assert main(["check", str(config), "--json"]) == 0
    warned = " ".join(json.loads(capsys.readouterr().out)["warnings"])
    assert "policies.careful.limits.max_ttft_s: no backend" in warned


def test_explain_says_why_and_why_not(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(CHAT))
    assert main(["explain", str(request), "--config", str(config), "--json"]) == 0
    decision = json.loads(capsys.readouterr().out)
    assert decision["chosen"] == "llama@int4"
    assert main(["explain", str(request), "--config", str(config), "--team", "search"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("llama@bf16 (careful)")
    assert "llama@int4" in shown
    assert "below the limit of 0.7" in shown


def test_explain_knows_teams_that_were_made_at_run_time(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(CHAT))
    asked = ["explain", str(request), "--config", str(config), "--team", "vision"]
    assert main(asked) == 1
    assert "There is no team 'vision'. Known: search." in capsys.readouterr().err
    made = ["teams", "--config", str(config), "create", "vision", "--policy", "careful"]
    assert main(made) == 0
    capsys.readouterr()
    assert main(asked) == 0
    assert capsys.readouterr().out.startswith("llama@bf16 (careful)")


def test_explain_ends_with_1_when_nothing_fits(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({**CHAT, "messages": [{"role": "user", "content": "x " * 99}]}))
    config.write_text(config.read_text().replace("max_energy_j: 5000", "max_energy_j: 0.01"))
    arguments = ["explain", str(request), "--config", str(config), "--team", "search", "--json"]
    assert main(arguments) == 1
    decision = json.loads(capsys.readouterr().out)
    assert decision["chosen"] is None
    assert all(entry["rejected"] for entry in decision["candidates"])


def test_explain_takes_a_batch(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = tmp_path / "batch.jsonl"
    blank = [{"role": "user", "content": " " * 1_000_000}]  # what the tokenizer falls over
    lines = [{"id": n, "messages": CHAT["messages"]} for n in ("a", 2)]
    lines.insert(1, {"id": "blank", "messages": blank})
    batch.write_text("\n".join(map(json.dumps, lines)))
    assert main(["explain", "--batch", str(batch), "--config", str(config)]) == 0
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in out] == ["a", "blank", 2]
    for line in out:
        assert {"task", "chosen", "candidates"} <= set(line)
        for entry in line["candidates"]:
            assert {"backend", "quality", "output_tokens", "energy_j"} <= set(entry)
            assert set(entry["quality"]) == {"low", "mid", "high"}
            assert set(entry["output_tokens"]) == {"q10", "q50", "q90", "mean"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"mesages": CHAT["messages"]}, "Missing required parameter: 'messages'"),
        ({"messages": "hi"}, "Invalid type for 'messages'"),
    ],
)
def test_explain_refuses_what_asks_nothing(
    asked: dict[str, Any],
    said: str,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch = tmp_path / "batch.jsonl"
    batch.write_text(json.dumps({"id": 1, "messages": CHAT["messages"]}) + "\n")
    with batch.open("a") as file:
        file.write(json.dumps({"id": 2, **asked}))
    assert main(["explain", "--batch", str(batch), "--config", str(config)]) == 1
    out, told = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert f"line 2: {said}" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain"], "Name either one REQUEST.json"),
        (["explain", "nowhere.json"], "nowhere.json"),
        (["check", "nowhere.yaml"], "Name an existing file"),
        (["explain", "x.json", "--team", "nobody"], "There is no team 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    arguments: list[str],
    said: str,
    config: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arguments[0] == "explain":
        arguments = [*arguments, "--config", str(config)]
    assert main(arguments) == 1
    assert said in capsys.readouterr().err


def test_init_writes_a_config_that_check_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(discovery, "USUAL_PORTS", ())
    for variable in discovery.PROVIDER_KEYS:
        monkeypatch.delenv(variable, raising=False)
    path = tmp_path / "config.yaml"
    assert main(["init", "--out", str(path)]) == 0
    assert main(["check", str(path)]) == 0
    assert main(["init", "--out", str(path)]) == 1
    assert "--force" in capsys.readouterr().err


def test_check_warns_of_names_that_are_only_looked_up_later(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (
        "meters: {tokens: {gpu-1: secret}}\n"
        "carbon: {default_counterfactual: lama, intensity_file: /nowhere.csv}\n"
    )
    odd = CONFIG.replace("precision: int4", "precision: itn4, quality_by_task: {cdoe: 0.5}")
    config.write_text(odd + more)
    assert main(["check", str(config), "--json"]) == 0
    told = "\n".join(json.loads(capsys.readouterr().out)["warnings"])
    for said in (
        "llama@itn4: unknown precision 'itn4'.",
        "Did you mean 'int4'?",
        "no request is of the kind 'cdoe' in quality_by_task",
        "no backend has the node 'gpu-1'",
        "there is no backend 'lama'",
        "there is no file /nowhere.csv",
    ):
        assert said in told


def test_check_warns_of_meters_that_will_read_nothing(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("""
backends:
  - model: a
    url: "http://127.0.0.1:1/v1"
    meter: {kind: prometheus, url: gpu-1:9400, unit: joules}
  - {model: b, url: "http://127.0.0.1:2/v1", meter: {kind: replay, file: /nowhere.jsonl}}
  - {model: c, url: "http://127.0.0.1:3/v1", meter: {kind: simulated}}
  - {model: d, url: "http://127.0.0.1:4/v1", meter: {kind: nvml, devices: [0, GPU-5ca1ab1e]}}
  - {model: e, url: "http://127.0.0.1:5/v1", meter: {kind: dcgm}}
""")
    assert main(["check", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["warnings"]
    of_meters = [line for line in told if ": meter " in line]
    assert of_meters == [
        "a@bf16: meter prometheus needs series; without it nothing is metered",
        "a@bf16: meter prometheus: its url 'gpu-1:9400' must begin with http:// or https://",
        "a@bf16: meter prometheus: the unit 'joules' is not known; "
        "known: J, mJ, uJ, Wh, kWh, W, mW",
        "b@bf16: meter replay: there is no file /nowhere.jsonl",
        "c@bf16: meter simulated needs url; without it nothing is metered",
    ]


def test_a_power_limit_of_a_known_gpu_is_one_line(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joules = []
    request = config.with_name("request.json")
    request.write_text(json.dumps({**CHAT, "model": "llama@bf16"}))
    for limit in ("", ", gpu_facts: {tdp_w: 400}"):
        config.write_text(CONFIG.replace("gpu: H100-SXM", f"gpu: H100-SXM{limit}", 1))
        assert main(["explain", str(request), "--config", str(config), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["candidates"]
        joules += [c["energy_j"]["mid"] for c in told if c["backend"] == "llama@bf16"]
    assert 0.4 * joules[0] < joules[1] < 0.95 * joules[0]
    config.write_text(CONFIG.replace("gpu: H100-SXM", "gpu: H100-SXM, gpu_facts: {tdp_w: 0}", 1))
    assert main(["check", str(config)]) == 1
    assert "tdp_w must be more than 0" in capsys.readouterr().err
