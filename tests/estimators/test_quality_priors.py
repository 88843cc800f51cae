"""Published scores are found under the names people use, and only where they were published."""

from __future__ import annotations

import pytest

from estimators.quality_priors import published_prior


@pytest.mark.parametrize(
    ("model", "precision", "task", "mean"),
    [
        ("llama-3.1-8b", "bf16", "chat", 0.3383),
        ("meta-llama/Llama-3.1-8B-Instruct", "fp16", "chat", 0.3383),
        ("meta-llama/Meta-Llama-3.1-70B-Instruct", "fp8", "writing", 0.6879),
        ("llama-3.1-70b", "int4-awq", "chat", 0.6382),
        ("Qwen/Qwen2.5-14B-Instruct", "int8", "code", 0.52),
        ("Qwen2.5-14B-Instruct", "int4-gptq", "code", 0.49),
        ("Qwen2.5-14B-Instruct-AWQ", "int4-awq", "code", 0.27),
        ("gpt-4o-mini-2024-07-18", "api", "chat", 0.8009),
        ("gpt-4o", "api", "chat", 0.8732),
    ],
)
def test_finds_a_published_score(model: str, precision: str, task: str, mean: float) -> None:
    prior = published_prior(model, precision, task)
    assert prior is not None
    assert prior.mean == pytest.approx(mean)
    assert prior.weight > 0


@pytest.mark.parametrize(
    ("model", "precision", "task"),
    [
        ("llama-3.1-8b", "bf16", "math"),  # nobody published it there
        ("llama-3.1-8b", "int2", "chat"),
        ("llama-3.1-80b", "bf16", "chat"),
        ("qwen2.5-coder-14b", "bf16", "code"),  # another model
        ("my-own-model", "bf16", "chat"),
        ("", "", "code"),
    ],
)
def test_says_nothing_where_nothing_was_published(model: str, precision: str, task: str) -> None:
    assert published_prior(model, precision, task) is None
