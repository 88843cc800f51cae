"""Every mistake in a config file is reported, with line, key and the nearest known key."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy import config_file, loading, settings
from proxy.config_file import ConfigError


def problems(text: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loading.from_document(config_file.parse(text, "c.yaml", environment or {}))
    return [str(p) for p in caught.value.problems]


def test_reports_every_mistake_at_once_with_line_and_nearest_key() -> None:
    found = problems(
        "backends:\n"
        "  - model: llama\n"
        "    urll: http://x\n"
        "    num_gpus: two\n"
        "servr: {}\n"
        "server:\n"
        "  port: 99999\n"
    )
    assert found == [
        "line 3: backends[0].urll: unknown key 'urll'. Did you mean 'url'?",
        "line 4: backends[0].num_gpus: expected `int`, got `str`; it is 'two'.",
        "line 5: servr: unknown key 'servr'. Did you mean 'server'?",
        "line 7: server.port: expected `int` <= 65535; it is 99999.",
    ]


def test_a_word_that_is_none_of_those_allowed_is_told_them() -> None:
    backends = "backends: [{model: m, url: 'http://x/v1', engine: vlm}]\n"
    assert problems(backends) == [
        "line 1: backends[0].engine: should be one of vllm, sglang, tensorrt-llm, tgi, llama.cpp, "
        "transformers, api, not 'vlm'. Did you mean 'vllm'?"
    ]


def test_a_missing_key_names_the_line_of_its_backend() -> None:
    assert problems("backends:\n  - name: a\n    url: http://x\n") == [
        "line 2: backends[0]: 'model' is missing. Add it."
    ]


def test_a_key_given_twice_is_a_mistake() -> None:
    assert problems("server:\n  port: 1\n  port: 2\n") == [
        "line 3: server.port: given twice, first in line 2. Keep one of them."
    ]


def test_an_environment_variable_that_is_not_set_is_a_mistake() -> None:
    found = problems("redis:\n  url: os.environ/NOWHERE\n")
    assert found == [
        "line 2: redis.url: the environment variable NOWHERE is not set. "
        "Export it, or give a value."
    ]


def test_environment_variables_are_read() -> None:
    document = config_file.parse("redis: {url: os.environ/R}", "c.yaml", {"R": "redis://h"})
    assert loading.from_document(document).redis.url == "redis://h"


def test_text_that_is_not_yaml_names_its_line() -> None:
    with pytest.raises(ConfigError, match="line 2: not valid YAML"):
        config_file.parse("a: 1\n b: [", "c.yaml")


def test_a_file_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Name an existing file"):
        config_file.read(str(tmp_path / "none.yaml"))


def test_an_empty_file_is_all_defaults() -> None:
    document = config_file.parse("", "c.yaml", {})
    assert loading.from_document(document) == settings.Settings()


def test_two_backends_of_one_name_are_a_contradiction() -> None:
    backend = "  - {model: m, url: http://x}\n"
    assert problems("backends:\n" + backend * 2) == [
        "line 3: backends[1]: the name 'm@bf16' is taken in line 2. Give a `name`."
    ]


def test_an_address_without_a_scheme_is_a_mistake() -> None:
    assert problems("backends:\n  - {model: m, url: 'localhost:8000'}\n") == [
        "line 2: backends[0].url: should start with http:// or https://; it is 'localhost:8000'."
    ]


def test_fallbacks_name_existing_groups() -> None:
    found = problems("backends: [{model: m, url: http://x}]\nfallbacks: {m: [n]}\n")
    assert found == ["line 2: fallbacks.m: there is no backend of model 'n'."]


def test_mappings_are_merged_as_yaml_does_it() -> None:
    text = """\
backends:
  - &big {model: m, url: "http://x/v1", num_gpus: 2, precision: bf16}
  - &small
    <<: *big
    num_gpus: 1
    precision: int4
  - {<<: [*small, *big], model: other, num_gpus: 4}
