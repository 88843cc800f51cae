"""Usage records, windows and attributions as rows of the ledger, and back. Pure.

A record's fields that have no column yet are kept in ``extra``, so that a newer replica's records
pass through an older one unharmed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec

from meters.exact import MICRO, apportion, from_micro, from_nano, micro, nano
from meters.schema import DIMENSIONS, requests, windows
from meters.types import Attribution, UsageRecord, Window

Row = dict[str, Any]

# field -> (column, into the column, out of it)
_RECORD_UNITS = {
    "energy_j": ("energy_uj", micro, from_micro),
    "energy_low_j": ("energy_low_uj", micro, from_micro),
    "energy_high_j": ("energy_high_uj", micro, from_micro),
    "marginal_energy_j": ("marginal_energy_uj", micro, from_micro),
    "carbon_g": ("carbon_ug", micro, from_micro),
    "money_usd": ("money_nusd", nano, from_nano),
    "counterfactual_energy_j": ("counterfactual_energy_uj", micro, from_micro),
    "counterfactual_carbon_g": ("counterfactual_carbon_ug", micro, from_micro),
    "latency_s": ("latency_us", micro, from_micro),
    "ttft_s": ("ttft_us", micro, from_micro),
}
_WINDOW_UNITS = {
    "energy_j": ("energy_uj", micro, from_micro),
    "host_energy_j": ("host_energy_uj", micro, from_micro),
}
_RENAMED = {"group": "model_group"}
_RECORD_FIELDS = tuple(f.name for f in msgspec.structs.fields(UsageRecord))
_WINDOW_FIELDS = tuple(f.name for f in msgspec.structs.fields(Window))
# (field, its column or None, what turns it into the column's unit or None)
_Column = tuple[str, str | None, Callable[[Any], Any] | None]


def _columns(names: tuple[str, ...], units: Mapping[str, Any], table: Any) -> tuple[_Column, ...]:
    found: list[_Column] = []
    for name in names:
        column, into, _ = units.get(name, (_RENAMED.get(name, name), None, None))
        found.append((name, column if column in table else None, into))
    return tuple(found)


_RECORD_COLUMNS = _columns(_RECORD_FIELDS, _RECORD_UNITS, requests.c)
_WINDOW_COLUMNS = _columns(_WINDOW_FIELDS, _WINDOW_UNITS, windows.c)
_DIMENSION_COLUMNS = tuple(name for name in DIMENSIONS)


def hour_of(at_s: float) -> int:
    """The start of the UTC hour that holds ``at_s``, Unix seconds."""
    return int(at_s // 3600) * 3600


def record_row(record: UsageRecord) -> Row:
    """One request as a row of ``requests``. Raises ValueError for a figure that is not finite."""
    row = _row(record, _RECORD_COLUMNS)
    row["tags"] = ",".join(sorted({clean(tag).replace(",", " ") for tag in record.tags}))
    row["hour_s"] = hour_of(record.start_s)
    row["dim_id"] = dim_id(*dimensions(row))
    return row


def window_row(window: Window) -> Row:
    """One window as a row of ``windows``. Raises ValueError for a figure that is not finite."""
    row = _row(window, _WINDOW_COLUMNS)
    row["hour_s"] = hour_of(window.start_s)
    return row


def totals_row(attribution: Attribution) -> tuple[Row, dict[str, int]]:
    """One divided window as a row of ``window_totals``, and micro-joules by request.

    ``attributed + idle + external + unattributed == metered`` holds in whole micro-joules: what
    rounding loses is dealt out by ``apportion``, and parts that miss the meter by more than
    rounding are made good in ``unattributed_uj``, which then is the only one that may be negative.
    Raises ValueError when a figure is not finite or a share is negative.
    """
    by_request: dict[str, float] = {}
    for share in attribution.shares:
        by_request[clean(share.request_id)] = (
            by_request.get(clean(share.request_id), 0.0) + share.energy_j * MICRO
        )
    metered = micro(attribution.metered_j) or 0
    parts = [
        *by_request.values(),
        attribution.idle_j * MICRO,
        attribution.external_j * MICRO,
        max(attribution.unattributed_j, 0.0) * MICRO,
    ]
    try:
        whole = apportion(metered, parts)
    except ValueError:
        known = parts[:-1]
        whole = apportion(round(sum(known)), known)
        whole.append(metered - sum(whole))
    *each, idle, external, unattributed = whole
    row = {
        "window_id": clean(attribution.window_id),
        "node": clean(attribution.node),
        "start_s": attribution.start_s,
        "end_s": attribution.end_s,
        "hour_s": hour_of(attribution.start_s),
        "metered_uj": metered,
        "attributed_uj": sum(each),
        "idle_uj": idle,
        "external_uj": external,
        "unattributed_uj": unattributed,
        "metered_us": micro(attribution.end_s - attribution.start_s),
        "windows": 1,
        "evidence": str(attribution.evidence),
        "meter": clean(attribution.meter),
    }
    return row, dict(zip(by_request, each, strict=True))


def record_of(row: Mapping[str, Any]) -> UsageRecord:
    """The usage record that ``record_row`` made ``row`` from."""
    fields = _fields(row, _RECORD_FIELDS, _RECORD_UNITS)
    fields["tags"] = tuple(tag for tag in row["tags"].split(",") if tag)
    return msgspec.convert(fields, UsageRecord)


def window_of(row: Mapping[str, Any]) -> Window:
    """The window that ``window_row`` made ``row`` from."""
    return msgspec.convert(_fields(row, _WINDOW_FIELDS, _WINDOW_UNITS), Window)


def dimensions(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a request row is grouped by, in the order of DIMENSIONS; NULL text is ''."""
    return tuple(
        row[name] if name in ("pue", "simulated") else row[name] or ""
        for name in _DIMENSION_COLUMNS
    )


@lru_cache(maxsize=65536)
def dim_id(*values: Any) -> int:
    """The number of one combination of dimensions, the same on every replica; never 0."""
    digest = blake2b("\x1f".join(map(repr, values)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1


def clean(text: str) -> str:
    """``text`` without what PostgreSQL cannot store: NUL, and halves of surrogate pairs."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def _row(value: msgspec.Struct, columns: tuple[_Column, ...]) -> Row:
    row: Row = {"extra": None}
    extra: Row = {}
    for (name, column, into), field in zip(columns, msgspec.structs.astuple(value), strict=True):
        if into is not None:
            field = into(field)
        elif isinstance(field, str):
            field = clean(str(field))
        if column is not None:
            row[column] = field
        elif field is not None:
            extra[name] = field
    if extra:
        row["extra"] = msgspec.json.encode(extra).decode()
    return row


def _fields(row: Mapping[str, Any], names: tuple[str, ...], units: Mapping[str, Any]) -> Row:
    fields: Row = msgspec.json.decode(row["extra"]) if row.get("extra") else {}
    for name in names:
        if name in units:
            column, _, out = units[name]
            fields[name] = out(row[column])
        elif (column := _RENAMED.get(name, name)) in row:
            fields[name] = row[column]
    return fields
