"""Line drawings as SVG, readable on light and dark pages, without scripts."""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 62
_LINES = 6  # colours; further lines begin again
_MOST_POINTS = 1000


@dataclass(frozen=True, slots=True)
class Curve:
    """Named lines of (x, y) points; points that are not finite break a line's path.

    `dots` are single points in the colour of the line of that name; `log` spaces x by its logarithm.
    """

    name: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    x: str = "step"
    y: str = ""
    dots: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    log: bool = False

    @property
    def slug(self) -> str:
        return slug(self.name)


def slug(name: str) -> str:
    """A name as a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "curve"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them, spaced by 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(s * power for s in (1, 2, 5, 10) if span / (s * power) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between 10**low and 10**high; the powers alone where that is many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    return [s * 10.0**p for p in powers for s in steps if low <= math.log10(s * 10.0**p) <= high]


def to_svg(curve: Curve) -> str:
    """The drawing as one <svg> element with its own styles."""
    drawn = [*curve.lines.values(), *curve.dots.values()]
    points = [p for line in drawn for p in line if math.isfinite(p[0]) and math.isfinite(p[1])]
    along_x = math.log10 if curve.log else float
    (x0, x1), (y0, y1) = _range([along_x(p[0]) for p in points]), _range([p[1] for p in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (along_x(x) - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        return across, _HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f"<title>{html.escape(curve.name)}</title>", f"<style>{_STYLE}</style>"]
    for value in ticks(y0, y1):
        y = place(1.0, value)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in log_ticks(x0, x1) if curve.log else ticks(x0, x1):
        x = place(value, y0)[0]
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_number(value)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 27}" text-anchor="middle">{html.escape(curve.x)}</text>')
    up = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'<text x="14" y="{up}" text-anchor="middle" transform="rotate(-90 14 {up})">'
    parts.append(f"{turned}{html.escape(curve.y)}</text>")
    along = _LEFT
    for i, (name, line) in enumerate(curve.lines.items()):
        style = f"s{i % _LINES}"
        if path := _path([place(*p) if math.isfinite(p[0]) and math.isfinite(p[1]) else None for p in line]):
            parts.append(f'<path class="line {style}" d="{path}"/>')
        for x, y in itertools.starmap(place, curve.dots.get(name, ())):
            parts.append(f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(f'<path class="line {style}" d="M{along} {_HEIGHT - 9}h16"/>')
        parts.append(f'<text x="{along + 21}" y="{_HEIGHT - 5}">{html.escape(name)}</text>')
        along += 36 + 7 * len(name)
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n' + "\n".join(parts) + "\n</svg>"


def _range(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) or 0.5 * abs(low) or 0.5
    return (low, high + pad) if low == 0 else (low - pad, high + pad)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    kept = [*points[:-1:step], *points[-1:]]
    out, pen_down = [], False
    for point in kept:
        if point is not None:
            out.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_down = point is not None
    return "".join(out)


def _number(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


_STYLE = """
svg { --l0: #0b63ce; --l1: #c2410c; --l2: #15803d; --l3: #7e22ce; --l4: #a16207; --l5: #0f766e; }
text { font: 12px system-ui, sans-serif; fill: #5b6068; } .grid { stroke: #d8dbe0; stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke: var(--l0); } .dot { fill: var(--l0); }
.s1 { stroke: var(--l1); } .s2 { stroke: var(--l2); } .s3 { stroke: var(--l3); }
.s4 { stroke: var(--l4); } .s5 { stroke: var(--l5); }
.dot.s1 { fill: var(--l1); } .dot.s2 { fill: var(--l2); } .dot.s3 { fill: var(--l3); }
.dot.s4 { fill: var(--l4); } .dot.s5 { fill: var(--l5); } .dot { stroke: none; }
@media (prefers-color-scheme: dark) {
  svg { --l0: #6cb0ff; --l1: #ff9a62; --l2: #5fd38a; --l3: #c99bff; --l4: #e5c04b; --l5: #4fd0c0; }
  text { fill: #a0a6b0; } .grid { stroke: #3a3f47; }
}
"""
