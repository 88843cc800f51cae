"""Cascades: let a thrifty backend answer, check the answer, ask a better one only if it fails.

Worth it only where the expected energy of both is lower than that of asking the better one at
once: ``E_first + (1 - p) · E_second < E_second``, with p the share of first answers that pass. An
answer must be whole before it can be checked, so a stream has to wait; only policies that allow
it do that. Both answers' energy is on the books.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from estimators.types import Band
from policies.least_energy import LeastEnergy
from policies.limits import UPPER, within
from policies.ranking import INF, figures
from policies.types import (
    Candidate,
    Decision,
    Limits,
    NoBackendWithinLimits,
    Policy,
    Rejection,
    Request,
)

# How an answer begins that is no answer. Compared in lower case.
REFUSALS = (
    "i can't help with",
    "i cannot help with",
    "i can't assist",
    "i cannot assist",
    "i'm sorry, but i can",
    "i am sorry, but i can",
    "as an ai language model",
    "i'm not able to",
    "i am not able to",
)


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at in a first answer. The schema that the client asked for always is."""

    least_characters: int = 1
    least_mean_logprob: float | None = None  # natural logarithm, 0 or less; None: not looked at
    judge: str | None = None  # backend that is asked whether the answer will do
    pass_rate: float = 0.5  # expected before any answer was seen
    streams_wait: bool = False


# So many answers weigh as much as the guess in the config.
GUESS_WEIGHT = 20.0


def seen_pass_rate(guess: float, passed: int, checked: int) -> float:
    """The share of first answers that pass: the guess, outweighed by what was seen."""
    return (guess * GUESS_WEIGHT + passed) / (GUESS_WEIGHT + checked)


class Plan(msgspec.Struct, frozen=True):
    """One cascade and what it is expected to use, against asking the second at once."""

    first: str
    second: str
    pass_rate: float
    expected_energy_j: float
    direct_energy_j: float

    @property
    def worthwhile(self) -> bool:
        return self.expected_energy_j < self.direct_energy_j


def plan(first: Candidate, second: Candidate, pass_rate: float, check_j: float = 0.0) -> Plan:
    """The cascade from ``first`` to ``second``; ``check_j`` is what checking takes (a judge's)."""
    first_j, second_j = figures(first).energy_j, figures(second).energy_j
    expected = INF if INF in (first_j, second_j) else first_j + check_j + (1 - pass_rate) * second_j
    return Plan(first.backend.name, second.backend.name, pass_rate, expected, second_j)


class Cascade:
    """Asks the thriftiest candidate first and ``policy``'s choice when its answer fails.

    ``pass_rate`` is the share of first answers that pass the checks, as seen so far (or a guess
    from the config). ``policy`` should carry the limits on quality itself: the first answer is held
    only to the limits handed in.
    """

    def __init__(
        self,
        policy: Policy,
        pass_rate: float,
        check_j: float = 0.0,
        streams_wait: bool = False,
        within: Limits | None = None,
        asked_only: bool = False,
    ) -> None:
        """``within`` holds for the first answer too: the policy's limits other than on quality;
        ``asked_only``: the first answer too is by a variant of the model asked for."""
        if not 0.0 <= pass_rate <= 1.0:
            raise ValueError("the share of first answers that pass must lie between 0 and 1")
        self.name = policy.name
        self.version = policy.version
        self.policy = policy
        self.pass_rate = pass_rate
        self.check_j = check_j
        self.streams_wait = streams_wait
        self.within = within or Limits()
        self.thriftiest = LeastEnergy(asked_only=asked_only)

    def choose(self, request: Request, candidates: Sequence[Candidate], limits: Limits) -> Decision:
        """The policy's decision, or the same with a thriftier backend tried before it."""
        direct = self.policy.choose(request, candidates, limits)
        if not request.checkable or (request.stream and not self.streams_wait):
            return direct
        limits = within(limits, self.within)
        try:
            thrifty = self.thriftiest.choose(request, candidates, limits)
        except NoBackendWithinLimits:
            return direct
        if thrifty.chosen == direct.chosen:
            return direct
        by_name = {c.backend.name: c for c in candidates}
        first, second = by_name[thrifty.chosen], by_name[direct.chosen]
        rate = self.pass_rate if request.pass_rate is None else request.pass_rate
        steps = plan(first, second, rate, self.check_j)
        if not steps.worthwhile or not _both_fit(first, second, limits):
            return direct
        reason = (
            f"{steps.first} answers first and {steps.second} when that fails the checks: "
            f"{steps.expected_energy_j:.3g} J expected, {steps.direct_energy_j:.3g} J directly"
        )
        later = Rejection(steps.second, "asked_second", f"only if {steps.first}'s answer fails")
        others = [r for r in direct.rejections if r.backend not in (steps.first, steps.second)]
        fallbacks = (n for n in direct.order if n != steps.first)
        return msgspec.structs.replace(
            direct,
            chosen=steps.first,
            order=(steps.first, *fallbacks),
            reason=reason,
            rejections=tuple(sorted([*others, later], key=lambda r: r.backend)),
            escalate_to=steps.second,
            kept=None,
        )


