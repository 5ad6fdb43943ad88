"""One step of a decoder: every thread makes one compiled call that runs the whole network.

A step takes rows: any mix of prompt chunks and single tokens of any sequences. Threads claim work within a phase from
a shared counter and meet at a barrier between phases; who computes what never changes a result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ladderlm.engine import attention, kernels, lora, simd
from ladderlm.engine.acts import LINE, Acts, quantise, quantise_tile
from ladderlm.engine.dots import FIELDS, WIDE_TILE
from ladderlm.engine.kernels import entry
from ladderlm.engine.pack import BLOCKS, CODED, COLUMNS, EMBED, FIRST, HEAD
from ladderlm.engine.simd import BLOCK, kernel
from ladderlm.types import FloatArray

Ints = npt.NDArray[np.int64]
ROW = 8 * COLUMNS  # bytes of a row of the table
SPAN = 8  # rows that share one pass of attention
PHASES = 17  # in a layer, at most
APART = 64  # bytes of a cache line: counters stay apart
SPINS = 2000  # polls (some tens of microseconds) before a waiting thread gives its core away
GRAINS = 4  # small pieces of a phase for each thread


INNER, SANDWICH, POST, PARALLEL, PARALLEL_TWO = 1, 2, 3, 4, 5  # where the norms are; see Architecture.placement
# What stands beside the matrices of a layer, as columns of Model.sides; NORM and NORM_BIAS of its last row are the
# final norm.
(NORM, NORM_BIAS, ATTENTION_OUT, ATTENTION_OUT_BIAS, MIDDLE, MIDDLE_BIAS, MLP_OUT, MLP_OUT_BIAS, Q_NORM, K_NORM,
 QKV_BIAS, O_BIAS, GATE_BIAS, UP_BIAS, DOWN_BIAS, SIDES) = range(16)  # fmt: skip


class Shape(NamedTuple):
    """The architecture's numbers, as the compiled code takes them.

    `norm`: 1 for the layer norm, 0 for the root-mean-square one; `placement` as above, 0 for "pre"; `activation` as
    in kernels.py; `qk_norm`: 1 over each head, 2 over all; `half` of a head's rotated coordinates;
    how keys and values are `kept`.
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    eps: float
    scale: float
    norm: int
    placement: int
    activation: int
    gated: int
    qk_norm: int
    half: int
    cap: float
    embed_scale: float
    kept: attention.Kept


class Model(NamedTuple):
    """What does not change. `sides` [layers + 1][SIDES]: addresses of vectors padded to 32 with zeros, 0 for none.

    `angles` [tables][positions][2][half]; for each layer `windows` and which table `turned` it (-1: none); `slopes` of
    the heads; `places`: the address of learned positions [positions][columns of x], 0 for none.
    """

    table: Ints
    sides: Ints
    angles: FloatArray
    windows: Ints
    turned: Ints
    slopes: FloatArray
    places: int


class Rows(NamedTuple):
    """What a step computes: for each row a token, its position and the blocks of its sequence's cache.

    `spans` lists (first row, count) of at most 8 consecutive rows of one sequence; `wanted` rows get logits.
    `adapters` are the tables of lora.Low.
    """

    ids: Ints
    positions: Ints
    blocks: Ints
    spans: Ints
    wanted: Ints
    adapters: Ints


class Work(NamedTuple):
    """Buffers of a step: addresses of floats [rows][columns padded to 32], and activations for the matrices.

    A thread's own: `tiles` [threads][2][rows][32], `scores` and `mixed` of attention, [threads][8] rows of so many
    bytes.
    `low` [rows + threads]: what adapters leave between their two halves, a row every `low_step` bytes.
    """

    x: int
    normed: Acts
    second: Acts
    branch: int
    qkv: int
    heads: Acts
    hidden: Acts
    logits: int
    tiles: int
    tile_rows: int
    scores: int
    score_step: int
    mixed: int
    mixed_step: int
    low: int
    low_step: int


