"""How often a near-copy is answered alike when it should not be, on public prompts.

Prompts of six public sets (RouterBench, AlpacaEval, Arena-Hard, LLMRouterBench, GreenServ,
MMLU-Pro; licences beside the data) are compared with each other, all as if one team had sent them
with the same parameters. They are different questions, so every pair that would be answered alike
is printed and counted as false, unless the two differ in articles and endings alone. Then each
prompt is reworded as people do it (case, courtesy, punctuation, articles): those should be found.
At last each prompt is made into near-copies that ask something else, in six ways: two words in each
other's place, another number, a negation put in, the opposite of a preposition or comparison, one
word replaced by another prompt's, one word left out. Every one that would be answered alike is a
false hit.

    python -m benchmarks.similar_answers --data ../shared/data/routing
"""

from __future__ import annotations

import argparse
import itertools
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


OPPOSITES = dict(
    pair
    for one, other in (
        ("before", "after"),
        ("with", "without"),
        ("from", "to"),
        ("over", "under"),
        ("more", "less"),
        ("largest", "smallest"),
        ("maximum", "minimum"),
        ("first", "last"),
        ("greater", "smaller"),
        ("increase", "decrease"),
        ("all", "none"),
        ("always", "never"),
        ("and", "or"),
        ("is", "isn't"),
        ("can", "cannot"),
        ("his", "her"),
    )
    for pair in ((one, other), (other, one))
)
_WORD = re.compile(r"[A-Za-z]{4,}")
_NUMBER = re.compile(r"\d+")


def turned(text: str, dice: random.Random, others: list[str]) -> dict[str, str]:
    """Near-copies that ask something else, by what was done to the text; only what can be done."""
    found: dict[str, str] = {}
    words = [m for m in _WORD.finditer(text) if prompt_of(m[0]).carriers]
    apart = [(a, b) for a, b in itertools.pairwise(words) if not _alike(a[0], b[0])]
    if apart:
        a, b = dice.choice(apart)
        between = text[a.end() : b.start()]
        found["words swapped"] = f"{text[: a.start()]}{b[0]}{between}{a[0]}{text[b.end() :]}"
    numbers = list(_NUMBER.finditer(text))
    if numbers:
        n = dice.choice(numbers)
        found["another number"] = f"{text[: n.start()]}{int(n[0]) + 1}{text[n.end() :]}"
    if words:
        w = dice.choice(words)
        found["negated"] = f"{text[: w.start()]}not {text[w.start() :]}"
        new = dice.choice(others)
        if not _alike(w[0], new):
            found["word replaced"] = f"{text[: w.start()]}{new}{text[w.end() :]}"
        found["word left out"] = text[: w.start()] + text[w.end() :]
    turns = [m for m in re.finditer(r"[A-Za-z']+", text) if m[0].lower() in OPPOSITES]
    if turns:
        t = dice.choice(turns)
        opposite = OPPOSITES[t[0].lower()]
        found["opposite"] = f"{text[: t.start()]}{opposite}{text[t.end() :]}"
    return found


def _alike(one: str, other: str) -> bool:
    return prompt_of(one).carriers == prompt_of(other).carriers


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
    near_copies(prompts, texts)


def near_copies(prompts: list[Prompt], texts: list[str]) -> None:
    """False hits among near-copies that were made to ask something else."""
    dice = random.Random(7)
    vocabulary = sorted({word for text in texts[::20] for word in _WORD.findall(text)})
    made, alone = Counter[str](), Counter[str]()
    false: defaultdict[str, list[str]] = defaultdict(list)
    for prompt, text in zip(prompts, texts, strict=True):
        for way, changed in turned(text, dice, vocabulary).items():
            made[way] += 1
            other = prompt_of(changed)
            if likeness(prompt, other) >= THRESHOLDS[0]:
                false[way].append(f"{text[-90:]!r} / {changed[-90:]!r}")
            alone[way] += float(prompt.vector @ other.vector) >= THRESHOLDS[0]
    for way, count in sorted(made.items()):
        wrong = len(false[way])
        print(
            f"near-copies, {way}: {wrong} false hits at {THRESHOLDS[0]:.2f} in {count:,} "
            f"({_at_most(wrong, count):.3%} at most, 95 %); the embedding alone "
            f"{alone[way] / count:.1%}"
        )
        for pair in false[way][:5]:
            print(f"  FALSE: {pair}")
    total, wrong = made.total(), sum(map(len, false.values()))
    print(
        f"near-copies, all: {wrong} false hits in {total:,} ({_at_most(wrong, total):.4%} at most)"
    )


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
