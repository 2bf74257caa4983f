"""Pictures drawn by the build itself, as SVG text: the favicon and the figure on the first page.

They are plain functions of published values and of the palette, take no clock and no random number, and use the
page's own text colour, so that they follow the light and the dark scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from igsp.study.values import Value, interval, number

LEFT, RIGHT, TOP, STEP, BOTTOM = 118, 424, 20, 46, 44  # pixels of the drawing; narrow, so that it reads on a phone


def favicon(palette: Mapping[str, str]) -> str:
    """Four bars, one per dimension, each with its lower part kept and its upper part pruned."""
    kept = {"general": 20, "commonsense": 23, "code": 12, "math": 16}
    bars = []
    for index, (dimension, height) in enumerate(kept.items()):
        x, colour = 2 + 7.2 * index, palette[dimension]
        bars.append(f'<rect x="{x:.1f}" y="3" width="6" height="{26 - height}" rx="1" fill="{colour}" opacity=".3"/>')
        bars.append(f'<rect x="{x:.1f}" y="{29 - height}" width="6" height="{height}" rx="1" fill="{colour}"/>')
    return '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">' + "".join(bars) + "</svg>\n"


@dataclass(frozen=True)
class Row:
    """One dimension of the trade-off figure: our correlation, and the paper's where it printed one."""

    dimension: str
    ours: Value
    paper: float | None


def tradeoff_alt(rows: Sequence[Row]) -> str:
    """What the trade-off figure shows, in words with the plotted numbers."""
    parts = []
    for row in rows:
        paper = f", paper {number(row.paper, 2, signed=True)}" if row.paper is not None else ""
        parts.append(f"{row.dimension.capitalize()} {interval(row.ours, signed=True)}{paper}")
    return "Rank correlation of calibration perplexity with retention, with 95 % intervals: " + "; ".join(parts) + "."


def tradeoff(rows: Sequence[Row], palette: Mapping[str, str]) -> str:
    """Correlations on a scale from -1 to 1: a dot with its interval for ours, a hollow diamond for the paper's."""
    height = TOP + STEP * len(rows) + BOTTOM
    box = f'viewBox="0 0 {RIGHT + 24} {height}"'
    parts = [f'<svg class="igsp-drawing" {box} role="img" aria-label="{escape(tradeoff_alt(rows))}">']
    for tick in (-1.0, -0.5, 0.0, 0.5, 1.0):
        parts += _tick(tick, TOP - 8, height - BOTTOM)
    for index, row in enumerate(rows):
        parts += _row(row, TOP + STEP * index + STEP / 2, palette[row.dimension])
    title = "Rank correlation of perplexity with retention"
    return "".join([*parts, _text(_x(0), height - 8, title, "middle"), "</svg>"])


def _text(x: float, y: float, content: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{content}</text>'



def _x(value: float) -> float:
    return LEFT + (max(-1.0, min(1.0, value)) + 1) / 2 * (RIGHT - LEFT)


def _tick(value: float, top: float, bottom: float) -> list[str]:
    x, dash = _x(value), "" if value == 0 else ' stroke-dasharray="2 4"'
    label = number(value, 1, signed=True) if value else "0"
    return [
        f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="currentColor" stroke-opacity=".45"{dash}/>',
        _text(x, bottom + 16, label, "middle"),
    ]


def _row(row: Row, y: float, colour: str) -> list[str]:
    parts = [_text(LEFT - 14, y + 5, row.dimension.capitalize(), "end")]
    if row.ours.low is not None and row.ours.high is not None:
        ends = f'x1="{_x(row.ours.low):.1f}" x2="{_x(row.ours.high):.1f}"'
        stroke = f'stroke="{colour}" stroke-width="5" stroke-linecap="round"'
        parts.append(f'<line {ends} y1="{y:.1f}" y2="{y:.1f}" {stroke}/>')
    parts.append(f'<circle cx="{_x(row.ours.value):.1f}" cy="{y:.1f}" r="8" fill="{colour}" stroke="currentColor"/>')
    if row.paper is not None:
        diamond = f"M{_x(row.paper):.1f} {y - 17:.1f}l7 7l-7 7l-7 -7z"
        parts.append(f'<path d="{diamond}" fill="none" stroke="currentColor" stroke-width="2"/>')
    return parts
