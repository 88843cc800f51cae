"""What a learnt model says of each prompt, for every backend it knows.

Reads JSON Lines, {"id", "prompt" | "messages"}, and prints one line each: the kind of task, and
for every backend the band of its expected score (0 to 1) and of its output tokens. Prompts of one
file are taken as one stretch of traffic: all of them together tell how much of it is of kinds the
model never learnt from, and there every backend gets its overall mean. Nothing is sent anywhere.
"-" reads from standard input.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from typing import Any

import msgspec

from estimators.quality_model import Prediction, QualityModel, UnreadableModel
from estimators.text import read
from proxy.commands import CommandError
from proxy.commands.learn_quality import text_in
from proxy.commands.progress import busy, progress
from proxy.jsonl import numbered_lines

EXAMPLE = "joulegate predict-quality quality.npz --batch prompts.jsonl"

_BLOCK = 20_000  # prompts that are judged together, and held in memory


class PromptLine(msgspec.Struct, forbid_unknown_fields=True):
    """One prompt."""

    id: str | int
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="M", help="a file that learn-quality wrote")
    parser.add_argument("--batch", required=True, metavar="F.jsonl", help="prompts, one a line")


def run(args: argparse.Namespace) -> int:
    try:
        model = QualityModel.load(args.model)
    except UnreadableModel as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(
            f"{args.model}: {error.strerror or error}. Make one with joulegate learn-quality."
        ) from None
    encoder = msgspec.json.Encoder()
    lines = numbered_lines(args.batch, PromptLine)
    tell = progress("lines predicted")
    while block := list(islice(lines, _BLOCK)):
        texts = [
            text_in(line.prompt, line.messages, f"{args.batch}, line {number}")
            for number, line in block
        ]
        with busy("reading prompts"):
            found = model.predict_all([read(text) for text in texts])
        for (number, line), said in zip(block, found, strict=True):
            sys.stdout.write(encoder.encode(answer(line.id, model, said)).decode() + "\n")
            tell(number)
    return 0


def answer(name: str | int, model: QualityModel, said: Prediction) -> dict[str, Any]:
    """One line of output; what was not learnt is null."""
    quality: dict[str, Any] | None = None
    tokens: dict[str, Any] | None = None
    if said.quality is not None:
        quality = {
            backend: {"low": low, "mid": mid, "high": high}
            for backend, (low, mid, high) in zip(
                model.backends, said.quality.astype(float).round(6).tolist(), strict=True
            )
        }
    if said.lengths is not None:
        tokens = {
            backend: {"q10": q10, "q50": q50, "q90": q90, "mean": mean}
            for backend, (q10, q50, q90, mean) in zip(
                model.backends, said.lengths.astype(float).round(2).tolist(), strict=True
            )
        }
    return {"id": name, "task": said.task, "quality": quality, "output_tokens": tokens}
