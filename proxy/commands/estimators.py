"""Show what the energy estimates rest on: the fitted prior, its sources, how good it was judged.

With --usage, a file of outcomes (JSON Lines with "backend", "energy_j" as predicted and
"metered_j"), also how good each backend's estimates have been lately, and how they drift.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from estimators.artefacts import BadArtefact, load_prior
from estimators.choices import ESTIMATORS
from estimators.prior import Prior
from estimators.rice_estimator import built_in
from proxy.commands import CommandError
from proxy.jsonl import read_lines

EXAMPLE = "joulegate estimators --usage outcomes.jsonl"
_RECENT = 200


class Outcome(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One finished request: what was predicted and what was metered."""

    backend: str
    energy_j: float
    metered_j: float


class Lately(msgspec.Struct):
    """How a backend's estimates have been, the last so many requests and those before."""

    backend: str
    requests: int
    error: float  # mean |predicted - metered| / metered, recent
    bias: float  # exp of the mean log ratio, less 1: above 0 is over-estimated
    drift: float | None  # bias of the recent ones less that of those before


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prior", metavar="F", type=Path, help="another fitted file")
    parser.add_argument("--usage", metavar="F", help="outcomes, JSON Lines; - reads stdin")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    try:
        prior = load_prior(args.prior)
    except BadArtefact as error:
        raise CommandError(str(error)) from None
    recent = lately(list(read_lines(args.usage, Outcome))) if args.usage else []
    if args.json:
        about = {**prior.about, "known_gpus": sorted(prior.known_gpus)}
        chosen = {"estimators": list(ESTIMATORS), "r-ice": built_in().about, "prior": about}
        print(json.dumps({**chosen, "lately": [msgspec.structs.asdict(r) for r in recent]}))
        return 0
    print(described(prior))
    for one in recent:
        drift = "" if one.drift is None else f", drift {one.drift:+.1%}"
        print(
            f"{one.backend}: {one.requests} requests, error {one.error:.1%}, "
            f"bias {one.bias:+.1%}{drift}"
        )
    return 0


def described(prior: Prior) -> str:
    """The prior in a few lines a person can read."""
    about: dict[str, Any] = prior.about
    rice = built_in().about
    lines = [
        f"to choose from (setting `estimator`): {', '.join(ESTIMATORS)}, or module:Class",
        f"r-ice: {rice['formula']}; data {rice['data_sha256']}, built by: {rice['built_by']}",
        f"energy prior {prior.version}: {about['rows']} rows, data {about['data_sha256']}",
        f"built by: {about['built_by']}",
        *(f"  {one['file']:28} {one['from']} ({one['licence']})" for one in about["sources"]),
        f"cards measured: {', '.join(sorted(prior.known_gpus))}",
        f"{'held out':10} {'rows':>5} {'energy MAPE':>12} {'median':>7} "
        f"{'step MAPE':>10} {'pairs':>6}",
    ]
    for name, found in about["held_out"].items():
        lines.append(
            f"{name:10} {found['rows']:5.0f} {found['energy_mape']:12.1%} "
            f"{found['energy_median']:7.1%} {found['step_mape']:10.1%} {found['pairs_right']:6.1%}"
        )
    return "\n".join(lines)


def lately(outcomes: Sequence[Outcome]) -> list[Lately]:
    """Error, bias and drift of every backend, from its outcomes in order of time."""
    by_backend: dict[str, list[float]] = {}
    for one in outcomes:
        if one.energy_j > 0.0 and one.metered_j > 0.0:
            ratio = math.log(one.energy_j / one.metered_j)
            by_backend.setdefault(one.backend, []).append(ratio)
    found = []
    for backend, ratios in sorted(by_backend.items()):
        new, old = ratios[-_RECENT:], ratios[:-_RECENT]
        bias = math.expm1(sum(new) / len(new))
        found.append(
            Lately(
                backend,
                len(ratios),
                sum(abs(math.expm1(r)) for r in new) / len(new),
                bias,
                bias - math.expm1(sum(old) / len(old)) if old else None,
            )
        )
    return found
