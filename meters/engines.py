"""Reads an engine's counters off its metrics page, by the table of dialects. Pure.

``parse`` turns a page into EngineCounters; ``difference`` turns two of them into what the engine
did in between, and notices a restart. What an engine does not say is None.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from meters.dialects import DIALECTS, Alternatives, Dialect
from meters.prometheus import Series, Wanted
from meters.types import EngineCounters, EngineWork

_COUNTERS = ("prompt_tokens", "cached_prompt_tokens", "generated_tokens", "steps")
_WORK = ("flops", "read_bytes")
_GAUGES = ("running", "waiting")
# Ranks of one engine that each tell of the same requests; the other labels are other engines.
_SAME_WORK = frozenset({"tp_rank", "pp_rank", "moe_ep_rank"})
_STARTED = "process_start_time_seconds"


class UnknownPage(ValueError):
    """Not a metrics page of an engine in the table; the message says what to do."""


class EngineDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine did between two looks at it. None where it does not say."""

    seconds: float
    prompt_tokens: float | None = None
    cached_prompt_tokens: float | None = None
    generated_tokens: float | None = None
    steps: float | None = None
    flops: float | None = None
    read_bytes: float | None = None
    running: float | None = None  # mean of the two looks
    waiting: float | None = None


def detect(page: str | bytes) -> str | None:
    """The dialect a page is written in, or None."""
    data = page.encode() if isinstance(page, str) else page
    for dialect in sorted(DIALECTS.values(), key=lambda d: not d.marks):
        if not _begins(dialect.prefix).search(data):
            continue
        if not dialect.marks or any(_begins(mark).search(data) for mark in dialect.marks):
            return dialect.name
    return None


def parse(page: str | bytes, dialect: str = "auto", *, at_s: float = 0.0) -> EngineCounters:
    """The counters on an engine's metrics page, added up over its label sets.

    ``at_s`` is the reader's monotonic clock. Raises UnknownPage where ``dialect`` is "auto" and
    no engine of the table wrote this page, or where ``dialect`` is not in the table.
    """
    data = page.encode() if isinstance(page, str) else page
    name = detect(data) if dialect == "auto" else dialect
    if name is None:
        raise UnknownPage(_advice(data))
    reader = _READERS.get(name)
    if reader is None:
        raise UnknownPage(f"No engine dialect {name!r}; known: auto, {', '.join(DIALECTS)}.")
    return reader.read(data, at_s)


def difference(before: EngineCounters, after: EngineCounters) -> EngineDelta | None:
    """What the engine did between two looks; None when it restarted in between.

    A restart is a later process start, or any counter that went down: what was counted before
    it is then unknowable, and is not guessed. Late counters give None.
    """
    if restarted(before, after):
        return None
    changes: dict[str, float | None] = {}
    for field in (*_COUNTERS, *_WORK):
        old, new = getattr(before, field), getattr(after, field)
        late = field in before.late or field in after.late
        changes[field] = None if late or old is None or new is None else new - old
    for field in _GAUGES:
        seen = [v for v in (getattr(before, field), getattr(after, field)) if v is not None]
        changes[field] = sum(seen) / len(seen) if seen else None
    return EngineDelta(seconds=after.at_s - before.at_s, **changes)


def restarted(before: EngineCounters, after: EngineCounters) -> bool:
    """Whether another process answered the second time."""
    known = before.started_s is not None and after.started_s is not None
    # llama.cpp gives whole seconds, prometheus_client hundredths
    if known and abs(after.started_s - before.started_s) > 1.0:  # type: ignore[operator]
        return True
    if before.version and after.version and before.version != after.version:
        return True
    for field in (*_COUNTERS, *_WORK):
        old, new = getattr(before, field), getattr(after, field)
        if old is not None and new is not None and new < old:
            return True
    return False


def together(seen: dict[str, EngineCounters], *, all_of_them: bool = True) -> EngineCounters:
    """Several engines' looks as one: sums where each engine says (None else), and each one's own.

    ``all_of_them`` False: some engine is missing, so that no sum is known.
    """
    looks = list(seen.values())
    sums: dict[str, Any] = {}
    for field in (*_COUNTERS, *_WORK, *_GAUGES):
        values = [getattr(look, field) for look in looks if field not in look.late]
        whole = all_of_them and len(values) == len(looks) and None not in values
        sums[field] = sum(values) if whole else None
    asleep = [look.asleep for look in looks]
    return EngineCounters(
        at_s=max(look.at_s for look in looks),
        asleep=None if None in asleep or not all_of_them else all(asleep),
        engines=seen,
        **sums,
    )


