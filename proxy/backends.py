"""The backends at run time: which serve a model name, how busy they are, whether they answer.

Load is what this process has in flight, and what others have there by what the engine itself
reports where a meter reads it. A backend that fails several times in a row is left alone for a
while; then one request probes it (half-open) before traffic returns.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from estimators.types import Backend, Declared, Load
from meters.prefixes import Prefixes
from proxy.settings import BackendSettings, DeclaredEnergy, Retries, Settings

log = logging.getLogger("joulegate.backends")

REPORT_IS_FRESH_S = 5.0  # a load reported longer ago says nothing about now


class Engine:
    """One backend with its live state."""

    __slots__ = (
        "asleep",
        "bridged",
        "calls",
        "context_in_flight",
        "cooldown_until_s",
        "elsewhere",
        "facts",
        "failures_in_a_row",
        "group",
        "headers",
        "healthy",
        "in_flight",
        "last_peak",
        "looked",
        "name",
        "node",
        "others",
        "peak",
        "prefixes",
        "probing",
        "refusal",
        "refuses_usage",
        "reported",
        "reported_at_s",
        "settings",
        "url",
        "wildcard",
    )

    def __init__(self, settings: BackendSettings, facts: Backend) -> None:
        self.settings = settings
        self.facts = facts
        self.name = settings.full_name
        self.group = settings.model
        self.node = facts.node or self.name
        self.url = (settings.url or "").rstrip("/")
        self.wildcard = "*" in settings.model
        self.headers = _headers(settings)
        self.bridged = frozenset(f"/{name}" for name in settings.bridge or ())  # paths it has not
        self.in_flight = 0
        self.context_in_flight = 0
        self.elsewhere = 0  # requests that other replicas have in flight there
        self.calls = 0
        self.failures_in_a_row = 0
        self.cooldown_until_s = 0.0
        self.probing = False
        self.refusal: int | None = None
        self.refuses_usage = False  # of a stream, when it is asked for
        self.healthy = True
        self.asleep = False
        self.prefixes: Prefixes | None = None  # once its meter shows that it has a prefix cache
        self.reported: Load | None = None
        self.reported_at_s = 0.0
        self.others = 0.0  # of what it reported last: requests that are not ours
        self.looked: int | None = None  # what we had in flight when it reported
        self.peak = self.last_peak = 0  # the most of that since the last report, and before it

    def bridges(self, path: str) -> bool:
        """Whether that path is asked through the litellm SDK, which keeps no answers."""
        return path in self.bridged or self.settings.provider != "openai"

    def load(self, now_s: float) -> Load:
        """The engine's present load: what all replicas have in flight, and what it says itself."""
        reported = self.reported
        if reported is None or now_s - self.reported_at_s > REPORT_IS_FRESH_S:
            return Load(
                running=float(self.in_flight + self.elsewhere),
                context_tokens=float(self.context_in_flight),
                asleep=self.asleep,
                known=True,
            )
        # Its figures are up to a window old and count what we had there then: of ours only those
        # of now are. A request that has ended would make an idle engine look busy, and cheap.
        there = self.in_flight + max(self.others, self.elsewhere)
        waiting = min(reported.waiting, there)
        return Load(
            running=there - waiting,
            waiting=waiting,
            context_tokens=float(self.context_in_flight),
            asleep=self.asleep,
            known=True,
        )

    def reports(self, running: float, waiting: float, now_s: float) -> None:
        """Take the engine's own word on its load: the mean of its last window's two ends."""
        there = running + waiting
        ours = self.in_flight if self.looked is None else (self.looked + self.in_flight) / 2
        all_ours = there <= max(self.peak, self.last_peak)
        self.others = 0.0 if all_ours else max(0.0, there - ours)
        self.looked, self.last_peak, self.peak = self.in_flight, self.peak, self.in_flight
        self.reported = Load(running=running, waiting=waiting, known=True)
        self.reported_at_s = now_s

    def started(self, context_tokens: int) -> None:
        self.in_flight += 1
        if self.in_flight > self.peak:
            self.peak = self.in_flight
        self.calls += 1
        self.context_in_flight += context_tokens

    def ended(self, context_tokens: int) -> None:
        self.in_flight -= 1
        self.context_in_flight -= context_tokens

    def available(self, now_s: float) -> bool:
        """Whether a request may be sent to it now; in half-open state only one at a time."""
        if now_s < self.cooldown_until_s:
            return False
        return not (self.cooldown_until_s and self.probing)

    def succeeded(self) -> None:
        if self.cooldown_until_s:
            log.info("backend %s answers again", self.name)
        self.failures_in_a_row = 0
        self.cooldown_until_s = 0.0
        self.probing = False
        self.healthy = True

    def refused(self, status: int | None) -> None:
        """Note that it answered as it does where its key or model is not good; None: otherwise.
        Said once each time that it begins: requests may well be answered by others."""
        if status is not None and status != self.refusal:
            log.warning(
                "backend %s answers %d: its key, its model (upstream_model) or what it can do is "
                "not as the config says",
                self.name,
                status,
            )
        self.refusal = status

    def failed(self, now_s: float, rules: Retries) -> None:
        """Count a failure that is the backend's own (not the client's, not a 4xx)."""
        self.failures_in_a_row += 1
        self.probing = False
        if self.cooldown_until_s or self.failures_in_a_row >= rules.failures:
            if self.healthy:
                log.warning(
                    "backend %s failed %d times; left alone for %g s",
                    self.name,
                    self.failures_in_a_row,
                    rules.cooldown_s,
                )
            self.healthy = False
            self.cooldown_until_s = now_s + rules.cooldown_s


