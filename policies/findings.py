"""What is well-formed in a set of policies and still cannot be meant.

Contradictions, names that no backend has, limits that no backend can ever keep, rules that never
get their turn, and backends that no policy can reach. Decided from static facts alone, so it errs
on the side of silence; ``check_figures`` adds, as warnings, limits that by today's estimates not
even the shortest request keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from estimators.text import TASKS
from estimators.types import Backend
from policies.language import Book, Spec
from policies.limits import LOCAL, UPPER, listed, within
from policies.ranking import INF
from policies.types import Candidate, Limits
from policies.wording import Hours, Path, Range, nearest

# Longer than anybody waits: whoever allows that much most likely means milliseconds.
_LONGEST_S = {"max_ttft_s": 60.0, "max_latency_s": 7200.0}
# What the figures of a request lie between.
_WITHIN = {"prompt_tokens": (0.0, INF), "intensity": (0.0, INF), "budget_left": (0.0, 1.0)}


class TeamRules(msgspec.Struct, frozen=True):
    """What a team may do: its policy's name and its own hard limits."""

    policy: str | None = None
    limits: Limits = Limits()
    answer_budgets: bool = True  # whether it allows them


class Finding(msgspec.Struct, frozen=True):
    """One thing to mend. ``path`` starts with "policies" or "teams" or "backends"."""

    kind: str  # contradiction | unknown_name | never_satisfiable | unreachable
    error: bool  # whether it should stop the start; else it is a warning
    path: Path
    message: str

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.message}"


def check_policies(
    book: Book,
    backends: Sequence[Backend],
    teams: Mapping[str, TeamRules] | None = None,
    default_policy: str = "least_energy",
) -> list[Finding]:
    """Everything found, the most serious first."""
    found: list[Finding] = []
    for name, spec in book.specs.items():
        found += _names(("policies", name), spec, backends)
        found += _rules(("policies", name), spec)
        found += _conditions(("policies", name), spec, backends, teams or {})
        found += _promises(("policies", name), spec, backends)
        for path, part in _parts(("policies", name), spec):
            found += _satisfiable(path, part.limits, backends, part.otherwise == "refuse")
            found += _seconds(path, part.limits, None if part is spec else spec.limits)
    for name, team in (teams or {}).items():
        found += _team(name, team, book, backends)
    if default_policy not in book.policies:
        close = nearest(default_policy, book.policies)
        hint = f" Did you mean {close!r}?" if close else ""
        message = f"there is no policy {default_policy!r}.{hint}"
        found.append(Finding("unknown_name", True, ("default_policy",), message))
    found += _unreachable(book, backends, teams or {}, default_policy)
    return sorted(set(found), key=lambda f: (not f.error, [str(p) for p in f.path], f.message))


def _parts(path: Path, spec: Spec) -> Iterator[tuple[Path, Spec]]:
    """The policy itself and what each of its rules makes of it."""
    yield path, spec
    for index, rule in enumerate(spec.rules):
        if rule.name == spec.name:
            yield (*path, "rules", index), rule


def _names(path: Path, spec: Spec, backends: Sequence[Backend]) -> Iterator[Finding]:
    """Names that nothing has: backends, groups, regions, providers."""
    variants = {b.name for b in backends}
    known = variants | {b.group for b in backends}
    regions = {b.region for b in backends if b.region}
    providers = {b.provider or LOCAL for b in backends}
    for at, part in _parts(path, spec):
        limits = part.limits
        among = part.among if part.among not in (("asked",), ("any",)) else ()
        asked: list[tuple[Path, Sequence[str], set[str], str]] = [
            ((*at, "among"), among, known, "backend or model"),
            ((*at, "limits", "regions"), limits.regions or (), regions, "region of any backend"),
            (
                (*at, "limits", "providers"),
                limits.providers or (),
                providers,
                "provider of any backend",
            ),
        ]
        if limits.backends != part.among:
            allowed = limits.backends or ()
            asked.append(((*at, "limits", "backends"), allowed, known, "backend or model"))
        if part.compare_with:
            asked.append(((*at, "compare_with"), (part.compare_with,), variants, "backend"))
        if part.canary:
            asked.append(((*at, "canary", "backend"), (part.canary.backend,), variants, "backend"))
        if part.cascade and part.cascade.judge:
            judge = (part.cascade.judge,)
            asked.append(((*at, "cascade", "judge"), judge, known, "backend or model"))
        if limits.relative_to:
            reference = (limits.relative_to,)
            asked.append(((*at, "limits", "min_quality"), reference, known, "backend or model"))
        for where, names, have, what in asked:
            for name in names:
                if name not in have:
                    close = nearest(name, have)
                    hint = f" Did you mean {close!r}?" if close else ""
                    message = f"{name!r} is no {what}.{hint}"
                    yield Finding("unknown_name", True, where, message)


