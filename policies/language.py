"""The language of policies: from the ``policies:`` mapping of a config to Policy objects.

``read_policies`` is the entry point. Every key is described in docs/policies.md, whose examples
are all read in a test. A policy's version is a short hash of its own text and of the policies it
refers to: equal text, equal version, on any machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from policies.answer_budget import EFFORTS, AnswerBudget
from policies.canary import Canarying
from policies.cascade import Cascade, Checks
from policies.conditions import Condition, condition
from policies.configured import Configured, Ruled
from policies.experiment import HeldOut, Split
from policies.exploration import Exploring
from policies.fastest import FirstToken
from policies.guarantee import Guarantee
from policies.presets import STRATEGIES, presets
from policies.ranking import Ranked
from policies.session import FREE, HOLD, WEIGH
from policies.types import Limits, Policy
from policies.weighted import OBJECTIVES, Weighted
from policies.wording import (
    Path,
    PolicyError,
    flag,
    mapping,
    nearest,
    number,
    share,
    share_of,
    text,
    whole,
    word,
    words,
)

KEYS = (
    "about",
    "objective",
    "among",
    "limits",
    "rules",
    "otherwise",
    "hysteresis",
    "session",
    "exploration",
    "hold_out",
    "average_quality",
    "cascade",
    "canary",
    "answer_budgets",
    "compare_with",
    "split",
)
LIMIT_KEYS = (
    "min_quality",
    "max_energy_j",
    "max_carbon_g",
    "max_money_usd",
    "max_ttft_s",
    "max_latency_s",
    "min_context_tokens",
    "regions",
    "providers",
    "backends",
    "judge",
)
# A rule changes these of its policy, or hands over to another with ``use``.
RULE_KEYS = ("when", "use", "objective", "among", "limits", "otherwise", "average_quality")
SINGLE = {
    "energy": "least_energy",
    "carbon": "least_carbon",
    "money": "cheapest",
    "latency": "fastest",
    "quality": "best_quality",
}
REFUSE = "refuse"


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One policy as it was written: what checks, pages and the wiring need to know of it."""

    name: str
    version: str
    about: str = ""
    objective: str = "energy"  # as written, weights as "energy 2, latency 1"; "" for a split
    among: tuple[str, ...] = ("asked",)
    limits: Limits = Limits()
    otherwise: str = REFUSE
    uses: tuple[str, ...] = ()  # names of other policies it hands over to
    rules: tuple[Spec, ...] = ()  # each rule's policy, in order; empty where it uses another
    conditions: tuple[Condition, ...] = ()
    answer_budgets: tuple[AnswerBudget, ...] = ()
    session: str = WEIGH
    promised: float | None = None  # quality on average
    cascade: Checks | None = None
    canary: RollOut | None = None
    hold_out: float | None = None
    compare_with: str | None = None


class RollOut(msgspec.Struct, frozen=True):
    """A canary as it was written."""

    backend: str
    share: float = 0.02  # to begin with
    attempt: int = 1  # another number forgets what was seen before


class Needs(msgspec.Struct, frozen=True):
    """What a policy wants to be told beside the request: everything that it or one that it hands
    over to looks at."""

    beyond: bool = False  # see Book.looks_beyond
    measured_by: tuple[str, ...] = ()  # backends or models that a share of quality is meant of
    budget_left: bool = False
    split: bool = False  # what was before is meant of each arm
    promised: float | None = None
    cascade: Checks | None = None
    canary: RollOut | None = None
    answer_budgets: tuple[AnswerBudget, ...] = ()


