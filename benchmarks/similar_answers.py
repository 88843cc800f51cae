"""How often a near-copy is answered alike when it should not be, on public prompts.

Prompts of six public sets (RouterBench, AlpacaEval, Arena-Hard, LLMRouterBench, GreenServ,
MMLU-Pro; licences beside the data) are compared with each other, all as if one team had sent them
with the same parameters. They are different questions, so every pair that would be answered alike
is printed and counted as false, unless the two differ in articles and endings alone. Then each
prompt is reworded as people do it (case, courtesy, punctuation, articles): those should be found.

    python -m benchmarks.similar_answers --data ../shared/data/routing
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from proxy.similar import LONGEST, Prompt, likeness, prompt_of

SETS = ("routerbench", "alpacaeval", "arenahard01", "llmrouter", "greenserv", "mmlupro")
THRESHOLDS = (0.8, 0.9, 0.95, 0.98)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b\s*|s\b|[^\w\s]")


def prompts_in(folder: Path) -> list[str]:
    found: dict[str, None] = {}
    for name in SETS:
        column = pq.read_table(folder / f"{name}_prompts.parquet", columns=["prompt"])["prompt"]
        found.update(dict.fromkeys(str(text) for text in column.to_pylist()))
    return [text for text in found if 0 < len(text) <= LONGEST]


def reworded(text: str, dice: random.Random) -> str:
    """The same question as another person types it."""
    ways = (
        text.lower(),
        f"Please {text[0].lower()}{text[1:]}",
        f"Hi, could you {text[0].lower()}{text[1:]}",
        text.rstrip(".?! ") + " please",
        re.sub(r"\bthe ", "", text, count=1),
        f"  {text}\n",
    )
    return dice.choice(ways)


def by_words(prompts: list[Prompt]) -> list[tuple[int, int]]:
    """Pairs with the same words that carry meaning: no others can be answered alike."""
    groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        groups[prompt.carriers].append(number)
    return [(a, b) for group in groups.values() for a in group for b in group if a < b]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/routing"))
    args = parser.parse_args()
    texts = prompts_in(args.data)
    began_s = time.thread_time()
    prompts = [prompt_of(text) for text in texts]
    took_us = (time.thread_time() - began_s) / len(texts) * 1e6
    print(f"{len(texts):,} different public prompts, {took_us:,.0f} µs each to embed")
    pairs = [(a, b, likeness(prompts[a], prompts[b])) for a, b in by_words(prompts)]
    same = Counter[bool]()
    for a, b, alike in sorted(pairs, key=lambda pair: -pair[2]):
        equal = _plain(texts[a]) == _plain(texts[b])
        same[equal] += 1
        print(
            f"  {alike:.3f} {'same' if equal else 'FALSE'}: {texts[a][-90:]!r} / {texts[b][-90:]!r}"
        )
    dice = random.Random(6)
    others = [prompt_of(reworded(text, dice)) for text in texts]
    for threshold in THRESHOLDS:
        false = sum(
            alike >= threshold and _plain(texts[a]) != _plain(texts[b]) for a, b, alike in pairs
        )
        found = sum(
            likeness(one, other) >= threshold for one, other in zip(prompts, others, strict=True)
        )
        print(
            f"threshold {threshold:.2f}: {false} false hits in {len(texts):,} prompts "
            f"({_at_most(false, len(texts)):.3%} at most, 95 %), "
            f"{found / len(texts):.1%} of rewordings found"
        )
    cosine_only(prompts, texts)


def cosine_only(prompts: list[Prompt], texts: list[str]) -> None:
    """What the embedding alone would do: the reason for comparing words as well."""
    vectors = np.stack([prompt.vector for prompt in prompts])
    best = np.zeros(len(texts))
    for start in range(0, len(texts), 500):
        block = vectors[start : start + 500] @ vectors.T
        for row in range(len(block)):
            block[row, start + row :] = 0.0  # only those that came before
        best[start : start + 500] = block.max(axis=1)
    for threshold in THRESHOLDS:
        print(
            f"the embedding alone at {threshold:.2f}: {(best >= threshold).mean():.1%} false hits"
        )


def _plain(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower()).split())


def _at_most(count: int, of: int) -> float:
    """An upper bound of a share with 95 % confidence: the rule of three for none, else Poisson's
    normal approximation."""
    return (3.0 if count == 0 else count + 1.645 * count**0.5 + 1.645) / of


if __name__ == "__main__":
    main()
