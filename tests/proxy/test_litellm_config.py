"""LiteLLM's config is taken as it is, and what of it is not honoured is said."""

from __future__ import annotations

import pytest

from proxy import config_file, loading, settings
from proxy.backends import facts_without_hardware
from proxy.config_file import ConfigError

TEXT = """\
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/OPENAI_KEY
      rpm: 10
      input_cost_per_token: 0.0000025
  - model_name: llama
    litellm_params: {model: hosted_vllm/meta/L, api_base: "http://a:8000/v1"}
    model_info: {energy: {precision: bf16, gpu: H100-SXM, params_b: 8}}
  - model_name: llama
    litellm_params: {model: hosted_vllm/meta/L-AWQ, api_base: "http://b:8000/v1"}
    model_info: {energy: {precision: int4, gpu: H100-SXM, params_b: 8}}
  - model_name: "claude-*"
    litellm_params: {model: "anthropic/claude-*", api_key: k, max_tokens: 5, weight: 2}
litellm_settings: {num_retries: 2, callbacks: [langfuse], cache: true, request_timeout: 30}
router_settings:
  routing_strategy: least-busy
  allowed_fails: 4
  cooldown_time: 7
  fallbacks: [{llama: [gpt-4o]}]
  redis_host: cache
  redis_port: 6380
  redis_password: os.environ/REDIS_PASSWORD
general_settings: {master_key: sk-master, database_url: "postgresql://u:p@h/db", alerting: [slack]}
environment_variables: {REDIS_PASSWORD: secret}
"""


def loaded(text: str = TEXT) -> settings.Loaded:
    return loading.interpret(config_file.parse(text, "c.yaml", {"OPENAI_KEY": "sk-o"}))


def test_deployments_become_backends() -> None:
    backends = loaded().settings.backends
    assert [b.full_name for b in backends] == ["gpt-4o", "llama@bf16", "llama@int4", "claude-*"]
    openai, bf16, int4, claude = backends
    assert (openai.url, openai.api_key) == ("https://api.openai.com/v1", "sk-o")
    assert openai.input_usd_per_mtok == pytest.approx(2.5)
    assert openai.engine == "api"
    assert (bf16.url, bf16.upstream_model, bf16.engine) == ("http://a:8000/v1", "meta/L", "vllm")
    assert (int4.precision, int4.params_b) == ("int4", 8)
    assert (claude.provider, claude.litellm_params) == ("anthropic", {"max_tokens": 5})
    assert facts_without_hardware(claude, loaded().settings).provider == "anthropic"


def test_other_sections_become_our_settings() -> None:
    ours = loaded().settings
    assert ours.retries.attempts == 3
    assert ours.retries.failures == 5
    assert ours.retries.cooldown_s == 7
    assert ours.time.total_s == 30
    assert ours.fallbacks == {"llama": ["gpt-4o"]}
    assert ours.redis.url == "redis://:secret@cache:6380"
    assert ours.ledger.url == "postgresql://u:p@h/db"
    assert ours.keys_configured


def test_says_what_is_not_honoured() -> None:
    names = [line.split(" ")[0] for line in loaded().not_honoured]
    assert names == [
        "model_list[0].litellm_params.rpm",
        "model_list[3].litellm_params.weight",
        "router_settings.routing_strategy",
        "litellm_settings.callbacks",
        "general_settings.alerting",
    ]


def test_a_misspelt_energy_key_names_its_line_in_their_file() -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(TEXT.replace("{precision: int4, gpu:", "{precision: int4, gpuu:"))
    assert [str(p) for p in caught.value.problems] == [
        "line 13: backends[2].gpuu: unknown key 'gpuu'. Did you mean 'gpu'?"
    ]


def test_other_sections_of_theirs_are_not_honoured_and_need_no_variables() -> None:
    more = """\
mcp_servers: {docs: {url: "https://mcp.example.org", auth_value: os.environ/NOT_SET}}
files_settings: [{custom_llm_provider: azure, api_key: os.environ/NOT_SET}]
"""
    theirs = "alerting: [os.environ/NOT_SET]"
    found = loaded(TEXT.replace("alerting: [slack]", theirs) + more).not_honoured
    assert {"mcp_servers", "files_settings", "general_settings.alerting"} <= set(found)
    with pytest.raises(ConfigError, match="NOT_SET is not set"):
        loaded(TEXT.replace("sk-master", "os.environ/NOT_SET") + more)


def test_a_misspelt_section_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'router_settings'"):
        loaded(TEXT + "router_setings: {}\n")


def test_our_own_keys_live_in_the_same_file() -> None:
    ours = loaded(TEXT + "joulegate: {default_policy: pinned, carbon: {zone: DE}}\n").settings
    assert ours.default_policy == "pinned"
    assert ours.carbon.zone == "DE"


def test_several_deployments_of_one_name_get_names_of_their_own() -> None:
    entry = "  - {model_name: m, litellm_params: {model: openai/x, api_base: http://a}}\n"
    names = [b.full_name for b in loaded("model_list:\n" + entry * 3).settings.backends]
    assert names == ["m#1", "m#2", "m#3"]
