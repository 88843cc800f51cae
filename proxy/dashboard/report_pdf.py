"""The report as an A4 document: the same figures as the page, for people who file paper."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fpdf import FPDF
from fpdf.enums import XPos, YPos

from proxy.dashboard.accounting import METHOD
from proxy.dashboard.exports import kg, kwh
from proxy.dashboard.lines import Line
from proxy.dashboard.numbers import Numbers
from proxy.dashboard.snapshot import GROUPINGS, Snapshot

_WORDS = str.maketrans(
    {
        "₂": "2",
        "−": "-",
        "–": "-",
        "…": "...",
        "×": "x",
        "→": "->",
        "▲": "+",
        "▼": "-",
        "\u202f": " ",
        "\u2009": " ",
        "≥": ">=",
        "≤": "<=",
    }
)
_WITH_HEADING_MM = 24.0  # a heading stands on the page of its first rows
_NAMES = {"model": "model", "backend": "backend", "key": "key", "tag": "tag"}


class _Page(FPDF):
    """A page with the boundary and hash at its foot."""

    foot = ""
    banner = ""

    def header(self) -> None:
        if self.banner:
            self.set_font("Helvetica", "B", 10)
            self.set_fill_color(0)
            self.set_text_color(255)
            self.cell(0, 8, self.banner, fill=True, align="C", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
            self.set_text_color(0)
            self.ln(2)

    def footer(self) -> None:
        self.set_y(-14)
        self.set_font("Helvetica", "", 7)
        self.cell(0, 4, self.foot, new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.cell(0, 4, f"Page {self.page_no()} of {{nb}}", align="R")


def as_pdf(snapshot: Snapshot, n: Numbers) -> bytes:
    """The PDF's bytes. Figures in tables are exact, in kWh and kg; the headline is rounded."""
    s = snapshot
    pdf = _Page(format="A4")
    pdf.set_title(f"CO2e of {_plain(s.team)}, {s.period}")
    pdf.set_creator("Joulegate")
    pdf.set_creation_date(datetime.fromtimestamp(s.end_s, UTC))  # same snapshot, same bytes
    pdf.set_auto_page_break(True, 18)
    pdf.foot = f"sha256 {s.hash}"
    if s.simulated:
        pdf.banner = "SIMULATED DATA: made by simulated engines, no footprint of anything"
    pdf.add_page()
    pdf.set_font("Helvetica", "B", 16)
    _say(pdf, f"CO2e of {s.team}, {s.period}", 9)
    pdf.set_font("Helvetica", "", 9)
    _say(
        pdf,
        f"{s.time_zone}. {'Provisional' if s.provisional else 'Final'} figures. "
        f"Grade {s.grade}, {n.plain(s.score * 100)} of 100.",
    )
    pdf.ln(2)
    pdf.set_font("Helvetica", "B", 13)
    _say(
        pdf,
        "CO2e not known: no request has a figure"
        if s.total.is_unknown
        else f"{n.mass(s.total.operational_ug)} CO2e operational, location-based "
        f"(range {n.mass(s.range.low_ug)} to {n.mass(s.range.high_ug)})",
        7,
    )
    pdf.set_font("Helvetica", "", 9)
    market = (
        n.mass(s.total.known("market_ug")) if s.market_instruments else "no instruments supplied"
    )
    embodied = n.mass(s.total.known("embodied_ug")) if s.embodied_known else "not known"

    idle = n.energy(s.idle_uj(s.total)) if s.idle_known else "not known"

    def energy(name: str) -> str:
        return n.energy(s.total.known(name))

    _say(pdf, f"Market-based: {market}. Embodied, apart: {embodied}.")
    _say(
        pdf,
        f"{energy('facility_uj')} at the facility: active {energy('active_uj')}, idle share "
        f"{idle}, host {energy('host_uj')}, overhead {energy('overhead_uj')}.",
    )
    _say(
        pdf,
        f"{n.count(s.total.requests, 'request')} ({n.plain(s.total.unknown_requests)} without a "
        f"figure), {n.significant(s.total.g_per_1k_requests)} g per 1,000 requests, "
        f"{n.significant(s.total.g_per_mtok)} g per million tokens.",
    )
    total = sum(ug for _, ug in s.evidence) or 1
    mix = ", ".join(f"{n.percent(ug / total, 1)} {e}" for e, ug in s.evidence) or "none"
    _say(pdf, f"Evidence: {mix}.")
    r, exact = s.reconciliation, n.exact
    _say(
        pdf,
        f"Reconciles, all teams: metered {exact(kwh(r.metered_uj))} kWh = teams "
        f"{exact(kwh(r.teams_uj))} + platform {exact(kwh(r.platform_uj))} + external "
        f"{exact(kwh(r.external_uj))} + residual {exact(kwh(r.residual_uj))} + pending "
        f"{exact(kwh(r.pending_uj))}.",
    )
    _heading(pdf, "Scopes")
    with _table(pdf, (28, 92, 35, 35), words=2) as table:
        _row(table, "scope", "what", "location, kg", "market, kg")
        for row in s.scopes:
            _row(
                table,
                row.scope,
                row.what,
                "not supplied" if row.location_ug is None else exact(kg(row.location_ug)),
                "not supplied" if row.market_ug is None else exact(kg(row.market_ug)),
            )
    _lines(pdf, "Total", (s.total,), s, n)
    for name in GROUPINGS:
        _lines(pdf, f"By {_NAMES.get(name, name)}", s.lines[name], s, n)
    _lines(pdf, "By day", s.lines["day"], s, n)
    _heading(pdf, "Factors")
    with _table(pdf, (25, 135, 30), words=2) as table:
        _row(table, "zone", "sources", "mean g/kWh")
        for f in s.factors:
            _row(table, f.zone, ", ".join(f.sources), n.plain(f.mean_g_per_kwh, 2))
    _say(pdf, f"Factor set {s.set_version}; ledger {s.ledger_version}; method {s.method_version}.")
    _say(pdf, f"Attribution: {'; '.join(s.attributions) or 'none'}")
    _heading(pdf, "Method")
    for name, words in METHOD:
        _say(pdf, n.prose(f"{name}. {words}"))
    return bytes(pdf.output())


