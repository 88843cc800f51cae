"""Cheap prompt features: what a request's text says for free, in tens of microseconds.

Words and pairs of words are hashed with crc32 into a fixed number of buckets, so that nothing
that is kept of a prompt can be read back; a few counts (length, lines, numbers, options, code)
stand beside them; and cue words give one of seven coarse classes. No clock, no I/O, no network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from math import log1p
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 15
# A long prompt is read at both ends: the instructions stand first or the question last, and
# what lies between (documents, examples) says less about the kind of task than about its topic.
HEAD_CHARS = 600
TAIL_CHARS = 800

TASKS = ("code", "math", "choice", "extraction", "writing", "question", "chat")

_WORD = re.compile(r"[\u3040-\u9fff\uac00-\ud7af]|[^\W\d_]+|\d+|[^\w\s]")
# The same for text that is all ASCII and in lower case, in half the time.
_ASCII_WORD = re.compile(r"[a-z]+|[0-9]+|[^\w\s]")
_ONLY_LETTERS = str.maketrans({chr(code): " " for code in range(128) if not chr(code).islower()})
_LONGEST_WORD = 24  # longer ones are keys, hashes and data, and are not remembered
# Words count by their first letters: "muscle", "muscles" and "muscular" are one, which matters
# where a few hundred prompts must teach what a kind of task looks like.
_STEM_CHARS = 5
_MEMORY = 1 << 16  # words whose hash is remembered; in memory only

_CUES = {
    "code": (
        "python function code javascript java sql bug implement api class algorithm script "
        "html css react typescript c++ rust bash regex json compile def import docker git "
        "unittest linux database query array program kotlin golang php django pandas numpy"
    ),
    "math": (
        "prove equation solve integral triangle probability polynomial integer sum derivative "
        "many much cost costs total each twice half percent miles hours dollars cents per "
        "frac sqrt calculate compute remainder perimeter degrees digit digits least greatest"
    ),
    "extraction": (
        "summarize summarise summary extract classify article passage document table highlights "
        "translate sentiment label paraphrase rewrite identify keywords entities headline tldr"
    ),
    "writing": (
        "write essay story poem email letter blog song lyrics creative character dialogue "
        "speech slogan haiku novel scene tweet post resume advertisement plot rap"
    ),
}
_CUE_CLASS = {word: task for task, words in _CUES.items() for word in words.split()}
_CUE_WORDS = frozenset(_CUE_CLASS)
_WH = frozenset(("who", "which", "what", "when", "where", "whose", "whom"))
_OPTION = re.compile(r"\n([A-J])[.):]")
_FIRST = np.ones(1, dtype=bool)

DENSE = (
    "log_chars",
    "log_lines",
    "log_words",
    "log_numbers",
    "number_share",
    "mark_share",
    "word_chars",
    "distinct_share",
    "log_questions",
    "log_sentences",
    "log_equals",
    "log_brackets",
    "log_latex",
    "log_quotes",
    "paragraphs",
    "options",
    "code_fence",
    "foreign_share",
    "ends_asking",
    "ends_open",
    *(f"task_{task}" for task in TASKS),
)


class TextFeatures(NamedTuple):
    """What is kept of a prompt: distinct hashed words and pairs, counts, and a coarse class."""

    buckets: NDArray[np.uint16]  # ascending, distinct, in [0, BUCKETS)
    dense: NDArray[np.float32]  # one figure for each name in DENSE
    task: str  # one of TASKS


def read(text: str) -> TextFeatures:
    """The features of a prompt. Any string will do, the empty one too."""
    part = _ends(text)
    words = _words(part)
    distinct = set(words)
    hashes = np.array(list(map(_HASHES.__getitem__, words)), dtype=np.int64)
    # A pair is mixed from its two words' hashes; 40503 is Knuth's multiplicative constant
    # for 16 bits, and any odd number would do.
    pairs = (hashes[:-1] * 40503 + hashes[1:] * 8 + 5) & (BUCKETS - 1)
    every = np.concatenate((hashes & (BUCKETS - 1), pairs)).astype(np.uint16)
    every.sort()
    buckets = every[np.concatenate((_FIRST[: len(every)], every[1:] != every[:-1]))]

    count = part.count
    n = len(words)
    numbers = sum(map(str.isdigit, words))
    letters = sum(map(str.isalpha, words))
    options = _options(part)
    fence = "```" in part
    latex = count("$") + count("\\")
    stripped = part.rstrip()
    ends_asking = stripped.endswith("?")
    task = _coarse_task(distinct, words, options, fence, latex, numbers, len(text), ends_asking)
    dense = [
        log1p(len(text)),
        log1p(count("\n")),
        log1p(n),
        log1p(numbers),
        numbers / (n + 1),
        (n - numbers - letters) / (n + 1),
        min(sum(map(len, words)) / (n + 1), 12.0),
        len(distinct) / (n + 1),
        log1p(count("?")),
        log1p(count(". ")),
        log1p(count("=")),
        log1p(count("(") + count("{") + count("[")),
        log1p(latex),
        log1p(count('"')),
        log1p(count("\n\n")),
        options / 10,
        1.0 if fence else 0.0,
        (len(part.encode("utf-8", "surrogatepass")) - len(part)) / (len(part) + 1),
        1.0 if ends_asking else 0.0,
        1.0 if stripped.endswith(":") else 0.0,
    ]
    dense.extend([1.0 if task == name else 0.0 for name in TASKS])
    return TextFeatures(buckets, np.array(dense, dtype=np.float32), task)


def coarse_task(text: str) -> str:
    """One of TASKS, from cue words and layout. Never fails; "chat" is the rest."""
    part = _ends(text)
    first: list[str]
    if part.isascii():  # the same words in a third of the time: on every request's path
        lower = part.lower()
        distinct = set(lower.translate(_ONLY_LETTERS).split())
        first = [found.group() for found in islice(_ASCII_WORD.finditer(lower), 3)]
    else:
        first = _words(part)
        distinct = set(first)
    ends_asking = part.rstrip().endswith("?")
    return _coarse_task(
        distinct,
        first,
        _options(part),
        "```" in part,
        part.count("$") + part.count("\\"),
        sum(map(str.isdigit, _words(part))) if ends_asking else 0,  # asked for nowhere else
        len(text),
        ends_asking,
    )


def _ends(text: str) -> str:
    """Where a prompt says what it wants: its head and its tail."""
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    return text[:HEAD_CHARS] + "\n" + text[-TAIL_CHARS:]


def _words(part: str) -> list[str]:
    pattern = _ASCII_WORD if part.isascii() else _WORD
    return pattern.findall(part.lower())


def _options(part: str) -> int:
    """How many lettered options a question gives, of ten at most."""
    return len(set(_OPTION.findall(part))) if "\nB" in part else 0


def text_of_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of a chat: every message's words, oldest first, without roles or images."""
    parts: list[str] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            parts.append(content)
        elif isinstance(content, list):
            parts.extend(
                piece["text"]
                for piece in content
                if isinstance(piece, Mapping) and isinstance(piece.get("text"), str)
            )
    return "\n".join(parts)


