"""Quality against energy as an SVG picture: a point with its intervals for each backend, the front
as a line. No fonts, scripts or addresses from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import floor, log10

from estimators.evaluated import Row

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 20, 50


def svg(rows: Sequence[Row]) -> str:
    """The picture; backends of unknown quality or energy are left out."""
    known = [(r, r.quality, r.energy_j) for r in rows if r.quality and r.energy_j]
    most_j = max((e.high for _, _, e in known), default=1.0) * 1.15 or 1.0
    least = min((q.low for _, q, _ in known), default=0.0)
    best = max((q.high for _, q, _ in known), default=1.0)
    margin = max((best - least) * 0.1, 0.02)
    least, best = max(0.0, least - margin), min(1.0, best + margin)

    def x(energy_j: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * energy_j / most_j

    def y(quality: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (quality - least) / (best - least)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" role="img">',
        "<title>Quality against energy of one answer, with 95 % intervals</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for value in _ticks(0.0, most_j):
        parts.append(_line(x(value), TOP, x(value), HEIGHT - BOTTOM, "#ddd"))
        parts.append(_text(x(value), HEIGHT - BOTTOM + 16, f"{value:g}", "middle"))
    for value in _ticks(least, best):
        parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value), "#ddd"))
        parts.append(_text(LEFT - 8, y(value) + 4, f"{value:g}", "end"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 12, "energy of one answer, J", "middle"))
    parts.append(f'<g transform="rotate(-90 16 {HEIGHT / 2:.0f})">')
    parts.append(_text(16, HEIGHT / 2, "quality", "middle") + "</g>")
    front = sorted((e.mid, q.mid) for row, q, e in known if row.on_front)
    points = " ".join(f"{x(energy):.1f},{y(quality):.1f}" for energy, quality in front)
    parts.append(f'<polyline points="{points}" fill="none" stroke="#187a3c" stroke-width="1.5"/>')
    for row, quality, energy in known:
        colour = "#187a3c" if row.on_front else "#777"
        parts.append(_line(x(energy.low), y(quality.mid), x(energy.high), y(quality.mid), colour))
        parts.append(_line(x(energy.mid), y(quality.low), x(energy.mid), y(quality.high), colour))
        parts.append(
            f'<circle cx="{x(energy.mid):.1f}" cy="{y(quality.mid):.1f}" r="4" fill="{colour}"/>'
        )
        parts.append(_text(x(energy.mid) + 7, y(quality.mid) - 6, row.backend, "start"))
    return "\n".join([*parts, "</svg>", ""])


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Round values between two, about five of them."""
    rough = (high - low) / 5
    size = 10 ** floor(log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough)
    first = -floor(-low / step)
    return [round(n * step, 10) for n in range(first, floor(high / step) + 1)]
