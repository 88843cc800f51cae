"""SVG drawn here: no script, no style attribute, colours from the page's classes.

Every chart has a title and a description for screen readers; the template puts the same figures
in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count

from markupsafe import Markup, escape

_numbers = count(1)


def _svg(
    width: float,
    height: float,
    title: str,
    text: str,
    body: str,
    name: str,
    fit: str = "xMidYMid meet",
    role: str = "img",
) -> Markup:
    number = next(_numbers) % 1_000_000
    return Markup(
        f'<svg class="chart {name}" viewBox="0 0 {width:g} {height:g}" role="{role}" '
        f'aria-labelledby="t{number} d{number}" preserveAspectRatio="{fit}">'
        f'<title id="t{number}">{escape(title)}</title><desc id="d{number}">{escape(text)}</desc>'
        f"{body}</svg>"
    )


def _rect(x: float, y: float, w: float, h: float, name: str, tip: str = "") -> str:
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    return (
        f'<rect class="{name}" x="{x:.2f}" y="{y:.2f}" width="{max(w, 0):.2f}" '
        f'height="{max(h, 0):.2f}">{inner}</rect>'
    )


def _linked(href: str, inner: str, label: str = "") -> str:
    """``inner`` as a link. Without a label it is one for the pointer only: the same link stands
    beside the chart for everyone else."""
    said = f'aria-label="{escape(label)}"' if label else 'tabindex="-1"'
    return f'<a href="{escape(href)}" {said}>{inner}</a>'


def _unspoken(body: str) -> str:
    return f'<g aria-hidden="true">{body}</g>'


def _text(x: float, y: float, text: str, anchor: str = "start", name: str = "") -> str:
    return (
        f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def nice_top(value: float) -> float:
    """A round number at or above ``value``, for the top of an axis."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10):
        if step * power >= value:
            return step * power
    return value


