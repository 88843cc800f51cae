"""What `joulegate serve` finds without a config: engines on their usual ports, provider keys."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Mapping

from proxy.settings import BackendSettings

log = logging.getLogger("joulegate.discovery")

# Where engines listen unless told otherwise: (port, engine).
USUAL_PORTS = ((8000, "vllm"), (8080, "llama.cpp"), (30000, "sglang"), (11434, "llama.cpp"))
PROBE_S = 0.3

# Environment variable -> (models it serves, provider, address); litellm has no need of addresses.
PROVIDER_KEYS = {
    "OPENAI_API_KEY": ("*", "openai", "https://api.openai.com/v1"),
    "MISTRAL_API_KEY": ("mistral/*", "openai", "https://api.mistral.ai/v1"),
    "GROQ_API_KEY": ("groq/*", "openai", "https://api.groq.com/openai/v1"),
    "ANTHROPIC_API_KEY": ("claude-*", "anthropic", None),
    "GEMINI_API_KEY": ("gemini-*", "gemini", None),
}


def discovered(environment: Mapping[str, str], host: str = "127.0.0.1") -> list[BackendSettings]:
    """Backends that answer here and now, and providers whose keys are in the environment."""
    found = [
        backend
        for port, engine in USUAL_PORTS
        for backend in engines_at(f"http://{host}:{port}/v1", engine)
    ]
    for variable, (models, provider, url) in PROVIDER_KEYS.items():
        key = environment.get(variable)
        if key:
            log.info("%s is set: serving %s through %s", variable, models, provider)
            found.append(provider_backend(models, provider, url, key))
    return found


def provider_backend(models: str, provider: str, url: str | None, key: str) -> BackendSettings:
    """A provider's models as one backend with a wildcard name."""
    return BackendSettings(
        model=models,
        name=f"{provider if models != '*' else 'openai'}:{models}",
        url=url,
        api_key=key,
        provider=provider,
        engine="api",
        upstream_model="*" if "/" in models else None,
        region=None,
        supports_images=True,
    )


def engines_at(url: str, engine: str) -> list[BackendSettings]:
    """The models of an OpenAI-compatible engine at that address; none when nothing answers."""
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=PROBE_S) as answer:
            listed = json.loads(answer.read(1_000_000))
        entries = [entry for entry in listed["data"] if isinstance(entry["id"], str)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    backends = []
    for entry in entries:
        owner = str(entry.get("owned_by", ""))
        log.info("found %s at %s", entry["id"], url)
        backends.append(
            BackendSettings(
                model=entry["id"],
                name=entry["id"],
                url=url,
                engine="vllm" if owner == "vllm" else engine,  # type: ignore[arg-type]
                context_tokens=entry.get("max_model_len"),
                simulated=owner == "joulegate-simulated",
            )
        )
    return backends
