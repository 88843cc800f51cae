"""The energy estimator: what a request would cost on every candidate, in one call.

Physics first (roofline.py); what published measurements and an engine's own windows taught
corrects it. Lengths and quality come from predictors that are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from estimators.models import UnknownPrecision
from estimators.roofline import Roofline, roofline_of
from estimators.types import (
    Backend,
    Band,
    Estimate,
    Features,
    LengthPredictor,
    Load,
    Outcome,
    QualityPredictor,
)
from meters.types import Evidence, StepPhysics

LearntPhysics = Callable[[str], StepPhysics | None]

_DEFAULT_OUTPUT_TOKENS = 300.0
_UNKNOWN_BATCH = 8.0


class EnergyEstimator:
    """Implements estimators.types.Estimator.

    ``lengths`` and ``quality`` predict what comes back; without them the length is a wide guess
    under ``max_tokens`` and the quality what the config says. ``learnt`` gives the step physics
    that an engine's own windows taught, by backend name, or None.
    """

    version = "roofline-1"

    def __init__(
        self,
        lengths: LengthPredictor | None = None,
        quality: QualityPredictor | None = None,
        learnt: LearntPhysics | None = None,
    ) -> None:
        self._lengths = lengths
        self._quality = quality
        self._learnt = learnt
        self._rooflines: dict[str, Roofline | None] = {}
        self._physics: dict[str, StepPhysics] = {}

    def physics(self, backend: Backend) -> StepPhysics | None:
        """The prior's step physics of a backend: energy above idle, idle power apart.

        None where its model or GPU is not known (closed APIs, unknown cards).
        """
        roofline = self._roofline(backend)
        return None if roofline is None else roofline.physics()

    def estimate(
        self, features: Features, backends: Sequence[Backend], loads: Sequence[Load]
    ) -> list[Estimate]:
        """One estimate per backend, in the same order; unknown figures are None."""
        return [
            self._one(features, backend, load)
            for backend, load in zip(backends, loads, strict=True)
        ]

    def learn(self, outcome: Outcome) -> None:
        """Take one outcome in. An outcome without figures teaches nothing."""

    def _roofline(self, backend: Backend) -> Roofline | None:
        if backend.name not in self._rooflines:
            try:
                self._rooflines[backend.name] = roofline_of(backend)
            except UnknownPrecision:
                self._rooflines[backend.name] = None
        return self._rooflines[backend.name]

    def _one(self, features: Features, backend: Backend, load: Load) -> Estimate:
        roofline = self._roofline(backend)
        energy: Band | None = None
        ttft: Band | None = None
        latency: Band | None = None
        marginal: Band | None = None
        evidence = Evidence.UNKNOWN
        if roofline is not None:
            batch = load.running + 1.0 if load.known else _UNKNOWN_BATCH
            output = min(_DEFAULT_OUTPUT_TOKENS, features.max_tokens or _DEFAULT_OUTPUT_TOKENS)
            output *= features.n
            cost = roofline.request(
                batch, features.prompt_tokens, output, features.cached_prompt_tokens
            )
            physics = self._physics.get(backend.name)
            if physics is None:
                physics = self._physics[backend.name] = roofline.physics()
            added = output * (
                physics.token_j
                + physics.context_j * (features.prompt_tokens + 0.5 * output)
                + (physics.step_j if batch <= 1.0 else 0.0)
            )
            added += physics.prefill_j * (features.prompt_tokens - features.cached_prompt_tokens)
            energy = _wide(cost.energy_j, 2.0)
            marginal = _wide(added, 3.0)
            ttft = _wide(cost.prefill_s + cost.step_s, 3.0)
            latency = _wide(cost.prefill_s + output * cost.step_s, 2.0)
            evidence = Evidence.SIMULATED if backend.simulated else Evidence.BENCHMARK
        quality = backend.quality_by_task.get(features.task or "", backend.quality)
        return Estimate(
            backend=backend.name,
            energy_j=energy,
            marginal_energy_j=marginal,
            ttft_s=ttft,
            latency_s=latency,
            carbon_g=None,
            money_usd=None,
            quality=None if quality is None else Band(quality, quality, quality),
            output_tokens=None,
            evidence=evidence,
            version=self.version,
            why="data sheets only" if energy else "model or GPU unknown",
        )


def _wide(middle: float, factor: float) -> Band:
    return Band(middle / factor, middle, middle * factor)
