"""Quality before any feedback: published scores of some open models, per precision.

``arena``: Arena-Hard-Auto scores without guidance, 0-100 with GPT-4-0314 = 50 and 95 % interval
offsets, tables 8 and 10 of D. Wetzel, "Green Tech or Digital Polluter?", master's thesis,
TU Berlin, 2024 (NVIDIA L4, vLLM). ``code``: BigCodeBench pass@1 of the Qwen2.5 instruct models,
tables 5.29, 5.34 and 5.40 of M. Buis, "Walking the Tightrope", master's thesis, Utrecht
University, 2024 (1,140 tasks, so a standard error of at most 0.015).

The two scales differ: an Arena-Hard score is a share of pairwise wins against one reference, a
pass@1 is a share of solved tasks. A prior is therefore only given for the kind of task that was
measured, and says nothing where nothing was published.
"""

from __future__ import annotations

import re
from math import sqrt
from typing import NamedTuple


class Prior(NamedTuple):
    """A published score on 0..1, and how many judged answers it is worth.

    ``error`` is the standard error it was published with, None where there is none.
    """

    mean: float
    weight: float
    source: str
    error: float | None = None


# (model, precision) -> score, half width of the 95 % interval, both in Arena-Hard points
_ARENA: dict[tuple[str, str], tuple[float, float]] = {
    ("llama-3.1-70b", "bf16"): (68.05, 2.19),
    ("llama-3.1-70b", "fp8"): (68.79, 2.23),
    ("llama-3.1-70b", "int4"): (63.82, 2.35),
    ("mistral-nemo", "bf16"): (44.90, 2.42),
    ("mistral-nemo", "fp8"): (42.73, 2.37),
    ("mistral-nemo", "int4"): (37.74, 2.32),
    ("llama-3.1-8b", "bf16"): (33.83, 2.27),
    ("llama-3.1-8b", "fp8"): (33.65, 2.61),
    ("llama-3.1-8b", "int4"): (29.40, 2.08),
    ("gpt-4o", ""): (87.32, 1.52),
    ("gpt-4o-mini", ""): (80.09, 1.78),
    ("mistral-large", ""): (80.96, 1.72),
    ("llama-3.1-405b", ""): (72.20, 2.28),
    ("llama-3-70b", "bf16"): (52.70, 2.53),
}

_BIGCODEBENCH: dict[tuple[str, str], float] = {
    ("qwen2.5-0.5b", "bf16"): 0.07,
    ("qwen2.5-1.5b", "bf16"): 0.22,
    ("qwen2.5-3b", "bf16"): 0.39,
    ("qwen2.5-7b", "bf16"): 0.45,
    ("qwen2.5-14b", "bf16"): 0.51,
    ("qwen2.5-0.5b", "int8"): 0.07,
    ("qwen2.5-1.5b", "int8"): 0.24,
    ("qwen2.5-3b", "int8"): 0.39,
    ("qwen2.5-7b", "int8"): 0.46,
    ("qwen2.5-14b", "int8"): 0.52,
    ("qwen2.5-0.5b", "int4"): 0.04,  # GPTQ
    ("qwen2.5-1.5b", "int4"): 0.20,
    ("qwen2.5-3b", "int4"): 0.34,
    ("qwen2.5-7b", "int4"): 0.44,
    ("qwen2.5-14b", "int4"): 0.49,
    ("qwen2.5-0.5b", "int4-awq"): 0.01,
    ("qwen2.5-1.5b", "int4-awq"): 0.07,
    ("qwen2.5-3b", "int4-awq"): 0.26,
    ("qwen2.5-7b", "int4-awq"): 0.41,
    ("qwen2.5-14b", "int4-awq"): 0.27,
}

# A published mean is on other prompts than ours: it may weigh no more than this many answers.
_MOST_WEIGHT = 30.0
_TASKS = 1140
# (model, precision) -> score and standard error on 0..1
_CODE = {
    key: (passed, sqrt(passed * (1.0 - passed) / _TASKS)) for key, passed in _BIGCODEBENCH.items()
}
_CHAT = {key: (points / 100, half / 196) for key, (points, half) in _ARENA.items()}
_ARENA_TASKS = frozenset(("chat", "writing", "question", "extraction"))


def published_prior(model: str, precision: str, task: str) -> Prior | None:
    """What was published of this model at this precision for this kind of task; None if nothing.

    ``model`` is any usual spelling ("meta-llama/Llama-3.1-8B-Instruct"), ``precision`` as in
    Backend.precision, with "int4-awq" kept apart from other int4 where the source does so.
    """
    name = model.lower().rsplit("/", 1)[-1].replace("_", "-").replace("meta-llama", "llama")
    if task == "code":
        table, source = _CODE, "BigCodeBench pass@1, Buis 2024"
    elif task in _ARENA_TASKS:
        table, source = _CHAT, "Arena-Hard, Wetzel 2024"
    else:
        return None
    known = sorted({key[0] for key in table}, key=len, reverse=True)
    match = next((m for m in known if _names(m, name)), None)
    if match is None:
        return None
    for asked in (precision.lower(), _base(precision), ""):
        if (match, asked) in table:
            mean, error = table[match, asked]
            return Prior(mean, _MOST_WEIGHT, source, error)
    return None


def _names(model: str, spelling: str) -> bool:
    """Whether a spelling is of that model: its parts in order, ending at a word's end."""
    pattern = r"[-.]?".join(re.escape(part) for part in model.split("-"))
    return re.match(rf"{pattern}(?![0-9.]|-mini|-coder|-math)", spelling) is not None


def _base(precision: str) -> str:
    kind = precision.lower().split("-")[0]
    return {"fp16": "bf16", "awq": "int4", "gptq": "int4"}.get(kind, kind)
