"""The energy estimator: what a request would cost on every candidate, in one call.

Physics that published measurements corrected (prior.py), worked out beforehand over a grid
(tables.py); where an engine's own windows taught its step physics, that instead; and on top what
the backend's metered requests say (correction.py), or before there are any half of what those of
the model's other backends say. Lengths and quality are handed in.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from estimators.apis import ApiEnergy, api_energy, declared_energy
from estimators.artefacts import load_prior
from estimators.carbon import grams
from estimators.correction import Correction
from estimators.hardware import idle_power_w
from estimators.kept_corrections import Kept, identity_of, read, write
from estimators.models import UnknownPrecision
from estimators.points import UNKNOWN_BATCHES, Subject, subject_of
from estimators.price import Price, money, price_of
from estimators.prior import Prior
from estimators.roofline import Roofline, roofline_of
from estimators.tables import ENERGY, Table, build, linear
from estimators.types import (
    Z_80,
    Backend,
    Band,
    Estimate,
    Features,
    LengthPredictor,
    Lengths,
    Load,
    ModelFacts,
    Outcome,
    QualityPredictor,
)
from meters.types import Evidence, StepPhysics

LearntPhysics = Callable[[str], StepPhysics | None]

# Answers of a published hour of chat, 19,366 requests (Azure LLM inference trace 2023, conv):
# what is assumed where nobody predicts lengths.
USUAL_LENGTHS = Lengths(54.0, 129.0, 424.0, 211.0)
# An engine's own step physics against its windows: half-width of 80 % of a logarithm.
_LEARNT_SPREAD = 0.15
_MOST_KEPT = 1000  # engines that were learnt from, those of earlier configs and versions included
_CALIBRATED_AFTER = 3  # outcomes at least; fewer do not help the mean (see docs/estimators.md)
# How much of what a model's other backends (precisions, numbers of GPUs, cards) miss the prior by
# is expected of one that nothing is known of: on held-out architectures a quarter, a half and three
# quarters all helped (benchmarks.estimators prints them).
_SHARED = 0.5
_USUAL = (500.0, 300.0)  # prompt and output at which unknown loads are compared

# Marginal joules are a difference of two estimates, and less sure than either.
_MARGINAL_FACTOR = 1.5

_log, _exp, _hypot = math.log, math.exp, math.hypot


class _Known:
    """All that is worked out beforehand for one backend."""

    __slots__ = (
        "api",
        "correction",
        "facts",
        "learnt",
        "of_prior",
        "of_windows",
        "price",
        "prior",
        "source",
        "table",
        "taught",
        "unknown_load",
    )

    def __init__(self, facts: Backend) -> None:
        self.facts = facts
        self.table: Table | None = None
        self.learnt: StepPhysics | None = None
        self.api: ApiEnergy | None = None
        self.price: Price | None = None
        self.correction = Correction()  # of the table in use
        self.prior: Table | None = None
        self.of_prior = self.correction  # another one where windows taught a table
        self.of_windows: Correction | None = None  # that one, once there was such a table
        self.taught: list[_Known] = []  # backends of its model that have requests to learn from
        self.source = "unknown"
        self.unknown_load = (1.0, 1.0)  # factors from the usual batch to the lowest and highest


class EnergyEstimator:
    """Implements estimators.types.Estimator.

    ``lengths`` and ``quality`` predict what comes back; without them the length is that of usual
    chat under ``max_tokens`` and the quality what the config says. ``learnt`` gives the step
    physics that an engine's own windows taught, by backend name, or None. Call ``prepare`` with
    all backends at start-up: it takes a tenth of a second each, and a second for closed
    APIs; a backend first seen in ``estimate`` is worked out there, APIs in a thread.
    """

    evidence = Evidence.BENCHMARK  # of what was not taught by the backend itself

    def __init__(
        self,
        lengths: LengthPredictor | None = None,
        quality: QualityPredictor | None = None,
        learnt: LearntPhysics | None = None,
        prior: Prior | None = None,
    ) -> None:
        self.prior = prior or load_prior()
        self.version = self.prior.version
        self._lengths = lengths
        self._quality = quality
        self._learnt = learnt
        self._known: dict[str, _Known] = {}
        self._taught: dict[tuple[ModelFacts, bool], list[_Known]] = {}  # by model, simulated or not
        self._physics: dict[str, tuple[Backend, StepPhysics | None]] = {}
        self._learning = threading.Lock()
        self._kept: dict[str, Kept] = {}  # what was learnt before this run, or this config
        # By node until when, Unix time, its requests were learnt from; whoever teaches sets it.
        self.taught_until_s: dict[str, float] = {}

    def prepare(self, backends: Sequence[Backend]) -> None:
        """Work everything out that does not depend on a request. Safe in any thread."""
        for backend in backends:
            known = self._of(backend)
            if known.table is None and known.api is None and backend.provider is not None:
                _add_api(known)

    def physics(self, backend: Backend) -> StepPhysics | None:
        """The prior's step physics of a backend: energy above idle, idle power apart.

        None where its model or GPU is not known (closed APIs, unknown cards).
        """
        held = self._physics.get(backend.name)
        if held is None or (held[0] is not backend and not _alike(held[0], backend)):
            held = self._physics[backend.name] = (backend, self._work_out_physics(backend))
        return held[1]

    def estimate(
        self, features: Features, backends: Sequence[Backend], loads: Sequence[Load]
    ) -> list[Estimate]:
        """One estimate per backend, in the same order; unknown figures are None."""
        if not backends:
            return []
        known = [self._of(backend) for backend in backends]
        lengths = (
            self._lengths.predict(features, backends)
            if self._lengths is not None
            else [capped(USUAL_LENGTHS, features.max_tokens)] * len(backends)
        )
        quality: Sequence[Band | None]
        if self._quality is not None:
            quality = self._quality.predict(features, backends)
        else:
            quality = [_configured_quality(backend, features.task) for backend in backends]
        return list(
            map(self._one, [features] * len(backends), backends, known, loads, lengths, quality)
        )

    def at_lengths(
        self, features: Features, backend: Backend, load: Load, output_tokens: int
    ) -> Estimate:
        """What a request takes whose prompt and answer have been counted; the quality is left
        out. ``output_tokens`` are those of all its answers together."""
        each = output_tokens / max(1, features.n)
        lengths = Lengths(each, each, each, each)
        return self._one(features, backend, self._of(backend), load, lengths, None)

    def learn(self, outcome: Outcome) -> None:
        """Take one outcome in. An outcome without metered joules or tokens teaches nothing."""
        known = self._known.get(outcome.backend)
        if (
            known is None
            or known.table is None
            or not outcome.energy_j
            or not outcome.output_tokens
            or outcome.energy_j <= 0.0
            or outcome.evidence not in (Evidence.METERED, Evidence.SIMULATED)
        ):
            return
        simulated = outcome.evidence is Evidence.SIMULATED
        if simulated != known.facts.simulated:
            return  # simulated joules never teach what is said of real engines
        batch = outcome.load.running + 1.0 if outcome.load.known else UNKNOWN_BATCHES[1]
        prompt = float(outcome.features.prompt_tokens - outcome.features.cached_prompt_tokens)
        tables = [(known.correction, known.table)]
        if known.of_prior is not known.correction and known.prior is not None:
            tables.append((known.of_prior, known.prior))
        for correction, table in tables:
            found, _ = table.at(batch, max(0.0, prompt), [float(outcome.output_tokens)])
            with self._learning:
                correction.observe(batch, math.log(outcome.energy_j / found[0][ENERGY]))
        if known.of_prior.outcomes >= _CALIBRATED_AFTER and known not in known.taught:
            known.taught.append(known)

    def _work_out_physics(self, backend: Backend) -> StepPhysics | None:
        subject, sheet = self._subject(backend), self._roofline(backend)
        if subject is None or sheet is None:
            return None
        known = self._known.get(backend.name)
        # What is known under this name may be of the backend before its config changed.
        usable = known is not None and known.learnt is None and _alike(known.facts, backend)
        table = known.table if known is not None and usable else None
        line = (table or build(self.prior, subject)).physics()
        # Little of what was published varies the context's length: the data sheet is the floor.
        bare = sheet.physics()
        return msgspec.structs.replace(
            line,
            context_j=max(line.context_j, bare.context_j),
            context_s=max(line.context_s, bare.context_s),
        )

    def _roofline(self, backend: Backend) -> Roofline | None:
        try:
            return roofline_of(backend)
        except UnknownPrecision:
            return None

    def _subject(self, backend: Backend) -> Subject | None:
        if backend.gpu is None:
            return None
        try:
            idle_w = idle_power_w(backend.gpu) * max(1, backend.num_gpus)
            return subject_of(self.prior, backend, idle_w)
        except UnknownPrecision:
            return None

    def _of(self, backend: Backend) -> _Known:
        known = self._known.get(_key(backend))
        if known is None or (known.facts is not backend and not _alike(known.facts, backend)):
            known = self._work_out(backend)
        known.facts = backend
        if self._learnt is not None:
            learnt = self._windows(backend)
            if learnt is not known.learnt and learnt != known.learnt:
                self._take_learnt(backend, known, learnt)
        return known

    def _work_out(self, backend: Backend) -> _Known:
        known = _Known(backend)
        known.price = price_of(backend)
        self._take_prior(backend, known)
        if known.table is None:
            known.api = declared_energy(backend)
            known.source = known.api.source if known.api is not None else known.source
        if known.table is None and known.api is None and backend.provider is not None:
            threading.Thread(target=_add_api, args=(known,), daemon=True).start()
        before = self._known.get(_key(backend))
        if before is not None:
            self._keep(_key(backend), before)
            if before in before.taught:
                before.taught.remove(before)
        if backend.model is not None:
            known.taught = self._taught.setdefault((backend.model, backend.simulated), [])
        self._take_kept(known)
        self._known[_key(backend)] = known
        return known

    def _keep(self, key: str, known: _Known) -> None:
        windows = known.of_windows
        if known.of_prior.outcomes or (windows is not None and windows.outcomes):
            place = f"{key} {identity_of(known.facts, self.version)}"
            self._kept.pop(place, None)  # the latest stand last
            self._kept[place] = Kept(known.of_prior, windows)
            while len(self._kept) > _MOST_KEPT:
                del self._kept[next(iter(self._kept))]

    def _take_kept(self, known: _Known) -> None:
        """What was learnt of this very engine, in an earlier run or at another price."""
        place = f"{_key(known.facts)} {identity_of(known.facts, self.version)}"
        kept = self._kept.get(place)
        if kept is None:
            return
        known.correction = known.of_prior = kept.of_prior
        known.of_windows = kept.of_windows
        if known.table is not None and kept.of_prior.outcomes >= _CALIBRATED_AFTER:
            known.taught.append(known)

    def save(self, path: str | Path) -> None:
        """Write what requests taught, by backend. Raises OSError."""
        with self._learning:
            for key, known in self._known.items():
                self._keep(key, known)
            write(path, self._kept, self.taught_until_s)

    def load(self, path: str | Path) -> None:
        """Read what ``save`` wrote; before ``prepare``. Raises ValueError, KeyError or TypeError if
        it is something else, or OSError."""
        self._kept, self.taught_until_s = read(path)

    def _take_prior(self, backend: Backend, known: _Known) -> None:
        found = self._table(backend)
        if found is not None:
            known.table, known.source = found
            known.prior = known.table
            known.unknown_load = _load_factors(known.table)

    def _table(self, backend: Backend) -> tuple[Table, str] | None:
        """The figures before anything was learnt, and what they rest on."""
        subject = self._subject(backend)
        if subject is None:
            return None
        return build(self.prior, subject), f"prior {subject.tier}"

    def _windows(self, backend: Backend) -> StepPhysics | None:
        """What the backend's own windows taught."""
        return None if self._learnt is None else self._learnt(backend.name)

    def _take_learnt(self, backend: Backend, known: _Known, learnt: StepPhysics | None) -> None:
        if (known.learnt is None) != (learnt is None):
            # What requests said was said of the other kind of table.
            known.of_windows = known.of_windows or Correction()
            known.correction = known.of_prior if learnt is None else known.of_windows
        known.learnt = learnt
        if learnt is None:
            self._take_prior(backend, known)
        else:
            known.table = linear(learnt, _LEARNT_SPREAD)
            known.source = "own windows"
            known.unknown_load = _load_factors(known.table)

    def _one(
        self,
        features: Features,
        backend: Backend,
        known: _Known,
        load: Load,
        lengths: Lengths,
        quality: Band | None,
    ) -> Estimate:
        whole = lengths
        if features.n > 1:
            whole = Lengths(*(value * features.n for value in lengths))
        q10, q90, mean = whole.q10, whole.q90, whole.mean
        price = known.price and money(
            known.price, features.prompt_tokens, features.cached_prompt_tokens, whole
        )
        table = known.table
        if table is None:
            return self._without_table(features, backend, known, lengths, quality, price)
        batch = load.running + 1.0 if load.known else UNKNOWN_BATCHES[1]
        fresh = float(max(0, features.prompt_tokens - features.cached_prompt_tokens))
        if q10 < q90:
            (short, usual, long), band = table.at(batch, fresh, (q10, mean, q90))
        else:  # counted, or cut off by the caller's limit
            (usual,), band = table.at(batch, fresh, (mean,))
            short = long = usual
        own_low, own_high, step_low, step_high = band
        energy_j, marginal_j, decode_s, first_s = usual
        e_low, m_low, d_low, _ = short
        e_high, m_high, d_high, _ = long
        # How far lengths and the model's own uncertainty reach, both of a logarithm.
        e_low, e_high = _reach(e_low, energy_j), _reach(e_high, energy_j)
        m_low, m_high = _reach(m_low, marginal_j), _reach(m_high, marginal_j)
        evidence = self.evidence
        correction = known.correction
        if correction.outcomes >= _CALIBRATED_AFTER:
            factor = math.exp(correction.at(batch))
            energy_j *= factor
            marginal_j *= factor
            # No less sure than the prior of what is expected, but for how single requests scatter.
            spread, scatter = Z_80 * correction.spread(batch), Z_80 * correction.scatter
            own_low = -_hypot(min(-own_low, spread), scatter)
            own_high = _hypot(min(own_high, spread), scatter)
            evidence = Evidence.CALIBRATED
        elif known.taught and known.learnt is None:
            said = [sibling.of_prior.at(batch) for sibling in known.taught]
            factor = _exp(_SHARED * sum(said) / max(1, len(said)))
            energy_j *= factor
            marginal_j *= factor
        if known.learnt is not None:
            evidence = Evidence.CALIBRATED
        if backend.simulated:
            evidence = Evidence.SIMULATED
        e_low = energy_j * _exp(-_hypot(e_low, own_low))
        e_high = energy_j * _exp(_hypot(e_high, own_high))
        m_low = marginal_j * _exp(-_hypot(m_low, _MARGINAL_FACTOR * own_low))
        m_high = marginal_j * _exp(_hypot(m_high, _MARGINAL_FACTOR * own_high))
        d_low = decode_s * _exp(-_hypot(_reach(d_low, decode_s), step_low))
        d_high = decode_s * _exp(_hypot(_reach(d_high, decode_s), step_high))
        if load.waiting > 0.0:  # those before it finish one by one
            first_s += load.waiting * (decode_s + first_s) / batch
        first_low, first_high = first_s * table.ttft_band[0], first_s * table.ttft_band[1]
        if not load.known:
            least, most = known.unknown_load
            e_low, e_high = e_low * least, e_high * most
            m_low, m_high = m_low * least, m_high * most
            d_low, d_high = 0.5 * d_low, 3.0 * d_high
        latency_s = first_s + decode_s
        energy = Band(e_low, energy_j, e_high)
        return Estimate(
            backend=backend.name,
            energy_j=energy,
            marginal_energy_j=Band(m_low, marginal_j, m_high),
            ttft_s=Band(first_low, first_s, first_high),
            latency_s=Band(first_low + d_low, latency_s, first_high + d_high),
            carbon_g=grams(backend, energy, latency_s / batch),
            money_usd=price,
            quality=quality,
            output_tokens=lengths,
            evidence=evidence,
            version=self.version,
            why=known.source,
        )

    def _without_table(
        self,
        features: Features,
        backend: Backend,
        known: _Known,
        lengths: Lengths,
        quality: Band | None,
        price: Band | None,
    ) -> Estimate:
        energy: Band | None = None
        if known.api is not None:
            answers = float(max(1, features.n))
            fresh = float(max(0, features.prompt_tokens - features.cached_prompt_tokens))
            low = known.api.at(lengths.q10 * answers, fresh).low
            mid = known.api.at(lengths.mean * answers, fresh).mid
            high = known.api.at(lengths.q90 * answers, fresh).high
            energy = Band(min(low, mid), mid, max(high, mid))
        evidence = Evidence.UNKNOWN if energy is None else Evidence.MODELLED
        if energy is not None and backend.simulated:
            evidence = Evidence.SIMULATED
        return Estimate(
            backend=backend.name,
            energy_j=energy,
            marginal_energy_j=energy,  # nobody outside knows their load: every answer is one more
            ttft_s=None,
            latency_s=None,
            # EcoLogits' joules hold the building's overhead already; a provider's may
            carbon_g=grams(
                _without_pue(backend) if known.api is None or known.api.whole else backend, energy
            )
            if energy is not None
            else None,
            money_usd=price,
            quality=quality,
            output_tokens=lengths,
            evidence=evidence,
            version=self.version,
            why=known.source,
        )


