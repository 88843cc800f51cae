"""Hard limits: which candidates fit, and for each other one a sentence with the figures.

Two rules decide every doubtful case:

- *Cautious.* Bands are held against a limit with their bad end: the low end of quality, the high
  end of energy, carbon, money and time. (``Limits.cautious = False`` uses the middle instead.)
- *A limit on an unknown is not satisfied.* A backend whose energy nobody can tell does not fit
  ``max_energy_j``. Only where no limit was set may a figure be unknown.

A session's prefix that another backend has cached counts in full: the energy and the time of
prefilling it again are held against the limits too.

What a request needs (tools, a schema, images, context) is checked here too. There an unknown
context length counts as long enough, since most engines never say; ``min_context_tokens`` insists.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from estimators.types import Backend, Band, Features
from policies.session import STAYING, moving
from policies.types import Candidate, Limits, Rejection, Request

# Limits on figures where less is better: field of Limits, field of Estimate, what it is, unit.
UPPER = (
    ("max_energy_j", "energy_j", "energy", "J"),
    ("max_carbon_g", "carbon_g", "carbon", "g"),
    ("max_money_usd", "money_usd", "money", "USD"),
    ("max_ttft_s", "ttft_s", "ttft", "s to the first token"),
    ("max_latency_s", "latency_s", "latency", "s"),
)
MOVED = {"energy": 0, "ttft": 1, "latency": 1}  # which part of Moving adds to a figure
TOO_LONG = "context_too_long"
NO_IMAGES = "no_images"
LOCAL = "local"  # what the provider allow-list calls our own engines


def tighten(team: Limits, caller: Limits) -> Limits:
    """The limits that satisfy both. A caller can only tighten what its team may do.

    Two different references for relative quality cannot both be kept in one value: the team's
    stands, with the higher of the two shares.
    """
    backends = _narrowest(team, caller)
    return Limits(
        min_quality=_most(team.min_quality, caller.min_quality),
        min_relative_quality=_most(team.min_relative_quality, caller.min_relative_quality),
        # The caller's reference counts only where the team has none to be held against.
        relative_to=caller.relative_to if team.min_relative_quality is None else team.relative_to,
        max_energy_j=_least(team.max_energy_j, caller.max_energy_j),
        max_carbon_g=_least(team.max_carbon_g, caller.max_carbon_g),
        max_money_usd=_least(team.max_money_usd, caller.max_money_usd),
        max_ttft_s=_least(team.max_ttft_s, caller.max_ttft_s),
        max_latency_s=_least(team.max_latency_s, caller.max_latency_s),
        regions=_both(team.regions, caller.regions),
        providers=_both(team.providers, caller.providers),
        backends=backends[0] if backends else None,
        backends_too=backends[1:],
        min_context_tokens=_most_tokens(team.min_context_tokens, caller.min_context_tokens),
        cautious=_caution(team.cautious, caller.cautious),
    )


def within(limits: Limits, own: Limits) -> Limits:
    """A policy's own limits on top of those it is handed. Which end of the bands is held against
    them all is the policy's to say where nobody has."""
    both = tighten(limits, own)
    if own.cautious is False and limits.cautious is None:
        both = msgspec.structs.replace(both, cautious=False)
    return both


