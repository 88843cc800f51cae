"""Files of a snapshot: CSV, JSON, Parquet, FOCUS and an ESRS E1-6 sheet.

Each says its boundary, method, factor set, licences and hash. Energy and carbon are written in
exact decimals of the snapshot's whole numbers, so that a spreadsheet's sum is the page's.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from decimal import Decimal

import msgspec

from meters.intensity.hours import iso
from proxy.dashboard.accounting import METHOD
from proxy.dashboard.lines import COUNTED, WEIGHED, Line
from proxy.dashboard.periods import Period, parse
from proxy.dashboard.snapshot import GROUPINGS, SERIES, Snapshot
from proxy.dashboard.user_groups import RULES

FORMATS = ("csv", "json", "parquet", "focus", "esrs", "pdf")
COLUMNS = (
    "grouping",
    "key",
    "requests",
    "unknown_requests",
    "prompt_tokens",
    "cached_prompt_tokens",
    "output_tokens",
    "active_kwh",
    "idle_kwh",
    "host_kwh",
    "overhead_kwh",
    "facility_kwh",
    "co2e_location_kg",
    "co2e_market_kg",
    "co2e_embodied_kg",
)


def kwh(uj: int | None) -> str:
    """Kilowatt-hours of micro-joules, to eighteen places: far below a micro-joule; '' for None."""
    return "" if uj is None else _plain(Decimal(uj) / Decimal(3_600_000_000_000))


def kg(ug: int | None) -> str:
    """Kilograms of micro-grams, exact; '' for None."""
    return "" if ug is None else _plain(Decimal(ug) / Decimal(1_000_000_000))


def _plain(value: Decimal) -> str:
    text = format(round(value, 18), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def about(snapshot: Snapshot) -> list[tuple[str, str]]:
    """What every export says of itself."""
    s = snapshot
    return [
        ("product", "Joulegate"),
        ("team", s.team),
        ("period", s.period),
        ("time_zone", s.time_zone),
        ("from", iso(s.start_s)),
        ("to", iso(s.end_s)),
        (
            "data",
            "SIMULATED: made by simulated engines, no footprint of anything"
            if s.simulated
            else "provisional"
            if s.provisional
            else "final",
        ),
        ("grade", s.grade),
        ("grade_points_of_100", f"{s.score * 100:.0f}"),
        ("evidence", "; ".join(f"{e} {kg(ug)} kg" for e, ug in s.evidence) or "none"),
        (
            "range_80_percent_kg",
            "not known"
            if s.total.is_unknown
            else f"{s.range.low_ug / 1e9:.6f} to {s.range.high_ug / 1e9:.6f}",
        ),
        (
            "without_figure",
            f"{s.total.unknown_requests} of {s.total.requests} requests, which are in no sum of "
            "energy or carbon",
        ),
        (
            "market_based",
            "by stated instruments" if s.market_instruments else "no instruments supplied",
        ),
        ("hold_out", _hold_out(s)),
        ("method_version", s.method_version),
        *((f"method: {name.lower()}", words) for name, words in METHOD),
        ("factor_set", s.set_version),
        ("ledger_version", s.ledger_version),
        (
            "factors",
            "; ".join(
                f"{f.zone} {f.mean_g_per_kwh:.2f} g/kWh ({', '.join(f.sources)})" for f in s.factors
            )
            or "none",
        ),
        ("attribution", "; ".join(s.attributions) or "none"),
        (
            "joulegate_itself",
            f"{kwh(s.own_uj)} kWh by its processes, {kwh(s.own_metered_uj)} of it metered, the "
            "rest modelled; on no account, and in no sum",
        ),
        *_left_out(s),
        ("sha256", s.hash),
    ]


def _left_out(snapshot: Snapshot) -> list[tuple[str, str]]:
    """What a member's file says of the lines that it does not have."""
    if snapshot.lines["key"] or not snapshot.lines["model"]:
        return []
    return [("left_out", "lines by key, which are for leads of the team; sha256 is of the whole")]


def _hold_out(snapshot: Snapshot) -> str:
    """What the randomised hold-out says, in words."""
    found = snapshot.holdout
    if found is None:
        return "none ran"
    requests = f"{found.requests} request{'s' if found.requests != 1 else ''}"
    words = f"{requests}, {found.share:.2%} of the experiment's"
    if found.difference is None:
        return f"{words}; too few days to compare"
    part, low, high, which = found.difference
    return f"{words}; the others took {part:.1%} {which} energy ({low:.1%} to {high:.1%})"