class Book(msgspec.Struct, frozen=True):
    """All policies by name, built-in ones included, and what was written of the configured."""

    policies: dict[str, Policy]
    specs: dict[str, Spec]
    texts: dict[str, str]  # version -> canonical text, for every version known

    def looks_beyond(self, name: str) -> bool:
        """Whether a policy may choose, or measures quality by, another model than the one asked
        for: then it must be shown every backend, else those of that model are enough."""
        spec = self.specs.get(name)
        if spec is None:
            return False
        parts = (spec, *(rule for rule in spec.rules if rule.name == name))
        return any(
            part.among != ("asked",) or part.limits.relative_to is not None for part in parts
        ) or any(self.looks_beyond(other) for other in spec.uses)

    def needs(self, name: str) -> Needs:
        """What a policy wants to be told; nothing for a built-in one."""
        parts = list(self._parts(name, set()))

        def first(field: str) -> Any:
            return next((v for part in parts if (v := getattr(part, field)) is not None), None)

        return Needs(
            beyond=self.looks_beyond(name),
            measured_by=tuple({p.limits.relative_to: 0 for p in parts if p.limits.relative_to}),
            split=any(not p.objective for p in parts),
            budget_left=any(c.budget_left is not None for p in parts for c in p.conditions),
            promised=first("promised"),
            cascade=first("cascade"),
            canary=first("canary"),
            answer_budgets=tuple({b.name: b for p in parts for b in p.answer_budgets}.values()),
        )

    def _parts(self, name: str, seen: set[str]) -> Iterator[Spec]:
        """A policy's own text, its rules', and those of all it hands over to."""
        spec = self.specs.get(name)
        if spec is None or name in seen:
            return
        seen.add(name)
        yield spec
        yield from (rule for rule in spec.rules if rule.name == name)
        for other in spec.uses:
            yield from self._parts(other, seen)

    def as_of(self, name: str, version: str) -> Policy | None:
        """The policy as it was in a version whose text is known; None where it is not."""
        now = self.policies.get(name)
        if now is not None and now.version == version:
            return now
        written: dict[str, Any] = {}
        wanted = [(name, version)]
        while wanted:
            other, of = wanted.pop()
            text = self.texts.get(of)
            if text is None:
                if other == name:
                    return None
                continue  # built in, or written the same as now
            if other not in written:
                kept = json.loads(text)
                written[other] = kept["policy"]
                wanted += kept["uses"].items()
        try:
            policy = read_policies(written).policies.get(name)
        except PolicyError:
            return None  # the language has changed since
        return policy if policy is not None and policy.version == version else None

    def keeping(self, older: Book | None) -> Book:
        """This book with the texts of older versions, so that old decisions can be read."""
        if older is None:
            return self
        return Book(self.policies, self.specs, {**older.texts, **self.texts})


def read_policies(written: Mapping[str, Any] | None) -> Book:
    """All policies of a config's ``policies:`` mapping. Raises PolicyError for the first mistake.

    Presets and strategies can be used by name in any config; a configured policy of the same name
    takes their place.
    """
    reader = _Reader(mapping(written or {}, None, ()))
    for name in reader.written:
        reader.policy(name, ())
    return Book(reader.built, reader.specs, reader.texts)


def mistakes(written: Mapping[str, Any] | None) -> list[PolicyError]:
    """One mistake of each policy that has any, for whoever wants to show them all."""
    try:
        reader = _Reader(mapping(written or {}, None, ()))
    except PolicyError as error:
        return [error]
    found: dict[Path, PolicyError] = {}
    for name in reader.written:
        try:
            reader.policy(name, ())
        except PolicyError as error:
            found[error.path] = error
    return list(found.values())


def built_in() -> dict[str, Policy]:
    """Presets, and each strategy under its own name (``auto:least_energy``).

    None goes beyond the model that was asked for, whatever candidates it is shown.
    """
    strategies = {name: make(True) for name, make in STRATEGIES.items()}
    return {**strategies, **presets()}


