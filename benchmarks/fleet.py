"""What a fleet uses when requests are routed by marginal energy, and by four others.

    make bench-fleet
    python -m benchmarks.fleet --requests 3000 --speeds 1 4

A published request trace (Azure LLM inference 2023, conversation) is served by six simulated
engines, two each of three kinds of GPU, all with the same 8B model: every scheduler step is done
(meters.simulated_physics). The rules know the engines' physics, so what is compared is the rule and
not how well an estimator knows the hardware. They do not know how long answers are.

- marginal: the policy least_energy within latency limits, on what a request adds above idle to
  each engine at its present load (benchmarks.present_load)
- average: the same on a request's part of everything the engine draws at its present load
- published: the same on one fixed figure per engine, as a benchmark would publish it
- round robin, least busy (fewest requests running and waiting): as load balancers do

Energy is the whole fleet's from the first request to two minutes after the last, idle included.
With --sleep engines also sleep after a minute of idleness and take ten seconds to wake. The bound
is on the 99th percentile of the time to the first token and the 95th of the time per token after
it; the first three rules are given tighter limits for each request, so that the tails keep it.
Everything is simulated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.present_load import one_more
from estimators.energy import EnergyEstimator
from estimators.hardware import gpu_named
from estimators.types import Backend, Band, Estimate, Features, Load, ModelFacts
from meters.simulated_physics import Engine, EngineConfig, Job
from meters.types import Evidence, StepPhysics
from policies.configured import Configured
from policies.fastest import FirstToken
from policies.fleet import Sleep
from policies.least_energy import LeastEnergy
from policies.replay import Arrival
from policies.types import Candidate, Limits, Request
from proxy.traces import BadTrace, read_trace

TRACE = "../shared/data/energy/azure_llm_trace_2023_conv.csv"
MODEL = ModelFacts(params_b=8.03, layers=32, hidden_size=4096, kv_heads=8, head_dim=128)
GPUS = ("H100-SXM", "A100-80GB", "L40S")
EACH = 2
MAX_TTFT_S = 1.0
MAX_TOKEN_S = 0.05
# What each request is held to, at the cautious end, so that the percentiles above are kept.
LIMIT_TTFT_S = 0.3
LIMIT_TOKEN_S = 0.025
MEAN_OUTPUT = 211.0  # tokens, of that trace's answers
USUAL_LOAD = Load(running=32.0, context_tokens=32.0 * 1100.0, known=True)  # of a fixed figure
RULES = ("marginal", "average", "published", "round robin", "least busy")

Route = Callable[[Arrival, Sequence[Load]], int]


class Node:
    """One simulated engine on the trace's clock, with what it slept."""

    def __init__(self, backend: Backend, engine: Engine, sleep: Sleep | None) -> None:
        self.backend = backend
        self.engine = engine
        self.sleep = sleep
        self.now_s = 0.0  # end of its last step; idle since then if nothing is under way
        self.end_s: float | None = None  # of the step under way
        self.asleep_s = 0.0
        self.ended: list[tuple[float, float, int]] = []  # first token, per token, output tokens

    def until(self, at_s: float) -> None:
        """Do every step that ends by then."""
        while self.end_s is not None and self.end_s <= at_s:
            for seq in self.engine.finish():
                assert seq.first_token_s is not None
                assert seq.end_s is not None
                after = max(1, seq.output_tokens - 1)
                self.ended.append(
                    (
                        seq.first_token_s - seq.job.arrival_s,
                        (seq.end_s - seq.first_token_s) / after,
                        seq.output_tokens,
                    )
                )
            self.now_s = self.end_s
            self.end_s = self.engine.begin(self.now_s)

    def submit(self, key: int, arrival: Arrival) -> None:
        self.engine.submit(
            Job(
                request_id=str(key),
                prompt_tokens=arrival.prompt_tokens,
                output_tokens=max(1, arrival.output_tokens),
                arrival_s=arrival.at_s,
            )
        )
        if self.end_s is None:
            start_s = arrival.at_s
            if self.asleep(arrival.at_s) and self.sleep is not None:
                self.asleep_s += arrival.at_s - self.now_s - self.sleep.after_s
                start_s += self.sleep.wake_s
            self.end_s = self.engine.begin(start_s)

    def asleep(self, at_s: float) -> bool:
        idle = self.end_s is None
        return idle and self.sleep is not None and at_s - self.now_s > self.sleep.after_s

    def load(self, at_s: float) -> Load:
        engine = self.engine
        return Load(
            running=float(engine.running),
            waiting=float(len(engine.waiting)),
            context_tokens=float(engine.context_tokens),
            kv_usage=engine.kv_usage,
            asleep=self.asleep(at_s),
            known=True,
        )

    def energy_j(self, until_s: float) -> float:
        idle_w = self.engine.config.physics.idle_power_w
        joules = self.engine.totals.active_energy_j + idle_w * until_s
        if self.sleep is not None:
            asleep_s = self.asleep_s
            if self.end_s is None:
                asleep_s += max(0.0, until_s - self.now_s - self.sleep.after_s)
            joules -= max(0.0, idle_w - self.sleep.power_w) * asleep_s
        return joules


