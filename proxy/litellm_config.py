"""LiteLLM's config.yaml, read as it is: one file serves both gateways.

What concerns only Joulegate lives under ``model_info.energy`` of a deployment (any key of a
backend, see docs/settings.md) and, for the rest, under a top-level ``joulegate``. Keys that
LiteLLM knows and Joulegate has no use for are reported as not honoured, never as mistakes.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from proxy.config_file import Document, KeyPath, Problem, key_text, unknown_key

SECTIONS = frozenset(
    {
        "model_list",
        "litellm_settings",
        "router_settings",
        "general_settings",
        "environment_variables",
    }
)

# So near to a section's name is a misspelling of it; what is farther off is another section of
# LiteLLM's, which has more with every release.
_MISSPELT = 0.85

# LiteLLM providers that speak OpenAI's API, with their address where it is always the same.
OPENAI_COMPATIBLE: dict[str, str | None] = {
    "openai": "https://api.openai.com/v1",
    "hosted_vllm": None,
    "vllm": None,
    "openai_like": None,
    "custom_openai": None,
    "text-completion-openai": "https://api.openai.com/v1",
    "lm_studio": None,
    "llamafile": None,
    "xinference": None,
    "nvidia_nim": "https://integrate.api.nvidia.com/v1",
    "groq": "https://api.groq.com/openai/v1",
    "mistral": "https://api.mistral.ai/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "together_ai": "https://api.together.xyz/v1",
    "fireworks_ai": "https://api.fireworks.ai/inference/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "xai": "https://api.x.ai/v1",
    "perplexity": "https://api.perplexity.ai",
}
SELF_HOSTED = frozenset(
    {"hosted_vllm", "vllm", "openai_like", "custom_openai", "lm_studio", "llamafile", "xinference"}
)
# Deployment parameters that routing has another answer for, or that are honoured elsewhere.
_PRICES = {
    "input_cost_per_token": "input_usd_per_mtok",
    "output_cost_per_token": "output_usd_per_mtok",
    "cache_read_input_token_cost": "cached_input_usd_per_mtok",
}
_DEPLOYMENT_KEYS = frozenset(
    {"model", "api_base", "base_url", "api_key", "extra_headers", *_PRICES}
)


# What tells LiteLLM's router where to send, and no SDK what to do.
_ROUTING_KEYS = {
    "rpm": "limits are a team's or a key's, not a deployment's",
    "tpm": "limits are a team's or a key's, not a deployment's",
    "max_parallel_requests": "limits are a team's or a key's, not a deployment's",
    "weight": "policies choose; see default_policy",
    "order": "policies choose; see default_policy",
    "tags": "policies choose; see default_policy",
}


class Translated:
    """A LiteLLM file as a document of ours, with what of it is honoured."""

    def __init__(self, document: Document) -> None:
        self.value: dict[str, Any] = {}
        self.lines: dict[KeyPath, int] = {(): 1}
        self.problems: list[Problem] = list(document.problems)
        self.honoured: list[str] = []
        self.not_honoured: list[str] = []
        self._skipped: list[str] = []
        self._source = document

    @property
    def document(self) -> Document:
        return Document(self._source.path, self.value, self.lines, self.problems)

    def put(self, path: KeyPath, value: Any, source: KeyPath) -> None:
        """Set one of our settings from one of theirs."""
        at = self.value
        for step in path[:-1]:
            at = at.setdefault(str(step), {})
        at[str(path[-1])] = value
        self.lines[path] = self._source.line(source)
        self.honoured.append(f"{key_text(source)} → {key_text(path)}")

    def skip(self, source: KeyPath, why: str = "") -> None:
        self._skipped.append(key_text(source))
        self.not_honoured.append(key_text(source) + (f" ({why})" if why else ""))

    def forgive(self) -> None:
        """No mistake is one in what nobody reads: a variable that is not set, most often."""
        self.problems[:] = [
            problem
            for problem in self.problems
            if not any(
                problem.key == key or problem.key.startswith((f"{key}.", f"{key}["))
                for key in self._skipped
            )
        ]


def is_litellm(value: Any) -> bool:
    """Whether a config file is LiteLLM's."""
    return isinstance(value, dict) and "model_list" in value


