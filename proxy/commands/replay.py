"""Run recorded or published traffic through policies, and compare what they would have used.

Nothing is sent: requests are estimated and decided as the proxy does it, and served by simulated
engines with each backend's step physics. The trace is a CSV file with the columns
timestamp,prompt_tokens,output_tokens and, if it has them, team, task, model and tags. The Azure LLM
inference traces are read as they are, and so is what `joulegate ledger export` writes.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from meters.carbon import kwh
from policies.answer_budget import AnswerBudget
from policies.budget_effects import BudgetEffects
from policies.fleet import Sleep
from policies.replay import Arrival, Choices, Replayed, Shorter, Span, compared, moved, replay
from policies.types import Limits
from policies.wording import nearest
from proxy import backends, books, policy_book, serving
from proxy.auth import limits_of
from proxy.commands import CommandError
from proxy.commands.progress import progress
from proxy.config_file import ConfigError
from proxy.grid import Grid
from proxy.predicting import Predictors
from proxy.settings import Settings, Team
from proxy.traces import BadTrace, read_trace

EXAMPLE = "joulegate replay --trace trace.csv --config config.yaml --policy pinned --policy thrifty"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace", metavar="F", required=True, help="CSV of requests, or an export of the ledger"
    )
    parser.add_argument("--config", metavar="F", help="config file with backends and policies")
    parser.add_argument(
        "--policy",
        metavar="P",
        action="append",
        help="a policy to try, may be repeated; default: pinned and the config's default",
    )
    parser.add_argument("--asked", metavar="MODEL", help="model name of every request")
    parser.add_argument("--requests", metavar="N", type=int, help="only the first N requests")
    parser.add_argument(
        "--sleep-after-s",
        metavar="S",
        type=float,
        help="let engines sleep that are idle for so long; default: never",
    )
    parser.add_argument(
        "--moved", metavar="F", help="write every request that would move to this CSV file"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all randomness; default 0")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    if args.sleep_after_s is not None and not args.sleep_after_s >= 0.0:
        raise CommandError("--sleep-after-s should be 0 or more.")
    try:
        prepared = serving.prepare(args.config)
    except ConfigError as error:
        raise CommandError(str(error)) from None
    try:
        settings = prepared.settings
        teams = Teams(settings)
        trace = read_trace(args.trace, args.requests, args.asked, teams.zone)
        book = policy_book.book_of(settings)
        names = args.policy or list(dict.fromkeys(["pinned", settings.default_policy]))
        for name in names:
            if name not in book.policies:
                close = nearest(name, book.policies)
                known = ", ".join(sorted(book.policies))
                hint = f"Did you mean {close!r}?" if close else f"Known: {known}."
                raise CommandError(f"There is no policy {name!r}. {hint}")
        pool = backends.of_settings(settings, prepared.facts)
        Grid(settings, pool).refresh(time.time())
        facts = [engine.facts for engine in pool.engines]
        sleep = None if args.sleep_after_s is None else Sleep(after_s=args.sleep_after_s)
        limits = {name: limits_of(team.limits) for name, team in teams.known().items()}
        estimator = Predictors(
            model=settings.quality_model,
            folder=Path(settings.state_dir),
            estimator=settings.estimator,
        )
        estimator.know(facts)
        for name in names:
            if book.needs(name).budget_left:
                print(f"{name}: rules on what is left of a budget do not apply", file=sys.stderr)
        results: list[Replayed] = []
        first = None
        elsewhere: list[tuple[str, Choices]] = []
        for name in names:
            result, choices = replay(
                trace,
                facts,
                book.policies[name],
                estimator,
                limits=Limits(),
                team_limits=limits,
                sleep=sleep,
                beyond=book.looks_beyond(name),
                shorter=_shorter(book.needs(name).answer_budgets, estimator.effects, teams),
                without_us=settings.carbon.default_counterfactual,
                seed=args.seed,
                progress=partial(progress(f"requests by {name}"), total=len(trace)),
            )
            first = first or choices
            results.append(compared(first, choices, result))
            elsewhere.append((name, choices))
        if args.moved is not None and first is not None:
            write_moved(args.moved, trace, first, elsewhere[1:])
    except BadTrace as error:
        raise CommandError(str(error)) from None
    finally:
        prepared.close()
    if args.json:
        print(json.dumps({"trace": args.trace, "policies": msgspec.to_builtins(results)}))
    else:
        show(results)
    return 0


class Teams:
    """The teams of a trace, from the config or, where one is of neither, from the ledger."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known = dict(settings.teams)
        self._looked = False

    def known(self) -> dict[str, Team]:
        return self._known

    def find(self, name: str) -> Team | None:
        """Raises CommandError when the database does not answer."""
        if name and name not in self._known and not self._looked:
            self._looked = True
            self._known = books.teams_of(self._settings, {name})
        return self._known.get(name)

    def zone(self, name: str) -> str:
        team = self.find(name)
        return "UTC" if team is None else team.timezone


