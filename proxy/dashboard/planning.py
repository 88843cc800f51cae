"""The planning page: what a request like yours would cost elsewhere, by the estimator, in ranges.

The quantities of the published decision framework (model size, precision, serving engine, prompt
and output length, region, hardware) are the form's fields; the answers come from the same
estimator that routes requests, with its 80 % bands. Where an engine of ours has been metered,
its rows are what its windows taught, and the others are scaled by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from estimators.types import Backend, Band, Estimate, Estimator, Features, Load, ModelFacts
from meters.carbon import R_ICE_PUE, operational_g, r_ice_g
from meters.intensity import IntensityBook
from meters.types import Evidence
from proxy.dashboard.lines import Line

ENGINES = ("vllm", "sglang", "tensorrt-llm", "tgi", "llama.cpp", "transformers")
COMPARED_GPUS = ("L40S", "H200-SXM", "H100-SXM")
COMPARED_ZONES = ("FR", "PL", "DE")
PLANNED = "(planned)"
OWN = "metered on {}"
SCALED = "published benchmarks × {1:2}, as metered on {0}"
PUBLISHED = "published benchmarks"
PRECISIONS = ("bf16", "fp16", "fp8", "int8", "int4", "nvfp4")


@runtime_checkable
class AtLengths(Protocol):
    """An estimator that can be told how long an answer is, rather than predict it."""

    def at_lengths(
        self, features: Features, backend: Backend, load: Load, output_tokens: int
    ) -> Estimate: ...


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration, as the form gives it."""

    params_b: float = 8.0
    precision: str = "bf16"
    engine: str = "vllm"
    gpu: str = "H100-SXM"
    num_gpus: int = 1
    concurrency: float = 16.0
    prompt_tokens: int = 500
    output_tokens: int = 300
    zone: str = "DE"
    pue: float = R_ICE_PUE
    requests: int = 100_000


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What one configuration would use for one request; None: the estimator cannot say."""

    what: str
    plan: Plan
    energy_j: Band | None
    carbon_g: Band | None
    latency_s: Band | None
    evidence: str
    tier: str
    r_ice_g: float | None = None
    stands_on: str = ""  # in words, with ``figures`` as Numbers.sentence takes them
    figures: tuple[float | str, ...] = ()


_BOUNDS: Mapping[str, tuple[float, float]] = {
    "params_b": (0.1, 2000.0),
    "num_gpus": (1, 64),
    "concurrency": (1, 4096),
    "prompt_tokens": (1, 1_000_000),
    "output_tokens": (1, 200_000),
    "pue": (1.0, 3.0),
    "requests": (1, 10**9),
}


def usual(line: Line) -> Plan:
    """A plan with the team's own mean lengths and number of requests, where it has some."""
    plan = Plan()
    if not line.requests:
        return plan
    return msgspec.structs.replace(
        plan,
        prompt_tokens=max(1, round(line.prompt_tokens / line.requests)) or plan.prompt_tokens,
        output_tokens=max(1, round(line.output_tokens / line.requests)) or plan.output_tokens,
        requests=line.requests,
    )


def parse(query: Mapping[str, str], gpus: Sequence[str], plan: Plan | None = None) -> Plan:
    """The form's fields; what is missing or makes no sense takes ``plan``'s, within bounds."""
    plan = plan or Plan()
    values: dict[str, Any] = {}
    for name, (least, most) in _BOUNDS.items():
        try:
            number = float(query[name].replace(",", "."))
        except (KeyError, ValueError):
            continue
        if number == number:  # not NaN
            kind = type(getattr(plan, name))
            values[name] = kind(min(max(number, least), most))
    for name, known in (("precision", PRECISIONS), ("engine", ENGINES), ("gpu", gpus)):
        if query.get(name) in known:
            values[name] = query[name]
    if gpus and values.get("gpu", plan.gpu) not in gpus:
        values["gpu"] = gpus[0]
    if query.get("zone"):
        values["zone"] = query["zone"][:32]
    return msgspec.structs.replace(plan, **values)


