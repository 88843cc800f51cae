"""The values that policies speak in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from estimators.types import Backend, Estimate, Features, Load


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Hard limits. None means no limit; a caller can only tighten what its team may do."""

    min_quality: float | None = None  # 0..1
    min_relative_quality: float | None = None  # share of the asked-for model's quality
    relative_to: str | None = None  # backend or group that counts as 100 %; None: the one asked for
    max_energy_j: float | None = None
    max_carbon_g: float | None = None
    max_money_usd: float | None = None
    max_ttft_s: float | None = None
    max_latency_s: float | None = None
    regions: tuple[str, ...] | None = None  # data may only go there
    providers: tuple[str, ...] | None = None  # allow-list; "local" is ours
    backends: tuple[str, ...] | None = None  # allow-list by name or group
    backends_too: tuple[tuple[str, ...], ...] = ()  # others, each of which it must be on as well
    min_context_tokens: int | None = None  # the backend must accept at least this much
    # Which end of the bands is held against the limits: True or None the cautious one, False the
    # middle. A caller can turn caution on, never off.
    cautious: bool | None = None


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One backend that could serve the request, with what it would cost and its present load."""

    backend: Backend
    estimate: Estimate
    load: Load


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a policy may look at besides the candidates; values only, no clock."""

    features: Features
    asked: str  # the model name the client sent
    team: str = ""
    tags: tuple[str, ...] = ()
    session: str | None = None
    session_backend: str | None = None  # where this session's prefix cache is
    stream: bool = False  # the client wants the answer as it is made
    checkable: bool = True  # an answer's text can be looked at before it goes to the client
    hour: int | None = None  # of the team's day, 0..23
    budget_left: float | None = None  # 0..1 of the tightest budget
    intensity_g_per_kwh: float | None = None  # of the team's own grid, now
    previous_backend: str | None = None  # where the last request of this kind went
    previous_by_arm: dict[str, str] = {}  # likewise, in each arm of a split
    without_us: str | None = None  # backend or group declared to have served open requests else
    reference_quality: float | None = None  # of the asked-for model, when it is no candidate
    references: tuple[Candidate, ...] = ()  # not to be chosen, but what others are measured by
    quality_debt: float = 0.0  # quality promised on average and not yet given; see guarantee.py
    canary_share: float | None = None  # what its roll-out gives the canary now; see canary.py
    pass_rate: float | None = None  # share of first answers that passed so far; see cascade.py
    draw: float = 0.5  # uniform in [0, 1): all randomness a policy may use, so decisions replay


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """Why one backend was not chosen."""

    backend: str
    code: str  # "quality_below_limit", "context_too_long", "not_chosen", ...
    message: str  # a sentence with the figures in it


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The chosen backend, the order in which to try the others, and why."""

    chosen: str
    order: tuple[str, ...]  # chosen first, then fallbacks that also fit
    policy: str
    version: str = ""
    reason: str  # a sentence
    rejections: tuple[Rejection, ...] = ()  # every other candidate, each with its reason
    counterfactual: str | None = None  # what would have served without us
    explored: bool = False  # the policy would have chosen another; a draw said otherwise
    arm: str | None = None  # of an experiment: "hold_out", "canary", ...
    escalate_to: str | None = None  # who answers again when the chosen one's answer fails checks
    moving_energy_j: float | None = None  # what leaving the session's prefix cache adds, or would
    kept: str | None = None  # why a better-ranked one was passed over: "session", "hysteresis"


class NoBackendWithinLimits(Exception):
    """Every candidate broke a limit. ``rejections`` says which, for each backend; ``candidates``
    are those that were looked at, where whoever asked the policy noted them."""

    def __init__(self, rejections: Sequence[Rejection]) -> None:
        self.rejections = tuple(rejections)
        self.candidates: tuple[Candidate, ...] = ()  # for whoever wants to show them
        each = "; ".join(f"{r.backend}: {r.message}" for r in self.rejections)
        super().__init__(f"No backend fits the limits. {each or 'There are no candidates.'}")


class Policy(Protocol):
    """Chooses one candidate among those that fit, or raises NoBackendWithinLimits.

    What every policy keeps, and checks.py tests: the choice is one of the candidates, their order
    does not matter, a tighter limit never raises what it limits, a dominated one is not chosen
    (unless the decision says that it was explored, or kept against flapping or for a session).
    """

    name: str
    version: str  # a short hash of what configures it; each decision carries it

    def choose(
        self, request: Request, candidates: Sequence[Candidate], limits: Limits
    ) -> Decision: ...