def stacked_days(
    labels: Sequence[str],
    layers: Sequence[tuple[str, str, Sequence[float]]],
    write: Callable[[float], str],
    title: str,
    marker: float | None = None,
    link: Callable[[str], str] | None = None,
) -> Markup:
    """Columns, one a day. ``layers``: (class, name, values) from the bottom; ``marker``: a level
    drawn across, such as a budget's day; ``link``: where a label's column leads."""
    width, height, left, bottom, top = 420.0, 214.0, 70.0, 28.0, 14.0
    totals = [sum(column) for column in zip(*(values for _, _, values in layers), strict=True)]
    most = nice_top(max([*totals, marker or 0.0, 0.0]))
    scale = (height - bottom - top) / most
    step = (width - left - 6) / max(1, len(labels))
    body = []
    for part in (0.0, 0.5, 1.0):
        y = height - bottom - most * part * scale
        body.append(f'<line class="grid" x1="{left}" x2="{width - 4}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(_text(left - 6, y + 4, write(most * part), "end", "axis"))
    for place, label in enumerate(labels):
        x, y = left + place * step, height - bottom
        column = []
        for name, word, values in layers:
            h = values[place] * scale
            y -= h
            if h > 0:
                tip = f"{label}, {word}: {write(values[place])}"
                column.append(_rect(x + step * 0.12, y, step * 0.76, h, name, tip))
        drawn = "".join(column)
        body.append(_linked(link(label), drawn) if link and drawn else drawn)
        every = max(1, round(len(labels) / 10))
        if place % every == 0:
            body.append(_text(x + step / 2, height - 8, label[-2:], "middle", "axis"))
    if marker is not None:
        y = height - bottom - marker * scale
        body.append(
            f'<line class="marker" x1="{left}" x2="{width - 4}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    high = max(totals, default=0.0)
    text = f"{len(labels)} day{'s' if len(labels) != 1 else ''}; the highest is {write(high)}."
    drawn = "".join(body)
    if link is None:
        return _svg(width, height, title, text, drawn, "days")
    return _svg(width, height, title, text, _unspoken(drawn), "days", role="group")


def diverging(
    bars: Sequence[tuple[str, float]],
    write: Callable[[float], str],
    title: str,
    link: Callable[[str], str] | None = None,
) -> Markup:
    """Bars to the left (less) and right (more) of a line, one a cause; figures in a column.
    ``link``: where a cause's row leads."""
    row, left, right, width = 26.0, 98.0, 106.0, 440.0
    height = row * len(bars) + 4
    room = width - left - right
    most = max([v for _, v in bars] + [0.0])
    least = min([v for _, v in bars] + [0.0])
    scale = room / ((most - least) or 1.0)
    zero = left - least * scale
    body = [f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height:.0f}"/>']
    for place, (name, value) in enumerate(bars):
        y, length = place * row + 4, abs(value) * scale
        kind = "more" if value >= 0 else "less"
        x = zero if value >= 0 else zero - length
        drawn = (
            _text(left - 10, y + 14, name, "end", "label")
            + _rect(x, y, length, 18, kind, f"{name}: {write(value)}")
            + _text(width - 2, y + 14, write(value), "end", "value")
        )
        if link is not None:
            whole = _rect(0, y - 4, width, row, "reach")
            drawn = _linked(link(name), whole + drawn, f"{name} {write(value)}: by model")
        body.append(drawn)
    text = "; ".join(f"{name} {write(value)}" for name, value in bars)
    role = "img" if link is None else "group"
    return _svg(width, height, title, text, "".join(body), "why", role=role)


def evidence_bar(
    parts: Sequence[tuple[str, float]],
    title: str,
    text: str,
    link: Callable[[str], str] | None = None,
) -> Markup:
    """One bar of shares that fill it; class ``e-NAME`` for each part. ``link``: where a part
    leads."""
    total = sum(v for _, v in parts) or 1.0
    x, body = 0.0, []
    for name, value in parts:
        w = value / total * 600
        part = _rect(x, 0, max(w - 1, 0.5), 18, f"e-{name}", name)
        body.append(_linked(link(name), part) if link else part)
        x += w
    drawn = "".join(body)
    if link is None:
        return _svg(600, 18, title, text, drawn, "evidence", fit="none")
    return _svg(600, 18, title, text, _unspoken(drawn), "evidence", fit="none", role="group")


def meter(value: float, least: float, most: float, limit: float, title: str, text: str) -> Markup:
    """A bar of ``value`` against ``limit``, with a forecast from ``least`` to ``most``."""
    end = max(limit, most, value) * 1.05 or 1.0
    body = [_rect(0, 4, 300, 12, "track"), _rect(0, 4, value / end * 300, 12, "active")]
    if most > value:
        body.append(_rect(least / end * 300, 7, (most - least) / end * 300, 6, "forecast"))
    at = limit / end * 300
    body.append(f'<line class="marker" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="20"/>')
    return _svg(300, 20, title, text, "".join(body), "meter")


def heat(
    rows: Sequence[str],
    values: Sequence[Sequence[float | None]],
    write: Callable[[float], str],
    title: str,
    over: Sequence[float] = (),
    write_over: Callable[[float], str] = str,
    link: Callable[[int, int], str] | None = None,
    link_over: Callable[[int], str] | None = None,
) -> Markup:
    """Twenty-four columns a row; five steps from low to high, class ``h0`` to ``h4``. ``over``:
    what the reader has in each hour, as columns above them. ``link`` and ``link_over``: where the
    cell of a row and hour, and the column of an hour, lead."""
    known = [v for row in values for v in row if v is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    cell, tall, left = 23.0, 20.0, 76.0
    above = 56.0 if any(over) else 0.0
    body = []
    if above:
        most = max(over)
        body.append(_text(left - 6, 12, write_over(most), "end", "axis"))
        body.append(_text(left - 6, above - 2, "0", "end", "axis"))
        for hour, amount in enumerate(over):
            h = amount / most * (above - 6)
            tip = f"{hour:02d}:00: {write_over(amount)}"
            drawn = _rect(left + hour * cell + 2, above - h, cell - 5, h, "active", tip)
            body.append(_linked(link_over(hour), drawn) if link_over and amount else drawn)
    body += [
        _text(left + hour * cell + cell / 2, above + 13, f"{hour:02d}", "middle", "axis")
        for hour in range(0, 24, 3)
    ]
    for place, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = above + 18 + place * tall
        body.append(_text(left - 6, y + 14, name, "end", "axis"))
        for hour, value in enumerate(row):
            if value is None:
                body.append(_rect(left + hour * cell, y, cell - 1, tall - 1, "none", "no figure"))
                continue
            step = 0 if high <= low else min(4, int((value - low) / (high - low) * 5))
            tip = f"{name} {hour:02d}:00: {write(value)}"
            drawn = _rect(left + hour * cell, y, cell - 1, tall - 1, f"h{step}", tip)
            body.append(_linked(link(place, hour), drawn) if link else drawn)
    width, height = left + 24 * cell + 2, above + 20 + len(rows) * tall
    text = f"From {write(low)} to {write(high)}." if known else "No figures."
    if above:
        peak = max(range(24), key=lambda h: over[h])
        text += f" Your energy peaks at {peak:02d}:00, {write_over(over[peak])}."
    drawn = "".join(body)
    if link is None and link_over is None:
        return _svg(width, height, title, text, drawn, "heat")
    return _svg(width, height, title, text, _unspoken(drawn), "heat", role="group")


def columns(
    values: Sequence[float],
    write: Callable[[float], str],
    title: str,
    link: Callable[[int], str] | None = None,
) -> Markup:
    """Twenty-four columns: something by hour of the day. ``link``: where an hour's leads."""
    width, height, left = 624.0, 120.0, 60.0
    most = nice_top(max([*values, 0.0]))
    step = (width - left) / max(1, len(values))
    body = [
        _text(left - 6, 14, write(most), "end", "axis"),
        _text(left - 6, 102, "0", "end", "axis"),
    ]
    for place, value in enumerate(values):
        h = value / most * 92
        x = left + place * step
        drawn = _rect(x + 1, 100 - h, step - 2, h, "active", f"{place:02d}:00: {write(value)}")
        body.append(_linked(link(place), drawn) if link and value else drawn)
        if place % 3 == 0:
            body.append(_text(x + step / 2, 116, f"{place:02d}", "middle", "axis"))
    peak = max(range(len(values)), key=lambda i: values[i]) if values else 0
    text = f"Highest at {peak:02d}:00, {write(values[peak])}." if values else "No figures."
    drawn = "".join(body)
    if link is None:
        return _svg(width, height, title, text, drawn, "hours")
    return _svg(width, height, title, text, _unspoken(drawn), "hours", role="group")