@dataclass
class Row:
    """One rule at one speed of the trace."""

    rule: str
    speed: float
    asleep: bool
    energy_kwh: float
    active_kwh: float
    ttft_p99_s: float
    token_p95_s: float
    kept: bool  # the latency bound
    shares: dict[str, float] = field(default_factory=dict)


def backends() -> list[Backend]:
    """The fleet: two engines each on three kinds of GPU."""
    fleet = []
    for gpu in GPUS:
        facts = gpu_named(gpu)
        if facts is None:
            raise SystemExit(f"there are no facts of the GPU {gpu}")
        fleet += [
            Backend(name=f"8b-{gpu}-{n + 1}", group="8b", gpu=facts, model=MODEL, quality=0.7)
            for n in range(EACH)
        ]
    return fleet


class Knowing:
    """An estimator that knows each engine's physics, and of answers their mean length."""

    def __init__(self, rule: str, physics: Sequence[StepPhysics]) -> None:
        self.rule = rule
        self.physics = physics
        self.published_j = [one_more(p, USUAL_LOAD, 1000.0, MEAN_OUTPUT).average_j for p in physics]

    def estimate(
        self, prompt_tokens: float, fleet: Sequence[Backend], loads: Sequence[Load]
    ) -> list[Estimate]:
        return [
            self._one(place, prompt_tokens, backend, load)
            for place, (backend, load) in enumerate(zip(fleet, loads, strict=True))
        ]

    def _one(self, place: int, prompt_tokens: float, backend: Backend, load: Load) -> Estimate:
        more = one_more(self.physics[place], load, prompt_tokens, MEAN_OUTPUT, max_num_seqs=256)
        joules = {"marginal": more.added_j, "average": more.average_j}.get(
            self.rule, self.published_j[place]
        )
        band = Band(joules, joules, joules)
        return Estimate(
            backend=backend.name,
            energy_j=band,
            marginal_energy_j=band,
            ttft_s=Band(0.0, more.ttft_s, more.ttft_high_s),
            latency_s=Band(0.0, more.latency_s, more.latency_high_s),
            carbon_g=None,
            money_usd=None,
            quality=None,
            output_tokens=None,
            evidence=Evidence.SIMULATED,
        )


def route_by(rule: str, fleet: Sequence[Backend], physics: Sequence[StepPhysics]) -> Route:
    """The rule as a function of a request and the loads. Raises KeyError for another rule."""
    if rule == "round robin":
        turn = itertools.count()
        return lambda arrival, loads: next(turn) % len(fleet)
    if rule == "least busy":
        return lambda arrival, loads: min(
            range(len(fleet)), key=lambda i: (loads[i].running + loads[i].waiting, i)
        )
    if rule not in RULES:
        raise KeyError(rule)
    within = Limits(
        max_ttft_s=LIMIT_TTFT_S, max_latency_s=LIMIT_TTFT_S + LIMIT_TOKEN_S * MEAN_OUTPUT
    )
    # As the proxy does when nothing fits: the soonest answer of all.
    policy = Configured("bench", LeastEnergy(), within, FirstToken())
    estimator = Knowing(rule, physics)
    index = {backend.name: i for i, backend in enumerate(fleet)}

    def route(arrival: Arrival, loads: Sequence[Load]) -> int:
        features = Features(prompt_tokens=arrival.prompt_tokens, prompt_tokens_counted=True)
        estimates = estimator.estimate(arrival.prompt_tokens, fleet, loads)
        candidates = list(map(Candidate, fleet, estimates, loads))
        request = Request(features=features, asked="8b")
        return index[policy.choose(request, candidates, Limits()).chosen]

    return route