class _Reader:
    """Reads policies on demand, since they may refer to one another."""

    def __init__(self, written: Mapping[str, Any]) -> None:
        self.written = written
        self.built = built_in()
        for name in written:  # a reference to it must not find the built-in of the same name
            self.built.pop(name, None)
        self.specs: dict[str, Spec] = {}
        self.texts: dict[str, str] = {}
        self.open: list[str] = []

    def policy(self, name: str, path: Path) -> Policy:
        """The policy of that name, read now if need be; ``path`` is where it is referred to."""
        if name in self.built:
            return self.built[name]
        if name not in self.written:
            known = sorted({*self.built, *self.written})
            raise PolicyError(path, f"there is no policy {name!r}", nearest(name, known))
        if name in self.open:
            circle = " -> ".join([*self.open[self.open.index(name) :], name])
            raise PolicyError(path, f"policies refer to each other in a circle: {circle}")
        self.open.append(name)
        try:
            policy, spec, canonical = self._read(name, (name,))
        finally:
            self.open.pop()
        self.built[name] = policy
        self.specs[name] = spec
        self.texts[spec.version] = canonical
        return policy

    def _read(self, name: str, path: Path) -> tuple[Policy, Spec, str]:
        keys = mapping(self.written[name], KEYS, path)
        uses = self._uses(keys, path)
        canonical = json.dumps(
            {"policy": keys, "uses": {n: self.policy(n, p).version for n, p in uses}},
            sort_keys=True,
            default=str,
        )
        version = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        if "split" in keys:
            return (
                self._split(name, version, keys, path),
                Spec(name=name, version=version, objective="", uses=tuple(n for n, _ in uses)),
                canonical,
            )
        plain, spec = self._plain(name, version, keys, path)
        rules, specs, conditions = self._rules(name, version, keys, path)
        policy = Ruled(name, rules, plain, version) if rules else plain
        if "canary" in keys:
            new = _roll_out(keys["canary"], (*path, "canary"))
            policy = Canarying(policy, new.backend, new.share)
        if "hold_out" in keys:
            policy = HeldOut(policy, _held_out(keys["hold_out"], (*path, "hold_out")))
        spec = msgspec.structs.replace(
            spec,
            uses=tuple(n for n, _ in uses),
            rules=specs,
            conditions=conditions,
            canary=_roll_out(keys["canary"], (*path, "canary")) if "canary" in keys else None,
            hold_out=policy.share if isinstance(policy, HeldOut) else None,
            answer_budgets=_budgets(keys.get("answer_budgets", []), (*path, "answer_budgets")),
        )
        return policy, spec, canonical

    def _uses(self, keys: Mapping[str, Any], path: Path) -> list[tuple[str, Path]]:
        """The other policies that a policy hands over to, and where it says so."""
        found: list[tuple[str, Path]] = []
        if keys.get("otherwise", REFUSE) != REFUSE:
            at = (*path, "otherwise")
            found.append((text(keys["otherwise"], at), at))
        for index, rule in enumerate(_list(keys.get("rules", []), (*path, "rules"))):
            at = (*path, "rules", index)
            named = mapping(rule, RULE_KEYS, at)
            found.extend(
                (text(named[key], (*at, key)), (*at, key))
                for key in ("use", "otherwise")
                if named.get(key, REFUSE) != REFUSE
            )
        at = (*path, "split")
        found += [(name, (*at, name)) for name in mapping(keys.get("split", {}), None, at)]
        return found

    def _plain(
        self, name: str, version: str, keys: Mapping[str, Any], path: Path
    ) -> tuple[Policy, Spec]:
        """The policy without its rules."""
        limits = _limits(keys.get("limits", {}), (*path, "limits"))
        among = words(keys.get("among", "asked"), (*path, "among"))
        otherwise = keys.get("otherwise", REFUSE)
        strategy = _strategy(keys, among, path)
        if among not in (("asked",), ("any",)):
            also = (among,) if limits.backends else ()
            limits = msgspec.structs.replace(
                limits, backends=limits.backends or among, backends_too=also
            )
        policy: Policy = Configured(
            name,
            strategy,
            limits,
            None if otherwise == REFUSE else self.policy(otherwise, (*path, "otherwise")),
            version,
            compare_with=_maybe(text, keys, "compare_with", path),
        )
        checks = None
        if "cascade" in keys:
            checks, check_j = _cascade(keys["cascade"], (*path, "cascade"))
            policy = Cascade(
                policy,
                checks.pass_rate,
                check_j,
                checks.streams_wait,
                within=msgspec.structs.replace(
                    limits, min_quality=None, min_relative_quality=None, relative_to=None
                ),
                asked_only=among == ("asked",),
            )
        if "exploration" in keys:
            policy = _exploring(policy, keys["exploration"], (*path, "exploration"))
        objective = keys.get("objective", "energy")
        if isinstance(objective, Mapping):
            objective = ", ".join(f"{w} {n:g}" for w, n in objective.items())
        return policy, Spec(
            name=name,
            version=version,
            about=text(keys.get("about", ""), (*path, "about")),
            objective=objective,
            among=among,
            limits=limits,
            otherwise=otherwise,
            session=keys.get("session", WEIGH),
            promised=strategy.promised if isinstance(strategy, Guarantee) else None,
            cascade=checks,
            compare_with=_maybe(text, keys, "compare_with", path),
        )

    def _rules(
        self, name: str, version: str, keys: Mapping[str, Any], path: Path
    ) -> tuple[list[tuple[Condition, Policy]], tuple[Spec, ...], tuple[Condition, ...]]:
        rules, specs, conditions = [], [], []
        for index, rule in enumerate(_list(keys.get("rules", []), (*path, "rules"))):
            at = (*path, "rules", index)
            if "when" not in rule:
                raise PolicyError(at, "has no 'when', so it is not said when it applies")
            when = condition(rule["when"], (*at, "when"))
            changes = {key: value for key, value in rule.items() if key != "when"}
            if not changes:
                raise PolicyError(at, "changes nothing; give 'use', 'objective' or 'limits'")
            if "use" in changes:
                if len(changes) > 1:
                    raise PolicyError(at, "hands over with 'use', so it can change nothing else")
                policy = self.policy(changes["use"], (*at, "use"))
                spec = self.specs.get(changes["use"]) or Spec(name=changes["use"], version="")
            else:
                merged = {**keys, **changes}
                if "limits" in changes:
                    mapping(changes["limits"], LIMIT_KEYS, (*at, "limits"))
                    merged["limits"] = {**keys.get("limits", {}), **changes["limits"]}
                # A mistake in what was merged is one of the rule's: the policy itself was read.
                policy, spec = self._plain(name, version, merged, at)
            rules.append((when, policy))
            specs.append(spec)
            conditions.append(when)
        return rules, tuple(specs), tuple(conditions)

    def _split(self, name: str, version: str, keys: Mapping[str, Any], path: Path) -> Policy:
        if others := set(keys) - {"split", "about"}:
            other = sorted(others)[0]
            raise PolicyError((*path, other), "a split only divides requests among policies")
        at = (*path, "split")
        arms = {
            arm: (self.policy(arm, (*at, arm)), share(part, (*at, arm)))
            for arm, part in keys["split"].items()
        }
        try:
            split = Split(name, arms)
        except ValueError as error:
            raise PolicyError(at, str(error)) from None
        split.version = version
        return split