def _shorter(
    budgets: Sequence[AnswerBudget], effects: BudgetEffects, teams: Teams
) -> Shorter | None:
    """A policy's answer budgets, as they are known by now, where the team allows them."""
    if not budgets:
        return None

    def shorter(arrival: Arrival, backend: str) -> Sequence[AnswerBudget]:
        team = teams.find(arrival.team)
        if team is not None and not team.answer_budgets:
            return ()
        return [effects.learnt(backend, budget, arrival.task) for budget in budgets]

    return shorter


def write_moved(
    path: str, trace: Sequence[Arrival], first: Choices, others: Sequence[tuple[str, Choices]]
) -> None:
    """Every request that would move, as CSV. Raises CommandError when it cannot be written."""
    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(
                ("policy", "at_s", "team", "task", "asked", "prompt_tokens", "from", "to")
            )
            for name, choices in others:
                for place, before, after in moved(first, choices):
                    was = trace[place]
                    what = (was.team, was.task or "", was.asked, was.prompt_tokens)
                    rows.writerow((name, f"{was.at_s:.3f}", *what, before or "", after or ""))
    except OSError as error:
        raise CommandError(f"{path} cannot be written ({error.strerror}).") from None


def show(results: list[Replayed]) -> None:
    """The policies side by side."""
    print("Simulated; energy is the whole fleet's, idle included; carbon at this hour's grid.")
    header = ("policy", "energy kWh", "above idle", "J/request", "carbon g", "USD", "quality")
    print(f"{header[0]:24}" + "".join(f"{h:>12}" for h in header[1:]), end="")
    print(f"{'TTFT p95 s':>12}{'latency p95':>12}{'refused':>9}{'moved':>9}")
    for r in results:
        per = r.energy_per_request_j
        cells = (
            _kwh(r.energy_j),
            _kwh(r.active_energy_j),
            _figure(per.mid if per else None),
            _figure(r.carbon_g),
            _figure(r.money_usd),
            _figure(r.quality.mid if r.quality else None),
            _figure(r.ttft_s.p95 if r.ttft_s else None),
            _figure(r.latency_s.p95 if r.latency_s else None),
        )
        part = f"{r.moved / r.requests:.1%}" if r.requests else "-"
        print(f"{r.policy:24}" + "".join(f"{c:>12}" for c in cells) + f"{r.refused:>9}{part:>9}")
        spans = (("J/request", per), ("g of carbon", _carbon(r)), ("quality", r.quality))
        known = [f"{span.low:.3g} to {span.high:.3g} {word}" for word, span in spans if span]
        if known:
            print(f"  80 % intervals: {', '.join(known)}")
    for r in results:
        shares = ", ".join(f"{name} {count / r.requests:.1%}" for name, count in r.backends.items())
        print(f"  {r.policy}: {shares or 'nothing was served'}")
        for move, count in list(r.moves.items())[:5]:
            print(f"    {count:8} moved {move}")
        for code, count in list(r.refusals.items())[:5]:
            print(f"    {count:8} times {code}")


def _carbon(r: Replayed) -> Span | None:
    """Carbon with the uncertainty of the energy above idle; idle energy is as sure as the watts."""
    per = r.energy_per_request_j
    if r.carbon_g is None or per is None or not r.energy_j or r.active_energy_j is None:
        return None
    busy_g = r.carbon_g * r.active_energy_j / r.energy_j
    low, high = (busy_g * (end / per.mid - 1.0) for end in (per.low, per.high))
    return Span(r.carbon_g + low, r.carbon_g, r.carbon_g + high)


def _kwh(joules: float | None) -> str:
    return _figure(None if joules is None else kwh(joules))


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