def fitting(
    request: Request, candidates: Sequence[Candidate], limits: Limits
) -> tuple[list[Candidate], list[Rejection]]:
    """The candidates that break no limit, and why each other one does, in the order given."""
    features = request.features
    cautious = limits.cautious is not False
    upper = [
        (limit, figure, word, unit)
        for field, figure, word, unit in UPPER
        if (limit := getattr(limits, field)) is not None
    ]
    lists = (
        limits.regions is not None
        or limits.providers is not None
        or limits.backends is not None
        or limits.min_context_tokens is not None
    )
    in_session = request.session_backend is not None and features.cached_prompt_tokens > 0
    floor = limits.min_quality
    share = limits.min_relative_quality
    reference = None if share is None else _reference(request, candidates, limits)
    fits: list[Candidate] = []
    rejections: list[Rejection] = []
    for candidate in candidates:
        backend = candidate.backend
        why = _unable(features, backend)
        if why is None and lists:
            why = _not_allowed(backend, limits)
        if why is None and floor is not None:
            why = _quality_below(candidate, floor, cautious)
        if why is None and share is not None:
            why = _relatively_below(candidate, share, reference, cautious)
        if why is None and upper:
            estimate = candidate.estimate
            for limit, figure, word, unit in upper:
                band: Band | None = getattr(estimate, figure)
                if band is None:
                    why = _unknown(backend, word)
                    break
                value = band.high if cautious else band.mid
                if in_session and word in MOVED:
                    value += (moving(request, candidate) or STAYING)[MOVED[word]]
                if not value <= limit:  # also rejects a NaN
                    why = _over(backend, word, value, limit, unit, cautious)
                    break
        if why is None:
            fits.append(candidate)
        else:
            rejections.append(why)
    return fits, rejections


def serves(backend: Backend, asked: str) -> bool:
    """Whether a backend is what that model name means: its own name, or its group's."""
    return asked in (backend.name, backend.group)


def listed(backend: Backend, limits: Limits) -> bool:
    """Whether a backend is on every list of those that are allowed."""
    every = (limits.backends, *limits.backends_too)
    return all(each is None or any(serves(backend, name) for name in each) for each in every)


def is_open(asked: str) -> bool:
    """Whether the client left the model to us: ``auto`` or ``auto:<policy>``."""
    return asked == "auto" or asked.startswith("auto:")


def only_asked(
    request: Request, fits: Sequence[Candidate], rejections: list[Rejection]
) -> tuple[Sequence[Candidate], list[Rejection]]:
    """Of those that fit only what the client's model name means; each other one says so."""
    asked = request.asked
    if is_open(asked):
        return fits, rejections
    kept: list[Candidate] = []
    others: list[Rejection] = []
    for candidate in fits:
        if serves(candidate.backend, asked):
            kept.append(candidate)
        else:
            message = f"the client asked for {asked}"
            others.append(Rejection(candidate.backend.name, "not_asked_for", message))
    return kept, rejections + others


def names_variant(request: Request, candidates: Sequence[Candidate]) -> bool:
    """Whether the client pinned one variant of a group (``llama-3.1-8b@int4``)."""
    asked = request.asked
    for candidate in candidates:  # read straight through: this runs for each request
        backend = candidate.backend
        if backend.name == asked != backend.group:
            return True
    return False


def reference_name(request: Request, limits: Limits) -> str | None:
    """Whose quality counts as 100 %; None when the client left the model open: the best one's."""
    if limits.relative_to is not None:
        return limits.relative_to
    return None if is_open(request.asked) else request.asked


def _unable(features: Features, backend: Backend) -> Rejection | None:
    name = backend.name
    if features.has_tools and not backend.supports_tools:
        return Rejection(name, "no_tools", "the request uses tools, which it does not support")
    if features.has_schema and not backend.supports_schema:
        return Rejection(
            name, "no_schema", "the request wants structured output, which it does not support"
        )
    if features.has_images and not backend.supports_images:
        known = "cannot read" if backend.supports_images is False else "may be unable to read"
        return Rejection(name, NO_IMAGES, f"the request has images, which it {known}")
    context = backend.context_tokens
    if context is not None:
        needed = features.prompt_tokens + (features.max_tokens or 1)
        if needed > context:
            return Rejection(
                name,
                TOO_LONG,
                f"prompt and answer need {needed} tokens of context; it accepts {context}",
            )
    return None


