"""What `joulegate serve` finds without a config: engines on their usual ports, provider keys."""

from __future__ import annotations

import json
import logging
import re
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from estimators.hardware import gpu_named
from meters import nvml
from proxy.settings import BackendSettings, MeterSource

log = logging.getLogger("joulegate.discovery")

# Where engines listen unless told otherwise: (port, engine).
USUAL_PORTS = ((8000, "vllm"), (8080, "llama.cpp"), (30000, "sglang"), (11434, "llama.cpp"))
PROBE_S = 0.3
HERE = "here"  # the node of an engine on this machine

_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)[bB](?![A-Za-z0-9])")
_ACTIVE = re.compile(r"-[aA](\d+(?:\.\d+)?)[bB](?![A-Za-z0-9])")
_PRECISIONS = (
    ("awq", "int4"),
    ("gptq-int8", "int8"),
    ("gptq", "int4"),
    ("w4a16", "int4"),
    ("int4", "int4"),
    ("q4_", "int4"),
    ("w8a8", "int8"),
    ("int8", "int8"),
    ("q8_", "int8"),
    ("fp8", "fp8"),
)

# Environment variable -> (models it serves, provider, address); litellm has no need of addresses.
PROVIDER_KEYS = {
    "OPENAI_API_KEY": ("*", "openai", "https://api.openai.com/v1"),
    "MISTRAL_API_KEY": ("mistral/*", "openai", "https://api.mistral.ai/v1"),
    "GROQ_API_KEY": ("groq/*", "openai", "https://api.groq.com/openai/v1"),
    "ANTHROPIC_API_KEY": ("claude-*", "anthropic", None),
    "GEMINI_API_KEY": ("gemini-*", "gemini", None),
}


def discovered(environment: Mapping[str, str]) -> list[BackendSettings]:
    """Backends that answer here and now, and providers whose keys are in the environment."""
    found = [
        backend
        for port, engine in USUAL_PORTS
        for backend in engines_at(f"http://127.0.0.1:{port}/v1", engine)
    ]
    found = named_apart(found)
    if any(not engine.simulated for engine in found):
        found = with_hardware(found, nvml.installed())
    for variable, (models, provider, url) in PROVIDER_KEYS.items():
        key = environment.get(variable)
        if key:
            log.info("%s is set: serving %s through %s", variable, models, provider)
            found.append(provider_backend(models, provider, url, key))
    return found


def named_apart(engines: list[BackendSettings]) -> list[BackendSettings]:
    """The engines, those that serve what an earlier one serves named by their port, too."""
    found: dict[str, BackendSettings] = {}
    for engine in engines:
        name = engine.full_name
        if name in found:
            name = f"{name}:{urlsplit(engine.url or '').port}"
        found[name] = msgspec.structs.replace(engine, name=name)
    return list(found.values())


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


def with_hardware(engines: list[BackendSettings], gpus: list[str]) -> list[BackendSettings]:
    """The engines with the one GPU of this machine as theirs: metered, and predicted where the card
    and the model's size, read from its name, are known.

    Nothing is assumed where there are several GPUs, or engines at several addresses: nobody but
    their operator knows which card is whose.
    """
    real = [engine for engine in engines if not engine.simulated]
    if not gpus:
        return engines
    if len(gpus) > 1 or len({engine.url for engine in real}) > 1:
        log.warning(
            "%d GPUs and %d engines are here: say in a config which are whose, and what they draw "
            "is metered. `joulegate init` writes one.",
            len(gpus),
            len({engine.url for engine in real}),
        )
        return engines
    card = gpu_named(gpus[0])
    found = []
    for engine in engines:
        if engine.simulated:
            found.append(engine)
            continue
        params_b, active_b = size_in(engine.model)
        known = card is not None and params_b is not None
        log.info(
            "%s runs on the %s here, which is metered; %s",
            engine.model,
            gpus[0],
            f"its name says {params_b:g} B parameters" if known else "its energy is not predicted",
        )
        found.append(
            msgspec.structs.replace(
                engine,
                node=HERE,
                meter=MeterSource(kind="nvml") if engine is real[0] else None,
                gpu=card.name if known and card is not None else None,
                params_b=params_b if known else None,
                active_params_b=active_b if known else None,
                precision=precision_in(engine.model),
            )
        )
    return found


def size_in(model: str) -> tuple[float | None, float | None]:
    """Parameters and active ones in billions as a model's name tells them (`8B`, `30B-A3B`); None
    where it does not, or where it counts experts (`8x7B`)."""
    sizes = _SIZE.findall(model)
    if len(sizes) != 1:
        return None, None
    active = _ACTIVE.search(model)
    return float(sizes[0]), float(active[1]) if active else None


def precision_in(model: str) -> str:
    """The precision that a model's name tells; bf16 where it tells none."""
    name = model.lower()
    return next((precision for word, precision in _PRECISIONS if word in name), "bf16")
