"""Made-up traffic of three teams on two simulated engines and a hosted API, for the demo.

Pure and repeatable: the same arguments give the same rows. Everything is labelled simulated; the
tests ask for another evidence where they need what a metered ledger looks like.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from meters.types import Attribution, Evidence, Share, UsageRecord, Window
from proxy.dashboard.sites import Site, Sites

HOUR_S = 3600


class _Engine(NamedTuple):
    backend: str
    node: str
    zone: str
    pue: float
    gpus: int
    idle_w: float
    j_per_token: float
    j_per_prompt_token: float


# Joules a token as of engines that serve one or two requests at a time, which is what so little
# traffic gives: about 700 W at a dozen tokens a second for 70B on two GPUs.
ENGINES: Mapping[str, _Engine] = {
    "llama-3.3-70b": _Engine("llama-3.3-70b@fp8", "node-a", "DE", 1.2, 2, 120.0, 60.0, 0.8),
    "llama-3.1-8b": _Engine("llama-3.1-8b@fp8", "node-b", "FR", 1.15, 1, 60.0, 6.0, 0.1),
}
HOSTED = "gpt-4o-mini"
HOSTED_J_PER_TOKEN = 5.0
SITES = Sites(
    nodes={
        e.node: Site(
            node=e.node,
            zone=e.zone,
            pue=e.pue,
            pue_source="sample",
            gpus=e.gpus,
        )
        for e in ENGINES.values()
    },
    hosted=frozenset({HOSTED}),
)
# team: requests an office hour, keys, share that asks for the large model, tags
_TEAMS: Mapping[str, tuple[float, tuple[str, ...], float, tuple[str, ...]]] = {
    "search": (14.0, ("sk-sea1", "sk-sea2"), 0.55, ("answers", "ranking")),
    "support": (8.0, ("sk-sup1",), 0.25, ("chat", "summaries")),
    "research": (4.0, ("sk-res1",), 0.8, ("experiments",)),
}
_G_PER_KWH = {"DE": 330.0, "FR": 41.0, "US": 384.0}


class Hour(NamedTuple):
    """One hour's rows, to be written together."""

    records: list[UsageRecord]
    attributions: list[Attribution]
    windows: list[Window]


def sample_hours(
    start_s: int,
    hours: int,
    evidence: Evidence = Evidence.SIMULATED,
    scale: float = 1.0,
) -> Iterator[Hour]:
    """Rows of each hour from ``start_s``; ``scale`` multiplies the number of requests."""
    for number in range(hours):
        hour_s = start_s + number * HOUR_S
        yield _hour(hour_s, evidence, random.Random(f"1/{hour_s}"), scale, number)


def _hour(hour_s: int, evidence: Evidence, rng: random.Random, scale: float, number: int) -> Hour:
    records: list[UsageRecord] = []
    for team, (busy, keys, large, tags) in _TEAMS.items():
        rate = busy * scale * _load(hour_s) * (1.0 + number / 4000.0)
        for _ in range(_poisson(rng, rate)):
            records.append(_request(rng, hour_s, team, keys, large, tags, evidence, len(records)))
        if team == "research" and hour_s // HOUR_S % 24 in (20, 21):
            for _ in range(round(8 * scale)):
                records.append(
                    _request(
                        rng, hour_s, team, keys, 1.0, ("nightly-eval",), evidence, len(records)
                    )
                )
    attributions: list[Attribution] = []
    windows: list[Window] = []
    for engine in ENGINES.values():
        if number % 97 == 50 and engine.node == "node-b":
            continue  # an hour in which the meter was away: figures stay estimates
        served = [r for r in records if r.node == engine.node and r.backend]
        attributions.append(_divided(rng, hour_s, engine, served, evidence))
        windows.append(_window(attributions[-1], engine, evidence))
    return Hour(records, attributions, windows)


def _load(hour_s: int) -> float:
    """Office hours on weekdays, little at night; 1 at the busiest."""
    hour, day = hour_s // HOUR_S % 24, (hour_s // (24 * HOUR_S) + 3) % 7
    shape = 0.08 + 0.92 * math.exp(-(((hour - 13.0) / 4.2) ** 2))
    return shape * (0.3 if day >= 5 else 1.0)


def _poisson(rng: random.Random, mean: float) -> int:
    limit, count, product = math.exp(-min(mean, 500.0)), 0, rng.random()
    while product > limit:
        count += 1
        product *= rng.random()
    return count


