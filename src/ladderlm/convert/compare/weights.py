"""Are the weights of two forms the same numbers, as far as their formats can tell?"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ladderlm import events
from ladderlm.convert.compare.cells import FLOATS, Held
from ladderlm.convert.compare.verdict import Check, failed, passed
from ladderlm.models.arch import Architecture
from ladderlm.models.folder import ModelFiles
from ladderlm.models.weights import Weights
from ladderlm.types import FloatArray

_SHARE = 0.002  # of a quantised tensor's weights may lie outside their cells: clipped ones
_ROW_SHARE = 0.1  # of a quantised row's
_COARSE = 1.5  # times the steps that the weights need
_CALIBRATED = 2.5  # times the error of rounding to nearest, where other weights make up for it
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


Source = Literal["A", "B", "another"]
SOURCES: tuple[Source, ...] = ("A", "B", "another")


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a tensor: in words, and what it likely means."""

    words: str
    cure: str


class Weighed(NamedTuple):
    """The Check, and which form the other was made from: its numbers are the truth."""

    check: Check
    source: Source


def weigh(a: ModelFiles, b: ModelFiles, *, calibrated: bool = False) -> Weighed:
    """Every tensor of `a` against that of `b`. `calibrated`: quantised weights are not each rounded to nearest.

    One of three stories must hold for all tensors: B was made from A, A from B, or (of two quantised forms) both from
    another. That one is told which holds for most.
    """
    names = _names(a.arch, b.arch)
    vectors = _vector_kind(a.weights), _vector_kind(b.weights)
    rows: list[_Row] = []
    for name, ours, theirs in events.track(names, "verify weights", unit="tensors"):
        if a.weights.shape(ours) != b.weights.shape(theirs):
            words = f"has shape {a.weights.shape(ours)} in A, {b.weights.shape(theirs)} in B"
            wrong = Finding(words, "one of the two is another model")
            rows.append(_Row(name, "", dict.fromkeys(SOURCES, wrong)))
            continue
        held = Held.of(a.weights, ours, vectors[0]), Held.of(b.weights, theirs, vectors[1])
        rows.append(_compared(name, *held, a.arch.head_dim, calibrated))
    held_for = {source: sum(row.found[source] is None for row in rows) for source in SOURCES}
    # The stricter story wins unless it fails for most and the looser one does not.
    source: Source = next((s for s in SOURCES if 2 * held_for[s] > len(rows)), "A")
    if held_for[source] < len(rows):
        return Weighed(_told([(row.name, row.found[source]) for row in rows], len(rows)), source)
    return Weighed(passed("weights", _bounds(rows, source, calibrated)), source)


@dataclass(frozen=True, slots=True)
class _Row:
    """A tensor: the kinds that round it ("" where both forms are equal), and what is wrong under each story."""

    name: str
    kinds: str
    found: dict[Source, Finding | None]


def _compared(name: str, a: Held, b: Held, head_dim: int, calibrated: bool) -> _Row:
    if np.array_equal(a.values, b.values):
        return _Row(name, "", dict.fromkeys(SOURCES))
    found: dict[Source, Finding | None] = {}
    exact_a, exact_b = (Held("F32", held.values, None) for held in (a, b))
    pairs: dict[Source, tuple[Held, Held]] = {"A": (exact_a, b), "B": (a, exact_b), "another": (a, b)}
    for source, pair in pairs.items():
        if source == "another" and (a.blocks is None or b.blocks is None):
            found[source] = found["A"]
        elif source == "A" or found["A"] is not None:
            found[source] = differs(*pair, name, head_dim, calibrated=calibrated)
        else:  # no looser story is needed
            found[source] = None
    return _Row(name, f"{a.kind} {b.kind}", found)


def _bounds(rows: list[_Row], source: Source, calibrated: bool) -> str:
    """What held: for how many tensors, within what."""
    exact = sum(not row.kinds for row in rows)
    told = [f"{exact} of {len(rows)} tensors equal to the bit"] if exact else []
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        if row.kinds:
            of_a, of_b = row.kinds.split()
            counts[of_b if source == "A" else of_a if source == "B" else f"{of_a} and {of_b}"] += 1
    told += [f"{count} within {_bound(kind, calibrated)}" for kind, count in sorted(counts.items())]
    made = {"A": "", "B": " (A was made from B)", "another": " (both made from a finer form, it seems)"}[source]
    return ", ".join(told) + made