def _headers(settings: BackendSettings) -> dict[str, str]:
    key = settings.api_key
    if settings.api_key_file:
        key = Path(settings.api_key_file).read_text(encoding="utf-8").strip()
    headers = {"accept-encoding": "identity"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    headers.update({name.lower(): value for name, value in settings.extra_headers.items()})
    return headers


class Pool:
    """All engines, by the names clients ask for."""

    def __init__(
        self, engines: Iterable[Engine], fallbacks: Mapping[str, list[str]] | None = None
    ) -> None:
        self.hold(engines, fallbacks)

    def hold(
        self, engines: Iterable[Engine], fallbacks: Mapping[str, list[str]] | None = None
    ) -> None:
        """Have these engines from now on; requests under way keep the one they were sent to."""
        self.engines = list(engines)
        self.by_name = {engine.name: engine for engine in self.engines}
        self.groups: dict[str, list[Engine]] = {}
        for engine in self.engines:
            self.groups.setdefault(engine.group, []).append(engine)
        self.fallbacks = dict(fallbacks or {})
        self._wild = [engine for engine in self.engines if engine.wildcard]
        self.remembers = any(engine.prefixes is not None for engine in self.engines)
        self.everything = [engine for engine in self.engines if not engine.wildcard]

    def serving(self, model: str) -> list[Engine]:
        """The engines that a model name stands for: a group's, one pinned, or everything for
        ``auto`` and ``auto:POLICY``. Empty when there is no such model."""
        found = self.groups.get(model)
        if found is not None:
            return found
        engine = self.by_name.get(model)
        if engine is not None:
            return [engine]
        if model == "auto" or model.startswith("auto:"):
            return self.everything
        found = [e for e in self._wild if fnmatch.fnmatchcase(model, e.group)]
        if len(found) > 1:  # `claude-*` knows better than `*`
            closest = max(len(e.group) for e in found)
            found = [e for e in found if len(e.group) == closest]
        return found

    def fallback_for(self, model: str) -> list[Engine]:
        """Engines of the groups to try when ``model``'s own cannot serve."""
        group = self.by_name[model].group if model in self.by_name else model
        return [e for name in self.fallbacks.get(group, ()) for e in self.groups.get(name, ())]

    def names(self) -> list[str]:
        """What clients may ask for: groups, then pinned variants where there are several."""
        names = list(self.groups)
        for group in self.groups.values():
            names += [e.name for e in group if e.name != e.group]
        return names


def engines_of(
    settings: Settings, facts: Mapping[str, Backend], kept: Mapping[str, Engine] | None = None
) -> list[Engine]:
    """The engines of a config; ``facts`` by backend name. Those of ``kept`` whose settings did
    not change go on as they are, with their load and their cooldown."""
    found: list[tuple[Engine, dict[str, str]]] = []
    for backend in settings.backends:
        old = (kept or {}).get(backend.full_name)
        if old is not None and old.settings == backend:
            headers = _headers(backend)  # the file of its key may hold another one now
            found.append((old, headers))
        else:
            new = Engine(backend, facts[backend.full_name])
            found.append((new, new.headers))
    for engine, headers in found:  # nothing was changed where one of the files cannot be read
        engine.facts, engine.headers = facts[engine.name], headers
    return [engine for engine, _ in found]


def of_settings(settings: Settings, facts: Mapping[str, Backend]) -> Pool:
    """The pool of a config."""
    return Pool(engines_of(settings, facts), settings.fallbacks)


def upstream_model(engine: Engine, asked: str) -> str:
    """The model name to send to an engine for a request that asked for ``asked``."""
    name = engine.settings.upstream_model
    if name is None:
        return asked if engine.wildcard else engine.group
    if "*" in name and engine.wildcard:  # "openai/*" -> "*": what the star matched
        star = asked[len(engine.group.split("*")[0]) :] if "*" in engine.group else asked
        return name.replace("*", star)
    return name


def declared_of(said: DeclaredEnergy | None) -> Declared | None:
    """What the config says that a provider says."""
    return None if said is None else Declared(**msgspec.structs.asdict(said))


def _holds_building(settings: BackendSettings) -> bool:
    """Whether what is known of an API's energy has the building's overhead in it: EcoLogits' has,
    and so has what a provider declares, unless it is said not to."""
    said = settings.declared_energy
    if said is None or said.whole:
        return True
    return not (said.j_per_request or said.j_per_output_token or said.j_per_input_token)


# Closed APIs that speak OpenAI's own, by their host: the provider as litellm and EcoLogits call it.
PUBLIC_APIS = {
    "api.openai.com": "openai",
    "api.mistral.ai": "mistral",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.together.xyz": "together_ai",
    "api.fireworks.ai": "fireworks_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "xai",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gemini",
    "openrouter.ai": "openrouter",
}


def provider_of(settings: BackendSettings) -> str | None:
    """Whose API a backend is; None for an engine of one's own."""
    if settings.provider != "openai":
        return settings.provider
    host = urlsplit(settings.url or "").hostname or ""
    if settings.gpu is None and host in PUBLIC_APIS:
        return PUBLIC_APIS[host]
    return settings.provider if settings.engine == "api" else None


def facts_without_hardware(settings: BackendSettings, common: Settings) -> Backend:
    """What a config says of a backend, before GPU and architecture tables are consulted."""
    s, carbon = settings, common.carbon
    provider = provider_of(s)
    named = s.upstream_model or (s.model if "*" not in s.model else None)
    return Backend(
        name=s.full_name,
        group=s.model,
        precision=s.precision,
        engine="api" if provider is not None else s.engine,
        engine_version=s.engine_version,
        num_gpus=s.num_gpus,
        max_num_seqs=s.max_num_seqs,
        context_tokens=s.context_tokens,
        provider=provider,
        provider_model=s.upstream_model if provider is None else named,
        node=s.node or s.full_name,
        zone=s.zone or carbon.zone,
        region=s.region,
        intensity_g_per_kwh=(
            s.intensity_g_per_kwh
            if s.intensity_g_per_kwh is not None
            else carbon.intensity_g_per_kwh
        ),
        pue=1.0 if provider is not None and _holds_building(s) else s.pue or carbon.pue,
        input_usd_per_mtok=s.input_usd_per_mtok,
        output_usd_per_mtok=s.output_usd_per_mtok,
        cached_input_usd_per_mtok=s.cached_input_usd_per_mtok,
        declared=declared_of(s.declared_energy),
        quality=s.quality,
        quality_by_task=s.quality_by_task,
        supports_tools=s.supports_tools,
        supports_schema=s.supports_schema,
        supports_images=s.supports_images,
        simulated=s.simulated,
    )