def translate(document: Document) -> Translated:
    """Our settings from LiteLLM's; mistakes are in ``problems``."""
    out = Translated(document)
    source: dict[str, Any] = document.value
    for key in source:
        known = [*SECTIONS, "joulegate"]
        if key in known:
            continue
        if get_close_matches(str(key), known, cutoff=_MISSPELT):
            out.problems.append(unknown_key(document, (key,), known))
        else:
            out.skip((key,))
    ours = source.get("joulegate")
    if isinstance(ours, dict):
        out.value.update(ours)
        for path, line in document.lines.items():
            if path[:1] == ("joulegate",):
                out.lines[path[1:]] = line
    _deployments(out, source.get("model_list") or [])
    _router(out, source.get("router_settings") or {})
    _litellm(out, source.get("litellm_settings") or {})
    _general(out, source.get("general_settings") or {})
    for name in source.get("environment_variables") or {}:
        out.honoured.append(f"environment_variables.{name} (for os.environ/{name})")
    out.forgive()
    return out


def _deployments(out: Translated, entries: Any) -> None:
    if not isinstance(entries, list):
        line = out._source.line(("model_list",))
        out.problems.append(Problem(line, "model_list", "should be a list of deployments."))
        return
    names = [e.get("model_name") for e in entries if isinstance(e, dict)]
    backends: list[dict[str, Any]] = []
    used: set[str] = set()
    for index, entry in enumerate(entries):
        at: KeyPath = ("model_list", index)
        line = out._source.line(at)
        params = entry.get("litellm_params") if isinstance(entry, dict) else None
        if not isinstance(params, dict) or "model" not in params or "model_name" not in entry:
            message = "needs model_name and litellm_params.model. Add them."
            out.problems.append(Problem(line, key_text(at), message))
            continue
        backend = _deployment(out, at, entry, params)
        if "name" not in backend:
            backend["name"] = _name(backend, names.count(entry["model_name"]) > 1, used)
        used.add(backend["name"])
        _lines(out, at, len(backends), entry)
        out.honoured.append(f"{key_text(at)} → backend {backend['name']}")
        backends.append(backend)
    out.value["backends"] = backends


def _deployment(
    out: Translated, at: KeyPath, entry: dict[str, Any], params: dict[str, Any]
) -> dict[str, Any]:
    model = str(params["model"])
    prefix, slash, rest = model.partition("/")
    url = params.get("api_base") or params.get("base_url")
    if slash and prefix in OPENAI_COMPATIBLE:
        provider, name, url = "openai", rest, url or OPENAI_COMPATIBLE[prefix]
        engine = "vllm" if prefix in SELF_HOSTED else "api"
    elif slash:
        provider, name, engine = prefix, rest, "api"
    else:
        provider, name, engine = "openai", model, "vllm" if url else "api"
        url = url or OPENAI_COMPATIBLE["openai"]
    if prefix == "openai" and params.get("api_base"):
        engine = "vllm"
    backend: dict[str, Any] = {
        "model": str(entry["model_name"]),
        "provider": provider,
        "engine": engine,
        "upstream_model": name,
    }
    if url:
        backend["url"] = str(url)
    if params.get("api_key"):
        backend["api_key"] = str(params["api_key"])
    if isinstance(params.get("extra_headers"), dict):
        backend["extra_headers"] = params["extra_headers"]
    for key in params:
        if key in _ROUTING_KEYS:
            out.skip((*at, "litellm_params", key), _ROUTING_KEYS[key])
    others = {
        k: v for k, v in params.items() if k not in _DEPLOYMENT_KEYS and k not in _ROUTING_KEYS
    }
    if provider != "openai":
        backend["litellm_params"] = others
    else:
        for key in others:
            out.skip((*at, "litellm_params", key))
    info = entry.get("model_info") or {}
    _prices(backend, info, params)
    if isinstance(info.get("max_input_tokens"), int):
        backend["context_tokens"] = info["max_input_tokens"]
    if info.get("id"):
        backend["name"] = str(info["id"])
    energy = info.get("energy")
    if isinstance(energy, dict):
        backend.update(energy)
        if "precision" in energy and not info.get("id") and "name" not in energy:
            backend["name"] = f"{entry['model_name']}@{energy['precision']}"
    return backend


def _prices(backend: dict[str, Any], info: dict[str, Any], params: dict[str, Any]) -> None:
    for theirs, ours in _PRICES.items():
        value = params.get(theirs, info.get(theirs))
        if isinstance(value, int | float):
            backend[ours] = float(value) * 1e6


