"""How long `joulegate replay` takes for a month of traffic: a made-up trace, real policies.

    python -m benchmarks.replay [--requests 1000000] [--policy pinned --policy thrifty] [--profile]

Eight backends (two models in up to three precisions on H100, A100 and L40S), a month of requests
that come and go with the day and the week, five teams, seven kinds of task. The trace is written as
a CSV file and replayed by the command itself; what is printed is the command's own table, then the
seconds each part took. Times are of this machine; nothing else here means anything.
"""

from __future__ import annotations

import argparse
import cProfile
import csv
import math
import os
import pstats
import random
import sys
import tempfile
import time
from pathlib import Path

import yaml

from estimators.text import TASKS
from proxy.__main__ import main as joulegate

MONTH_S = 30 * 86_400.0
BACKENDS = (
    ("llama-3.1-8b-instruct", "bf16", "H100-SXM", 8.03),
    ("llama-3.1-8b-instruct", "fp8", "H100-SXM", 8.03),
    ("llama-3.1-8b-instruct", "int4", "L40S", 8.03),
    ("qwen2.5-14b-instruct", "bf16", "A100-80GB", 14.77),
    ("qwen2.5-14b-instruct", "int8", "L40S", 14.77),
    ("qwen2.5-14b-instruct", "int4", "L40S", 14.77),
    ("mistral-nemo-instruct", "bf16", "A100-80GB", 12.2),
    ("mistral-nemo-instruct", "fp8", "H100-SXM", 12.2),
)
QUALITY = {"bf16": 0.60, "fp8": 0.59, "int8": 0.59, "int4": 0.56}
MODELS = tuple(dict.fromkeys(model for model, *_ in BACKENDS))


def config_of(folder: Path) -> Path:
    """A config with those backends; nothing of it is ever called."""
    backends = [
        {
            "model": model,
            "precision": precision,
            "gpu": gpu,
            "params_b": params_b,
            "url": "http://127.0.0.1:9/v1",
            "quality": QUALITY[precision],
            "intensity_g_per_kwh": 300.0,
            "input_usd_per_mtok": 0.1,
            "output_usd_per_mtok": 0.3,
        }
        for model, precision, gpu, params_b in BACKENDS
    ]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"backends": backends, "state_dir": str(folder / "state")}))
    return path


def trace_of(folder: Path, requests: int, seed: int) -> Path:
    """A month whose load follows the hour and the weekday, at any number of requests."""
    draw = random.Random(seed)
    at_s = 0.0
    path = folder / "trace.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("timestamp", "prompt_tokens", "output_tokens", "team", "task", "model"))
        for _ in range(requests):
            hour, day = at_s / 3600 % 24, int(at_s / 86_400) % 7
            busy = (1.0 + 0.8 * math.sin((hour - 8) / 24 * 2 * math.pi)) * (0.5 if day > 4 else 1)
            at_s += draw.expovariate(requests / MONTH_S * busy / 0.86)
            prompt, output = draw.lognormvariate(6.0, 1.2), draw.lognormvariate(5.0, 0.8)
            rows.writerow(
                (
                    f"{at_s:.3f}",
                    1 + int(min(prompt, 20_000)),
                    1 + int(min(output, 3_000)),
                    f"team-{draw.randrange(5)}",
                    draw.choice(TASKS),
                    draw.choice(MODELS),
                )
            )
    return path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--policy", action="append", help="default: pinned and thrifty")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began_s = time.perf_counter()
        trace, config = trace_of(folder, args.requests, args.seed), config_of(folder)
        print(f"{args.requests} requests made up in {time.perf_counter() - began_s:.0f} s")
        sys.stdout.flush()
        call = ["replay", "--trace", str(trace), "--config", str(config)]
        policies = args.policy or ["pinned", "thrifty"]
        for policy in policies:
            call += ["--policy", policy]
        profile = cProfile.Profile()
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        if args.profile:
            profile.enable()
        status = joulegate(call)
        profile.disable()
        wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        decided = args.requests * len(policies)
        print(
            f"replayed {args.requests} requests through {len(policies)} policies in {wall_s:.0f} s "
            f"({cpu_s:.0f} s of CPU, {cpu_s / decided * 1e6:.0f} us a decision); "
            f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        )
        if args.profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    return status


if __name__ == "__main__":
    sys.exit(main())