def _heading(pdf: FPDF, text: str) -> None:
    if pdf.will_page_break(_WITH_HEADING_MM):
        pdf.add_page()
    pdf.ln(3)
    pdf.set_font("Helvetica", "B", 10)
    _say(pdf, text, 6)
    pdf.set_font("Helvetica", "", 8)


def _lines(pdf: FPDF, title: str, lines: tuple[Line, ...], s: Snapshot, n: Numbers) -> None:
    if not lines:
        return
    _heading(pdf, title)
    with _table(pdf, (50, 22, 38, 42, 38)) as table:
        _row(table, "", "requests", "facility, kWh", "operational, kg", "embodied, kg")
        for line in lines:
            _row(
                table,
                line.key,
                n.plain(line.requests),
                "not known" if line.is_unknown else n.exact(f"{line.facility_uj / 3.6e12:.6f}"),
                n.exact(kg(line.known("operational_ug"))) or "not known",
                (n.exact(kg(line.known("embodied_ug"))) if s.embodied_known else "") or "not known",
            )


def _table(pdf: FPDF, widths: tuple[int, ...], words: int = 1) -> Any:
    """A table whose first columns hold words, and the others figures."""
    return pdf.table(
        col_widths=widths,
        line_height=4.6,
        text_align=(*("LEFT",) * words, *("RIGHT",) * (len(widths) - words)),
        borders_layout="HORIZONTAL_LINES",
    )


def _row(table: Any, *cells: str) -> None:
    row = table.row()
    for cell in cells:
        row.cell(_plain(cell))


def _say(pdf: FPDF, text: str, height: float = 4.6) -> None:
    pdf.multi_cell(0, height, _plain(text), align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def _plain(text: str) -> str:
    """What the document's built-in fonts can write; other letters become "?"."""
    return text.translate(_WORDS).encode("latin-1", "replace").decode("latin-1")
