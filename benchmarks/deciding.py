"""How long one decision takes: CPU microseconds for twenty candidates, by policy and situation.

    make bench-deciding

Estimates are made beforehand; this is the policy alone: limits, ranking, dominated candidates and a
sentence for each that was not chosen. The median of many rounds; a loop of a million additions in
the same process says how fast the machine was.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from estimators.types import Backend, Band, Estimate, Features, GpuFacts, Load, ModelFacts
from meters.types import Evidence
from policies.language import read_policies
from policies.types import Candidate, Limits, Request

# H100 SXM data sheet: 989 dense bf16 TFLOP/s, 3.35 TB/s, 700 W.
H100 = GpuFacts(name="H100-SXM", memory_gb=80, mem_bandwidth_gbs=3350, fp16_tflops=989, tdp_w=700)
WRITTEN = {
    "with rules": {
        "limits": {"min_quality": "80 % of asked", "max_ttft_s": 2},
        "rules": [{"when": {"task": "code", "hour": "22-6"}, "objective": "carbon"}],
        "hysteresis": "10 %",
        "exploration": {"share": "1 %"},
        "hold_out": "1 %",
    }
}


def candidate(number: int) -> Candidate:
    def band(mid: float) -> Band:
        return Band(mid * 0.9, mid, mid * 1.1)

    energy_j = 10.0 + number % 7 + number * 0.01
    estimate = Estimate(
        backend=f"g@{number}",
        energy_j=band(energy_j),
        marginal_energy_j=band(energy_j / 10),
        ttft_s=band(0.2),
        latency_s=band(2.0 + number % 3),
        carbon_g=band(1.0),
        money_usd=band(0.01 + number % 3),
        quality=band(0.6 + number % 5 / 20),
        output_tokens=None,
        evidence=Evidence.BENCHMARK,
    )
    backend = Backend(name=f"g@{number}", group="g", gpu=H100, model=ModelFacts(params_b=8))
    return Candidate(backend, estimate, Load(running=4, known=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()
    fleet = [candidate(n) for n in range(args.candidates)]
    book = read_policies(WRITTEN)
    plain = Request(features=Features(prompt_tokens=500), asked="g")
    session = Request(
        features=Features(prompt_tokens=5000, cached_prompt_tokens=4000, messages=9),
        asked="g",
        session="s",
        session_backend="g@3",
    )
    print(f"{'policy':14} {'situation':12} {'µs':>7}   (1e6 additions: {_additions_ms():.0f} ms)")
    for name in ("least_energy", "thrifty", "balanced", "pinned", "with rules"):
        for situation, request in (("plain", plain), ("in a session", session)):
            took = []
            for _ in range(args.rounds):
                began_ns = time.process_time_ns()
                for _ in range(10):
                    book.policies[name].choose(request, fleet, Limits(max_energy_j=50.0))
                took.append((time.process_time_ns() - began_ns) / 10_000)
            print(f"{name:14} {situation:12} {statistics.median(took):7.1f}")
    return 0


def _additions_ms() -> float:
    began_ns = time.process_time_ns()
    total = 0
    for number in range(1_000_000):
        total += number
    return (time.process_time_ns() - began_ns) / 1e6


if __name__ == "__main__":
    sys.exit(main())
