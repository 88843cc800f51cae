"""Which prompts most likely begin as ones that an engine has in its cache. Pure.

vLLM tells no request how much of its prompt was found in the prefix cache unless it was started
with ``--enable-prompt-tokens-details``; its page then tells only how many tokens were in all. But
whoever sends the prompts can see which begin alike. ``Prefixes`` is one engine's cache as far as
that: blocks of prompts, known by a hash of all that came until their end, the longest unused
forgotten first. A block is there once the first token of a prompt with it has come.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

MOST_BLOCKS = 50_000  # remembered for an engine
CHARACTERS = 64  # in a block of text: about vLLM's 16 tokens
FINE = 64  # blocks of that size; those after them are longer, or a long prompt had too many
COARSE_CHARACTERS = 512


class Sent:
    """One prompt, sent to an engine."""

    __slots__ = ("_before", "_ready", "blocks")

    def __init__(self, blocks: int, before: list[tuple[int, _Ready]], ready: _Ready) -> None:
        self.blocks = blocks
        self._before = before  # blocks that begin it, and since when they are in the cache
        self._ready = ready

    def first_token(self, at_s: float) -> None:
        """Its first token has come: all of it is in the cache."""
        if self._ready.at_s is None:
            self._ready.at_s = at_s

    def ended(self) -> None:
        """If no first token came until now, nothing of it is in the cache."""
        self._ready.gone = self._ready.at_s is None

    def cached(self) -> int:
        """Its first so many blocks were most likely found in the cache.

        Those of prompts whose first token came before its own; until it has one, those of all
        that have theirs.
        """
        found, mine_s = 0, self._ready.at_s
        for blocks, ready in self._before:
            if ready.at_s is None or (mine_s is not None and ready.at_s >= mine_s):
                break
            found += blocks
        return found


class _Ready:
    """When the blocks of one prompt were in the cache."""

    __slots__ = ("at_s", "gone")

    def __init__(self) -> None:
        self.at_s: float | None = None
        self.gone = False


class Prefixes:
    """One engine's prefix cache, as far as the prompts sent to it tell."""

    def __init__(self, most_blocks: int = MOST_BLOCKS) -> None:
        self._known: OrderedDict[Hashable, _Ready] = OrderedDict()
        self._most = most_blocks

    def __len__(self) -> int:
        return len(self._known)

    def sent(self, blocks: Sequence[Hashable]) -> Sent:
        """A prompt goes to the engine; ``blocks`` are in order, each known by all until its end."""
        known, ready = self._known, _Ready()
        before: list[tuple[int, _Ready]] = []
        begins = True
        for block in blocks:
            earlier = known.get(block)
            if earlier is None or earlier.gone:
                begins = False
                known[block] = ready
            elif begins:
                if before and before[-1][1] is earlier:
                    before[-1] = before[-1][0] + 1, earlier
                else:
                    before.append((1, earlier))
            known.move_to_end(block)
        while len(known) > self._most:
            known.popitem(last=False)
        return Sent(len(blocks), before, ready)


def blocks_of(text: str, begins: Hashable = None) -> tuple[int, ...]:
    """The blocks of a prompt's text; ``begins`` is whatever else its cache is kept by.

    Hashes, good within this process only: no text can be had from them.
    """
    found = []
    before, at, size = hash(begins), 0, CHARACTERS
    while at + size <= len(text):
        before = hash((before, text[at : at + size]))
        found.append(before)
        at += size
        if len(found) == FINE:
            size = COARSE_CHARACTERS
    return tuple(found)


def characters(blocks: int) -> int:
    """How much text so many blocks are."""
    return CHARACTERS * min(blocks, FINE) + COARSE_CHARACTERS * max(blocks - FINE, 0)
