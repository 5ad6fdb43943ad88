"""Drawings of what happens inside a model, as SVG: readable on light and dark pages, without scripts.

One hue stands for "how much", by its opacity; a drawing's `<title>`s tell the figures where a reader points.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence

import numpy as np

from ladderlm.evals.curve import ticks
from ladderlm.evals.position import PositionLoss
from ladderlm.types import FloatArray

_LEVELS = 8  # opacities of an overview
_FAINT = 0.03  # shares below this are not drawn in an overview
_THUMB_CELLS = 64  # longer texts are drawn coarser
_FONT = 7.3  # width of a letter of 12 px monospace


def visible(token: str, most: int = 14) -> str:
    """A token for a narrow place: space and line end as signs, shortened."""
    text = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")
    text = "".join(c if c.isprintable() else "�" for c in text) or "∅"
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="map" {size} role="img">'
    return "\n".join([head, f"<title>{html.escape(label)}</title>", f"<style>{_STYLE}</style>", *parts, "</svg>"])


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{html.escape(text)}</text>'


def _width(labels: Sequence[str]) -> float:
    return 10 + _FONT * max(map(len, labels), default=0)


# --- Attention ----------------------------------------------------------------------------------------------------


def attention_overview(
    shares_LHTS: FloatArray, notes: Sequence[Sequence[str]], layers: Sequence[int], heads: Sequence[int]
) -> str:
    """A small map of every head: a row for each of `layers`, a column for each of `heads`. `notes[row][column]` is
    shown where the reader points."""
    side = max(28, min(72, round(760 / len(heads))))
    step, left, top = side + 6, 66, 24
    parts = [_text(left + col * step + side / 2, 15, str(head), "middle") for col, head in enumerate(heads)]
    parts.append(_text(left - 8, 15, "head", "end"))
    for row, layer in enumerate(layers):
        y = top + row * step
        parts.append(_text(left - 8, y + side / 2 + 4, f"layer {layer}", "end"))
        for col, head in enumerate(heads):
            said = f"layer {layer}, head {head}: {notes[row][col]}"
            parts.append(
                f'<g transform="translate({left + col * step} {y})"><title>{html.escape(said)}</title>'
                f'<rect class="frame" width="{side}" height="{side}"/>'
                f"{_thumbnail(shares_LHTS[row, col], side)}</g>"
            )
    return _svg(left + len(heads) * step, top + len(layers) * step, "attention of every head", parts)


def _thumbnail(shares_TS: FloatArray, side: float) -> str:
    """Runs of cells of about one share, as one path for each opacity."""
    cells = _coarser(shares_TS)
    level = np.where(cells < _FAINT, 0, np.ceil(_LEVELS * np.sqrt(np.minimum(cells, 1)))).astype(int)
    runs: dict[int, list[str]] = {}
    for y, row in enumerate(level):
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
        for start, end in itertools.pairwise(edges):
            if row[start]:
                runs.setdefault(int(row[start]), []).append(f"M{start} {y}.5h{end - start}")
    drawn = "".join(f'<path stroke-opacity="{n / _LEVELS:.2f}" d="{"".join(d)}"/>' for n, d in sorted(runs.items()))
    return f'<g class="cells" transform="scale({side / level.shape[1]:.4f} {side / level.shape[0]:.4f})">{drawn}</g>'


def _coarser(shares_TS: FloatArray) -> FloatArray:
    """At most 64 x 64: the largest of neighbouring cells."""
    step = math.ceil(max(shares_TS.shape) / _THUMB_CELLS)
    if step == 1:
        return shares_TS
    rows, cols = (math.ceil(n / step) * step for n in shares_TS.shape)
    padded = np.zeros((rows, cols), np.float32)
    padded[: shares_TS.shape[0], : shares_TS.shape[1]] = shares_TS
    return padded.reshape(rows // step, step, cols // step, step).max((1, 3))


def attention_map(shares_TS: FloatArray, tokens: Sequence[str], label: str) -> str:
    """One head large: each row is a token that looks, each column one that is looked at."""
    names = [visible(t) for t in tokens]
    count = len(names)
    side = max(15.0, min(40.0, 760 / count))
    left, top = _width(names), _width(names) * 0.75 + 10
    parts = []
    for i, name in enumerate(names):
        at = i * side + side / 2
        parts.append(_text(left - 6, top + at + 4, name, "end", ' class="token"'))
        turn = f' class="token" transform="rotate(-45 {left + at:.1f} {top - 6:.1f})"'
        parts.append(_text(left + at, top - 6, name, "start", turn))
    parts.append(f'<rect class="frame" x="{left}" y="{top}" width="{count * side}" height="{count * side}"/>')
    for (i, j), share in np.ndenumerate(shares_TS):
        if share < 0.005:
            continue
        x, y = left + j * side, top + i * side
        said = f"{names[i]} takes {share:.0%} from {names[j]} (token {i + 1} from token {j + 1})"
        parts.append(
            f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" '
            f'fill-opacity="{0.85 * math.sqrt(share):.2f}"><title>{html.escape(said)}</title></rect>'
        )
        if side >= 26 and share >= 0.1:
            parts.append(_text(x + side / 2, y + side / 2 + 4, f"{100 * share:.0f}", "middle", ' class="figure"'))
    return _svg(left + count * side + _width(names) * 0.7, top + count * side + 4, label, parts)


# --- Tables of layers ---------------------------------------------------------------------------------------------


def lens_grid(
    tokens: Sequence[str], top: Sequence[Sequence[str]], probability: np.ndarray, rank: np.ndarray, final: Sequence[str]
) -> str:
    """What each layer would say after each token: a row for each layer, the last at the bottom.

    Framed where it already is what the model says in the end.
    """
    cell, high, left, head = 78, 22, 84, 26
    parts = [_text(left - 8, 16, "reads", "end")]
    parts += [_text(left + (i + 0.5) * cell, 16, visible(t, 9), "middle", ' class="token"') for i, t in
              enumerate(tokens)]  # fmt: skip
    for row, words in enumerate(top):
        y = head + row * high
        name = "embedding" if row == 0 else f"layer {row - 1}"
        parts.append(_text(left - 8, y + high / 2 + 4, name, "end"))
        for i, word in enumerate(words):
            x, share = left + i * cell, float(probability[row, i])
            said = f"{name}: {visible(word)} {share:.1%}; the final {visible(final[i])} is number {rank[row, i]:,}"
            kind = "cell same" if rank[row, i] == 1 else "cell"
            parts.append(
                f'<g><title>{html.escape(said)}</title><rect class="{kind}" x="{x + 1}" y="{y + 1}" width="{cell - 2}" '
                f'height="{high - 2}" fill-opacity="{0.04 + 0.6 * share:.2f}"/>'
                + _text(x + cell / 2, y + high / 2 + 4, visible(word, 9), "middle", ' class="token"')
                + "</g>"
            )
    return _svg(left + len(tokens) * cell + 4, head + len(top) * high + 4, "the logit lens", parts)


def effect_grid(heads_LH: np.ndarray, layers_L: np.ndarray) -> str:
    """How far the prediction moves (KL divergence, nats) without each head and, set apart, without each layer.

    Heads and layers have each their own scale; NaN is left empty.
    """
    layers, heads = heads_LH.shape
    cell, high, left, head = max(34, min(62, round(760 / heads))), 22, 66, 24
    apart = left + heads * cell + 14
    parts = [_text(left - 8, 15, "head", "end"), _text(apart + 31, 15, "layer", "middle")]
    parts += [_text(left + (h + 0.5) * cell, 15, str(h), "middle") for h in range(heads)]

    def box(x: float, y: float, wide: float, value: float, most: float, said: str) -> str:
        opacity = 0.03 + 0.7 * math.sqrt(value / most if most > 0 else 0)
        return (
            f'<g><title>{said}: {value:.4f} nats</title><rect class="cell" x="{x + 1}" y="{y + 1}" width="{wide - 2}" '
            f'height="{high - 2}" fill-opacity="{opacity:.2f}"/>'
            + _text(x + wide / 2, y + high / 2 + 4, _short(value), "middle", ' class="figure"')
            + "</g>"
        )

    for row in range(layers):
        y = head + row * high
        parts.append(_text(left - 8, y + high / 2 + 4, f"layer {row}", "end"))
        for col in range(heads):
            said = f"without head {row}.{col}"
            parts.append(box(left + col * cell, y, cell, float(heads_LH[row, col]), float(heads_LH.max()), said))
        parts.append(box(apart, y, 62, float(layers_L[row]), float(layers_L.max()), f"without layer {row}"))
    return _svg(apart + 66, head + layers * high + 4, "effect of each head and layer", parts)


def _short(value: float) -> str:
    if value < 0.0005:
        return "·"
    return f"{value:.3f}".lstrip("0") if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


# --- Loss by position ---------------------------------------------------------------------------------------------


def position_plot(loss: PositionLoss) -> str:
    """Mean loss for each bucket of positions, with its interval; buckets are equally far apart."""
    buckets = loss.buckets
    wide, high, left, top = max(300, 74 * len(buckets)), 220, 52, 12
    low = min(b.loss.low for b in buckets)
    most = max(b.loss.high for b in buckets)
    pad = 0.06 * (most - low) or 0.5

    def place(value: float) -> float:
        return top + high * (most + pad - value) / (most - low + 2 * pad)

    parts = []
    for value in ticks(low - pad, most + pad, 7):
        parts.append(f'<path class="grid" d="M{left} {place(value):.1f}h{wide}"/>')
        parts.append(_text(left - 6, place(value) + 4, f"{value:g}", "end"))
    points = []
    for i, bucket in enumerate(buckets):
        x, y = left + wide * (i + 0.5) / len(buckets), place(bucket.loss.mean)
        name = str(bucket.first) if bucket.first == bucket.last else f"{bucket.first}–{bucket.last}"
        points.append(f"{x:.1f} {y:.1f}")
        parts.append(
            f"<g><title>{bucket.tokens:,} tokens with {name} before them: {bucket.loss} nats</title>"
            f'<path class="whisker" d="M{x:.1f} {place(bucket.loss.low):.1f}V{place(bucket.loss.high):.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/></g>'
        )
        parts.append(_text(x, top + high + 16, name, "middle"))
    parts.insert(0, f'<path class="line" d="M{"L".join(points)}"/>')
    parts.append(_text(left + wide / 2, top + high + 36, "tokens of the text before it", "middle"))
    middle = top + high / 2
    parts.append(_text(13, middle, "nats a token", "middle", f' transform="rotate(-90 13 {middle})"'))
    return _svg(left + wide + 8, top + high + 44, "loss by position", parts)


_STYLE = """
.map { --hue: #0b63ce; --ink: #1c1e21; --soft: #5b6068; --edge: #d8dbe0; }
.map text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.map .token { font-family: ui-monospace, "DejaVu Sans Mono", monospace; fill: var(--ink); }
.map .figure { font-size: 11px; fill: var(--ink); }
.map .cell { fill: var(--hue); } .map .same { stroke: var(--hue); stroke-width: 1.5; }
.map .cells path { fill: none; stroke: var(--hue); stroke-width: 1.02; }
.map .frame { fill: none; stroke: var(--edge); } .map .grid { stroke: var(--edge); }
.map .line, .map .whisker { fill: none; stroke: var(--hue); stroke-width: 1.5; } .map circle { fill: var(--hue); }
.map g:hover > .frame { stroke: var(--ink); }
@media (prefers-color-scheme: dark) {
  .map { --hue: #6cb0ff; --ink: #e6e8eb; --soft: #a0a6b0; --edge: #3a3f47; }
}
"""