def _rules(path: Path, spec: Spec) -> Iterator[Finding]:
    """Rules that never get their turn because an earlier one always takes it."""
    for later, condition in enumerate(spec.conditions):
        for earlier in range(later):
            if _covers(spec.conditions[earlier], condition):
                message = f"never applies: rule {earlier + 1} above takes all its requests"
                yield Finding("contradiction", False, (*path, "rules", later), message)
                break


def _conditions(
    path: Path, spec: Spec, backends: Sequence[Backend], teams: Mapping[str, TeamRules]
) -> Iterator[Finding]:
    """Rules whose condition names what nothing has, so that they never apply."""
    models = {b.name for b in backends} | {b.group for b in backends} | {"auto"}
    wild = any("*" in b.group for b in backends)
    for index, condition in enumerate(spec.conditions):
        at = (*path, "rules", index, "when")
        names = [n for n in condition.model or () if n not in models and not n.startswith("auto:")]
        if condition.model and len(names) == len(condition.model) and not wild:
            close = nearest(names[0], models)
            hint = f" Did you mean {close!r}?" if close else ""
            message = f"never applies: nobody can ask for the model {names[0]!r}.{hint}"
            yield Finding("contradiction", False, (*at, "model"), message)
        kinds = [task for task in condition.task or () if task not in TASKS]
        if kinds:
            close = nearest(kinds[0], TASKS)
            hint = f" Did you mean {close!r}?" if close else f" Known: {', '.join(TASKS)}."
            message = f"no request is of the kind {kinds[0]!r}.{hint}"
            yield Finding("unknown_name", False, (*at, "task"), message)
        for field, (least, most) in _WITHIN.items():
            asked = getattr(condition, field)
            if asked is not None and not asked.meets(least, most):
                message = f"never applies: {field} is never {_words(asked)}"
                yield Finding("contradiction", False, (*at, field), message)
        if teams and condition.team and not set(condition.team) & set(teams):
            close = nearest(condition.team[0], teams)
            hint = f" Did you mean {close!r}?" if close else ""
            message = f"the config has no team {condition.team[0]!r}.{hint}"
            yield Finding("unknown_name", False, (*at, "team"), message)


def _words(asked: Range) -> str:
    """A range in words, as far as one bound can make it impossible."""
    if asked.high is None:
        return f"{'more than' if asked.strict else 'at least'} {asked.low:g}"
    return f"{'less than' if asked.strict else 'at most'} {asked.high:g}"


def _seconds(path: Path, limits: Limits, of_all: Limits | None = None) -> Iterator[Finding]:
    """Times that limit nothing; those that a rule has from its whole policy are told there."""
    for field, longest_s in _LONGEST_S.items():
        limit_s = getattr(limits, field)
        if limit_s is None or limit_s <= longest_s:
            continue
        if of_all is None or limit_s != getattr(of_all, field):
            message = (
                f"{limit_s:g} seconds limit nothing; write {limit_s / 1000:g} for {limit_s:g} ms"
            )
            yield Finding("contradiction", False, (*path, "limits", field), message)