def _coarse_task(
    distinct: set[str],
    words: list[str],
    options: int,
    fence: bool,
    latex: int,
    numbers: int,
    chars: int,
    ends_asking: bool,
) -> str:
    if fence:
        return "code"
    if options >= 3:
        return "choice"
    votes = dict.fromkeys(_CUES, 0.0)
    for word in distinct & _CUE_WORDS:
        votes[_CUE_CLASS[word]] += 1.0
    votes["math"] += (1.5 if latex >= 2 else 0.0) + (1.0 if numbers >= 2 and ends_asking else 0.0)
    for word in words[:3]:  # an order is given first: "Write a poem", "Summarize this"
        if word in _CUE_CLASS:
            votes[_CUE_CLASS[word]] += 1.0
    best = max(votes, key=votes.__getitem__)
    if votes[best] >= 2.0:
        return best
    if chars < 400 and (ends_asking or not _WH.isdisjoint(words[:2])):
        return "question"
    if votes[best] >= 1.0 and best != "math":
        return best
    return "chat"


class _Hashes(dict[str, int]):
    """crc32 of a word, remembered. Numbers hash by how many digits they have."""

    def __missing__(self, word: str) -> int:
        cut = f"#{min(len(word), 5)}" if word.isdigit() else word[:_STEM_CHARS]
        hashed = crc32(cut.encode("utf-8", "surrogatepass"))
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _MEMORY:
                self.clear()
            self[word] = hashed
        return hashed


_HASHES = _Hashes()