def _bound(kind: str, calibrated: bool) -> str:
    if kind == "F32":
        return "float32 arithmetic (1e-6)"
    if calibrated and kind not in FLOATS:
        return f"{_CALIBRATED:g} times the rounding error of {kind} (calibrated: codes are not the nearest ones)"
    return f"the rounding of {kind}"


def _names(a: Architecture, b: Architecture) -> list[tuple[str, str, str]]:
    """(name, its name in A, in B): a tied output head is the embedding."""
    both = [n for n in a.tensor_shapes() if n in b.tensor_shapes()]
    found = [(n, n, n) for n in both]
    if a.tied != b.tied:
        found.append((_HEAD, _EMBEDDING if a.tied else _HEAD, _EMBEDDING if b.tied else _HEAD))
    return found


def _vector_kind(weights: Weights) -> str:
    """The floats that a form keeps vectors in: those of its matrices; beside quantised ones 16 bits at most."""
    blocks = (weights.blocks(name) for name in weights.names() if len(weights.shape(name)) == 2)
    kinds = {b.kind for b in blocks if b is not None}
    return "BF16" if "BF16" in kinds else "F16" if kinds - {"F32"} else "F32"


def _told(rows: list[tuple[str, Finding | None]], total: int) -> Check:
    """The commonest finding first, each with the tensors it holds for."""
    found: dict[Finding, list[str]] = defaultdict(list)
    for name, finding in rows:
        if finding is not None:
            found[finding].append(name)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    words = []
    for finding, names in ordered[:3]:
        others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        words.append(f"{names[0]}{others} {finding.words}")
    more = f"; and {len(ordered) - 3} other differences" if len(ordered) > 3 else ""
    count = sum(map(len, found.values()))
    differ = "1 of" if count == 1 else f"{count} of"
    text = f"{differ} {total} tensors {'differs' if count == 1 else 'differ'}: " + "; ".join(words) + more
    return failed("weights", text, ordered[0][0].cure)


# --- One tensor ---------------------------------------------------------------------------------------------------


def differs(a: Held, b: Held, name: str, head_dim: int, *, calibrated: bool = False) -> Finding | None:
    """What tells two forms of a tensor apart; None when nothing does."""
    for which, held in (("A", a), ("B", b)):
        if not np.isfinite(held.values).all():
            return Finding(f"holds infinite or undefined weights in {which}", "write that file again: it is damaged")
    found = _measure(a, b)
    if a.blocks is None and b.blocks is None:
        alike = not found.outside.any()
    elif calibrated:
        alike = found.error <= _CALIBRATED**2 * found.rounding
    else:
        alike = float(found.outside.mean()) <= _SHARE and float(found.outside.max()) <= _ROW_SHARE
    if not alike:
        return explain(a.values, b.values, name, head_dim, found)
    if found.steps > _COARSE**2 * found.needed:
        ratio = (found.steps / max(found.needed, 1e-30)) ** 0.5
        return Finding(f"is rounded {ratio:.1f} times as coarsely as its format needs", "quantise it again")
    return None


class _Measured(NamedTuple):
    """`outside`: of every row the share of weights outside their cells. The others are sums of squares: of the steps
    that quantised groups have and would need, of the error, and of the error of rounding to nearest."""

    outside: FloatArray
    steps: float
    needed: float
    error: float
    rounding: float


def _measure(a: Held, b: Held) -> _Measured:
    shares = []
    steps = needed = error = rounding = 0.0
    for rows in a.chunks():
        (low, high), (lower, upper) = a.cell(rows), b.cell(rows)
        shares.append(((low > upper) | (lower > high)).mean(axis=1, dtype=np.float32))
        error += float(np.square(a.values[rows] - b.values[rows]).sum())
        for held, other in ((a, b), (b, a)):
            if held.blocks is not None:
                had, wanted = held.needed(rows, other.values[rows])
                steps, needed = steps + had, needed + wanted
                rounding += float(np.square(held.half(rows)).sum()) / 3
    return _Measured(np.concatenate(shares), steps, needed, error, rounding)