def differences(before: EngineCounters, after: EngineCounters) -> tuple[EngineWork, ...]:
    """What each of several engines did between two looks; those known at both."""
    found = []
    for name, now in after.engines.items():
        then = before.engines.get(name)
        done = None if then is None else difference(then, now)
        did = {} if done is None else {f: getattr(done, f) for f in (*_COUNTERS, *_WORK)}
        found.append(EngineWork(engine=name, version=now.version, **did))
    return tuple(found)


class _Term(NamedTuple):
    name: str
    label: str | None
    value: str | None


class _Reader:
    """One dialect's row, compiled."""

    def __init__(self, dialect: Dialect) -> None:
        self._fields: dict[str, list[list[_Term]]] = {}
        for field in (*_COUNTERS, *_WORK, *_GAUGES, "kv_usage", "awake"):
            alternatives: Alternatives = getattr(dialect, field)
            self._fields[field] = [[_term(t) for t in a.split("+")] for a in alternatives]
        self._late = frozenset(dialect.late)
        names = {t.name for a in self._fields.values() for terms in a for t in terms}
        # a counter's _total comes and goes with the exporter's version
        self._spelt = {name: name for name in names} | {f"{name}_total": name for name in names}
        self._wanted = Wanted([*self._spelt, _STARTED])

    def read(self, page: bytes, at_s: float) -> EngineCounters:
        found: dict[str, list[Series]] = defaultdict(list)
        started: float | None = None
        for series in self._wanted.read(page):
            if series.name == _STARTED:
                started = series.value
            else:
                found[self._spelt[series.name]].append(series)
        values: dict[str, Any] = {}
        late: list[str] = []
        for field, alternatives in self._fields.items():
            values[field] = None
            for terms in alternatives:
                total = _total(found, terms, mean=field in ("kv_usage", "awake"))
                if total is not None:
                    values[field] = total
                    if any(t.name in self._late for t in terms):
                        late.append(field)
                    break
        awake = values.pop("awake")
        for field in _WORK:
            if values[field] == 0 and values["generated_tokens"]:
                values[field] = None  # exported, but not counted (vLLM: --enable-mfu-metrics)
        return EngineCounters(
            at_s=at_s,
            asleep=None if awake is None else awake == 0,
            started_s=started,
            late=tuple(late),
            **values,
        )


def _total(found: dict[str, list[Series]], terms: Iterable[_Term], mean: bool) -> float | None:
    """The terms added up; None when none of them is on the page."""
    values: list[float] = []
    for term in terms:
        groups: dict[tuple[tuple[str, str], ...], float] = {}
        for series in found.get(term.name, ()):
            if term.label is not None and series.labels.get(term.label) != term.value:
                continue
            group = tuple(sorted((k, v) for k, v in series.labels.items() if k not in _SAME_WORK))
            groups[group] = max(series.value, groups.get(group, series.value))
        values.extend(groups.values())
    if not values:
        return None
    return sum(values) / len(values) if mean else sum(values)


def _term(text: str) -> _Term:
    name, _, condition = text.partition("{")
    if not condition:
        return _Term(name, None, None)
    label, _, value = condition.rstrip("}").partition("=")
    return _Term(name, label, value)


def _begins(name: str) -> re.Pattern[bytes]:
    return re.compile(b"^" + re.escape(name.encode()).replace(b":", b"[:_]"), re.MULTILINE)


def _advice(page: bytes) -> str:
    if page.lstrip()[:1] in (b"[", b"{"):
        return (
            "This page is JSON, not Prometheus text. TensorRT-LLM serves its Prometheus page at "
            "/prometheus/metrics, when started with return_perf_metrics: true."
        )
    known = ", ".join(DIALECTS)
    return (
        f"No engine of the table ({known}) wrote this page. Check the metrics URL; SGLang needs "
        "--enable-metrics and llama.cpp needs --metrics."
    )


_READERS: dict[str, _Reader] = {name: _Reader(dialect) for name, dialect in DIALECTS.items()}
