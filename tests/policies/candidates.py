"""Candidates, requests and whole fleets for the tests of policies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from estimators.types import Backend, Band, Estimate, Features, Lengths, Load
from meters.types import Evidence
from policies.types import Candidate, Limits, Request

FACTS = set(Backend.__struct_fields__)


def band(mid: float | None, spread: float = 0.1) -> Band | None:
    return None if mid is None else Band(mid * (1 - spread), mid, mid * (1 + spread))


def candidate(
    name: str = "a",
    *,
    energy_j: float | None = 10.0,
    marginal_j: float | None = None,
    ttft_s: float | None = 0.2,
    latency_s: float | None = 2.0,
    carbon_g: float | None = 1.0,
    money_usd: float | None = 0.01,
    quality: float | None = 0.8,
    spread: float = 0.1,
    load: Load | None = None,
    **facts: Any,
) -> Candidate:
    """A candidate with bands of ±``spread``; marginal energy is a tenth of the energy if unsaid."""
    assert set(facts) <= FACTS, facts
    facts.setdefault("group", name.split("@")[0])
    if marginal_j is None and energy_j is not None:
        marginal_j = energy_j / 10
    estimate = Estimate(
        backend=name,
        energy_j=band(energy_j, spread),
        marginal_energy_j=band(marginal_j, spread),
        ttft_s=band(ttft_s, spread),
        latency_s=band(latency_s, spread),
        carbon_g=band(carbon_g, spread),
        money_usd=band(money_usd, spread),
        quality=band(quality, spread),
        output_tokens=Lengths(50, 100, 300, 130),
        evidence=Evidence.BENCHMARK,
    )
    return Candidate(Backend(name=name, **facts), estimate, load or Load(known=True))


def request(asked: str = "auto", **fields: Any) -> Request:
    """A request of 200 prompt tokens; names of Features go there, all others to the Request."""
    features = {k: fields.pop(k) for k in list(fields) if k in Features.__struct_fields__}
    features.setdefault("prompt_tokens", 200)
    if "team" in features:
        fields["team"] = features["team"]
    return Request(features=Features(**features), asked=asked, **fields)


_figure = st.one_of(st.none(), st.sampled_from([0.5, 1.0, 2.0]), st.floats(0.01, 100.0))
_quality = st.one_of(st.none(), st.sampled_from([0.5, 0.7]), st.floats(0.1, 0.9))


@st.composite
def fleets(draw: st.DrawFn, least: int = 1) -> list[Candidate]:
    """A few candidates with figures known or not, ties likely, some asleep, two groups."""
    many = draw(st.integers(least, 6))
    return [
        candidate(
            f"m{number % 2}@{number}",
            energy_j=draw(_figure),
            marginal_j=draw(_figure),
            ttft_s=draw(_figure),
            latency_s=draw(_figure),
            carbon_g=draw(_figure),
            money_usd=draw(_figure),
            quality=draw(_quality),
            load=Load(asleep=draw(st.booleans())),
            region=draw(st.sampled_from([None, "eu", "us"])),
            intensity_g_per_kwh=draw(st.sampled_from([None, 200.0, 400.0])),
            supports_tools=draw(st.booleans()),
        )
        for number in range(many)
    ]


requests = st.builds(
    request,
    st.sampled_from(["auto", "m0", "m1", "m0@0", "m1@1", "elsewhere"]),
    has_tools=st.booleans(),
    draw=st.floats(0.0, 1.0, exclude_max=True),
    hour=st.one_of(st.none(), st.integers(0, 23)),
    task=st.sampled_from([None, "code", "chat"]),
    session_backend=st.sampled_from([None, "m0@0", "m1@1"]),
    previous_backend=st.sampled_from([None, "m0@0", "m1@1"]),
    cached_prompt_tokens=st.sampled_from([0, 150]),
    budget_left=st.one_of(st.none(), st.floats(0.0, 1.0)),
    quality_debt=st.floats(-1.0, 1.0),
)

_limit = st.one_of(st.none(), st.floats(0.05, 100.0))
limits = st.builds(
    Limits,
    min_quality=st.one_of(st.none(), st.floats(0.0, 1.0)),
    min_relative_quality=st.one_of(st.none(), st.floats(0.1, 1.0)),
    max_energy_j=_limit,
    max_carbon_g=_limit,
    max_money_usd=_limit,
    max_ttft_s=_limit,
    max_latency_s=_limit,
    regions=st.sampled_from([None, None, ("eu",), ("eu", "us")]),
    cautious=st.sampled_from([None, True, False]),
)