def serve(trace: Sequence[Arrival], rule: str, speed: float, sleep: Sleep | None, seed: int) -> Row:
    """The whole trace, ``speed`` times as fast as it was, through one rule."""
    estimator = EnergyEstimator()
    fleet = backends()
    nodes, physics = [], []
    for number, backend in enumerate(fleet):
        known = estimator.physics(backend)
        if known is None:
            raise SystemExit(f"the estimator has no physics of {backend.name}")
        physics.append(known)
        config = EngineConfig(physics=known, kv_tokens=10**6, seed=seed + number)
        nodes.append(Node(backend, Engine(config), sleep))
    route = route_by(rule, fleet, physics)
    for key, recorded in enumerate(trace):
        arrival = recorded._replace(at_s=recorded.at_s / speed)
        for node in nodes:
            node.until(arrival.at_s)
        nodes[route(arrival, [node.load(arrival.at_s) for node in nodes])].submit(key, arrival)
    for node in nodes:
        node.until(math.inf)
    # Every rule is charged to the same end, or the one that ends late would idle longer.
    end_s = trace[-1].at_s / speed + 120.0
    ended = [one for node in nodes for one in node.ended]
    assert len(ended) == len(trace)
    ttft_p99_s = _quantile([first for first, _, _ in ended], 0.99)
    token_p95_s = _quantile([per for _, per, tokens in ended if tokens > 1], 0.95)
    shares: dict[str, float] = {}
    for node in nodes:
        gpu = node.backend.gpu
        assert gpu is not None
        shares[gpu.name] = shares.get(gpu.name, 0.0) + len(node.ended) / len(trace)
    return Row(
        rule=rule,
        speed=speed,
        asleep=sleep is not None,
        energy_kwh=sum(node.energy_j(end_s) for node in nodes) / 3.6e6,
        active_kwh=sum(n.engine.totals.active_energy_j for n in nodes) / 3.6e6,
        ttft_p99_s=ttft_p99_s,
        token_p95_s=token_p95_s,
        kept=ttft_p99_s <= MAX_TTFT_S and token_p95_s <= MAX_TOKEN_S,
        shares=shares,
    )


def _quantile(values: list[float], at: float) -> float:
    return sorted(values)[round(at * (len(values) - 1))]


def show(rows: list[Row]) -> None:
    first = {(r.speed, r.asleep): r for r in rows if r.rule == "marginal"}
    print("Simulated. Energy in kWh; ratio is to marginal.")
    print(
        f"{'speed':>6} {'sleep':>6} {'rule':12} {'energy':>8} {'ratio':>6} {'above idle':>11}"
        f" {'ratio':>6} {'TTFT p99':>9} {'token p95':>10} {'bound':>7}  shares"
    )
    for r in rows:
        base = first[(r.speed, r.asleep)]
        shares = " ".join(f"{gpu} {share:.0%}" for gpu, share in r.shares.items())
        print(
            f"{r.speed:>6g} {'yes' if r.asleep else 'no':>6} {r.rule:12} {r.energy_kwh:8.3f}"
            f" {r.energy_kwh / base.energy_kwh:6.2f} {r.active_kwh:11.3f}"
            f" {r.active_kwh / base.active_kwh:6.2f} {r.ttft_p99_s:8.3f}s {r.token_p95_s:9.4f}s"
            f" {'kept' if r.kept else 'BROKEN':>7}  {shares}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", default=TRACE)
    parser.add_argument("--requests", type=int, default=6000, help="the first so many")
    parser.add_argument("--speeds", type=float, nargs="+", default=[0.5, 1.0, 4.0, 10.0])
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--sleep", action="store_true", help="also with engines that sleep")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        trace = read_trace(args.trace, args.requests)
    except BadTrace as error:
        print(error, file=sys.stderr)
        return 1
    rows = []
    for speed in args.speeds:
        for sleep in (None, Sleep()) if args.sleep else (None,):
            for rule in args.rules:
                print(f"{rule} at {speed:g} times the trace ...", file=sys.stderr)
                rows.append(serve(trace, rule, speed, sleep, args.seed))
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
