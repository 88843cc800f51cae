"""Show what the energy estimates rest on, and how good they have been lately.

What is loaded: the fitted prior, its sources, how it was judged on held-out rows. Lately: of each
backend the latest requests in the ledger whose energy was metered throughout, beside what was
estimated when they were sent: error, bias, how often the 80 % band held, and drift. Instead of the
ledger, --usage reads outcomes (JSON Lines with "backend", "energy_j" as predicted, "metered_j").
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from estimators.artefacts import BadArtefact, load_prior
from estimators.choices import ESTIMATORS
from estimators.lately import Judgement, Lately, lately
from estimators.prior import Prior
from estimators.rice_estimator import built_in
from meters.judged_estimates import judged_estimates
from proxy import books
from proxy.commands import CommandError
from proxy.jsonl import read_lines

EXAMPLE = "joulegate estimators --config config.yaml --days 7"
_MOST = 1000  # of a backend's requests that are looked at


class Outcome(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One finished request: what was predicted and what was metered."""

    backend: str
    energy_j: float
    metered_j: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    books.add_config(parser)
    parser.add_argument("--days", type=int, default=7, help="how far back; default 7")
    parser.add_argument("--team", metavar="T", help="requests of one team; default all")
    parser.add_argument("--prior", metavar="F", type=Path, help="another fitted file")
    parser.add_argument("--usage", metavar="F", help="outcomes, JSON Lines; - reads stdin")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    try:
        prior = load_prior(args.prior)
    except BadArtefact as error:
        raise CommandError(str(error)) from None
    if args.days < 1:
        raise CommandError("--days should be 1 or more.")
    if not args.json:
        print(described(prior), flush=True)  # also where the ledger does not answer
    told = from_usage(args.usage) if args.usage else from_ledger(args)
    recent = None if told is None else lately(told)
    if args.json:
        about = {**prior.about, "known_gpus": sorted(prior.known_gpus)}
        chosen = {"estimators": list(ESTIMATORS), "r-ice": built_in().about, "prior": about}
        print(json.dumps({**chosen, "lately": msgspec.to_builtins(recent)}))
    elif recent:
        print("\n".join(table(recent)))
    elif recent is not None:
        print("lately: no request that was both estimated and metered throughout")
    return 0


def from_usage(path: str) -> list[Judgement]:
    """The outcomes of a file."""
    return [
        Judgement(backend=one.backend, energy_j=one.energy_j, metered_j=one.metered_j)
        for one in read_lines(path, Outcome)
    ]


def from_ledger(args: argparse.Namespace) -> list[Judgement] | None:
    """What the ledger knows; None, said on stderr, where there is none yet."""
    settings = books.settings_of(args.config)
    url = books.url_of(settings)
    file = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not file.exists():
        print(f"lately: there is no ledger yet at {file}; name its config.", file=sys.stderr)
        return None
    now_s = time.time()
    with books.opened(settings) as ledger, ledger.database.read() as connection:
        found = judged_estimates(
            connection, now_s - args.days * 86_400.0, now_s, most=_MOST, team=args.team
        )
    return [Judgement.of(one) for one in found]


def table(recent: Sequence[Lately]) -> list[str]:
    """Each backend in a line."""
    width = max(len("lately"), *(len(one.backend) + 12 * one.simulated for one in recent))
    lines = [
        f"{'lately':{width}} {'judged':>7} {'recent':>7} {'MAPE':>7} {'median':>7} {'bias':>7} "
        f"{'total':>7} {'in band':>8} {'drift':>7}  from to, estimator"
    ]
    for one in recent:
        name = f"{one.backend} (simulated)" if one.simulated else one.backend
        band = "-" if one.band_holds is None else f"{one.band_holds:.0%}"
        drift = "-" if one.drift is None else f"{one.drift:+.1%}"
        lines.append(
            f"{name:{width}} {one.requests:7} {one.recent:7} {one.error:7.1%} {one.median:7.1%} "
            f"{one.bias:+7.1%} {one.total:+7.1%} {band:>8} {drift:>7}  "
            f"{_when(one)}{', '.join(one.versions)}{'  DRIFTS' if one.drifts else ''}"
        )
    return lines


def _when(one: Lately) -> str:
    if one.from_s is None or one.to_s is None:
        return ""
    first, last = (
        time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(at_s)) for at_s in (one.from_s, one.to_s)
    )
    return f"{first} {last}, "


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