def _both_fit(first: Candidate, second: Candidate, limits: Limits) -> bool:
    """Whether even both answers together stay within the limits."""
    for field, figure, _, _ in UPPER:
        limit = getattr(limits, field)
        if limit is None:
            continue
        # The second's first token comes after the whole of the first answer.
        before: Band | None = getattr(first.estimate, "latency_s" if figure == "ttft_s" else figure)
        after: Band | None = getattr(second.estimate, figure)
        if before is None or after is None:
            return False
        likely, cautious = before.mid + after.mid, before.high + after.high
        if (likely if limits.cautious is False else cautious) > limit:
            return False
    return True


def faults(
    text: str,
    *,
    finish_reason: str | None = "stop",
    schema: Mapping[str, Any] | None = None,
    least_characters: int = 1,
    mean_logprob: float | None = None,
    least_mean_logprob: float | None = None,
) -> list[str]:
    """What speaks against an answer, in a few words each; empty when it passes.

    ``schema`` is the JSON schema the client asked for. ``mean_logprob`` is the mean natural
    log-probability of the answer's tokens, where the engine gave it.
    """
    found = []
    stripped = text.strip()
    if finish_reason == "length":
        found.append("cut off at the token limit")
    if len(stripped) < least_characters:
        found.append(f"shorter than {least_characters} characters")
    if stripped.lower().replace("’", "'").startswith(REFUSALS):
        found.append("a refusal")
    if schema is not None:
        try:
            value = json.loads(stripped)
        except ValueError:
            found.append("not JSON")
        else:
            if (wrong := misfit(value, schema)) is not None:
                found.append(f"does not fit the schema: {wrong}")
    if (
        least_mean_logprob is not None
        and mean_logprob is not None
        and mean_logprob < least_mean_logprob
    ):
        found.append(f"unsure: mean log-probability {mean_logprob:.2f}")
    return found


_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def misfit(value: object, schema: Mapping[str, Any], at: str = "$") -> str | None:
    """Where a value departs from a JSON schema, or None.

    Knows what structured output uses: type, properties, required, additionalProperties, items,
    enum, const, anyOf. Other keywords are not checked: this catches wrong answers, it does not
    certify right ones.
    """
    kinds = schema.get("type")
    if kinds is not None and not any(
        _is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)
    ):
        return f"{at} is not {kinds}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{at} is none of the allowed values"
    if "const" in schema and value != schema["const"]:
        return f"{at} is not the required value"
    if "anyOf" in schema and all(misfit(value, s, at) for s in schema["anyOf"]):
        return f"{at} fits none of the alternatives"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                return f"{at}.{name} is missing"
        for name, inner in value.items():
            if name in properties:
                if wrong := misfit(inner, properties[name], f"{at}.{name}"):
                    return wrong
            elif schema.get("additionalProperties") is False:
                return f"{at}.{name} is not allowed"
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for index, inner in enumerate(value):
            if wrong := misfit(inner, schema["items"], f"{at}[{index}]"):
                return wrong
    return None


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    known = _TYPES.get(kind)
    return known is None or isinstance(value, known)
