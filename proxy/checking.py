"""What a config file would mean, value by value, and where each value came from."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from estimators.models import WEIGHT_BYTES, UnknownPrecision, precision_named, shape_of
from estimators.quantised import quantised_as
from estimators.text import TASKS
from estimators.types import Backend
from meters.dcgm import POWER_UNITS_W, UNITS_J
from meters.intensity.table import AnnualTable
from meters.intensity.types import Tier
from policies.language import Book
from policies.wording import nearest
from proxy import config_file, facts, loading, policy_book, predicting
from proxy.backends import provider_of
from proxy.config_file import ConfigError, Document, Problem, key_text
from proxy.settings import BackendSettings, Settings

SECRET = "***"
_PASSWORD = re.compile(r"(://[^:/@]*:)[^@]*@")  # of an address
_SECRETS = frozenset(
    {"key", "api_key", "electricity_maps_token", "tokens", "keys", "password"}
    | {"secret", "client_secret"}
)


def check(path: str) -> dict[str, Any]:
    """A report on a config file. Raises ConfigError with every mistake."""
    document = config_file.read(path)
    problems: list[Problem] = []
    loaded = loading.interpret(document, problems)
    settings = loaded.settings
    known, book, unwise = understood(settings, loaded.document, problems)
    unwise += map(str, policy_book.unkept(settings, book, known))
    return {
        "ok": True,
        "file": path,
        "format": loaded.format,
        "honoured": loaded.honoured,
        "not_honoured": loaded.not_honoured,
        "warnings": [*unwise, *warnings(settings, known), *hardware(settings, known)],
        "settings": list(values(settings, loaded.document)),
    }


def understood(
    settings: Settings, document: Document | None, problems: Iterable[Problem] = ()
) -> tuple[dict[str, Backend], Book, list[str]]:
    """The facts of every backend by name, the policies, and what is probably not meant in these.

    Raises ConfigError with every mistake, those in ``problems`` included.
    """
    found = list(problems)

    @contextmanager
    def noting() -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            found.extend(error.problems)

    known, book, unwise = None, None, []
    with noting():
        known = facts.all_facts(settings, document)
    with noting():
        predicting.check_model(settings, document)
    with noting():
        book = policy_book.book_of(settings, document)
    if book is not None:
        sure = known is not None
        backends = known if known is not None else facts.without_hardware(settings)
        named = policy_book.findings(settings, book, backends)
        with noting():  # what hardware has to do with it nobody can say where that is not known
            unwise = policy_book.refuse_errors(
                [f for f in named if sure or f.kind == "unknown_name"], document
            )
    if found or known is None or book is None:
        raise ConfigError(document.path if document else "config", found)
    return known, book, unwise


def warnings(settings: Settings, known: Mapping[str, Backend]) -> Iterator[str]:
    """What is allowed and probably not wanted."""
    if not settings.backends:
        yield "no backends: `joulegate serve` would refuse to start"
    if not settings.keys_configured:
        yield "no keys: anyone on this machine may call, and nobody else"
        if not settings.server.loopback:
            yield f"server.host {settings.server.host}: without keys `joulegate serve` refuses it"
    yield from addresses(settings)
    yield from precisions(settings)
    yield from zones(settings)
    yield from unknown_names(settings)
    yield from meters(settings)
    for backend in settings.backends:
        if backend.gpu is None and provider_of(backend) is None:
            yield (
                f"{backend.full_name}: no gpu, so its energy is unknown; for a closed API say "
                "engine: api"
            )
        yield from sizes_and_prices(backend)
        facts = known[backend.full_name]  # a table of qualities counts, too
        if facts.quality is None and not facts.quality_by_task:
            yield f"{backend.full_name}: no quality, so limits on quality rule it out"


def sizes_and_prices(backend: BackendSettings) -> Iterator[str]:
    """Figures that contradict each other, or say nothing alone."""
    prices = ("input_usd_per_mtok", "output_usd_per_mtok")
    lacking = [name for name in prices if getattr(backend, name) is None]
    cached = backend.cached_input_usd_per_mtok is not None
    if len(lacking) == 1 or (lacking and cached):
        yield f"{backend.full_name}: without {' and '.join(lacking)} its other prices are not used"
    whole, active = backend.params_b, backend.active_params_b
    if whole is not None and active is not None and active > whole:
        yield (
            f"{backend.full_name}: a token cannot use {active:g} of {whole:g} billion parameters; "
            "is active_params_b another?"
        )


def addresses(settings: Settings) -> Iterator[str]:
    """Addresses under which nothing will be found."""
    for backend in settings.backends:
        if backend.provider != "openai" or backend.url is None:
            continue
        if urlsplit(backend.url).path in ("", "/"):
            url = _PASSWORD.sub(r"\1***@", backend.url).rstrip("/")
            yield (
                f"{backend.full_name}: its url has no path, and engines speak OpenAI's API under "
                f"/v1: {url}/v1"
            )


def precisions(settings: Settings) -> Iterator[str]:
    """Precisions that nothing is predicted for."""
    for backend in settings.backends:
        if backend.gpu is None:
            continue
        try:
            precision_named(backend.precision)
        except UnknownPrecision as error:
            close = nearest(backend.precision, WEIGHT_BYTES)
            hint = f" Did you mean {close!r}?" if close else ""
            yield f"{backend.full_name}: {error} Its energy is unknown.{hint}"


def hardware(settings: Settings, known: Mapping[str, Backend]) -> Iterator[str]:
    """Models that their GPUs cannot hold, and weights that are quantised otherwise than said."""
    for backend in settings.backends:
        facts = known[backend.full_name]
        try:
            precision = precision_named(backend.precision)
        except UnknownPrecision:
            continue
        if facts.model is not None and facts.gpu is not None and facts.gpu.memory_gb > 0:
            weights_gb = facts.model.params_b * WEIGHT_BYTES[precision]
            held_gb = facts.gpu.memory_gb * backend.num_gpus
            if weights_gb > held_gb:
                yield (
                    f"{backend.full_name}: {weights_gb:.0f} GB of weights do not fit into the "
                    f"{held_gb:.0f} GB of {backend.num_gpus} {facts.gpu.name}: is num_gpus or "
                    "precision another?"
                )
            elif backend.context_tokens is not None:
                cache_gb = shape_of(facts.model).cache_bytes(backend.context_tokens) / 1e9
                if weights_gb + cache_gb > held_gb:
                    yield (
                        f"{backend.full_name}: {weights_gb:.0f} GB of weights and the "
                        f"{cache_gb:.0f} GB cache of {backend.context_tokens} tokens do not fit "
                        f"into the {held_gb:.0f} GB of {backend.num_gpus} {facts.gpu.name}: is "
                        "context_tokens less?"
                    )
        told = _told(backend)
        if told is not None and told not in (precision, backend.precision):
            yield (
                f"{backend.full_name}: its hf_config says that the weights are {told}, and "
                f"precision is {backend.precision}"
            )


def _told(backend: BackendSettings) -> str | None:
    """The precision that its model's own config names."""
    if backend.hf_config is None:
        return None
    try:
        config = json.loads(Path(backend.hf_config).read_text(encoding="utf-8"))
        return quantised_as(config)
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # what cannot be read is told where it is read for its sizes