def rows(snapshot: Snapshot) -> list[dict[str, str]]:
    """The total and every line of every grouping, in COLUMNS."""
    found = [_row("total", snapshot.total, snapshot)]
    for name in (*GROUPINGS, *SERIES):
        found += [_row(name, line, snapshot) for line in snapshot.lines[name]]
    return found


def _row(grouping: str, line: Line, snapshot: Snapshot) -> dict[str, str]:
    row = {"grouping": grouping, "key": guarded(line.key)}
    row |= {name: str(getattr(line, name)) for name in COUNTED}
    row |= {
        "active_kwh": kwh(line.known("active_uj")),
        "idle_kwh": kwh(snapshot.idle_uj(line)),
        "host_kwh": kwh(line.known("host_uj")),
        "overhead_kwh": kwh(line.known("overhead_uj")),
        "facility_kwh": kwh(line.known("facility_uj")),
        "co2e_location_kg": kg(line.known("operational_ug")),
        "co2e_market_kg": kg(line.known("market_ug")) if snapshot.market_instruments else "",
        "co2e_embodied_kg": kg(line.known("embodied_ug")) if snapshot.embodied_known else "",
    }
    return row


def guarded(text: str) -> str:
    """Text that a spreadsheet will not run as a formula; tags and keys are callers' words."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def as_csv(snapshot: Snapshot) -> bytes:
    """``#`` lines that say what it is, then the table."""
    return _written(about(snapshot), COLUMNS, rows(snapshot))


def _written(
    head: Iterable[tuple[str, str]], columns: Sequence[str], table: Iterable[dict[str, str]]
) -> bytes:
    out = io.StringIO()
    for name, words in head:
        out.write(f"# {name}: {' '.join(words.split())}\n")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue().encode()


def as_users(snapshot: Snapshot, groups: Sequence[Line]) -> bytes:
    """Groups of users as a CSV of their own, with the snapshot that they divide in its head."""
    table = [_row("total", snapshot.total, snapshot)]
    table += [_row("user_group", line, snapshot) for line in groups]
    head = [*about(snapshot), ("method: user groups", RULES)]
    return _written(head, COLUMNS, table)


def as_json(snapshot: Snapshot) -> bytes:
    """The snapshot itself, whole micro-units, with the words of the method beside it."""
    return msgspec.json.encode(
        {
            "about": dict(about(snapshot)),
            "units": {"*_uj": "1e-6 J", "*_ug": "1e-6 g CO2e", "*_ml": "1e-3 L"},
            "snapshot": snapshot,
        },
        order="deterministic",
    )


def as_parquet(snapshot: Snapshot) -> bytes:
    """The rows of the CSV with whole micro-units, the head as file metadata."""
    # pyarrow takes a third of a second to import, and most processes never write this
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [("total", snapshot.total)]
    lines += [(name, line) for name, group in snapshot.lines.items() for line in group]
    columns: dict[str, list[object]] = {
        "grouping": [name for name, _ in lines],
        "key": [line.key for _, line in lines],
    }
    for field in COUNTED:
        columns[field] = [getattr(line, field) for _, line in lines]
    for field in WEIGHED:
        columns[field] = [line.known(field) for _, line in lines]
    if not snapshot.market_instruments:
        columns["market_ug"] = [None for _ in lines]
    if not snapshot.idle_known:
        columns["idle_uj"] = [None for _ in lines]
    if not snapshot.embodied_known:
        columns["embodied_ug"] = [None for _ in lines]
    types = {"grouping": pa.string(), "key": pa.string()}
    table = pa.table({n: pa.array(v, type=types.get(n, pa.int64())) for n, v in columns.items()})
    table = table.replace_schema_metadata(dict(about(snapshot)))
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


# The columns that FOCUS 1.2 makes mandatory (focus.finops.org/focus-specification/v1-2), those of
# its conditional ones that are known here, 1.3's AllocatedMethodId, and the footprint.
FOCUS_MANDATORY = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
)
FOCUS_COLUMNS = (
    *FOCUS_MANDATORY,
    "AllocatedMethodId",
    "ChargeFrequency",
    "ConsumedQuantity",
    "ConsumedUnit",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ServiceSubcategory",
    "SkuId",
    "SubAccountId",
    "SubAccountName",
    "Tags",
    "x_EnergyKwh",
    "x_Co2eLocationKg",
    "x_Co2eMarketKg",
    "x_Co2eEmbodiedKg",
    "x_EvidenceTier",
    "x_Co2eLowKg",
    "x_Co2eHighKg",
    "x_CarbonFactorSet",
    "x_MethodVersion",
    "x_Boundary",
    "x_Attribution",
    "x_MarketBased",
    "x_SnapshotSha256",
)
NO_CURRENCY = "XXX"  # ISO 4217: no currency is involved