def _promises(path: Path, spec: Spec, backends: Sequence[Backend]) -> Iterator[Finding]:
    """A promise on average that even the best backend cannot keep."""
    for at, part in _parts(path, spec):
        known = [
            [q for q in (b.quality, *b.quality_by_task.values()) if q is not None]
            for b in backends
            if _reachable(part.limits, b)
        ]
        if part.promised is None or not known or not all(known):
            continue
        best = max(max(each) for each in known)
        if best < part.promised:
            message = f"no backend can keep this promise: the best gives {best:g}"
            yield Finding("never_satisfiable", False, (*at, "average_quality"), message)


def _covers(a: object, b: object) -> bool:
    """Whether every request of condition ``b`` is one of ``a``; only sure cases count."""
    for field in msgspec.structs.fields(type(a)):  # type: ignore[arg-type]
        of_a, of_b = getattr(a, field.name), getattr(b, field.name)
        if of_a is None or of_a == of_b:
            continue
        if isinstance(of_a, Range) and isinstance(of_b, Range) and of_a.covers(of_b):
            continue
        if isinstance(of_a, Hours) and isinstance(of_b, Hours) and of_a.covers(of_b):
            continue
        if not (isinstance(of_a, tuple) and isinstance(of_b, tuple) and set(of_b) <= set(of_a)):
            return False
    return True


def _satisfiable(
    path: Path, limits: Limits, backends: Sequence[Backend], refuses: bool
) -> Iterator[Finding]:
    if not backends or any(_reachable(limits, b) for b in backends):
        return
    reasons = sorted({_why_not(limits, b) for b in backends})
    end = "every request would be refused" if refuses else "it always does what `otherwise` says"
    message = f"no backend can keep these limits ({'; '.join(reasons)}), so {end}"
    yield Finding("never_satisfiable", refuses, (*path, "limits"), message)


def check_figures(
    book: Book, shortest: Sequence[Candidate], teams: Mapping[str, TeamRules] | None = None
) -> list[Finding]:
    """Limits on energy, carbon, money and time that no backend keeps, or that hang on a figure
    that is known of none; ``shortest`` is the estimate of a one-token request on each idle backend.

    Warnings only: estimates are learnt, and prices and hardware may still be told.
    """
    asked = [
        (at, part.limits)
        for name, spec in book.specs.items()
        for at, part in _parts(("policies", name), spec)
    ]
    asked += [(("teams", name), team.limits) for name, team in (teams or {}).items()]
    found = []
    for at, limits in asked:
        allowed = [c for c in shortest if _reachable(limits, c.backend)]
        for field, figure, word, unit in UPPER:
            limit = getattr(limits, field)
            if limit is None or not allowed:
                continue
            bands = [b for c in allowed if (b := getattr(c.estimate, figure)) is not None]
            least = min((b.mid if limits.cautious is False else b.high for b in bands), default=INF)
            if least <= limit or (not bands and word == "carbon"):  # a grid tells it later
                continue
            known = "price" if word == "money" else word
            message = f"no backend's {known} is known, so nothing keeps this limit"
            if bands:
                message = (
                    f"no backend is expected to keep this limit: even one token may take "
                    f"{least:.3g} {unit}"
                )
            found.append(Finding("never_satisfiable", False, (*at, "limits", field), message))
    return found


def _reachable(limits: Limits, backend: Backend) -> bool:
    return not _why_not(limits, backend)


def _why_not(limits: Limits, backend: Backend) -> str:
    """The limit that this backend can never keep; empty when it may."""
    if not listed(backend, limits):
        return "backends: not on the list"
    if limits.regions is not None and backend.region not in limits.regions:
        return f"regions: {backend.region or 'unknown'}"
    if limits.providers is not None and (backend.provider or LOCAL) not in limits.providers:
        return f"providers: {backend.provider or LOCAL}"
    context = limits.min_context_tokens
    if context is not None and (backend.context_tokens or 0) < context:
        return f"min_context_tokens: {backend.context_tokens or 'unknown'}"
    known = [q for q in (backend.quality, *backend.quality_by_task.values()) if q is not None]
    if limits.min_quality is not None and known and max(known) < limits.min_quality:
        return f"min_quality: at most {max(known):g}"
    return ""


