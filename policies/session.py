"""Sessions: what it costs to serve a conversation where its prefix is not cached.

The engine that answered the turns before has their keys and values in memory. Elsewhere the same
tokens must be prefilled again: joules, and time before the first token. Estimates are made for a
request with ``cached_prompt_tokens`` cached; here the candidates that do not hold them pay for
them. An agent's turn is 50-150 calls, and moving it between backends takes its prefix hits from
95 % to none, so a session is either held where it is (``HOLD``) or moves where that pays
(``WEIGH``): then the cost of moving counts against the saving of each turn still to come.
"""

from __future__ import annotations

from typing import NamedTuple

from estimators.types import Backend
from policies.types import Candidate, Request

HOLD = "hold"  # stays as long as the backend fits the limits
WEIGH = "weigh"  # moves when moving pays over the turns to come
FREE = "free"  # moving counts for nothing

# A forward pass takes 2 FLOPs per active parameter and token (Kaplan et al. 2020, section 2.1);
# a saturated prefill reaches about 0.4 of the dense data-sheet FLOP/s, at full power.
FLOPS_PER_PARAMETER = 2.0
PREFILL_UTILISATION = 0.4


class Moving(NamedTuple):
    """What leaving a session's prefix cache adds to one request."""

    energy_j: float
    time_s: float


STAYING = Moving(0.0, 0.0)


def moving(request: Request, candidate: Candidate) -> Moving | None:
    """What serving the session on ``candidate`` adds; None when its hardware is not known.

    Nothing for the backend the session is on, unless it went to sleep and let go of its cache, and
    for requests that have no cached prefix.
    """
    tokens = request.features.cached_prompt_tokens
    backend, at = candidate.backend, request.session_backend
    if at is None or tokens <= 0 or (home(backend) == at and not candidate.load.asleep):
        return STAYING
    gpu, model = backend.gpu, backend.model
    if gpu is None or model is None or gpu.fp16_tflops <= 0.0:
        return None
    parameters = 1e9 * (model.active_params_b or model.params_b)
    flops = FLOPS_PER_PARAMETER * parameters * tokens
    gpu_s = flops / (gpu.fp16_tflops * 1e12 * PREFILL_UTILISATION)
    return Moving(energy_j=gpu_s * gpu.tdp_w, time_s=gpu_s / max(1, backend.num_gpus))


def home(backend: Backend) -> str:
    """The backend whose cache a candidate uses: its own name without an answer budget."""
    name, budget = backend.name, backend.answer_budget
    return name if budget is None else name[: -len(budget) - 1]


def turns_to_come(request: Request) -> float:
    """How many turns a moved session would still use its new place: as many as it has had."""
    return max(1.0, request.features.messages / 2.0)