def _limits(value: object, path: Path) -> Limits:
    keys = mapping(value, LIMIT_KEYS, path)
    limits: dict[str, Any] = {}
    for key, given in keys.items():
        at = (*path, key)
        if key == "min_quality":
            amount, of = share_of(given, at)
            limits["min_quality" if of is None else "min_relative_quality"] = amount
            limits["relative_to"] = None if of in (None, "asked") else of
        elif key == "min_context_tokens":
            limits[key] = whole(given, at)
        elif key in ("regions", "providers", "backends"):
            limits[key] = words(given, at)
        elif key == "judge":
            limits["cautious"] = word(given, ("cautious", "expected"), at) == "cautious"
        else:
            limits[key] = number(given, at)
    most, first = limits.get("max_latency_s"), limits.get("max_ttft_s")
    if most is not None and first is not None and first > most:
        message = f"allows {first:g} s to the first token, yet the whole answer only {most:g} s"
        raise PolicyError((*path, "max_ttft_s"), message)
    return Limits(**limits)


def _strategy(keys: Mapping[str, Any], among: tuple[str, ...], path: Path) -> Ranked:
    common: dict[str, Any] = {
        "asked_only": among == ("asked",),
        "session": word(keys.get("session", WEIGH), (HOLD, WEIGH, FREE), (*path, "session")),
        "hysteresis": share(keys.get("hysteresis", 0.0), (*path, "hysteresis")),
    }
    at = (*path, "objective")
    objective = keys.get("objective", "energy")
    if "average_quality" in keys:
        if objective != "energy":
            message = "average_quality is kept with the least energy, so the objective is energy"
            raise PolicyError(at, message)
        return Guarantee(share(keys["average_quality"], (*path, "average_quality")), **common)
    if isinstance(objective, Mapping):
        weights = {w: number(n, (*at, w)) for w, n in mapping(objective, OBJECTIVES, at).items()}
        try:
            return Weighted(weights, **common)
        except ValueError as error:
            raise PolicyError(at, str(error)) from None
    single = word(objective, (*OBJECTIVES, "pinned"), at)
    if single == "ttft":
        return FirstToken(**common)
    strategy = STRATEGIES[SINGLE.get(single, single)]
    return strategy(**common)


