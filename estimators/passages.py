"""Which prompts share a passage: none is to be judged by what its twin taught.

Off the request path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

_WORD = re.compile(r"\w+")
_WORDS = 12  # of a passage; shorter ones are shared by chance
_TEMPLATE = 20  # prompts that may hold a passage before it is a template, which says nothing
_FACTOR = np.uint64(6364136223846793005)  # Knuth's multiplier for a 64-bit linear generator


def sharing(texts: Sequence[str]) -> NDArray[np.int64]:
    """A number for each text, the same for texts that share twelve words in a row, be it through
    others, unless more than twenty texts, or a tenth of them, hold those words."""
    hashes: dict[str, int] = {}
    found = []
    for text in texts:
        words = _WORD.findall(text.lower())
        for word in words:
            if word not in hashes:
                hashes[word] = crc32(word.encode("utf-8", "surrogatepass"))
        found.append(np.unique(_passages(np.array([hashes[word] for word in words], np.uint64))))
    count = len(texts)
    if count < 2:
        return np.zeros(count, np.int64)
    holder = np.repeat(np.arange(count), [len(each) for each in found])
    _, passage, holders = np.unique(np.concatenate(found), return_inverse=True, return_counts=True)
    most = min(_TEMPLATE, max(count // 10, 2))
    telling = (holders[passage] > 1) & (holders[passage] <= most)
    links = sparse.coo_matrix(
        (np.ones(telling.sum()), (holder[telling], count + passage[telling])),
        shape=(count + len(holders),) * 2,
    )
    _, number = connected_components(links, directed=False)
    return np.asarray(number[:count], dtype=np.int64)


def _passages(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A number for each run of words; a short text is one run."""
    length = min(_WORDS, len(words))
    found = np.zeros(max(len(words) - length + 1, 1), np.uint64)
    for start in range(length):
        found = found * _FACTOR + words[start : start + len(found)]
    return found
