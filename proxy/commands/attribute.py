"""Divide metered energy among requests, from files.

Reads windows of metered energy and the requests that were served in them, as JSON Lines, and
prints one line a request with its energy above idle, and last the sums: idle and unattributed
energy and that of all requests add up to what was metered. How the engine spends energy is learnt
from the windows themselves. "-" reads one of the two from standard input.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from meters.attribution import Books, attribute_all
from meters.types import Activity, Window
from proxy.commands import CommandError
from proxy.commands.progress import busy
from proxy.jsonl import read_lines

EXAMPLE = "joulegate attribute --windows windows.jsonl --requests requests.jsonl"


class WindowLine(msgspec.Struct, forbid_unknown_fields=True):
    """One line of ``--windows``."""

    node: str | int
    start_s: float
    end_s: float
    energy_j: float
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    cached_prompt_tokens: float | None = None
    steps: float | None = None
    idle_power_w: float | None = None


class RequestLine(msgspec.Struct, forbid_unknown_fields=True):
    """One line of ``--requests``."""

    request_id: str | int
    node: str | int
    start_s: float
    prompt_tokens: float
    output_tokens: float
    first_token_s: float | None = None
    end_s: float | None = None
    cached_prompt_tokens: float | None = None
    engine: str = ""  # where several share the node's devices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", required=True, metavar="F.jsonl", help="metered windows")
    parser.add_argument("--requests", required=True, metavar="G.jsonl", help="finished requests")


def run(args: argparse.Namespace) -> int:
    if args.windows == args.requests == "-":
        raise CommandError("only one of --windows and --requests can be standard input")
    windows = [
        Window(
            window_id=str(number),
            **{**msgspec.structs.asdict(line), "node": str(line.node)},
        )
        for number, line in enumerate(read_lines(args.windows, WindowLine))
    ]
    activities: dict[str, Activity] = {}
    names: dict[str, str | int] = {}  # as they are written in the file
    repeated = 0
    for line in read_lines(args.requests, RequestLine):
        activity = _activity(line)
        repeated += activity.request_id in activities
        activities.setdefault(activity.request_id, activity)
        names.setdefault(activity.request_id, line.request_id)
    with busy(f"dividing {len(windows)} windows among {len(activities)} requests"):
        books = attribute_all(windows, activities.values())
    _warn(books, activities.values(), repeated)
    _print(books, names)
    return 0


def _activity(line: RequestLine) -> Activity:
    return Activity(
        request_id=str(line.request_id),
        node=str(line.node),
        start_s=line.start_s,
        first_token_s=line.first_token_s,
        end_s=line.end_s,
        prompt_tokens=line.prompt_tokens,
        cached_prompt_tokens=line.cached_prompt_tokens or 0.0,
        output_tokens=line.output_tokens,
        engine=line.engine,
    )


def _print(books: Books, names: Mapping[str, str | int]) -> None:
    write = sys.stdout.buffer.write
    for request_id, energy_j in books.request_j(names).items():
        line = {"request_id": names[request_id], "energy_j": energy_j}
        write(msgspec.json.encode(line) + b"\n")
    totals = {
        "metered_j": books.metered_j,
        "attributed_j": books.attributed_j,
        "idle_j": books.idle_j,
        "unattributed_j": books.unattributed_j,
    }
    write(msgspec.json.encode(totals) + b"\n")
    sys.stdout.buffer.flush()


def _warn(books: Books, activities: Iterable[Activity], repeated: int) -> None:
    def say(text: str) -> None:
        print(f"joulegate attribute: {text}", file=sys.stderr)

    if books.refused:
        say(f"windows refused, in no sum: {_counts(books.refused)}")
    if books.repaired:
        say(f"windows repaired: {_counts(books.repaired)}")
    if repeated:
        say(f"{repeated} lines repeat a request_id; the first of each was taken")
    wrong = Counter(why for a in activities if (why := _impossible(a)) is not None)
    if wrong:
        say(f"requests that cannot be, their energy is not to be relied on: {_counts(wrong)}")
    nodes = {attribution.node for attribution in books.attributions}
    lost = Counter(a.node for a in activities if a.node not in nodes)
    if lost:
        say(f"requests on nodes without a usable window, given 0 J: {_counts(lost)}")
    for node, fit in books.fits.items():
        if not fit.idle_known:
            say(
                f"idle power of {node} is not given and hardly shows in its windows: taken as "
                f"{fit.physics.idle_power_w:.0f} W; add idle_power_w or windows without requests"
            )
        if not fit.trusted:
            say(f"{node} has few windows, or they fit badly: expect larger errors")


def _impossible(request: Activity) -> str | None:
    """What is wrong with a request, in words; None where nothing is."""
    if request.end_s is not None and request.end_s < request.start_s:
        return "ending before they begin"
    if min(request.prompt_tokens, request.cached_prompt_tokens, request.output_tokens) < 0:
        return "with tokens below 0"
    if request.cached_prompt_tokens > request.prompt_tokens:
        return "with more cached tokens than prompt tokens"
    return None


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()))