def explain(a: FloatArray, b: FloatArray, name: str, head_dim: int, measured: _Measured) -> Finding:
    """What likely happened to a tensor that differs."""
    again = "convert it again with a converter that knows this family"
    if not b.any() or not a.any():
        return Finding(
            f"is all zeros in {'B' if a.any() else 'A'}", "the file was cut off or not filled: write it again"
        )
    if _alike(a, b) < 0.9:
        if a.shape[0] == a.shape[1] and _alike(a.T, b) > 0.9:
            return Finding("is transposed in B", again)
        if name.endswith(("q_proj.weight", "k_proj.weight")) and not len(a) % head_dim and not head_dim % 2:
            order = np.arange(len(a)).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
            for what, rows in (("pairs where A has halves", np.argsort(order)), ("halves where A has pairs", order)):
                if _alike(a[rows], b) > 0.9:
                    cure = "convert it again; GGUF files of the llama family keep pairs, folders halves"
                    return Finding(f"has the rows of each head in the other rotary convention ({what})", cure)
    wrong = np.flatnonzero(measured.outside > _ROW_SHARE)
    few = 0 < len(wrong) <= len(a) // 10
    if few and float(np.delete(measured.outside, wrong).mean()) <= _SHARE:
        return _rows(a, b, wrong)
    return _scaled(a, b, measured)


def _rows(a: FloatArray, b: FloatArray, wrong: np.ndarray) -> Finding:
    listed = ", ".join(map(str, wrong[:4])) + (" ..." if len(wrong) > 4 else "")
    what = "row" if len(wrong) == 1 else "rows"
    away = all(max(_alike(a[other], b[row]) for other in wrong if other != row) > 0.9 for row in wrong) if (
        2 <= len(wrong) <= 32) else False  # fmt: skip
    if away:
        return Finding(f"has its {what} {listed} swapped", "convert it again: its rows were put in another order")
    return Finding(f"differs in {what} {listed} of {len(a)}", "was the vocabulary or a row edited after converting?")


def _scaled(a: FloatArray, b: FloatArray, measured: _Measured) -> Finding:
    """A factor, an offset, or noise."""
    size = float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))
    change = _rms(b - a) / size
    factor = float(np.vdot(a, b) / np.vdot(a, a))
    offset = float(np.mean(b - a))
    unscaled, unmoved = (_rms(b - np.float32(factor) * a) / size, _rms(b - a - np.float32(offset)) / size)
    if change > 0.9 and min(unscaled, unmoved) > 0.5:
        return Finding("holds other numbers altogether", "is B made from another model, or is an adapter missing?")
    if abs(factor - 1) > 0.02 and unscaled < min(0.8 * change, unmoved):
        cure = "was a scale (of an adapter or a norm) applied twice, or never?"
        return Finding(f"is {factor:.2g} times as large in B", cure)
    if abs(offset) > 0.02 * size and unmoved < 0.8 * change:
        return Finding(
            f"is {offset:+.2g} off in B everywhere", "some files keep a norm's weight minus 1: convert it again"
        )
    cure = "B was changed after it was made, or made from other weights (another checkpoint, an adapter left out)"
    if not measured.rounding:
        return Finding(f"differs by {100 * change:.2g} % of its size, more than its format explains", cure)
    # A change moves its size over the step of the weights out of their cells, or adds to the error when it is large.
    share, rounding = float(measured.outside.mean()), (measured.rounding / a.size) ** 0.5 / size
    more = max(change**2 - 1.2 * rounding**2, 0.0) ** 0.5 or share * 12**0.5 * rounding
    words = (
        f"has {100 * share:.2g} % of its weights where its format would not round A's to, as after a change by about"
    )
    return Finding(f"{words} {100 * more:.1g} %", cure)


def _alike(a: FloatArray, b: FloatArray) -> float:
    """Cosine of the angle between two tensors."""
    return float(np.vdot(a, b)) / max(float(np.linalg.norm(a)) * float(np.linalg.norm(b)), 1e-30)


def _rms(x: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
