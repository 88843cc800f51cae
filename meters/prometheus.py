"""Reads single series out of a Prometheus page, without building the rest of it.

Pure: bytes in, numbers out. The format is the one at
https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4); OpenMetrics
pages, with their exemplars and time stamps, are read too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(rb"\\(.)")


class Series(NamedTuple):
    """One line of a page: a name, its labels, its value (finite)."""

    name: str
    labels: dict[str, str]
    value: float


class Wanted:
    """A set of series names to look for; compile once, read many pages.

    Some collectors rewrite the colon of ``vllm:prompt_tokens_total`` to an underscore: a name
    written with a colon is found either way, and is given back as it was asked for.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._asked = {name.replace(":", "_").encode(): name for name in names}
        # longest first: alternation takes the first that fits
        either = [
            re.escape(name).replace(b":", b"[:_]")
            for name in sorted({n.encode() for n in self._asked.values()}, key=len, reverse=True)
        ]
        self._line = re.compile(
            rb"^(" + b"|".join(either) + rb")"
            rb'(?:\{((?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*)\})?'
            rb"[ \t]+([^\s#]+)",
            re.MULTILINE,
        )

    def read(self, page: bytes) -> Iterator[Series]:
        """The wanted series of a page, in its order. NaN and infinities are left out."""
        for match in self._line.finditer(page):
            name, labels, text = match.groups()
            try:
                value = float(text)
            except ValueError:
                continue
            if math.isfinite(value):
                asked = self._asked[name.replace(b":", b"_")]
                yield Series(asked, read_labels(labels or b""), value)


def read_labels(text: bytes) -> dict[str, str]:
    """The labels between the braces of one line; escapes resolved."""
    return {
        name.decode(): _ESCAPED.sub(_unescape, value).decode("utf-8", "replace")
        for name, value in _LABEL.findall(text)
    }


def _unescape(match: re.Match[bytes]) -> bytes:
    letter = match[1]
    return b"\n" if letter == b"n" else letter
