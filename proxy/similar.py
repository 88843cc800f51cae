"""Which earlier prompt of the same team asks the same: for teams that want answers to near-copies.

The embedding is local and lexical: hashed pieces of words, weighted by how often a prompt has
them. It sees that two prompts are worded alike, not that they mean the same, and one word can turn
a meaning round. So a near-copy must also have the same numbers and the same words that carry
meaning, in the same order, up to a plural's ending: what may differ is case, punctuation,
courtesies and articles. ``python -m benchmarks.similar_answers`` prints how often that is wrong.

Only prompts are compared whose requests are otherwise equal: team, backend group, parameters, all
messages but the last. Pure but for its memory; an index lives in one process.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

DIMENSIONS = 512
LONGEST = 8_000  # characters of a prompt; longer ones are not compared
PROMPTS = 10_000  # remembered in one process, about 3 KB each
_NEAR = 8  # with the same words that carry meaning

Vector = NDArray[np.float32]

# Signs are part of the meaning of numbers and code; a sentence's own punctuation is not.
_WORD_OR_SIGN = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:['’]\w+)*|[^\w\s.,!?'’\"]")
# Words that carry none of a question. Tenses, pronouns, negations and prepositions are not among
# them: each of those can turn a question round.
_SMALL = frozenset(("a", "an", "the", "please", "pls", "kindly", "thanks", "thank", "just"))
_COURTESY = re.compile(
    r"^\W*(?:(?:hi|hello|hey)\b\W*)?(?:please\W+)?"
    r"(?:(?:can|could|would|will) you\W+|i(?: would|['’]d) like you to\W+)?"
)
_ENDINGS = ("'s", "’s", "s")


class Prompt(NamedTuple):
    """One prompt, ready to be compared."""

    vector: Vector
    carriers: tuple[str, ...]  # words that carry meaning, without their endings, in their order


class Question(NamedTuple):
    """A request whose last message may be a near-copy."""

    scope: str  # all of the request but that message's text
    text: str

    def prompt(self) -> Prompt:
        """Its text as it is compared: a millisecond for a page."""
        return prompt_of(self.text)


def question_in(body: bytes, whose: str) -> Question | None:
    """What a body asks last; None where the last message is not one user's plain text.

    ``whose``: the team, the group and what else must be equal.
    """
    try:
        asked = orjson.loads(body)
        last = asked["messages"][-1]
        text = last["content"]
        if last["role"] != "user" or not isinstance(text, str) or not 0 < len(text) <= LONGEST:
            return None
        last["content"] = ""
        rest = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return Question(hashlib.sha256(whose.encode() + b"\n" + rest).hexdigest(), text)


def prompt_of(text: str) -> Prompt:
    """``text`` as it is compared."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = _WORD_OR_SIGN.findall(_COURTESY.sub("", plain, count=1))
    carriers = tuple(_stem(word) for word in words if word not in _SMALL)
    return Prompt(_vector(" ".join(words)), carriers)


def likeness(a: Prompt, b: Prompt) -> float:
    """0..1; 1 for prompts that are worded alike. 0 where any word that carries meaning differs."""
    return float(a.vector @ b.vector) if a.carriers == b.carriers else 0.0


class SimilarPrompts:
    """The prompts of one process that have answers in the cache; the oldest are forgotten."""

    def __init__(self, prompts: int = PROMPTS) -> None:
        self._most = prompts
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], dict[str, Vector]] = OrderedDict()

    def find(self, scope: str, prompt: Prompt, threshold: float) -> str | None:
        """The cache key of the prompt most like ``prompt``; None where none is like enough."""
        near = self._kept.get((scope, prompt.carriers), {})
        alike = {key: float(vector @ prompt.vector) for key, vector in near.items()}
        best = max(alike, key=alike.__getitem__, default=None)
        return best if best is not None and alike[best] >= threshold else None

    def add(self, scope: str, prompt: Prompt, cache_key: str) -> None:
        """``cache_key`` has the answer to ``prompt`` from now on."""
        place = (scope, prompt.carriers)
        near = self._kept.setdefault(place, {})
        if len(near) < _NEAR:
            near[cache_key] = prompt.vector
        self._kept.move_to_end(place)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def drop(self, scope: str, prompt: Prompt, cache_key: str) -> None:
        """Its answer is in the cache no more."""
        near = self._kept.get((scope, prompt.carriers))
        if near is not None:
            near.pop(cache_key, None)
            if not near:
                del self._kept[scope, prompt.carriers]


def _stem(word: str) -> str:
    if word.isdigit():
        return word
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _vector(text: str) -> Vector:
    """Hashed runs of three to five bytes, the root of how often each comes, of length 1."""
    codes = np.frombuffer(f" {text} ".encode(), dtype=np.uint8).astype(np.uint32)
    counts = np.zeros(DIMENSIONS, dtype=np.float32)
    for length in (3, 4, 5):
        if len(codes) < length:
            continue
        run = np.full(len(codes) - length + 1, length, dtype=np.uint32)
        for at in range(length):
            run = (run ^ codes[at : len(codes) - length + 1 + at]) * np.uint32(16_777_619)
        places = (run >> np.uint32(7)) % np.uint32(DIMENSIONS)
        counts += np.bincount(places, minlength=DIMENSIONS).astype(np.float32)
    weighted: Vector = np.sqrt(counts)
    size = np.float32(np.linalg.norm(weighted))
    return weighted / size if size else weighted