@kernel
def _meet(sync: Any, phase: int, items: int, done: int) -> int:
    """Tells that `done` items are done, and waits until all of `phase` are, whoever did them; the next phase's number.

    A thread that the system has put aside holds up nobody unless it has begun items.
    """
    here, polls = sync.ctypes.data + APART * (2 * phase + 1), 0
    if done:
        simd.atomic_add(here, done)
    while simd.atomic_load(here) < items:
        polls += 1
        if polls > SPINS:
            simd.give_way()
    return phase + 1


@kernel
def _claim(sync: Any, phase: int) -> int:
    """The next unclaimed piece of a phase."""
    return simd.atomic_add(sync.ctypes.data + 2 * APART * phase, 1)


@kernel
def _start(piece: int, items: int, threads: int) -> int:
    """The first item of a piece: half of all are one large piece for each thread, so that few are claimed; the others
    are small, so that threads end together."""
    large = items // (2 * threads)
    small = max(1, (items - threads * large) // (threads * GRAINS))
    if not large:
        return min(items, piece)
    if piece <= threads:
        return piece * large
    return min(items, threads * large + (piece - threads) * small)


@kernel
def _side(model: Any, layer: int) -> Any:
    """The address of a layer's row of `sides`."""
    return model.sides.ctypes.data + 8 * SIDES * layer


@kernel
def _own(acts: Any, tid: int, count: int) -> Any:
    """Where thread `tid` puts codes of `count` rows: those of one tile are coded by each thread for itself.

    Nobody else may use that place: a thread that comes late writes there when others are steps ahead.
    """
    if count > WIDE_TILE:
        return acts
    row = acts.own + tid * WIDE_TILE
    fields = acts.fields + 4 * FIELDS * row * (acts.cols // BLOCK)
    return Acts(acts.x + 4 * row * acts.cols, acts.codes + row * acts.cols, fields, acts.cols, acts.coded, 0)


@kernel
def _embed_phase(s: Any, model: Any, r: Any, w: Any, sync: Any, phase: int) -> int:
    """x = the embedding of each row's token, plus its position's where positions are learned."""
    i, step, count, done = _claim(sync, phase), 4 * w.normed.cols, len(r.ids), 0
    matrix = model.table.ctypes.data + 8 * COLUMNS * EMBED
    while i < count:
        kernels.embed(matrix, r.ids[i], s.dim, np.float32(s.embed_scale), w.x + i * step)
        if model.places:
            _add_row(w.x + i * step, model.places + r.positions[i] * step, w.normed.cols)
        i, done = _claim(sync, phase), done + 1
    return _meet(sync, phase, count, done)


@kernel
def _add_row(target: int, source: int, columns: int) -> None:
    for k in range(0, 4 * columns, 4 * simd.LANES):
        simd.store(target + k, simd.add(simd.load(target + k), simd.load(source + k)))


@kernel
def _norm_tile(s: Any, side: int, which: int, w: Any, rows: Any, acts: Any, first: int, count: int) -> None:
    """Norms and codes of the tile that begins at row `first` of `count`."""
    for i in range(first, min(count, first + WIDE_TILE)):
        source, target = w.x + 4 * rows[i] * w.normed.cols, acts.x + 4 * i * acts.cols
        kernels.normalise(s.norm, source, entry(side, which), entry(side, which + 1), s.dim, s.eps, target)
    if acts.coded:
        quantise_tile(acts.x + 4 * first * acts.cols, 4 * acts.cols, acts, first, count)


@kernel
def _norm_phase(
    s: Any, side: int, which: int, acts: Any, w: Any, rows: Any, count: int, tid: int, sync: Any, phase: int
) -> int:  # fmt: skip
    """acts = norm `which` of `count` rows of x; `rows[i]` is the source of row i. The next phase's number."""
    if count <= WIDE_TILE and s.placement < PARALLEL:
        _norm_tile(s, side, which, w, rows, _own(acts, tid, count), 0, count)
        return phase
    items, i, done = (count + WIDE_TILE - 1) // WIDE_TILE, _claim(sync, phase), 0
    while i < items:
        _norm_tile(s, side, which, w, rows, acts, i * WIDE_TILE, count)
        i, done = _claim(sync, phase), done + 1
    return _meet(sync, phase, items, done)


@kernel
def _code_phase(acts: Any, count: int, tid: int, sync: Any, phase: int) -> int:
    """Codes of `count` rows of floats. The next phase's number."""
    if not acts.coded:
        return phase
    if count <= WIDE_TILE:
        quantise_tile(acts.x, 4 * acts.cols, _own(acts, tid, count), 0, count)
        return phase
    items, i, done = (count + WIDE_TILE - 1) // WIDE_TILE, _claim(sync, phase), 0
    while i < items:
        quantise_tile(acts.x + 4 * i * WIDE_TILE * acts.cols, 4 * acts.cols, acts, i * WIDE_TILE, count)
        i, done = _claim(sync, phase), done + 1
    return _meet(sync, phase, items, done)


@kernel
def _reduce_phase(low: Any, which: int, acts: Any, count: int, sync: Any, phase: int) -> int:
    """A x of adapters, for the matrices with the input of `which`. The next phase's number.

    Of a single row each thread takes it for itself, where `low` is its own.
    """
    if not low.tables:
        return phase
    if count == 1:
        lora.reduce(low, which, acts, 0)
        return phase
    i, done = _claim(sync, phase), 0
    while i < count:
        lora.reduce(low, which, acts, i)
        i, done = _claim(sync, phase), done + 1
    return _meet(sync, phase, count, done)


@kernel
def _branch_phase(s: Any, side: int, which: int, w: Any, count: int, sync: Any, phase: int) -> int:
    """Adds the norm of `branch` to x; in the original Transformer x is the norm of their sum."""
    i, step, done = _claim(sync, phase), 4 * w.normed.cols, 0
    while i < count:
        x, branch = w.x + i * step, w.branch + i * step
        if s.placement == POST:
            _add_row(branch, x, w.normed.cols)
            kernels.normalise(s.norm, branch, entry(side, which), entry(side, which + 1), s.dim, s.eps, x)
        else:
            kernels.normalise(s.norm, branch, entry(side, which), entry(side, which + 1), s.dim, s.eps, branch)
            _add_row(x, branch, w.normed.cols)
        i, done = _claim(sync, phase), done + 1
    return _meet(sync, phase, count, done)


@kernel
def _qkv_phase(m: int, acts: Any, low: Any, w: Any, count: int, tile: int, threads: int, sync: Any, phase: int) -> int:
    """Queries, keys and values, side by side in `qkv`; `m` are the layer's matrices."""
    n0 = entry(m, BLOCKS)
    n1 = n0 + entry(m + ROW, BLOCKS)
    items = n1 + entry(m + 2 * ROW, BLOCKS)
    piece, step, done = _claim(sync, phase), LINE * items, 0
    first = _start(piece, items, threads)
    while first < items:
        end = _start(piece + 1, items, threads)
        for i in range(first, end):
            part = 0 if i < n0 else (1 if i < n1 else 2)
            block, t = i - (0 if part == 0 else (n0 if part == 1 else n1)), 0
            while t < count:
                n = kernels.taken(m + ROW * part, count - t)
                kernels.product(m + ROW * part, block, acts, t, n, tile)
                lora.expand(low, part, block, t, n, tile)
                kernels.put(tile, w.qkv + t * step + i * LINE, step, n)
                t += n
        piece, done = _claim(sync, phase), done + end - first
        first = _start(piece, items, threads)
    return _meet(sync, phase, items, done)


@kernel
def _turn_phase(s: Any, model: Any, r: Any, w: Any, m: int, layer: int, threads: int, sync: Any, phase: int) -> int:
    """Biases, norms and rotations of queries and keys; keys and values go into the caches."""
    side, table = _side(model, layer), model.turned[layer]
    key = entry(m, BLOCKS) * BLOCK
    value = key + entry(m + ROW, BLOCKS) * BLOCK
    columns, size = value + entry(m + 2 * ROW, BLOCKS) * BLOCK, s.kept.bytes * s.kv_heads
    scale, head = np.float32(s.scale), 4 * s.head_dim
    piece, count, done = _claim(sync, phase), len(r.ids), 0
    first = _start(piece, count, threads)
    while first < count:
        end = _start(piece + 1, count, threads)
        for i in range(first, end):
            position, x = r.positions[i], w.qkv + 4 * i * columns
            if i + 1 < count and r.blocks[i + 1, 0] != r.blocks[i, 0]:
                after = r.blocks[i + 1, r.positions[i + 1] // BLOCK] + size * layer
                attention.fetch(after, size)
            if entry(side, QKV_BIAS):
                _add_row(x, entry(side, QKV_BIAS), columns)
            attention.norm_heads(s, entry(side, Q_NORM), x, s.heads)
            attention.norm_heads(s, entry(side, K_NORM), x + 4 * key, s.kv_heads)
            if table >= 0:
                angles = model.angles.ctypes.data + 8 * s.half * (table * model.angles.shape[1] + position)
                for h in range(s.heads):
                    attention.turn(x + h * head, s.half, angles)
                for h in range(s.kv_heads):
                    attention.turn(x + 4 * key + h * head, s.half, angles)
            attention.scale(x, s.heads * s.head_dim, scale)
            place = r.blocks[i, position // BLOCK] + size * layer
            attention.remember(s, x + 4 * key, x + 4 * value, place, position % BLOCK)
        piece, done = _claim(sync, phase), done + end - first
        first = _start(piece, count, threads)
    return _meet(sync, phase, count, done)


@kernel
def _attention_phase(
    s: Any, model: Any, r: Any, w: Any, m: int, layer: int, tile: int, tid: int, threads: int, sync: Any,
    phase: int,
) -> int:  # fmt: skip
    """Attention for each span and key head."""
    group, items = s.heads // s.kv_heads, len(r.spans) * s.kv_heads
    size = s.kept.bytes
    step = LINE * (entry(m, BLOCKS) + entry(m + ROW, BLOCKS) + entry(m + 2 * ROW, BLOCKS))
    blocks, row_bytes = r.blocks.ctypes.data, 8 * r.blocks.shape[1]
    i, done = _claim(sync, phase), 0
    while i < items:
        row, count, kv = r.spans[i // s.kv_heads, 0], r.spans[i // s.kv_heads, 1], i % s.kv_heads
        base, following = size * (layer * s.kv_heads + kv), min(i + threads, items - 1)  # likely this thread's next
        after, after_base = r.spans[following // s.kv_heads, 0], size * (layer * s.kv_heads + following % s.kv_heads)
        for h in range(group if count > 1 else 1):
            heads = 1 if count > 1 else group
            attention.attend(
                s, w.qkv, step, row, count, kv * group + h, heads, r.positions, blocks + row * row_bytes, base,
                blocks + after * row_bytes, after_base, model.windows[layer], model.slopes,
                w.scores + tid * SPAN * w.score_step, w.score_step, w.mixed + tid * SPAN * w.mixed_step, w.mixed_step,
                tile, w.heads.x, 4 * w.heads.cols,
            )  # fmt: skip
        i, done = _claim(sync, phase), done + 1
    return _meet(sync, phase, items, done)


@kernel
def _out_phase(
    s: Any, m: int, bias: int, acts: Any, low: Any, which: int, w: Any, count: int, tile: int, threads: int, sync: Any,
    phase: int,
) -> int:  # fmt: skip
    """Matrix m, number `which` of its layer, times acts plus bias: added to the residual stream, or put into `branch`
    where a norm comes first."""
    items, apart, step = entry(m, BLOCKS), 0 < s.placement < PARALLEL, 4 * w.normed.cols
    piece, done = _claim(sync, phase), 0
    first = _start(piece, items, threads)
    while first < items:
        end = _start(piece + 1, items, threads)
        for block in range(first, end):
            t = 0
            while t < count:
                n, place = kernels.taken(m, count - t), t * step + block * LINE
                kernels.product(m, block, acts, t, n, tile)
                lora.expand(low, which, block, t, n, tile)
                kernels.add_to(tile, bias + LINE * block if bias else 0, n)
                if apart:
                    kernels.put(tile, w.branch + place, step, n)
                else:
                    kernels.accumulate(tile, w.x + place, step, n)
                t += n
        piece, done = _claim(sync, phase), done + end - first
        first = _start(piece, items, threads)
    return _meet(sync, phase, items, done)


@kernel
def _gate_phase(
    s: Any, m: int, side: int, acts: Any, low: Any, w: Any, count: int, tile: int, threads: int, sync: Any, phase: int
) -> int:  # fmt: skip
    """hidden = f(gate) * up, or f(up); as codes where the next matrix takes them, as floats where it or adapters do."""
    gate, up, coded = m + 4 * ROW, m + 5 * ROW, entry(m + 6 * ROW, CODED)
    items, gates = entry(up, BLOCKS), tile + LINE * w.tile_rows
    piece, done = _claim(sync, phase), 0
    first = _start(piece, items, threads)
    while first < items:
        end = _start(piece + 1, items, threads)
        for block in range(first, end):
            t = 0
            while t < count:
                n = min(kernels.taken(up, count - t), kernels.taken(gate, count - t))
                kernels.product(up, block, acts, t, n, tile)
                lora.expand(low, 5, block, t, n, tile)
                kernels.add_to(tile, _bias(side, UP_BIAS, block), n)
                if s.gated:
                    kernels.product(gate, block, acts, t, n, gates)
                    lora.expand(low, 4, block, t, n, gates)
                    kernels.add_to(gates, _bias(side, GATE_BIAS, block), n)
                kernels.activate(s.activation, gates if s.gated else 0, tile, n)
                if coded:
                    quantise(tile, w.hidden, t, n, count, block)
                if not coded or low.tables:
                    place = w.hidden.x + 4 * t * w.hidden.cols + LINE * block
                    kernels.put(tile, place, 4 * w.hidden.cols, n)
                t += n
        piece, done = _claim(sync, phase), done + end - first
        first = _start(piece, items, threads)
    return _meet(sync, phase, items, done)


@kernel
def _bias(side: int, which: int, block: int) -> Any:
    """The address of a block's part of a vector, 0 where there is none."""
    found = entry(side, which)
    return found + LINE * block if found else 0


@kernel
def _head_phase(m: int, acts: Any, w: Any, count: int, tile: int, threads: int, sync: Any, phase: int) -> int:
    items = entry(m, BLOCKS)
    piece, step, done = _claim(sync, phase), LINE * items, 0
    first = _start(piece, items, threads)
    while first < items:
        end = _start(piece + 1, items, threads)
        for block in range(first, end):
            t = 0
            while t < count:
                n = kernels.taken(m, count - t)
                kernels.product(m, block, acts, t, n, tile)
                kernels.put(tile, w.logits + t * step + block * LINE, step, n)
                t += n
        piece, done = _claim(sync, phase), done + end - first
        first = _start(piece, items, threads)
    return _meet(sync, phase, items, done)


@kernel
def _layer(
    tid: int, threads: int, s: Any, model: Any, r: Any, w: Any, sync: Any, layer: int, every: Any, phase: int
) -> int:  # fmt: skip
    """One layer, for all rows; the next phase's number."""
    count, m, side = len(r.ids), model.table.ctypes.data + ROW * (FIRST + 7 * layer), _side(model, layer)
    tile = w.tiles + tid * 2 * LINE * w.tile_rows
    # In parallel placement the norm serves the feed-forward part after x has grown: a late thread would see that.
    normed, second = (w.normed, w.second) if s.placement >= PARALLEL else (_own(w.normed, tid, count), w.second)
    # A single row's A x is each thread's own, as its codes are.
    low_rows = w.normed.own + tid if count == 1 else 0
    low = lora.Low(r.adapters.ctypes.data if len(r.adapters) else 0, layer, w.low + low_rows * w.low_step, w.low_step)
    if s.placement == PARALLEL_TWO:
        phase = _norm_phase(s, side, MIDDLE, w.second, w, every, count, tid, sync, phase)
    phase = _norm_phase(s, side, NORM, w.normed, w, every, count, tid, sync, phase)
    phase = _reduce_phase(low, 0, normed, count, sync, phase)
    phase = _qkv_phase(m, normed, low, w, count, tile, threads, sync, phase)
    phase = _turn_phase(s, model, r, w, m, layer, threads, sync, phase)
    phase = _attention_phase(s, model, r, w, m, layer, tile, tid, threads, sync, phase)
    phase = _code_phase(w.heads, count, tid, sync, phase)
    own = _own(w.heads, tid, count)
    heads = Acts(w.heads.x, own.codes, own.fields, own.cols, own.coded, 0)
    phase = _reduce_phase(low, 3, heads, count, sync, phase)
    phase = _out_phase(s, m + 3 * ROW, entry(side, O_BIAS), heads, low, 3, w, count, tile, threads, sync, phase)
    if s.placement < PARALLEL:
        if s.placement:
            phase = _branch_phase(s, side, ATTENTION_OUT, w, count, sync, phase)
        phase = _norm_phase(s, side, MIDDLE, w.normed, w, every, count, tid, sync, phase)
    inner = second if s.placement == PARALLEL_TWO else normed
    phase = _reduce_phase(low, 5, inner, count, sync, phase)
    phase = _gate_phase(s, m, side, inner, low, w, count, tile, threads, sync, phase)
    phase = _reduce_phase(low, 6, w.hidden, count, sync, phase)
    phase = _out_phase(s, m + 6 * ROW, entry(side, DOWN_BIAS), w.hidden, low, 6, w, count, tile, threads, sync, phase)
    if 0 < s.placement < PARALLEL:
        phase = _branch_phase(s, side, MLP_OUT, w, count, sync, phase)
    return phase


@kernel
def forward(tid: int, threads: int, s: Any, model: Any, r: Any, w: Any, sync: Any) -> None:
    """The whole network for the rows `r`, as thread `tid` of `threads`. `sync` holds zeros at the start."""
    every, wanted = np.arange(len(r.ids)), len(r.wanted)
    tile = w.tiles + tid * 2 * LINE * w.tile_rows
    phase = _embed_phase(s, model, r, w, sync, 0)
    for layer in range(s.layers):
        phase = _layer(tid, threads, s, model, r, w, sync, layer, every, phase)
    if wanted:
        side, head = _side(model, s.layers), model.table.ctypes.data + ROW * HEAD
        normed = w.normed if s.placement >= PARALLEL else _own(w.normed, tid, wanted)
        phase = _norm_phase(s, side, NORM, w.normed, w, r.wanted, wanted, tid, sync, phase)
        phase = _head_phase(head, normed, w, wanted, tile, threads, sync, phase)


def counters(layers: int) -> Ints:
    """A zeroed `sync` buffer: for each phase how many items are claimed and how many done, a cache line each."""
    return np.zeros(2 * APART // 8 * (PHASES * layers + 8), np.int64)