def written(plan: Plan) -> dict[str, str]:
    """A plan as a link's parameters, which ``parse`` reads."""
    return {name: f"{value}" for name, value in msgspec.structs.asdict(plan).items()}


def own_backends(
    facts: Sequence[Backend], used: Sequence[Line], gpus: Sequence[str], simulated: bool
) -> list[Backend]:
    """The engines of ours that a team used, most carbon first, whose facts a plan can hold."""
    known = {
        b.name: b
        for b in facts
        if b.gpu is not None
        and b.gpu.name in gpus
        and b.model is not None
        and b.engine in ENGINES
        and b.precision in PRECISIONS
        and b.simulated is simulated
    }
    return [known[line.key] for line in used if line.key in known]


def of_backend(plan: Plan, own: Backend) -> Plan:
    """The plan with what is known of one of our engines."""
    return msgspec.structs.replace(
        plan,
        params_b=own.model.params_b if own.model else plan.params_b,
        precision=own.precision,
        engine=own.engine,
        gpu=own.gpu.name if own.gpu else plan.gpu,
        num_gpus=own.num_gpus,
        zone=own.zone or plan.zone,
        pue=own.pue or plan.pue,
    )


def compare(
    plan: Plan,
    estimator: Estimator,
    gpus: Mapping[str, Any],
    book: IntensityBook,
    now_s: float,
    own: Sequence[Backend] = (),
) -> list[Planned]:
    """The configuration, and it with one thing changed at a time.

    A configuration that is one of ``own`` takes what that engine's windows taught. The others are
    the benchmarks', multiplied by what the windows of the engine asked about say of them, so that
    the rows can be compared.
    """
    smaller = msgspec.structs.replace(plan, params_b=max(0.1, round(plan.params_b / 4, 1)))
    lighter = "fp8" if plan.precision in ("bf16", "fp16") else "int4"
    variants = [
        ("as asked", plan),
        (f"a model of {smaller.params_b:g} B", smaller),
        (f"in {lighter}", msgspec.structs.replace(plan, precision=lighter)),
        (
            "half the output",
            msgspec.structs.replace(plan, output_tokens=max(1, plan.output_tokens // 2)),
        ),
        (
            "half the prompt",
            msgspec.structs.replace(plan, prompt_tokens=max(1, plan.prompt_tokens // 2)),
        ),
        (
            f"batch of {min(plan.concurrency * 4, 512):g}",
            msgspec.structs.replace(plan, concurrency=min(plan.concurrency * 4, 512.0)),
        ),
    ]
    other = next(e for e in ENGINES if e != plan.engine)
    variants.append((f"on {other}", msgspec.structs.replace(plan, engine=other)))
    variants += [
        (f"on {gpu}", msgspec.structs.replace(plan, gpu=gpu))
        for gpu in COMPARED_GPUS
        if gpu in gpus and gpu != plan.gpu
    ][:2]
    variants += [
        (f"in zone {zone}", msgspec.structs.replace(plan, zone=zone))
        for zone in COMPARED_ZONES
        if zone != plan.zone
    ][:2]
    asking = _Asking(estimator, gpus, own, _same(plan, own))
    return [_planned(what, each, asking, book, now_s) for what, each in variants]


class _Figures(NamedTuple):
    """A configuration's joules and seconds for one request, and what they rest on."""

    energy_j: Band | None
    latency_s: Band | None
    evidence: str
    stands_on: str
    figures: tuple[float | str, ...] = ()


class _Asking(NamedTuple):
    """An estimator, and the engines of ours that it may have learnt of."""

    estimator: Estimator
    gpus: Mapping[str, Any]
    own: Sequence[Backend]
    asked: Backend | None  # the one of ``own`` that the plan as asked is

    def figures(self, plan: Plan) -> _Figures:
        """The best there is for a configuration: its own windows, the benchmarks scaled by those
        of the engine asked about, or the benchmarks."""
        mine = _same(plan, self.own)
        if mine is not None:
            found = self._ask(plan, mine)
            if _taught(found):
                return _Figures(
                    found.energy_j, found.latency_s, found.evidence.value, OWN, (mine.name,)
                )
        prior = self._ask(plan, self._imagined(plan, mine or self.asked))
        bare = _Figures(prior.energy_j, prior.latency_s, prior.evidence.value, PUBLISHED)
        if self.asked is None:
            return bare
        told = self._ask(plan, self.asked)
        expected = self._ask(plan, self._imagined(of_backend(plan, self.asked), self.asked))
        ratio = _ratio(told.energy_j, expected.energy_j)
        if not _taught(told) or ratio is None:
            return bare
        return _Figures(
            _times(prior.energy_j, ratio),
            _times(prior.latency_s, _ratio(told.latency_s, expected.latency_s) or 1.0),
            prior.evidence.value,
            SCALED,
            (self.asked.name, ratio),
        )

    def _imagined(self, plan: Plan, like: Backend | None) -> Backend:
        """An engine that nothing was learnt of, with the model of ``like`` if it is as large."""
        model = like.model if like is not None else None
        if model is None or model.params_b != plan.params_b:
            model = ModelFacts(params_b=plan.params_b)
        return Backend(
            name=PLANNED,  # always the same: what is known of it is not kept for ever
            group="plan",
            precision=plan.precision,
            engine=plan.engine,
            gpu=self.gpus.get(plan.gpu),
            num_gpus=plan.num_gpus,
            model=model,
            simulated=like is not None and like.simulated,
        )

    def _ask(self, plan: Plan, backend: Backend) -> Estimate:
        features = Features(
            prompt_tokens=plan.prompt_tokens,
            prompt_tokens_counted=True,
            max_tokens=plan.output_tokens,  # for estimators that know no other way to be told
        )
        context = plan.prompt_tokens + plan.output_tokens / 2
        load = Load(
            running=plan.concurrency - 1.0,  # beside this one
            context_tokens=(plan.concurrency - 1.0) * context,
            known=True,
        )
        # The form says how long the answer is: a prediction under that limit is another figure.
        if isinstance(self.estimator, AtLengths):
            return self.estimator.at_lengths(features, backend, load, plan.output_tokens)
        return self.estimator.estimate(features, [backend], [load])[0]


def _same(plan: Plan, own: Sequence[Backend]) -> Backend | None:
    """The engine of ours that is what the plan says, wherever it stands."""
    for each in own:
        told = of_backend(plan, each)
        if msgspec.structs.replace(told, zone=plan.zone, pue=plan.pue) == plan:
            return each
    return None


def _taught(estimate: Estimate) -> bool:
    """Whether an engine's own windows or metered requests are in an estimate."""
    return estimate.evidence is Evidence.CALIBRATED or estimate.why == "own windows"


def _ratio(one: Band | None, other: Band | None) -> float | None:
    return one.mid / other.mid if one and other and other.mid > 0 else None


def _times(band: Band | None, factor: float) -> Band | None:
    return None if band is None else Band(*(value * factor for value in band))


def _planned(what: str, plan: Plan, asking: _Asking, book: IntensityBook, now_s: float) -> Planned:
    answer = book.at(plan.zone, now_s)
    energy, latency, evidence, stands_on, figures = asking.figures(plan)
    carbon = (
        None
        if energy is None
        else Band(*(operational_g(j, plan.pue, answer.g_per_kwh) for j in energy))
    )
    tdp_w = getattr(asking.gpus.get(plan.gpu), "tdp_w", None)
    parametric = (
        None
        if latency is None or tdp_w is None
        else r_ice_g(plan.num_gpus, tdp_w, latency.mid / plan.concurrency, answer.g_per_kwh)
    )
    return Planned(
        what=what,
        plan=plan,
        energy_j=energy,
        carbon_g=carbon,
        latency_s=latency,
        evidence=evidence,
        tier=answer.tier.value,
        r_ice_g=parametric,
        stands_on=stands_on,
        figures=figures,
    )
