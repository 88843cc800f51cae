"""Published results, end to end: real proxies and requests on simulated engines that use what two
theses measured. What is compared are the ledger's metered joules, never an estimate.

Figures: M. Buis, "Walking the Tightrope", master's thesis, Utrecht University 2024, table 5.40: the
GPTQ variants of the 14B Instruct use 41.5 % (Int8) and 65.9 % (Int4) less than bf16's 1.35 kWh.
D. Wetzel, "Green Tech or Digital Polluter?", master's thesis, TU Berlin 2024, tables 10 and 11:
Llama-3.1-70B scores 68.05 in bf16 and 68.79 in fp8 on Arena-Hard, and fp8 uses 49.0 % less on the
same 8 GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from meters import simulated_engine
from meters.published_engines import PUBLISHED, published_engine
from meters.types import Evidence
from tests.joulegate_server import KEY, Joulegate, Start

REQUESTS = 3
# Times the published pace; a meter that saw more watts than any board draws would not believe it.
SPEED = {"qwen2.5-14b-instruct": 6.0, "llama-3.1-70b-instruct": 10.0}
CODE = "Write a Python function `def parse(rows):` that reads a csv file and returns a list."
CHAT = "Tell me what you think of long walks by the sea in winter."
FACTS = {
    "qwen2.5-14b-instruct": {"gpu": "L40S", "params_b": 14.77, "layers": 48, "hidden_size": 5120},
    "llama-3.1-70b-instruct": {
        "gpu": "L4",
        "num_gpus": 8,
        "params_b": 70.6,
        "layers": 80,
        "hidden_size": 8192,
    },
}


def policies_for(model: str) -> dict[str, Any]:
    bf16 = f"{model}@bf16"  # what the theses compare with
    return {
        "as asked": {"objective": "pinned"},
        "97 percent": {"limits": {"min_quality": f"97 % of {bf16}"}},
        "96 percent": {"limits": {"min_quality": f"96 % of {bf16}", "judge": "expected"}},
    }


@pytest.fixture
def engines() -> Iterator[Callable[[str], dict[str, simulated_engine.Started]]]:
    with ExitStack() as stack:

        def start(model: str) -> dict[str, simulated_engine.Started]:
            return {
                name: stack.enter_context(
                    simulated_engine.start(published_engine(name, speed=SPEED[model]))
                )
                for name in PUBLISHED
                if name.startswith(model)
            }

        yield start


def config_of(model: str, engines: dict[str, simulated_engine.Started]) -> dict[str, Any]:
    """A config that says nothing of quality or energy: only what is served on which GPUs."""
    backends = [
        {
            **FACTS[model],
            "model": model,
            "precision": name.partition("@")[2],
            "url": f"{engine.url}/v1",
            "simulated": True,
            "meter": {"kind": "simulated", "url": engine.url, "window_s": 0.5},
        }
        for name, engine in engines.items()
    ]
    return {
        "backends": backends,
        "policies": policies_for(model),
        "teams": {"physics": {"keys": [KEY]}},
        "cache": {"enabled": False},
        "retries": {"health_check_s": 0},
        "log": {"level": "error"},
    }


def metered_j(running: Joulegate, model: str, prompt: str, policy: str) -> Any:
    """The backends that answered some requests, and their mean energy in the ledger."""
    ids = []
    for i in range(REQUESTS):
        messages = [{"role": "user", "content": f"{prompt} {i}"}]
        body = {"model": model, "messages": messages, "stream": True}
        reply = running.post(body, headers={"x-api-key": KEY, "x-joulegate-policy": policy})
        assert reply.status == 200, reply.body
        ids.append(reply.header("x-request-id"))
    done = [running.metered(each) for each in ids]
    assert {r.evidence for r in done} == {Evidence.SIMULATED}
    energies = [r.energy_j for r in done if r.energy_j is not None]
    return {r.record.backend for r in done}, sum(energies) / len(energies)


@pytest.mark.parametrize(
    ("model", "prompt", "goes_to"),
    [
        (
            "qwen2.5-14b-instruct",
            CODE,
            {"97 percent": ("int8", 0.415), "96 percent": ("int4", 0.659)},
        ),
        ("llama-3.1-70b-instruct", CHAT, {"97 percent": ("fp8", 0.490)}),
    ],
)
def test_traffic_moves_where_the_authors_say_and_the_ledger_shows_what_they_measured(
    joulegate: Start,
    engines: Callable[[str], dict[str, simulated_engine.Started]],
    model: str,
    prompt: str,
    goes_to: dict[str, tuple[str, float]],
) -> None:
    running = joulegate(config_of(model, engines(model)))
    assert running.proxy is not None
    running.wait_for_meters()
    # One request after the other, as measured; in a batch each would be cheaper.
    before, bf16_j = metered_j(running, f"{model}@bf16", prompt, "as asked")
    assert before == {f"{model}@bf16"}
    assert bf16_j == pytest.approx(PUBLISHED[f"{model}@bf16"].energy_j, rel=0.1)
    for policy, (precision, saved) in goes_to.items():
        after, less_j = metered_j(running, model, prompt, policy)
        assert after == {f"{model}@{precision}"}
        # The energy of one request is the published one, and so is what is saved.
        assert less_j == pytest.approx(PUBLISHED[f"{model}@{precision}"].energy_j, rel=0.1)
        assert 1 - less_j / bf16_j == pytest.approx(saved, abs=0.05)
    assert running.proxy.ledger is not None
    assert running.proxy.ledger.check().problems == ()
