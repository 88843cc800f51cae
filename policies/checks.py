"""The contract of any policy, as functions: ``CHECKS`` run over every implementation.

Each takes a policy and one situation and raises AssertionError when the policy breaks the
contract. A policy of your own passes when they hold for whatever situations you can think of;
ours are made by hypothesis in tests/policies/test_checks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from policies.limits import UPPER, fitting
from policies.ranking import dominates, figures
from policies.types import (
    Candidate,
    Decision,
    Limits,
    NoBackendWithinLimits,
    Policy,
    Rejection,
    Request,
)

Check = Callable[[Policy, Request, Sequence[Candidate], Limits], None]


def check_chooses_a_candidate_that_fits(
    policy: Policy, request: Request, candidates: Sequence[Candidate], limits: Limits
) -> None:
    """The choice and every fallback are candidates that break none of the limits handed in."""
    decision = _decide(policy, request, candidates, limits)
    if isinstance(decision, Decision):
        fits = {c.backend.name for c in fitting(request, candidates, limits)[0]}
        assert decision.order[0] == decision.chosen, "the order does not start with the choice"
        assert len(set(decision.order)) == len(decision.order), "a fallback is named twice"
        assert set(decision.order) <= fits, f"{set(decision.order) - fits} break a limit"


def check_says_why_not_each_other(
    policy: Policy, request: Request, candidates: Sequence[Candidate], limits: Limits
) -> None:
    """Every candidate but the chosen one is rejected exactly once, with a code and a sentence."""
    decision = _decide(policy, request, candidates, limits)
    names = sorted(c.backend.name for c in candidates)
    if isinstance(decision, Decision):
        names.remove(decision.chosen)
        assert decision.reason, "no reason for the choice"
        rejections = decision.rejections
    else:
        rejections = tuple(decision)
    assert sorted(r.backend for r in rejections) == names
    assert all(r.code.isidentifier() and r.message for r in rejections)


def check_order_of_candidates_does_not_matter(
    policy: Policy, request: Request, candidates: Sequence[Candidate], limits: Limits
) -> None:
    """Turned round, the same candidates give the same decision or the same refusal."""
    there = _decide(policy, request, candidates, limits)
    back = _decide(policy, request, list(reversed(candidates)), limits)
    assert there == back, f"{there} became {back}"


def check_is_the_same_again(
    policy: Policy, request: Request, candidates: Sequence[Candidate], limits: Limits
) -> None:
    """All randomness comes from the request's draw, so that a recorded decision replays."""
    assert _decide(policy, request, candidates, limits) == _decide(
        policy, request, candidates, limits
    )


def check_a_tighter_limit_never_raises_what_it_limits(
    policy: Policy, request: Request, candidates: Sequence[Candidate], limits: Limits
) -> None:
    """Each figure of the choice, taken as its own limit, a little less or a little more, does not
    go up; and its quality, taken as the least that will do, does not go down.

    A cascade is held to what both its answers may take. What was explored is left out.
    """
    decision = _decide(policy, request, candidates, limits)
    if not isinstance(decision, Decision) or decision.explored:
        return
    cautious = limits.cautious is not False

    def figure_of(made: Decision, figure: str) -> float | None:
        bands = [
            getattr(c.estimate, figure)
            for c in candidates
            if c.backend.name in (made.chosen, made.escalate_to)
        ]
        if any(band is None for band in bands):
            return None
        return float(sum(band.high if cautious else band.mid for band in bands))

    for field, figure, _, _ in UPPER:
        before = figure_of(decision, figure)
        if before is None:
            continue
        for share in (1.5, 1.0, 0.7):
            tighter = msgspec.structs.replace(limits, **{field: before * share})
            if (old := getattr(limits, field)) is not None and old < before * share:
                continue
            after = _decide(policy, request, candidates, tighter)
            if isinstance(after, Decision) and not after.explored:
                now = figure_of(after, figure)
                assert now is not None, f"{field} led to a candidate whose {figure} is unknown"
                assert now <= before, f"{field} raised {figure} from {before} to {now}"
    _check_floors(policy, request, candidates, limits, decision)


def _check_floors(
    policy: Policy,
    request: Request,
    candidates: Sequence[Candidate],
    limits: Limits,
    decision: Decision,
) -> None:
    """A floor under quality that the choice keeps changes nothing; a higher one leads to more."""
    by_name = {c.backend.name: c for c in candidates}
    known = by_name[decision.chosen].estimate.quality
    least = 0.0 if known is None else known.mid if limits.cautious is False else known.low
    floors = [("min_quality", least * share) for share in (0.8, 1.0, 1.2)]
    floors += [("min_relative_quality", share) for share in (0.9, 1.0)]
    for field, floor in floors:
        old = getattr(limits, field)
        if not 0.0 < floor <= 1.0 or (old is not None and old > floor):
            continue
        tighter = msgspec.structs.replace(limits, **{field: floor})
        after = _decide(policy, request, candidates, tighter)
        if not isinstance(after, Decision) or after.explored:
            continue
        fits = {c.backend.name for c in fitting(request, candidates, tighter)[0]}
        assert after.chosen in fits, f"{field} led to {after.chosen}, which breaks it"
        if decision.chosen in fits and decision.escalate_to is None:
            assert after.chosen == decision.chosen, f"{field} led from a choice that keeps it"


def check_a_dominated_candidate_is_never_chosen(
    policy: Policy, request: Request, candidates: Sequence[Candidate], limits: Limits
) -> None:
    """Nobody who fits and is eligible is better in something and worse in nothing.

    Exploration and experiments may take a dominated one; then the decision says ``explored``.
    Staying where a session's cache is, or where the last request went, may too; then it is
    ``kept``. Moving a session has a cost that the bare figures do not show, so sessions are left
    out here.
    """
    decision = _decide(policy, request, candidates, limits)
    if not isinstance(decision, Decision) or decision.explored or decision.kept:
        return
    if request.session_backend is not None:
        return
    by_name = {c.backend.name: figures(c) for c in candidates}
    chosen = by_name[decision.chosen]
    for name in decision.order[1:]:
        assert not dominates(by_name[name], chosen), f"{decision.chosen} is dominated by {name}"


def check_no_candidates_is_a_clear_refusal(
    policy: Policy, request: Request, candidates: Sequence[Candidate], limits: Limits
) -> None:
    """Nothing to choose from: NoBackendWithinLimits, with no rejections and a sentence."""
    refusal: NoBackendWithinLimits | None = None
    try:
        policy.choose(request, [], limits)
    except NoBackendWithinLimits as raised:
        refusal = raised
    assert refusal is not None, "chose something from nothing"
    assert refusal.rejections == ()
    assert "no candidates" in str(refusal)


CHECKS: tuple[Check, ...] = (
    check_chooses_a_candidate_that_fits,
    check_says_why_not_each_other,
    check_order_of_candidates_does_not_matter,
    check_is_the_same_again,
    check_a_tighter_limit_never_raises_what_it_limits,
    check_a_dominated_candidate_is_never_chosen,
    check_no_candidates_is_a_clear_refusal,
)


def _decide(
    policy: Policy, request: Request, candidates: Sequence[Candidate], limits: Limits
) -> Decision | tuple[Rejection, ...]:
    try:
        return policy.choose(request, candidates, limits)
    except NoBackendWithinLimits as refusal:
        return refusal.rejections