def _not_allowed(backend: Backend, limits: Limits) -> Rejection | None:
    name = backend.name
    if not listed(backend, limits):
        return Rejection(name, "backend_not_allowed", "it is not on the list of allowed backends")
    if limits.providers is not None and (backend.provider or LOCAL) not in limits.providers:
        return Rejection(
            name,
            "provider_not_allowed",
            f"its provider is {backend.provider or LOCAL}; "
            f"allowed: {', '.join(limits.providers) or 'none'}",
        )
    if limits.regions is not None and backend.region not in limits.regions:
        where = backend.region or "not known"
        return Rejection(
            name,
            "region_not_allowed",
            f"its region is {where}; data may only go to: {', '.join(limits.regions) or 'none'}",
        )
    if limits.min_context_tokens is not None and (
        backend.context_tokens is None or backend.context_tokens < limits.min_context_tokens
    ):
        return Rejection(
            name,
            "context_too_short",
            f"it accepts {backend.context_tokens or 'an unknown number of'} tokens; "
            f"the limit asks for {limits.min_context_tokens}",
        )
    return None


def _reference(request: Request, candidates: Sequence[Candidate], limits: Limits) -> float | None:
    """The middle quality of the model that counts as 100 %; the best of its variants."""
    name = reference_name(request, limits)
    known = [
        c.estimate.quality.mid
        for c in (*candidates, *request.references)
        if c.estimate.quality is not None and (name is None or serves(c.backend, name))
    ]
    return max(known) if known else request.reference_quality


def _quality_below(candidate: Candidate, floor: float, cautious: bool) -> Rejection | None:
    band = candidate.estimate.quality
    if band is None:
        return _unknown(candidate.backend, "quality")
    value = band.low if cautious else band.mid
    if value >= floor:
        return None
    may = "may be as low as" if cautious else "is expected to be"
    return Rejection(
        candidate.backend.name,
        "quality_below_limit",
        f"quality {may} {value:.3g}, below the limit of {floor:.3g}",
    )


def _relatively_below(
    candidate: Candidate, share: float, reference: float | None, cautious: bool
) -> Rejection | None:
    band = candidate.estimate.quality
    if band is None:
        return _unknown(candidate.backend, "quality")
    if reference is None:
        message = "nobody knows the quality of what its own is to be a share of"
        return Rejection(candidate.backend.name, "quality_unknown", message)
    # The reference is itself: its band says how well it is known, not how it differs from itself.
    value = band.low if cautious and band.mid != reference else band.mid
    if value >= share * reference:
        return None
    return Rejection(
        candidate.backend.name,
        "quality_below_limit",
        f"quality {'may be as low as' if cautious else 'is expected to be'} {value:.3g}, "
        f"{value / reference:.1%} of the {reference:.3g} asked for; the limit is {share:.1%}",
    )


def _unknown(backend: Backend, word: str) -> Rejection:
    return Rejection(
        backend.name,
        f"{word}_unknown",
        f"its {_WORDS[word]} is not known, so the limit on it is not kept for certain",
    )


def _over(
    backend: Backend, word: str, value: float, limit: float, unit: str, cautious: bool
) -> Rejection:
    return Rejection(
        backend.name,
        f"{word}_over_limit",
        f"{'may take up to' if cautious else 'is expected to take'} {value:.3g} {unit}, "
        f"over the limit of {limit:.3g}",
    )


_WORDS = {
    "quality": "quality",
    "energy": "energy",
    "carbon": "carbon",
    "money": "price",
    "ttft": "time to the first token",
    "latency": "latency",
}


def _most(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)


def _most_tokens(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)


def _least(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def _both(a: tuple[str, ...] | None, b: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if a is None or b is None:
        return b if a is None else a
    return tuple(x for x in a if x in b)


def _narrowest(a: Limits, b: Limits) -> tuple[tuple[str, ...], ...]:
    """The lists of backends of both. One that has all the names of another says nothing more; of
    two others only the backends know who is on both, since a name may be of a model or a variant.
    """
    lists = [each for each in (a.backends, b.backends) if each is not None]
    lists += [*a.backends_too, *b.backends_too]
    kept: list[tuple[str, ...]] = []
    for each in lists:
        if any(set(other) <= set(each) for other in kept):
            continue
        kept = [other for other in kept if not set(each) <= set(other)] + [each]
    return tuple(kept)


def _caution(team: bool | None, caller: bool | None) -> bool | None:
    return True if caller is True else team  # on, never off