def capped(lengths: Lengths, max_tokens: int | None) -> Lengths:
    """Lengths under the caller's limit."""
    if max_tokens is None:
        return lengths
    limit = float(max(1, max_tokens))
    return Lengths(*(min(value, limit) for value in lengths))


def _key(backend: Backend) -> str:
    """What it is known under: a provider that serves any model is another one with each."""
    if "*" not in backend.group:
        return backend.name
    return f"{backend.name} {backend.provider_model}"


def _add_api(known: _Known) -> None:
    found = api_energy(known.facts)
    if found is not None:
        known.api = found
        known.source = "ecologits"


def _alike(left: Backend, right: Backend) -> bool:
    """Whether two descriptions of a backend are the same engine (grid and prices may differ)."""
    return all(
        getattr(left, name) == getattr(right, name)
        for name in (
            "precision",
            "engine",
            "engine_version",
            "gpu",
            "num_gpus",
            "model",
            "provider",
            "provider_model",
            "simulated",
            "declared",
            "input_usd_per_mtok",
            "output_usd_per_mtok",
            "cached_input_usd_per_mtok",
        )
    )


def _reach(end: float, middle: float) -> float:
    """The logarithm of one over the other; nothing reaches anywhere from nothing."""
    return _log(end / middle) if end > 0.0 and middle > 0.0 else 0.0


def _load_factors(table: Table) -> tuple[float, float]:
    """Joules at the most and least favourable of the loads it may have, over the usual one's."""
    prompt, output = _USUAL
    joules = [table.at(batch, prompt, [output])[0][0][ENERGY] for batch in UNKNOWN_BATCHES]
    return min(joules) / joules[1], max(joules) / joules[1]


def _configured_quality(backend: Backend, task: str | None) -> Band | None:
    value = backend.quality
    if task is not None and backend.quality_by_task:
        value = backend.quality_by_task.get(task, value)
    return None if value is None else Band(value, value, value)


def _without_pue(backend: Backend) -> Backend:
    return msgspec.structs.replace(backend, pue=1.0)