def as_focus(snapshot: Snapshot) -> bytes:
    """One FOCUS charge a model, backend, zone and set of tags, with the footprint in ``x_``
    columns.

    Joulegate invoices nothing, so each cost is 0 of no currency. The range of a charge is the
    whole's range in proportion.
    """
    s = snapshot
    middle = s.total.operational_ug or 1
    share_low, share_high = s.range.low_ug / middle, s.range.high_ug / middle
    whole = {
        "BilledCost": "0",
        "BillingAccountId": "joulegate",
        "BillingAccountName": "Joulegate",
        "BillingCurrency": NO_CURRENCY,
        "BillingPeriodEnd": iso(s.end_s),
        "BillingPeriodStart": iso(s.start_s),
        "ChargeCategory": "Usage",
        "ChargeClass": "",
        "ChargePeriodEnd": iso(s.end_s),
        "ChargePeriodStart": iso(s.start_s),
        "ContractedCost": "0",
        "EffectiveCost": "0",
        "InvoiceIssuerName": "Joulegate",
        "ListCost": "0",
        "PricingUnit": "Tokens",
        "ProviderName": "Joulegate",
        "PublisherName": "Joulegate",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Joulegate inference",
        "AllocatedMethodId": f"joulegate-{s.method_version}",
        "ChargeFrequency": "Usage-Based",
        "ConsumedUnit": "Tokens",
        "ServiceSubcategory": "Generative AI",
        "SubAccountId": guarded(s.team),
        "SubAccountName": guarded(s.team),
        "x_EvidenceTier": "+".join(e for e, _ in s.evidence),
        "x_CarbonFactorSet": s.set_version,
        "x_MethodVersion": s.method_version,
        "x_Boundary": METHOD[0][1],
        "x_Attribution": "; ".join(s.attributions) or "none",
        "x_MarketBased": "by stated instruments"
        if s.market_instruments
        else "no instruments supplied",
        "x_SnapshotSha256": s.hash,
    }
    table = []
    for charge in s.charges:
        line, where = charge.line, charge.backend or "nothing sent"
        tokens = str(line.prompt_tokens + line.output_tokens)
        table.append(
            whole
            | {
                "ChargeDescription": guarded(f"{charge.model} on {where}"),
                "PricingQuantity": tokens,
                "ConsumedQuantity": tokens,
                "RegionId": charge.zone,
                "RegionName": charge.zone,
                "ResourceId": guarded(charge.backend),
                "ResourceName": guarded(charge.backend),
                "SkuId": guarded(charge.model),
                "Tags": json.dumps(dict.fromkeys(charge.tags, True), ensure_ascii=False),
                "x_EnergyKwh": kwh(line.known("facility_uj")),
                "x_Co2eLocationKg": kg(line.known("operational_ug")),
                "x_Co2eMarketKg": kg(line.known("market_ug")) if s.market_instruments else "",
                "x_Co2eEmbodiedKg": kg(line.known("embodied_ug")) if s.embodied_known else "",
                "x_Co2eLowKg": _part(line, share_low),
                "x_Co2eHighKg": _part(line, share_high),
            }
        )
    out = io.StringIO()  # importers of FOCUS do not skip comment lines
    writer = csv.DictWriter(out, FOCUS_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue().encode()


def _part(line: Line, share: float) -> str:
    """A share of a line's grams in kilograms; '' where they are not known."""
    return "" if line.is_unknown else f"{line.operational_ug * share / 1e9:.9f}"


def as_esrs(snapshot: Snapshot) -> bytes:
    """Rows for ESRS E1-6, gross, by scope, in tonnes; empty where not supplied, never 0."""
    columns = ("disclosure", "scope", "what", "location_based_t", "market_based_t")
    table = [
        {
            "disclosure": "E1-6",
            "scope": row.scope,
            "what": row.what,
            "location_based_t": tonnes(row.location_ug),
            "market_based_t": tonnes(row.market_ug),
        }
        for row in snapshot.scopes
    ]
    return _written(about(snapshot), columns, table)


def tonnes(ug: int | None) -> str:
    """Tonnes of micro-grams, exact; '' for None."""
    return "" if ug is None else _plain(Decimal(ug) / Decimal(10**12))


def period_of(snapshot: Snapshot) -> Period:
    """The period that the snapshot is of."""
    return parse(snapshot.period, snapshot.time_zone)


def file_name(snapshot: Snapshot, ending: str) -> str:
    """A name that says what is in the file."""
    team = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in snapshot.team)
    book = "-simulated" if snapshot.simulated else ""
    return f"joulegate-{team}-{snapshot.period}{book}-{snapshot.hash[:8]}.{ending}"