def _team(name: str, team: TeamRules, book: Book, backends: Sequence[Backend]) -> Iterator[Finding]:
    path: Path = ("teams", name)
    if team.policy is not None and team.policy not in book.policies:
        close = nearest(team.policy, book.policies)
        hint = f" Did you mean {close!r}?" if close else ""
        message = f"there is no policy {team.policy!r}.{hint}"
        yield Finding("unknown_name", True, (*path, "policy"), message)
        return
    yield from _satisfiable(path, team.limits, backends, True)
    yield from _seconds(path, team.limits)
    first, whole = team.limits.max_ttft_s, team.limits.max_latency_s
    if first is not None and whole is not None and first > whole:
        message = f"allows {first:g} s to the first token, yet the whole answer only {whole:g} s"
        yield Finding("contradiction", False, (*path, "limits", "max_ttft_s"), message)
    yield from _unknown_in_limits((*path, "limits"), team.limits, backends)
    spec = book.specs.get(team.policy or "")
    if spec is not None and not team.answer_budgets and book.needs(spec.name).answer_budgets:
        message = (
            f"policy {spec.name!r} has answer budgets, which this team does not allow; "
            "set answer_budgets: true or use another policy"
        )
        yield Finding("contradiction", False, (*path, "policy"), message)
    if spec is None or not any(_reachable(team.limits, b) for b in backends):
        return
    both = within(team.limits, spec.limits)
    if any(_reachable(spec.limits, b) for b in backends):
        refuses = spec.otherwise == "refuse"
        for finding in _satisfiable(path, both, backends, refuses):
            message = f"together with policy {spec.name!r}, {finding.message}"
            yield msgspec.structs.replace(finding, path=(*path, "policy"), message=message)


def _unknown_in_limits(
    path: Path, limits: Limits, backends: Sequence[Backend]
) -> Iterator[Finding]:
    """Names in a team's lists that nothing has, beside others that something has."""
    named = {b.name for b in backends} | {b.group for b in backends}
    regions = {b.region for b in backends if b.region}
    lists = (("backends", limits.backends, named), ("regions", limits.regions, regions))
    for field, given, known in lists:
        for name in given or ():
            if name not in known:
                close = nearest(name, known)
                hint = f" Did you mean {close!r}?" if close else ""
                message = f"no backend has the name {name!r}.{hint}"
                if field == "regions":
                    message = f"no backend is in the region {name!r}.{hint}"
                yield Finding("unknown_name", False, (*path, field), message)


def _unreachable(
    book: Book, backends: Sequence[Backend], teams: Mapping[str, TeamRules], default_policy: str
) -> Iterator[Finding]:
    """Backends that no team's policy can ever choose."""
    entries = [(t.policy or default_policy, t.limits) for t in teams.values()]
    entries = entries or [(default_policy, Limits())]
    for index, backend in enumerate(backends):
        reached = any(
            _reachable(limits, backend) and _policy_reaches(book, policy, limits, backend)
            for policy, limits in entries
        )
        if not reached:
            message = f"{backend.name} can be reached by no team's policy"
            yield Finding("unreachable", False, ("backends", index), message)


def _policy_reaches(
    book: Book, name: str, limits: Limits, backend: Backend, seen: frozenset[str] = frozenset()
) -> bool:
    """Whether the policy, one of its rules or one it hands over to can choose the backend."""
    if name in seen:
        return False
    spec = book.specs.get(name)
    if spec is None:
        return True  # built in: no limits from static facts
    seen = seen | {name}
    if spec.objective:
        for _, part in _parts((), spec):
            if _reachable(within(limits, part.limits), backend):
                return True
            # A cascade's first answer keeps to all limits but those on quality.
            first = msgspec.structs.replace(part.limits, min_quality=None)
            if part.cascade and _reachable(within(limits, first), backend):
                return True
    return any(_policy_reaches(book, other, limits, backend, seen) for other in spec.uses)