def unknown_names(settings: Settings) -> Iterator[str]:
    """Names that are looked up later, and that nothing has."""
    for backend in settings.backends:
        for task in backend.quality_by_task:
            if task not in TASKS:
                yield (
                    f"{backend.full_name}: no request is of the kind {task!r} in quality_by_task; "
                    f"known: {', '.join(TASKS)}"
                )
    nodes = {backend.node or backend.full_name for backend in settings.backends}
    for node in settings.meters.tokens:
        if node not in nodes:
            yield f"meters.tokens: no backend has the node {node!r}, so its windows are refused"
    usual = settings.carbon.default_counterfactual
    names = {name for b in settings.backends for name in (b.full_name, b.model)}
    if usual is not None and usual not in names:
        yield f"carbon.default_counterfactual: there is no backend {usual!r}"
    file = settings.carbon.intensity_file
    if file is not None and not Path(file).is_file():
        yield f"carbon.intensity_file: there is no file {file}"


_NEEDS = {"prometheus": ("url", "series"), "simulated": ("url",), "replay": ("file",)}


def meters(settings: Settings) -> Iterator[str]:
    """Meters that will read nothing, whatever answers: their backends would stay unmetered."""
    for backend in settings.backends:
        source = backend.meter
        if source is None:
            continue
        where = f"{backend.full_name}: meter {source.kind}"
        for key in _NEEDS.get(source.kind, ()):
            if not getattr(source, key):
                yield f"{where} needs {key}; without it nothing is metered"
        if source.url and not source.url.startswith(("http://", "https://")):
            yield f"{where}: its url {source.url!r} must begin with http:// or https://"
        if source.kind == "prometheus" and source.unit not in (*UNITS_J, *POWER_UNITS_W):
            known = ", ".join((*UNITS_J, *POWER_UNITS_W))
            yield f"{where}: the unit {source.unit!r} is not known; known: {known}"
        if source.file and not Path(source.file).is_file():
            yield f"{where}: there is no file {source.file}"


def zones(settings: Settings) -> Iterator[str]:
    """Grid zones that nobody gives figures for, so that the world's mean is taken."""
    carbon = settings.carbon
    if carbon.intensity_file is not None or carbon.electricity_maps_token is not None:
        return  # they may know more zones than we
    table = AnnualTable(regions=carbon.regions)
    named = {"carbon": carbon} | {backend.full_name: backend for backend in settings.backends}
    for name, given in named.items():
        zone = given.zone
        if zone is None or given.intensity_g_per_kwh is not None:
            continue
        if table.annual(zone).tier is Tier.WORLD:
            close = difflib.get_close_matches(zone, table.names, n=1, cutoff=0.6)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"{name}: the zone {zone!r} is not known, so the world's mean is taken{hint}"


def values(settings: Settings, document: Document) -> Iterator[dict[str, str]]:
    """Every setting that is used, with its source; secrets as stars."""
    yield from _values(settings, (), document)


def _values(value: Any, path: config_file.KeyPath, document: Document) -> Iterator[dict[str, str]]:
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.fields(type(value)):
            inner = (*path, field.encode_name)
            item = getattr(value, field.name)
            given = inner in document.lines
            if not given and not isinstance(item, msgspec.Struct):
                if len(path) > 1 or path[:1] in (("backends",), ("teams",)):
                    continue  # defaults of list items would drown what was given
                if item in (None, [], {}):
                    continue
            yield from _values(item, inner, document)
        return
    if isinstance(value, dict) and value and path[-1] not in _SECRETS:
        for key, item in value.items():
            yield from _values(item, (*path, key), document)
        return
    if isinstance(value, list) and value and path[-1] not in _SECRETS:
        for index, item in enumerate(value):
            yield from _values(item, (*path, index), document)
        return
    line = document.lines.get(path)
    # A budget's tokens are a number, and no secret.
    secret = any(step in _SECRETS for step in path) and value and not isinstance(value, int)
    yield {
        "name": key_text(path),
        "value": SECRET if secret else _PASSWORD.sub(r"\1***@", str(value)),
        "source": f"line {line}" if line else "default",
    }


__all__ = ["ConfigError", "addresses", "check", "values", "warnings"]