def _name(backend: dict[str, Any], several: bool, used: set[str]) -> str:
    base = backend["model"]
    name = base
    number = 1
    while (several and name == base) or name in used:
        name = f"{base}#{number}"
        number += 1
    return str(name)


def _lines(out: Translated, at: KeyPath, index: int, entry: dict[str, Any]) -> None:
    """Where each of a backend's keys stands in their file."""
    source = out._source
    out.lines["backends", index] = source.line(at)
    energy = (*at, "model_info", "energy")
    for path, line in source.lines.items():
        if path[: len(energy)] == energy and len(path) > len(energy):
            out.lines["backends", index, *path[len(energy) :]] = line
    for ours, theirs in (("url", "api_base"), ("upstream_model", "model"), ("api_key", "api_key")):
        if theirs in entry["litellm_params"]:
            out.lines["backends", index, ours] = source.line((*at, "litellm_params", theirs))


def _router(out: Translated, settings: dict[str, Any]) -> None:
    host = settings.get("redis_host")
    for key, value in settings.items():
        at: KeyPath = ("router_settings", key)
        if key == "num_retries" and isinstance(value, int):
            out.put(("retries", "attempts"), min(10, value + 1), at)
        elif key == "timeout" and isinstance(value, int | float):
            out.put(("time", "total_s"), float(value), at)
        elif key == "stream_timeout" and isinstance(value, int | float):
            out.put(("time", "between_chunks_s"), float(value), at)
        elif key == "allowed_fails" and isinstance(value, int):
            out.put(("retries", "failures"), value + 1, at)
        elif key == "cooldown_time" and isinstance(value, int | float):
            out.put(("retries", "cooldown_s"), float(value), at)
        elif key == "fallbacks":
            _fallbacks(out, value, at)
        elif key == "redis_url" and value:
            out.put(("redis", "url"), str(value), at)
        elif key == "redis_host" and host:
            out.put(("redis", "url"), _redis_url(settings), at)
        elif key in ("redis_port", "redis_password") and host:
            continue  # part of the address
        elif key == "enable_pre_call_checks":
            out.honoured.append(f"{key_text(at)} (context lengths are always checked)")
        elif key == "routing_strategy":
            out.skip(at, "policies choose; see default_policy")
        else:
            out.skip(at)


def _redis_url(settings: dict[str, Any]) -> str:
    password = settings.get("redis_password") or settings.get("password")
    host = settings.get("redis_host") or settings.get("host")
    port = settings.get("redis_port") or settings.get("port") or 6379
    return f"redis://{f':{password}@' if password else ''}{host}:{port}"


def _fallbacks(out: Translated, value: Any, at: KeyPath) -> None:
    merged: dict[str, list[str]] = {}
    for item in value if isinstance(value, list) else []:
        if isinstance(item, dict):
            merged.update({str(k): [str(v) for v in vs] for k, vs in item.items()})
    out.put(("fallbacks",), merged, at)


def _litellm(out: Translated, settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        at: KeyPath = ("litellm_settings", key)
        if key == "request_timeout" and isinstance(value, int | float):
            out.put(("time", "total_s"), float(value), at)
        elif key == "num_retries" and isinstance(value, int):
            out.put(("retries", "attempts"), min(10, value + 1), at)
        elif key == "cache" and isinstance(value, bool):
            out.put(("cache", "enabled"), value, at)
        elif key == "cache_params" and isinstance(value, dict):
            if value.get("ttl"):
                out.put(("cache", "ttl_s"), float(value["ttl"]), (*at, "ttl"))
            if value.get("type") == "redis" and value.get("host"):
                out.put(("redis", "url"), _redis_url(value), at)
            elif value.get("url"):
                out.put(("redis", "url"), str(value["url"]), (*at, "url"))
        elif key == "fallbacks":
            _fallbacks(out, value, at)
        elif key == "drop_params":
            out.skip(at, "parameters pass unchanged")
        else:
            out.skip(at)


def _general(out: Translated, settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        at: KeyPath = ("general_settings", key)
        if key == "master_key" and value:
            out.put(("teams", "default", "keys"), [{"key": str(value), "role": "admin"}], at)
        elif key == "database_url" and str(value).startswith("postgres"):
            out.put(("ledger", "url"), str(value), at)
        elif key in ("master_key", "database_url"):  # empty, as where its variable is not set
            out.not_honoured.append(key_text(at))
        else:
            out.skip(at)
