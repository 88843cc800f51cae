"""Run a prompt set of your own over backends, and see quality against energy.

The set is JSON Lines with `prompt` or `messages`, and a `check`: `exact`, `regex`, `schema`
(of JSON), `tests` (Python, run in a sandbox) or `judge`. A run that was broken off goes on where
it was. The qualities can be saved as a table that the config's `quality_table` names.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from estimators.evaluated import Answered, Mean, Row, by_task, table
from policies.wording import nearest
from proxy import pareto_plot, prompt_set, serving
from proxy.commands import CommandError
from proxy.commands.progress import progress
from proxy.evaluating import Client, ProxyAway, Run

EXAMPLE = "joulegate eval --set prompts.jsonl --url http://127.0.0.1:4000 --plot front.svg"
LEAST = 10  # scores that a kind of task needs to be in the saved table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", metavar="F", required=True, help="JSON Lines of prompts")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", metavar="U", help="a running proxy; default: this machine's")
    where.add_argument("--config", metavar="F", help="serve this config meanwhile, on a free port")
    parser.add_argument("--key", metavar="K", help="key to call it with")
    parser.add_argument(
        "--backend", metavar="B", action="append", help="may be repeated; default: all there are"
    )
    parser.add_argument("--judge", metavar="B", help="backend that judges what has no other check")
    parser.add_argument(
        "--out",
        metavar="F",
        default="eval.jsonl",
        help="where results are kept; eval.jsonl",
    )
    parser.add_argument("--plot", metavar="F", help="write quality against energy as SVG")
    parser.add_argument("--save", metavar="F", help="write the qualities for 'quality_table'")
    parser.add_argument("--parallel", metavar="N", type=int, default=1, help="requests at once")
    parser.add_argument(
        "--wait-s", metavar="S", type=float, default=30.0, help="for energy to be metered"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    try:
        items = prompt_set.read(args.set)
        with ExitStack() as stack:
            url = args.url or "http://127.0.0.1:4000"
            if args.config is not None:
                url = stack.enter_context(serving.beside(args.config))
            client = Client(url, args.key)
            if args.config is not None:
                client.wait_for_meters()
            backends = _named(client, args.backend)
            work = Run(client, items, backends, Path(args.out))
            work.answer(max(1, args.parallel), progress("prompts answered"))
            unread = work.judge(args.judge, progress("answers judged")) if args.judge else 0
            work.meter(args.wait_s, progress("answers metered"))
    except (prompt_set.BadPromptSet, ProxyAway) as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{args.out} cannot be written ({error.strerror}).") from None
    for why, count in work.failures.most_common(5):
        print(f"{count} without an answer: {why}", file=sys.stderr)
    if unread:
        print(f"{unread} comparisons had no clear verdict and are left out", file=sys.stderr)
    judged = 0 if args.judge else sum(item.judged for item in items)
    if judged:
        print(f"{judged} prompts have no score: name their --judge", file=sys.stderr)
    rows = table(work.answers)
    if args.plot:
        _write(args.plot, pareto_plot.svg(rows))
    if args.save:
        qualities = quality_table(work.answers)
        _write(args.save, json.dumps(qualities, indent=2) + "\n")
        if not qualities:
            print(
                f"{args.save} is empty: no backend has {LEAST} answers with a score",
                file=sys.stderr,
            )
    if args.json:
        print(json.dumps({"prompts": len(items), "backends": msgspec.to_builtins(rows)}))
    else:
        show(rows)
    return 0


def quality_table(answers: list[Answered]) -> dict[str, dict[str, dict[str, float]]]:
    """What `quality_table` reads: by backend and kind of task a mean and its standard error."""
    return {
        name: {
            task or "all": {"mean": q.mid, "error": max((q.high - q.low) / 3.92, 0.001)}
            for task, q in tasks.items()
        }
        for name, tasks in by_task(answers, LEAST).items()
    }


def show(rows: list[Row]) -> None:
    """The table; a star stands before those that no other one beats."""
    print(f"  {'backend':32}{'answers':>8}{'quality':>9}{'95 %':>13}{'J/answer':>10}", end="")
    print(f"{'95 %':>15}{'tokens':>8}{'seconds':>9}  energy is")
    for row in rows:
        star = "*" if row.on_front else " "
        print(
            f"{star} {row.backend:32}{row.answered:>8}"
            f"{_mid(row.quality):>9}{_ends(row.quality):>13}"
            f"{_mid(row.energy_j):>10}{_ends(row.energy_j):>15}"
            f"{_figure(row.output_tokens):>8}{_figure(row.latency_s):>9}  {row.evidence}"
            + (f"  ({row.failed} failed)" if row.failed else "")
        )


def _named(client: Client, wanted: list[str] | None) -> list[str]:
    """The backends that are wanted, all where none is named. Raises CommandError."""
    models = _models(client)
    known = [
        backend["name"]
        for model in models
        for backend in model.get("joulegate", {}).get("backends", ())
    ]
    known = list(dict.fromkeys(known))
    if wanted is None:
        return known
    served = [*known, *(model["id"] for model in models)]
    wild = any("*" in name for name in served)
    for name in wanted:
        if name not in served and not wild:
            close = nearest(name, served)
            hint = f"Did you mean {close!r}?" if close else f"Known: {', '.join(known)}."
            raise CommandError(f"There is no backend {name!r}. {hint}")
    return wanted


def _models(client: Client) -> list[dict[str, Any]]:
    status, _, models = client.call("GET", "/v1/models")
    if status != 200:
        message = ((models or {}).get("error") or {}).get("message", f"status {status}")
        raise ProxyAway(f"The proxy says: {message}")
    found: list[dict[str, Any]] = models["data"]
    return found


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path} cannot be written ({error.strerror}).") from None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _mid(value: Mean | None) -> str:
    return _figure(value.mid if value else None)


def _ends(value: Mean | None) -> str:
    return "" if value is None else f"{value.low:.3g}-{value.high:.3g}"