def _request(
    rng: random.Random,
    hour_s: int,
    team: str,
    keys: tuple[str, ...],
    large: float,
    tags: tuple[str, ...],
    evidence: Evidence,
    number: int,
) -> UsageRecord:
    simulated = evidence is Evidence.SIMULATED
    start_s = hour_s + rng.uniform(0, HOUR_S - 60)
    prompt, output = int(rng.lognormvariate(6.8, 0.8)), int(rng.lognormvariate(6.9, 0.7))
    asked = "llama-3.3-70b" if rng.random() < large else "llama-3.1-8b"
    routed = asked == "llama-3.3-70b" and rng.random() < 0.4
    model = "llama-3.1-8b" if routed else asked
    hosted = rng.random() < 0.06
    hit = not hosted and rng.random() < 0.07
    lost = hosted and rng.random() < 0.08
    engine = ENGINES[model]
    energy_j = (
        HOSTED_J_PER_TOKEN * output
        if hosted
        else engine.j_per_token * output + engine.j_per_prompt_token * prompt
    ) * rng.uniform(0.8, 1.25)
    zone, pue = ("US", 1.2) if hosted else (engine.zone, engine.pue)
    grams = pue * _G_PER_KWH[zone] / 3.6e6
    reference = ENGINES[asked]
    reference_j = reference.j_per_token * output + reference.j_per_prompt_token * prompt
    reference_g = reference_j * reference.pue * _G_PER_KWH[reference.zone] / 3.6e6
    if hit:
        energy_j = 0.0
    known = not lost
    return UsageRecord(
        request_id=f"req-{hour_s}-{number}-{rng.randrange(16**6):06x}",
        start_s=start_s,
        end_s=start_s + 0.6 + output / 40.0,
        team=team,
        key_id=rng.choice(keys),
        tags=tuple(sorted(set(rng.sample(tags, rng.randint(1, len(tags)))))),
        model_asked=asked,
        backend=None if hit else HOSTED if hosted else engine.backend,
        group=None if hit else HOSTED if hosted else model,
        node=None if hit or hosted else engine.node,
        policy="least_energy",
        task=rng.choice(("chat", "extraction", "code")),
        cache="hit" if hit else "miss",
        prompt_tokens=prompt,
        prompt_tokens_counted=True,
        cached_prompt_tokens=prompt // 3 if rng.random() < 0.3 else 0,
        output_tokens=output,
        usage_source="upstream",
        sent_s=None if hit else start_s + 0.01,
        first_token_s=None if hit else start_s + 0.3,
        ttft_s=None if hit else 0.3,
        latency_s=0.6 + output / 40.0,
        energy_j=energy_j if known else None,
        energy_low_j=energy_j * 0.75 if known else None,
        energy_high_j=energy_j * 1.3 if known else None,
        carbon_g=energy_j * grams if known else None,
        evidence=(
            evidence
            if simulated
            else Evidence.UNKNOWN
            if lost
            else Evidence.MODELLED
            if hosted
            else Evidence.CALIBRATED
        ),
        estimator_version="sample-1",
        zone=zone,
        pue=pue,
        intensity_g_per_kwh=_G_PER_KWH[zone],
        counterfactual_backend=reference.backend,
        counterfactual_energy_j=None if hosted else reference_j,
        counterfactual_carbon_g=None if hosted else reference_g,
        simulated=simulated,
        replica="sample",
    )


def _divided(
    rng: random.Random, hour_s: int, engine: _Engine, served: list[UsageRecord], evidence: Evidence
) -> Attribution:
    window_id = f"{engine.node}-{hour_s}"
    shares = tuple(
        Share(window_id, r.request_id, (r.energy_j or 0.0) * rng.uniform(0.9, 1.08)) for r in served
    )
    idle_j = engine.idle_w * HOUR_S
    active_j = sum(s.energy_j for s in shares)
    external_j = active_j * 0.02
    unattributed_j = active_j * 0.004
    return Attribution(
        window_id=window_id,
        node=engine.node,
        start_s=float(hour_s),
        end_s=float(hour_s + HOUR_S),
        metered_j=active_j + idle_j + external_j + unattributed_j,
        idle_j=idle_j,
        external_j=external_j,
        unattributed_j=unattributed_j,
        shares=shares,
        evidence=evidence,
        meter="simulated" if evidence is Evidence.SIMULATED else "nvml",
    )


def _window(divided: Attribution, engine: _Engine, evidence: Evidence) -> Window:
    return Window(
        window_id=divided.window_id,
        node=divided.node,
        start_s=divided.start_s,
        end_s=divided.end_s,
        energy_j=divided.metered_j,
        idle_power_w=engine.idle_w,
        evidence=evidence,
        meter=divided.meter,
        host_energy_j=divided.metered_j * 0.31 if engine.node == "node-a" else None,
    )
