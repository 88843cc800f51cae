"""Train the quality and length predictors on scored outcomes.

Reads JSON Lines, one line an answer: the prompt (or messages), the backend that answered, its
score from 0 to 1, and, where known, its output tokens and the task's name. Writes one small file
without any prompt in it, for predict-quality and for the setting that names it. "-" reads from
standard input.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from estimators.text import text_of_messages
from proxy.commands import CommandError
from proxy.jsonl import numbered_lines

EXAMPLE = "joulegate learn-quality outcomes.jsonl --out quality.npz"


class OutcomeLine(msgspec.Struct, forbid_unknown_fields=True):
    """One scored answer."""

    backend: Annotated[str, msgspec.Meta(min_length=1)]
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    score: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    output_tokens: Annotated[float, msgspec.Meta(ge=0)] | None = None
    task: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("outcomes", metavar="F.jsonl", help="scored answers")
    parser.add_argument("--out", required=True, metavar="M", help="the file to write")


def run(args: argparse.Namespace) -> int:
    # the fitting half is heavy (scipy, scikit-learn), and `joulegate --help` should not wait
    from estimators.quality_fit import NothingToLearn, Scored, learn

    out = Path(args.out)
    if not out.absolute().parent.is_dir():
        raise CommandError(f"{out.parent} is no folder; name another file with --out")
    if out.is_dir():
        raise CommandError(f"{out} is a folder; name a file with --out")

    def rows() -> Iterator[Scored]:
        for number, line in numbered_lines(args.outcomes, OutcomeLine):
            where = f"{args.outcomes}, line {number}"
            text = text_in(line.prompt, line.messages, where)
            if line.score is None and line.output_tokens is None:
                raise CommandError(f"{where}: give a score, output_tokens, or both")
            yield Scored(text, line.backend, line.score, line.output_tokens, line.task)

    began = time.monotonic()
    print(f"reading {args.outcomes} and learning ...", file=sys.stderr, flush=True)
    try:
        model = learn(rows())
    except NothingToLearn:
        raise CommandError(f"{args.outcomes} has no outcome in it") from None
    try:
        model.save(out)
    except OSError as error:
        raise CommandError(f"cannot write {out}: {error.strerror or error}") from None
    facts = model.facts
    print(
        f"{out}: {facts['outcomes']} outcomes of {len(model.backends)} backends on"
        f" {facts['prompts']} prompts, {out.stat().st_size / 1e6:.1f} MB,"
        f" {time.monotonic() - began:.0f} s",
        file=sys.stderr,
    )
    return 0


def text_in(prompt: str | None, messages: list[dict[str, Any]] | None, where: str) -> str:
    """The text of a line. Raises CommandError where it has neither or both."""
    if (prompt is None) == (messages is None):
        raise CommandError(f"{where}: give either prompt or messages")
    return prompt if prompt is not None else text_of_messages(messages or [])