"""
    document = config_file.parse(text, "c.yaml", {})
    found = loading.from_document(document).backends
    assert [(b.model, b.precision, b.num_gpus, b.url) for b in found] == [
        ("m", "bf16", 2, "http://x/v1"),
        ("m", "int4", 1, "http://x/v1"),
        ("other", "int4", 4, "http://x/v1"),
    ]
    assert document.line(("backends", 1, "url")) == 2  # where it is written
    assert document.line(("backends", 1, "num_gpus")) == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: !secret x\n", "line 2: could not determine a constructor for the tag '!secret'"),
        ("a: {<<: 3}\n", "line 1: '<<' merges mappings, and this is none"),
        ("a: &a [*a]\n", "an anchor is part of itself"),
        ("a: &a {<<: *a}\n", "an anchor is part of itself"),
    ],
)
def test_what_yaml_can_say_and_no_config_can_mean_is_a_mistake(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_file.parse(text, "c.yaml", {})
    (problem,) = caught.value.problems
    assert str(problem).startswith(says)


def test_a_date_is_text_with_or_without_quotes() -> None:
    text = (
        "teams: {a: {keys: [{key: sk-1, expires: 2027-01-31}, {key: sk-2, expires: '2027-01-31'}]}}"
    )
    keys = loading.from_document(config_file.parse(text, "c.yaml", {})).teams["a"].keys
    assert [key.expires for key in keys if not isinstance(key, str)] == ["2027-01-31"] * 2
    assert problems(text.replace("-31,", "-41,").replace("-31}", "-41}", 1))  # none is a day


def test_what_yaml_takes_for_something_else_should_stand_in_quotes() -> None:
    assert problems("carbon: {zone: NO}\n") == [
        "line 1: carbon.zone: expected `str | null`, got `bool`; it is False. Put it in quotes."
    ]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("a: {keys: [sk-1]}, b: {keys: [{key: sk-1}]}", "is a key of 'a' already"),
        ("a: {keys: [sk-1, {key: sk-1, role: admin}]}", "is a key of 'a' already"),
        ("a: {keys: ['']}", "is empty, so nobody could use it"),
        ("a: {keys: [{name: of nobody}]}", "should have either 'key' or 'sha256'"),
        ("a: {keys: [{key: sk-1, sha256: 00}]}", "should have either 'key' or 'sha256'"),
        ("a: {keys: [{sha256: abc}]}", "'sha256' should be 64 hexadecimal digits"),
    ],
)
def test_a_key_that_is_two_teams_or_nobodys_is_a_mistake(keys: str, says: str) -> None:
    (problem,) = problems(f"teams: {{{keys.replace('00}', repr('0' * 64) + '}')}}}\n")
    assert says in problem
    assert problem.startswith("line 1: teams.")


BACKEND = "backends: [{model: m, url: 'http://x/v1'}]\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ledger: {url: 'mysql+x://h/db'}", "ledger.url: should start with one of postgresql"),
        ("redis: {url: 'localhost:6379'}", "redis.url: should start with one of redis://"),
        ("budget_alerts: {url: hooks.example.org}", "budget_alerts.url: should start with http://"),
        ("otlp: {url: 'http://'}", "otlp.url: is no address"),
        ("sign_in: {public_url: energy.example.org}", "sign_in.public_url: should start with"),
        (
            "sign_in: {oidc: {issuer: id.example.org, client_id: x}}",
            "sign_in.oidc.issuer: should start with http://",
        ),
        ("backends: [{model: m, url: 'http://x:99999/v1'}]", "backends[0].url: is no address"),
        ("backends: [{model: m, url: 'http://x/v1 '}]", "backends[0].url: is no address"),
        ("backends: [{model: auto, url: 'http://x/v1'}]", "'auto' leaves the choice open"),
        (
            "backends: [{model: m, url: 'http://x/v1'}, {model: n, name: m, url: 'http://x/v1'}]",
            "backends[1].name: 'm' is the model of others",
        ),
    ],
)
def test_addresses_and_names_that_cannot_work_are_mistakes(text: str, says: str) -> None:
    given = text if text.startswith("backends") else BACKEND + text
    (problem,) = problems(given + "\n")
    assert says in problem


@pytest.mark.parametrize(
    "text",
    [
        "ledger: {url: books.db}",
        "ledger: {url: 'sqlite:///books.db'}",
        "ledger: {url: 'postgresql+psycopg://u:p@h/db'}",
        "redis: {url: 'rediss+cluster://h'}",
        "backends: [{model: m, url: 'http://[::1]:8000/v1/'}, {model: m, name: n, url: 'http://x'}]",
    ],
)
def test_addresses_and_names_that_work_are_none(text: str) -> None:
    loading.from_document(config_file.parse(text, "c.yaml", {}))
