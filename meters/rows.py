"""Usage records, windows and attributions as rows of the ledger, and back. Pure.

A record's fields that have no column yet are kept in ``extra``, so that a newer replica's records
pass through an older one unharmed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from operator import itemgetter
from typing import Any

import msgspec

from meters.exact import MICRO, NANO, apportion, from_micro, from_nano, micro, nano, whole
from meters.schema import DIMENSIONS, requests, windows
from meters.types import Attribution, Evidence, UsageRecord, Window

Row = dict[str, Any]

# field -> (column, into the column, out of it)
_RECORD_UNITS = {
    "energy_j": ("energy_uj", micro, from_micro),
    "energy_low_j": ("energy_low_uj", micro, from_micro),
    "energy_high_j": ("energy_high_uj", micro, from_micro),
    "hosted_j": ("hosted_uj", micro, from_micro),
    "hosted_low_j": ("hosted_low_uj", micro, from_micro),
    "hosted_high_j": ("hosted_high_uj", micro, from_micro),
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
_dimensions_in = itemgetter(*DIMENSIONS)


class _Layout:
    """Where the fields of a struct go in a row: worked out once, since it is done for every row."""

    def __init__(self, kind: type[msgspec.Struct], units: Mapping[str, Any], table: Any) -> None:
        names = kind.__struct_fields__
        texts = [f.name for f in msgspec.structs.fields(kind) if _is_text(f.type)]
        self.columns = [_column(name, units) for name in names]
        self.whole = [
            (at, NANO if units[name][1] is nano else MICRO)
            for at, name in enumerate(names)
            if name in units
        ]
        self.texts = [at for at, name in enumerate(names) if name in texts]
        self.text_of = itemgetter(*self.texts)
        self.evidence = names.index("evidence")
        self.strangers = [
            (column, name)
            for column, name in zip(self.columns, names, strict=True)
            if column not in table
        ]

    def row(self, value: msgspec.Struct) -> Row:
        fields: list[Any] = list(msgspec.structs.astuple(value))
        for at, per_unit in self.whole:
            if (figure := fields[at]) is not None:
                fields[at] = whole(figure, per_unit)
        fields[self.evidence] = str(fields[self.evidence])
        together = "".join(filter(None, self.text_of(fields)))
        if not together.isascii() or "\x00" in together:
            for at in self.texts:
                fields[at] = fields[at] and clean(fields[at])
        row = dict(zip(self.columns, fields, strict=True))
        row["extra"] = None
        if self.strangers:
            extra = {name: row.pop(column) for column, name in self.strangers}
            known = {name: field for name, field in extra.items() if field not in (None, ())}
            row["extra"] = msgspec.json.encode(known).decode() if known else None
        return row


def _is_text(kind: Any) -> bool:
    return kind in (str, str | None, Evidence)


def _column(name: str, units: Mapping[str, Any]) -> str:
    return str(units[name][0]) if name in units else _RENAMED.get(name, name)


_RECORD = _Layout(UsageRecord, _RECORD_UNITS, requests.c)
_WINDOW = _Layout(Window, _WINDOW_UNITS, windows.c)


def hour_of(at_s: float) -> int:
    """The start of the UTC hour that holds ``at_s``, Unix seconds."""
    return int(at_s // 3600) * 3600


def record_row(record: UsageRecord) -> Row:
    """One request as a row of ``requests``. Raises ValueError for a figure that is not finite."""
    row = _RECORD.row(record)
    row["tags"] = (
        ",".join(sorted({clean(tag).replace(",", " ") for tag in record.tags}))
        if record.tags
        else ""
    )
    row["hour_s"] = hour_of(record.start_s)
    row["dim_id"] = _dim_id_of(_dimensions_in(row))
    return row


def window_row(window: Window) -> Row:
    """One window as a row of ``windows``. Raises ValueError for a figure that is not finite."""
    row = _WINDOW.row(window)
    row["hour_s"] = hour_of(window.start_s)
    row["host_windows"] = 1
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
    return _without_null(_dimensions_in(row))


def dim_id(*values: Any) -> int:
    """The number of one combination of dimensions, the same on every replica; never 0."""
    digest = blake2b("\x1f".join(map(repr, values)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1


@lru_cache(maxsize=65536)
def _dim_id_of(values: tuple[Any, ...]) -> int:
    return dim_id(*_without_null(values))


def _without_null(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value if name in ("pue", "simulated") else value or ""
        for name, value in zip(DIMENSIONS, values, strict=True)
    )


def clean(text: str) -> str:
    """``text`` without what PostgreSQL cannot store: NUL, and halves of surrogate pairs."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def _fields(row: Mapping[str, Any], names: tuple[str, ...], units: Mapping[str, Any]) -> Row:
    fields: Row = msgspec.json.decode(row["extra"]) if row.get("extra") else {}
    for name in names:
        if name in units:
            column, _, out = units[name]
            fields[name] = out(row[column])
        elif (column := _RENAMED.get(name, name)) in row:
            fields[name] = row[column]
    return fields
