"""A whole ledger as JSON Lines, to keep it, look at it, or move it to another database.

The first line names the format, the last counts the others, so that a file that was cut off is
noticed. Rows go in by the same door as everything else: roll-ups are made anew from them, and
what is there already changes nothing. Only what people changed is taken over where it is there: a
key that was revoked, a team that was set anew, if the export knows of its last change.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, Table, select

from meters import compaction
from meters.bulk import rows_where
from meters.ledger import Ledger
from meters.migrations import VERSION
from meters.schema import (
    accounts,
    api_keys,
    audit_log,
    changes,
    dashboard_frozen,
    feedback,
    organisations,
    own_hours,
    projects,
    requests,
    shares,
    teams,
    window_totals,
    windows,
)
from meters.unreadable import UNREADABLE

FORMAT = "joulegate-ledger-1"
_PLAIN: tuple[Table, ...] = (
    teams,
    organisations,
    projects,
    api_keys,
    accounts,
    audit_log,
    feedback,
    dashboard_frozen,
    own_hours,
    changes,
)
# What can change once it is made, and how the audit log calls that.
_PEOPLE = {teams: "team", organisations: "organisation", api_keys: "key", accounts: "account"}
# Of two rows with one key, the one that has more of this is the later one.
_GROWING = {feedback: feedback.c.at_s, own_hours: own_hours.c.energy_uj}
_BATCH = 1_000

Row = dict[str, Any]
Subject = tuple[str, str]  # a kind of _PEOPLE, and which of it


class BadExport(Exception):
    """The lines are no export, or not all of one; the message says so."""


def exported(ledger: Ledger) -> Iterator[bytes]:
    """The lines of an export, of one state of the ledger however long it takes."""
    counts: Counter[str] = Counter()
    with ledger.database.read() as connection:
        first = {"format": FORMAT, "version": VERSION, "exported_s": time.time()}
        yield _line(first | {"folded_before_s": compaction.horizon(connection)})
        for name, row in _rows(connection):
            counts[name] += 1
            yield _line({"table": name, "row": row})
    yield _line({"end": counts})


def imported(ledger: Ledger, lines: Iterable[bytes]) -> Counter[str]:
    """Bring the lines of an export in; how many rows of each table they held. Raises BadExport.

    Batches are transactions: when it stops in the middle, what is in is whole, and importing
    again goes on.
    """
    counts: Counter[str] = Counter()
    incoming = iter(lines)
    first = _object(next(incoming, b""))
    if first.get("format") != FORMAT:
        raise BadExport("This is no export of a ledger: its first line does not say so.")
    if first["version"] > VERSION:
        raise BadExport("This export is of a newer ledger. Install the newer Joulegate.")
    _refuse_other_folding(ledger, first["folded_before_s"])
    end: dict[str, int] | None = None
    people: list[tuple[Table, Row]] = []
    changed_s: dict[Subject, float] = {}
    while batch := [_object(line) for line in itertools.islice(incoming, _BATCH)]:
        if "end" in batch[-1]:
            end = batch.pop()["end"]
        _note_changes(changed_s, (e["row"] for e in batch if e["table"] == audit_log.name))
        people += _take(ledger, batch)
        counts.update(entry["table"] for entry in batch)
    if end != dict(counts):
        raise BadExport(f"The export is cut off: {dict(counts)} were read and {end} announced.")
    _take_later(ledger, people, changed_s)
    return counts


def _rows(connection: Connection) -> Iterator[tuple[str, dict[str, Any]]]:
    for table in (*_PLAIN, requests, windows):
        for row in _stream(connection, select(table)):
            yield str(table.name), row
    w, s = window_totals.c, shares.c
    totals = _stream(connection, select(window_totals).order_by(w.window_id))
    parts = itertools.groupby(
        _stream(connection, select(shares).order_by(s.window_id, s.request_id)),
        key=lambda row: row["window_id"],
    )
    of_window, group = next(parts, (None, iter(())))
    for row in totals:
        row["shares"] = {}
        if of_window == row["window_id"]:
            row["shares"] = {part["request_id"]: part["energy_uj"] for part in group}
            of_window, group = next(parts, (None, iter(())))
        yield str(window_totals.name), row


def _stream(connection: Connection, query: Any) -> Iterator[dict[str, Any]]:
    # a server-side cursor: ten million rows do not fit in memory
    options = {"stream_results": True, "yield_per": _BATCH}
    for row in connection.execute(query, execution_options=options).mappings():
        yield {str(name): value for name, value in row.items()}


def _refuse_other_folding(ledger: Ledger, folded_before_s: int) -> None:
    """A window and the hour it was folded into must not both be counted."""
    with ledger.database.read() as connection:
        here = compaction.horizon(connection)
        if here != folded_before_s and connection.execute(select(window_totals).limit(1)).first():
            raise BadExport(
                "This ledger and the export are compacted up to different hours. Import into an "
                "empty ledger, or compact the one that is behind to the same hour first."
            )


def _take(ledger: Ledger, batch: list[Row]) -> list[tuple[Table, Row]]:
    """Bring rows in; those of people that are here, and otherwise, are given back."""
    other: list[tuple[Table, Row]] = []
    by_table: dict[str, list[dict[str, Any]]] = {}
    for entry in batch:
        by_table.setdefault(entry["table"], []).append(entry["row"])
    divided = [(row, row.pop("shares")) for row in by_table.pop(window_totals.name, ())]
    with ledger.database.write() as connection:
        for table in _PLAIN:
            rows = by_table.pop(table.name, [])
            other += ((table, row) for row in _take_plain(connection, table, rows))
        asked = by_table.pop(requests.name, [])
        for row in asked:  # of exports from before these columns
            row.setdefault("arm", None)
            row.setdefault("intensity_tier", "")
            row.setdefault("user_hash", None)
            for name in ("hosted_uj", "hosted_low_uj", "hosted_high_uj"):
                row.setdefault(name, None)
        seen = by_table.pop(windows.name, [])
        for row in seen:
            row.setdefault("host_windows", 1)
        ledger.add_rows(
            connection,
            asked,
            seen,
            divided,
            open_from_s=0,
        )
    if by_table:
        raise BadExport(f"The export has tables that are not known: {', '.join(by_table)}.")
    return other


def _take_plain(connection: Connection, table: Table, rows: list[Row]) -> Iterator[Row]:
    for row in rows:
        key = [column == row[column.name] for column in table.primary_key]
        here = connection.execute(select(table).where(*key)).mappings().first()
        if table is changes and row["name"] == compaction.HORIZON:
            row["number"] = max(row["number"], compaction.horizon(connection))
            connection.execute(table.delete().where(*key))
        elif here is not None:
            if table in _GROWING and row[_GROWING[table].name] > here[_GROWING[table].name]:
                connection.execute(table.update().where(*key).values(row))
            elif table in _PEOPLE and row != dict(here):
                yield row
            continue
        connection.execute(table.insert().values(row))


def _note_changes(changed_s: dict[Subject, float], entries: Iterable[Row]) -> None:
    """When each of _PEOPLE was changed last, by the entries of an audit log."""
    for entry in entries:
        subject = (entry["action"].partition(".")[0], entry["subject"])
        changed_s[subject] = max(changed_s.get(subject, 0.0), entry["at_s"])


def _take_later(
    ledger: Ledger, people: list[tuple[Table, Row]], changed_s: dict[Subject, float]
) -> None:
    """Set anew what was changed where the export comes from after it was changed here."""
    subjects = {row[column.name] for table, row in people for column in table.primary_key}
    with ledger.database.write() as connection:
        here_s: dict[Subject, float] = {}
        _note_changes(
            here_s, rows_where(connection, select(audit_log), audit_log.c.subject, subjects)
        )
        for table, row in people:
            (key,) = table.primary_key
            subject = (_PEOPLE[table], row[key.name])
            if changed_s.get(subject, 0.0) >= here_s.get(subject, 0.0) > 0.0:
                connection.execute(table.update().where(key == row[key.name]).values(row))


def _line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except UNREADABLE:
        raise BadExport("The export holds a line that is no JSON object.") from None
