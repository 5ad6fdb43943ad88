"""A model ready to run: packed weights, buffers, threads, and one call that makes a step."""

from __future__ import annotations

import os
import shutil
import time
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ladderlm import events
from ladderlm.engine import attention
from ladderlm.engine import forward as step
from ladderlm.engine.acts import Acts
from ladderlm.engine.attention import KINDS
from ladderlm.engine.backend import Piece
from ladderlm.engine.cache import HostBlock, KVCache
from ladderlm.engine.dots import FIELDS, WIDE_TILE
from ladderlm.engine.hot import VIRTUAL, LoadedAdapter, virtual_past
from ladderlm.engine.lora import Lora
from ladderlm.engine.memory import Bytes, Pool, aligned, arena
from ladderlm.engine.pack import BLOCKS, FIRST, HEAD, pack, padded, refill
from ladderlm.engine.simd import BLOCK, COMPILED
from ladderlm.engine.team import Team
from ladderlm.errors import UsageError
from ladderlm.models import rope
from ladderlm.models.adapter import Adapter, fit
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Weights
from ladderlm.types import FloatArray, KVType

MAX_ROWS = 256  # rows of a step: prompt tokens and single tokens together


class Network:
    """Runs steps of a decoder (Architecture.compiled) on `threads` threads. Not for concurrent use."""

    def __init__(
        self, arch: Architecture, weights: Weights, *, threads: int | None = None, key: str | None = None,
        exact: bool = False, kv_dtype: KVType = "auto",
    ) -> None:  # fmt: skip
        self.arch, self._weights = arch, weights
        self.threads = threads or min(os.cpu_count() or 1, 8)
        cold = _cold()  # packing takes addresses of compiled code
        self._packed = pack(arch, weights, key=key, threads=self.threads, exact=exact)
        self._sides = Sides(arch, weights, self._packed.table)
        self._tables, turned = _tables(arch)
        windows = _ints([arch.window(i) for i in range(arch.layers)])
        self._model = step.Model(
            self._packed.table, self._sides.addresses, self._angles(64), windows, turned, _slopes(arch),
            self._sides.places,
        )  # fmt: skip
        if kv_dtype == "int8" and arch.head_dim % BLOCK:
            what = f"heads of {arch.head_dim} numbers: in int8 they must be a multiple of {BLOCK}"
            raise UsageError(what, where="kv_dtype", cure="float16")
        if kv_dtype == "auto":
            kv_dtype = "float16" if self._packed.coded else "float32"
        self._shape = _shape(arch, KINDS.index(kv_dtype))
        self._work, self._buffers = _work(arch, self._packed.table, self.threads, self._packed.coded)
        self._logits = np.zeros((0, int(self._packed.table[HEAD, BLOCKS]) * BLOCK), np.float32)
        self._blocks = np.zeros((MAX_ROWS, -(-arch.context_length // BLOCK)), np.int64)  # addresses for each row
        self._loras: set[Lora] = set()  # of the last step
        self._low = aligned(0)
        self._pool = Pool(self.block_bytes)
        self._team = Team(self.threads, lambda: step.counters(arch.layers))
        weakref.finalize(self, self._team.close)  # before the memory goes that a late thread may still look at
        self._warm(cold)

    @property
    def block_bytes(self) -> int:
        return self.arch.layers * self.arch.kv_heads * self._shape.kept.bytes

    @property
    def max_rows(self) -> int:
        return MAX_ROWS

    def cache(self) -> KVCache:
        return KVCache(lambda: HostBlock(self._pool), self.arch.context_length)

    def run(self, pieces: Sequence[Piece]) -> FloatArray:
        """Appends every piece to its cache. Logits (rows, vocab) of the wanted rows in order, valid until the next run.

        At most MAX_ROWS tokens in all; ids and lengths must be valid.
        """
        ids: list[int] = []
        positions: list[int] = []
        spans: list[tuple[int, int]] = []
        wanted: list[int] = []
        loras = {p.adapter.packed for p in pieces if p.adapter and p.adapter.packed}
        adapters: list[int] = []
        for cache, tokens, want, adapter in pieces:
            start, row = len(cache), len(ids)
            cache.reserve(start + len(tokens))
            wanted.extend(range(row + want, row + len(tokens)))
            spans.extend((row + i, min(step.SPAN, len(tokens) - i)) for i in range(0, len(tokens), step.SPAN))
            ids.extend(tokens)
            positions.extend(range(start, start + len(tokens)))
            blocks = len(cache.blocks)
            self._blocks[row : row + len(tokens), :blocks] = cache.addresses[:blocks]
            if loras:
                adapters += [adapter.packed.address if adapter and adapter.packed else 0] * len(tokens)
        self._reserve_logits(len(wanted))
        self._reserve_angles(max(positions) + 1)
        self._take(loras)
        rows = step.Rows(
            _ints(ids), _ints(positions), self._blocks[: len(ids)], _ints(spans).reshape(-1, 2), _ints(wanted),
            _ints(adapters),
        )  # fmt: skip
        self._team.run(step.forward, self._shape, self._model, rows, self._work)
        for cache, tokens, *_ in pieces:
            cache.ids.extend(tokens)
        logits: FloatArray = self._logits[: len(wanted), : self.arch.vocab_size]
        if cap := np.float32(self.arch.logit_cap):
            np.multiply(np.tanh(logits / cap), cap, out=logits)
        return logits

    def adapt(self, adapter: Adapter) -> LoadedAdapter:
        """Takes up an adapter. FormatError where it does not fit."""
        adapter, start = fit(adapter, self.arch), self.cache()
        half = self._shape.kept.kind > 0
        if adapter.virtual is None:
            return LoadedAdapter(adapter, Lora(adapter.pairs, adapter.scale, self._packed.table, half=half), start)
        start.reserve(adapter.tokens)
        past = virtual_past(adapter, self.arch, self._weights)
        remember(past, start, self._shape)
        return LoadedAdapter(adapter, None, start)

    def update(self, weights: Weights) -> None:
        """Other weights, in the place of these; see `refill`. Not during `run`."""
        self._team.rest()
        refill(self._packed, self.arch, weights, threads=self.threads)
        self._weights = weights
        self._sides = Sides(self.arch, weights, self._packed.table)
        self._model = self._model._replace(sides=self._sides.addresses, places=self._sides.places)

    def close(self) -> None:
        self._team.close()

    def _take(self, loras: set[Lora]) -> None:
        """These take part in the next step; those of the last are held until no late thread reads them."""
        if loras != self._loras:
            self._team.rest()
            self._loras = loras
            size = 4 * max((padded(lora.ranks) for lora in loras), default=0)
            if size > self._work.low_step:
                self._low = aligned(size * (self._work.normed.own + self.threads))
                self._work = self._work._replace(low=int(self._low.ctypes.data), low_step=size)

    def _reserve_logits(self, rows: int) -> None:
        if rows > len(self._logits):
            self._logits = np.zeros(
                (min(MAX_ROWS, max(16, rows, 2 * len(self._logits))), self._logits.shape[1]), np.float32
            )
            self._work = self._work._replace(logits=int(self._logits.ctypes.data))

    def _reserve_angles(self, positions: int) -> None:
        """Tables of angles grow with the longest text: a context of 128k would cost memory nobody uses."""
        if positions > self._model.angles.shape[1]:
            size = min(self.arch.context_length, 1 << (positions - 1).bit_length())
            self._model = self._model._replace(angles=self._angles(size))

    def _angles(self, positions: int) -> FloatArray:
        if not self._tables:
            return np.zeros((1, 1, 2, 1), np.float32)
        return np.stack([rope.table(self.arch, layer, positions) for layer in self._tables])

    def _warm(self, cold: bool) -> None:
        """Compiles the kernels, or loads them from disk, before the first request."""
        start = time.monotonic()
        self.run([Piece(self.cache(), [0], 0)])
        if cold:
            events.emit("compile", finished=True, data={"seconds": time.monotonic() - start})


def _cold() -> bool:
    """Whether nothing is compiled yet, which it tells; machine code of other versions of these sources goes."""
    if any(COMPILED.rglob("*.nbc")):
        return False
    events.emit("compile", "compiling the kernels, once on this machine: up to half a minute")
    kept = COMPILED.name.rsplit("-", 1)[0]
    for old in COMPILED.parent.glob("engine-*"):
        if not old.name.startswith(kept):
            shutil.rmtree(old, ignore_errors=True)
    return True


def remember(past_L2PGK: FloatArray, cache: KVCache, shape: step.Shape) -> None:
    """Fills a reserved, empty cache with keys and values as the kernels hold them."""
    layers, _, tokens, heads, _ = past_L2PGK.shape
    for position in range(tokens):
        block, slot = cache.blocks[position // BLOCK], position % BLOCK
        assert isinstance(block, HostBlock)
        for layer in range(layers):
            past_2GK = np.ascontiguousarray(past_L2PGK[layer, :, position], np.float32)
            keys, place = past_2GK.ctypes.data, block.address + layer * heads * shape.kept.bytes
            attention.remember(shape, keys, keys + past_2GK.nbytes // 2, place, slot)
    cache.ids = [VIRTUAL] * tokens


class Sides:
    """The vectors beside the matrices, padded to 32 with zeros: their `addresses` as Model.sides, and what holds them.

    `places` is the address of learned positions, 0 where there are none.
    """

    def __init__(self, arch: Architecture, weights: Weights, table: npt.NDArray[np.int64]) -> None:
        self._arch, self._weights, self._held = arch, weights, set(weights.names())
        self._kept: list[FloatArray] = []
        self.addresses = np.zeros((arch.layers + 1, step.SIDES), np.int64)
        for i in range(arch.layers):
            self._layer(i, f"model.layers.{i}.", table[FIRST + 7 * i : FIRST + 7 * i + 3])
        self._norm(arch.layers, step.NORM, "model.norm")
        self.places = 0
        if arch.positions == "learned":
            found = weights.float32("model.embed_positions.weight")[arch.position_offset :]
            self.places = self._keep(np.pad(found, ((0, 0), (0, padded(arch.dim) - arch.dim))))

    def _layer(self, row: int, prefix: str, qkv: npt.NDArray[np.int64]) -> None:
        for column, name in (
            (step.NORM, "input_layernorm"), (step.ATTENTION_OUT, "attention_out_norm"),
            (step.MIDDLE, "post_attention_layernorm"), (step.MLP_OUT, "mlp_out_norm"),
        ):  # fmt: skip
            self._norm(row, column, prefix + name)
        attention, arch = prefix + "self_attn.", self._arch
        for column, name, heads in ((step.Q_NORM, "q_norm", arch.heads), (step.K_NORM, "k_norm", arch.kv_heads)):
            if arch.qk_norm == "heads":
                each = [self._weights.float32(f"{attention}{name}.norms.{h}.weight") for h in range(heads)]
                self._put(row, column, np.concatenate(each))
            elif arch.qk_norm:
                weight = self._weights.float32(f"{attention}{name}.weight") + np.float32(arch.norm_offset)
                self._put(row, column, np.tile(weight, heads) if arch.qk_norm == "head" else weight)
        if arch.qkv_bias:
            parts = []
            for x, blocks in zip("qkv", qkv[:, BLOCKS], strict=True):
                bias = self._weights.float32(f"{attention}{x}_proj.bias")
                parts.append(np.pad(bias, (0, int(blocks) * BLOCK - len(bias))))
            self._put(row, step.QKV_BIAS, np.concatenate(parts))
        for column, name in (
            (step.O_BIAS, "self_attn.o_proj"), (step.GATE_BIAS, "mlp.gate_proj"), (step.UP_BIAS, "mlp.up_proj"),
            (step.DOWN_BIAS, "mlp.down_proj"),
        ):  # fmt: skip
            if f"{prefix}{name}.bias" in self._held:
                self._put(row, column, self._weights.float32(f"{prefix}{name}.bias"))

    def _norm(self, row: int, column: int, name: str) -> None:
        if name + ".weight" in self._held:
            offset = np.float32(self._arch.norm_offset)
            self._put(row, column, self._weights.float32(name + ".weight") + offset)
            if self._arch.norm_bias:
                self._put(row, column + 1, self._weights.float32(name + ".bias"))

    def _put(self, row: int, column: int, values: FloatArray) -> None:
        self.addresses[row, column] = self._keep(np.pad(values, (0, padded(len(values)) - len(values))))

    def _keep(self, values: FloatArray) -> int:
        self._kept.append(np.ascontiguousarray(values, np.float32))
        return self._kept[-1].ctypes.data


def _shape(arch: Architecture, cache_kind: int) -> step.Shape:
    parallel = step.PARALLEL_TWO if arch.two_norms else step.PARALLEL
    places = {"pre": 0, "inner": step.INNER, "sandwich": step.SANDWICH, "post": step.POST, "parallel": parallel}
    return step.Shape(
        arch.dim, arch.layers, arch.heads, arch.kv_heads, arch.head_dim, arch.hidden, arch.vocab_size,
        arch.norm_eps, arch.scale, int(arch.norm == "layer"), places[arch.placement],
        ("silu", "gelu", "gelu_tanh", "relu").index(arch.activation), int(arch.gated),
        {"": 0, "head": 1, "heads": 1, "all": 2}[arch.qk_norm], (arch.rotary_dim or arch.head_dim) // 2,
        arch.attention_cap, arch.embed_scale, attention.kept(cache_kind, arch.head_dim),
    )  # fmt: skip


def _tables(arch: Architecture) -> tuple[list[int], npt.NDArray[np.int64]]:
    """A layer for each different table of angles, and each layer's table; -1 where nothing is turned."""
    if arch.positions != "rotary":
        return [], _ints([-1] * arch.layers)
    local = [bool(arch.local_theta) and arch.window(i) > 0 for i in range(arch.layers)]
    kinds = list(dict.fromkeys(local))
    turned = [-1 if i in arch.unrotated else kinds.index(local[i]) for i in range(arch.layers)]
    return [local.index(kind) for kind in kinds], _ints(turned)


def _slopes(arch: Architecture) -> FloatArray:
    if arch.positions != "alibi":
        return np.zeros(arch.heads, np.float32)
    return rope.alibi_slopes(arch.heads) * np.float32(arch.scale)


def _ints(values: Sequence[object]) -> npt.NDArray[np.int64]:
    return np.asarray(values, np.int64)


def _work(arch: Architecture, table: npt.NDArray[np.int64], threads: int, coded: int) -> tuple[step.Work, list[Bytes]]:
    """The buffers of a step, all but the logits, and what holds them."""
    rows = -(-MAX_ROWS // WIDE_TILE) * WIDE_TILE
    kept: list[Bytes] = []

    def room(size: int) -> int:
        kept.append(arena(size))
        return int(kept[-1].ctypes.data)

    def acts(rows: int, cols: int) -> Acts:
        whole = rows + threads * WIDE_TILE
        codes = (room(whole * cols), room(4 * FIELDS * whole * cols // BLOCK)) if coded else (0, 0)
        return Acts(room(4 * whole * cols), *codes, cols, coded, rows)

    def own(cols: int) -> tuple[int, int]:
        kept.append(aligned(4 * threads * step.SPAN * cols))
        return int(kept[-1].ctypes.data), 4 * cols

    # Rows of a power of two would all fall into the same lines of the first cache.
    (scores, score_step), (mixed, mixed_step) = own(padded(arch.context_length) + 16), own(padded(arch.head_dim) + 16)
    dim, qkv = padded(arch.dim), int(table[FIRST : FIRST + 3, BLOCKS].sum()) * BLOCK
    work = step.Work(
        x=room(4 * rows * dim),
        normed=acts(rows, dim),
        second=acts(rows if arch.two_norms else 0, dim),
        branch=room(4 * rows * dim),
        qkv=room(4 * rows * qkv),
        heads=acts(rows, padded(arch.heads * arch.head_dim)),
        hidden=acts(rows, padded(arch.hidden)),
        logits=0,
        tiles=room(4 * threads * 2 * rows * BLOCK),
        tile_rows=rows,
        scores=scores,
        score_step=score_step,
        mixed=mixed,
        mixed_step=mixed_step,
        low=0,
        low_step=0,
    )
    return work, kept
