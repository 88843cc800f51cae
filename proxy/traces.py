"""Traces of requests: CSV of our own form or Azure's public ones, and exports of the ledger."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

from meters.types import CACHE_HITS
from meters.unreadable import UNREADABLE
from policies.replay import Arrival

# Column names by what they mean; the first found counts. TIMESTAMP, ContextTokens and
# GeneratedTokens are those of the Azure LLM inference traces 2023 and 2024.
COLUMNS = {
    "at": ("timestamp", "TIMESTAMP", "start_s", "started_at"),
    "prompt": ("prompt_tokens", "ContextTokens"),
    "output": ("output_tokens", "GeneratedTokens"),
    "team": ("team",),
    "task": ("task",),
    "asked": ("model", "model_asked", "asked"),
    "tags": ("tags",),
}


MOST_TOKENS = 1_000_000_000


class LedgerRequest(msgspec.Struct):
    """What replay reads of a request in the ledger."""

    start_s: float
    team: str = ""
    task: str | None = None
    model_asked: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cache: str = "off"
    tags: str = ""


class LedgerLine(msgspec.Struct):
    """One line of ``joulegate ledger export``."""

    table: str = ""
    row: msgspec.Raw = msgspec.Raw()


class BadTrace(Exception):
    """A trace that cannot be used; the message names file, line and what to change."""


Zones = Callable[[str], str]  # a team's time zone


def read_trace(
    path: str, most: int | None = None, asked: str | None = None, zones: Zones | None = None
) -> list[Arrival]:
    """The requests of a trace in order of time, the first at 0 s. Raises BadTrace.

    A file that begins with ``{`` is an export of the ledger, any other is CSV. ``asked`` takes the
    place of the file's model names; without either it is ``auto``. From the ledger only requests
    that a backend answered are taken, since the cache's answers took nothing. ``zones`` says whose
    day a request's hour is of; without it UTC's.
    """
    hours = _Hours(zones)
    try:
        if _is_export(path):
            found = list(_exported(path, most, asked, hours))
            return _from_zero(path, found)
        # What spreadsheets write begins with a mark of its encoding.
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            places = _places(path, header)
            found = list(_arrivals(path, rows, places, len(header), most, asked, hours))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadTrace(
            f"{path}: {error}. Name a readable CSV file or an export of the ledger."
        ) from None
    return _from_zero(path, found)


class _Hours:
    """The hour of a team's day, of many requests in a row."""

    def __init__(self, zones: Zones | None) -> None:
        self._zones = zones
        self._zone: dict[str, ZoneInfo] = {}
        self._known: dict[tuple[str, int], int] = {}

    def of(self, team: str, at_s: float) -> int:
        if self._zones is None:
            return int(at_s // 3600) % 24
        quarter = int(at_s // 900)  # zones differ by quarters of an hour
        hour = self._known.get((team, quarter))
        if hour is None:
            zone = self._zone.get(team) or self._zone.setdefault(team, ZoneInfo(self._zones(team)))
            local = datetime.fromtimestamp(quarter * 900, UTC).astimezone(zone)
            hour = self._known[team, quarter] = local.hour
        return hour


def _from_zero(path: str, found: list[Arrival]) -> list[Arrival]:
    if not found:
        raise BadTrace(f"{path} has no requests that a backend answered.")
    found.sort(key=lambda arrival: arrival.at_s)
    start_s = found[0].at_s
    return [arrival._replace(at_s=arrival.at_s - start_s) for arrival in found]


def _is_export(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(1) == b"{"


def _exported(path: str, most: int | None, asked: str | None, hours: _Hours) -> Iterator[Arrival]:
    lines = msgspec.json.Decoder(LedgerLine)
    rows = msgspec.json.Decoder(LedgerRequest)
    taken = 0
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = lines.decode(line)
                if entry.table != "requests":
                    continue
                row = rows.decode(entry.row)
            except UNREADABLE as error:
                raise BadTrace(f"{path}, line {number}: {error}") from None
            if row.prompt_tokens is None or row.output_tokens is None or row.cache in CACHE_HITS:
                continue
            if most is not None and taken >= most:
                return
            taken += 1
            yield Arrival(
                row.start_s,
                row.prompt_tokens,
                row.output_tokens,
                row.team,
                row.task,
                asked or row.model_asked or "auto",
                hours.of(row.team, row.start_s),
                _tags(row.tags),
            )


def _places(path: str, header: list[str]) -> dict[str, int]:
    places = {}
    for meaning, names in COLUMNS.items():
        for name in names:
            if name in header:
                places[meaning] = header.index(name)
                break
    for meaning in ("at", "prompt", "output"):
        if meaning not in places:
            wanted = " or ".join(COLUMNS[meaning])
            raise BadTrace(
                f"{path}, line 1: there is no column {wanted}; found: {', '.join(header)}"
            )
    return places


def _arrivals(
    path: str,
    rows: Iterator[list[str]],
    places: Mapping[str, int],
    columns: int,
    most: int | None,
    asked: str | None,
    hours: _Hours,
) -> Iterator[Arrival]:
    at, prompt, output = places["at"], places["prompt"], places["output"]
    team, task, model = places.get("team"), places.get("task"), places.get("asked")
    tags = places.get("tags")
    taken, last = 0, max(places.values())
    for number, row in enumerate(rows, 2):
        if not any(row):
            continue
        if len(row) <= last or any(row[columns:]):  # as tags with a comma and no quotes
            raise BadTrace(f"{path}, line {number}: {len(row)} columns; the header has {columns}")
        if most is not None and taken >= most:
            return
        try:
            if not row[output].strip() or not row[prompt].strip():
                continue  # refused or cancelled before anything was counted
            at_s = seconds(row[at])
            whose = row[team] if team is not None else ""
            taken += 1
            yield Arrival(
                at_s,
                _tokens(row[prompt]),
                _tokens(row[output]),
                whose,
                (row[task] or None) if task is not None else None,
                asked or (row[model] if model is not None else "") or "auto",
                hours.of(whose, at_s),
                _tags(row[tags]) if tags is not None else (),
            )
        except (ValueError, OverflowError, OSError) as error:
            raise BadTrace(f"{path}, line {number}: {error}") from None


_NO_TIME = "{!r} is no time stamp; write seconds, or 2026-10-01T12:00:00Z"


def seconds(text: str) -> float:
    """Seconds of a time stamp: a number as it is, a date and time as Unix time (UTC if unsaid).

    Raises ValueError.
    """
    text = text.strip()
    try:
        stamp_s = float(text)
    except ValueError:
        pass
    else:
        if not isfinite(stamp_s):
            raise ValueError(_NO_TIME.format(text))
        return stamp_s
    # Azure's have seven digits behind the second; Python reads six.
    whole, dot, fraction = text.partition(".")
    digits = fraction.rstrip("Z+:-0123456789")
    zone = ""
    for sign in ("Z", "+", "-"):
        if dot and sign in fraction:
            zone = fraction[fraction.index(sign) :]
            fraction = fraction[: fraction.index(sign)]
            break
    if digits:
        raise ValueError(_NO_TIME.format(text))
    try:
        stamp = datetime.fromisoformat(f"{whole}{dot}{fraction[:6]}{zone}" if dot else whole)
    except ValueError:
        raise ValueError(_NO_TIME.format(text)) from None
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()


def _tags(text: str) -> tuple[str, ...]:
    """Tags as the ledger and headers have them, with commas between."""
    return tuple(tag.strip() for tag in text.split(",") if tag.strip()) if text else ()


def _tokens(text: str) -> int:
    tokens = float(text)
    if not 0 <= tokens < MOST_TOKENS:
        raise ValueError(f"{text!r} tokens; should be from 0 to {MOST_TOKENS:,}")
    return int(tokens)