def _cascade(value: object, path: Path) -> tuple[Checks, float]:
    """What a cascade checks, and what checking an answer takes, in joules."""
    known = ("pass_rate", "check_j", "streams_wait", "least_characters", "least_logprob", "judge")
    keys = mapping(value, known, path)
    if "pass_rate" not in keys:
        raise PolicyError(path, "needs a pass_rate: the share of first answers expected to pass")
    least = keys.get("least_logprob")
    if least is not None:
        least = number(least, (*path, "least_logprob"), above=None)
        if least > 0.0:
            message = f"is the logarithm of a probability, so 0 or less, not {least:g}"
            raise PolicyError((*path, "least_logprob"), message)
    checks = Checks(
        least_characters=whole(keys.get("least_characters", 1), (*path, "least_characters")),
        least_mean_logprob=least,
        judge=_maybe(text, keys, "judge", path),
        pass_rate=share(keys["pass_rate"], (*path, "pass_rate")),
        streams_wait=flag(keys.get("streams_wait", False), (*path, "streams_wait")),
    )
    check_j = number(keys.get("check_j", 0.0), (*path, "check_j"), above=None)
    if check_j < 0.0:
        raise PolicyError((*path, "check_j"), f"should be 0 or more, not {check_j:g}")
    return checks, check_j


def _exploring(policy: Policy, value: object, path: Path) -> Policy:
    keys = mapping(value, ("share", "extra_energy"), path)
    return Exploring(
        policy,
        share(keys.get("share", 0.01), (*path, "share")),
        share(keys.get("extra_energy", 0.005), (*path, "extra_energy")),
    )


def _roll_out(value: object, path: Path) -> RollOut:
    keys = mapping(value, ("backend", "share", "attempt"), path)
    if "backend" not in keys:
        raise PolicyError(path, "does not say which backend is new; give 'backend'")
    return RollOut(
        backend=text(keys["backend"], (*path, "backend")),
        share=share(keys.get("share", 0.02), (*path, "share")),
        attempt=whole(keys.get("attempt", 1), (*path, "attempt")),
    )


def _held_out(value: object, path: Path) -> float:
    """The share of a hold-out; ``true`` is 1 %."""
    if isinstance(value, bool):
        return 0.01 if value else 0.0
    return share(value, path, most=0.5)


def _budgets(value: object, path: Path) -> tuple[AnswerBudget, ...]:
    budgets: list[AnswerBudget] = []
    known = tuple(field.name for field in msgspec.structs.fields(AnswerBudget))
    for index, item in enumerate(_list(value, path)):
        at = (*path, index)
        keys = mapping(item, known, at)
        try:
            budget = msgspec.convert(dict(keys), AnswerBudget)
        except msgspec.ValidationError as error:
            raise PolicyError(at, str(error)) from None
        if not (budget.reasoning_effort or budget.max_tokens or budget.directive):
            raise PolicyError(at, "needs a reasoning_effort, max_tokens or directive")
        if budget.reasoning_effort is not None:
            word(budget.reasoning_effort, EFFORTS, (*at, "reasoning_effort"))
        if budget.name in {b.name for b in budgets}:
            raise PolicyError((*at, "name"), f"there are two answer budgets {budget.name!r}")
        budgets.append(budget)
    return tuple(budgets)


def _list(value: object, path: Path) -> Sequence[Any]:
    if not isinstance(value, list):
        raise PolicyError(path, "should be a list")
    return value


def _maybe(read: Any, keys: Mapping[str, Any], key: str, path: Path) -> Any:
    return read(keys[key], (*path, key)) if key in keys else None
