"""From what a config says of a backend to everything estimators know of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Annotated

import msgspec

from estimators.hardware import GPUS, gpu_named
from estimators.model_config import facts_from_config
from estimators.types import Backend, GpuFacts, ModelFacts
from policies.wording import nearest
from proxy.backends import facts_without_hardware
from proxy.config_file import ConfigError, Document, Problem, key_text
from proxy.settings import BackendSettings, Settings


class UnknownHardware(ValueError):
    """A GPU or architecture that cannot be understood; the message says what to give."""


def facts_of(backend: BackendSettings, settings: Settings) -> Backend:
    """All that is known of a backend. Raises UnknownHardware."""
    return msgspec.structs.replace(
        facts_without_hardware(backend, settings),
        gpu=_gpu(backend),
        model=_model(backend),
    )


def without_hardware(settings: Settings) -> dict[str, Backend]:
    """What is known of every backend where nobody looks up GPUs and architectures."""
    return {b.full_name: facts_without_hardware(b, settings) for b in settings.backends}


def all_facts(settings: Settings, document: Document | None = None) -> dict[str, Backend]:
    """The facts of every backend by name. Raises ConfigError with every mistake."""
    facts: dict[str, Backend] = {}
    problems: list[Problem] = []
    for index, backend in enumerate(settings.backends):
        path = ("backends", index)
        try:
            facts[backend.full_name] = facts_of(backend, settings)
        except UnknownHardware as error:
            line = document.line(path) if document else 0
            problems.append(Problem(line, key_text(path), str(error)))
        if backend.api_key_file is not None:
            at = (*path, "api_key_file")
            try:
                Path(backend.api_key_file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                line = document.line(at) if document else 0
                message = f"{backend.api_key_file} cannot be read ({error})."
                problems.append(Problem(line, key_text(at), message))
    if settings.quality_table is not None:
        try:
            facts = with_qualities(facts, settings.quality_table)
        except (OSError, ValueError) as error:
            line = document.line(("quality_table",)) if document else 0
            message = f"{settings.quality_table} is no table of qualities ({error})."
            problems.append(Problem(line, "quality_table", message))
    if problems:
        raise ConfigError(document.path if document else "config", problems)
    return facts


class Quality(msgspec.Struct, frozen=True):
    """One entry of a table of qualities, 0..1."""

    mean: Annotated[float, msgspec.Meta(ge=0, le=1)]
    error: Annotated[float, msgspec.Meta(ge=0, le=1)]


def with_qualities(facts: Mapping[str, Backend], path: str) -> dict[str, Backend]:
    """The facts with what a prompt set said of their quality (``joulegate eval --save``); of other
    backends the table may speak too. Raises OSError or ValueError."""
    table = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, dict[str, Quality]])
    found = dict(facts)
    for name, tasks in table.items():
        if name not in found:
            continue
        old, whole = found[name], tasks.get("all")
        own = {task: quality for task, quality in tasks.items() if task != "all"}
        errors = {task: quality.error for task, quality in own.items()}
        found[name] = msgspec.structs.replace(
            old,
            quality=old.quality if whole is None else whole.mean,
            quality_by_task={**old.quality_by_task, **{t: q.mean for t, q in own.items()}},
            quality_error=errors if whole is None else {**errors, "": whole.error},
        )
    return found


def _gpu(backend: BackendSettings) -> GpuFacts | None:
    if backend.gpu is None:
        return None
    known = gpu_named(backend.gpu)
    if backend.gpu_facts:
        # Of a card that is known, its own sheet says the rest: a power limit is one line.
        rest = {"name": backend.gpu} if known is None else msgspec.structs.asdict(known)
        try:
            found = msgspec.convert({**rest, **backend.gpu_facts}, GpuFacts)
        except msgspec.ValidationError as error:
            needed = ", ".join(_required(GpuFacts))
            raise UnknownHardware(f"gpu_facts: {error}. It needs {needed}.") from None
        for key in _required(GpuFacts):
            if key != "name" and not 0 < getattr(found, key) < inf:
                raise UnknownHardware(f"gpu_facts: {key} must be more than 0.")
        return found
    if known is None:
        close = nearest(backend.gpu, GPUS)
        hint = f"Did you mean {close!r}? Else give" if close else "Give"
        raise UnknownHardware(
            f"the GPU {backend.gpu!r} is not known by name. {hint} its data sheet as gpu_facts "
            f"({', '.join(n for n in _required(GpuFacts) if n != 'name')})."
        )
    return known


def _model(backend: BackendSettings) -> ModelFacts | None:
    if backend.hf_config is not None:
        try:
            config = json.loads(Path(backend.hf_config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UnknownHardware(f"hf_config cannot be read: {error}") from None
        try:
            return facts_from_config(config, backend.params_b, backend.active_params_b)
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            said = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise UnknownHardware(f"hf_config is not understood: {said}.") from None
    if backend.params_b is None:
        return None
    return ModelFacts(
        params_b=backend.params_b,
        active_params_b=backend.active_params_b,
        layers=backend.layers,
        hidden_size=backend.hidden_size,
        kv_heads=backend.kv_heads,
        head_dim=backend.head_dim,
    )


def _required(kind: type[msgspec.Struct]) -> Iterator[str]:
    return (field.name for field in msgspec.structs.fields(kind) if field.required)
