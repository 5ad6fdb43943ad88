"""The engine's backend in torch: any decoder family on a GPU (or wherever torch runs), over pages of keys and values.

A step is one pass over all its tokens; each sequence attends to the pages of its own. A step of single tokens has one
of few shapes (see `buckets`), so on CUDA it is recorded once as a graph and replayed: the host then only copies a
small table in and the logits out.

What differs from the CPU engine: the libraries of a GPU choose their kernels by shape, so a row's last bits can
depend on how many rows share its step and on how a prompt was cut. Nothing else of one request reaches another.

Letters: N tokens, B sequences, P pages of a sequence, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ladderlm import engine, events
from ladderlm.engine.backend import Piece
from ladderlm.engine.cache import BLOCK, KVCache
from ladderlm.engine.hot import VIRTUAL, LoadedAdapter
from ladderlm.errors import UsageError
from ladderlm.models import rope
from ladderlm.models.adapter import Adapter, fit
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Weights
from ladderlm.nn.blocks import Attention, FeedForward, Layer
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.graphs import Graphs
from ladderlm.nn.paged import Angles, Pool, View, page_bytes, view
from ladderlm.nn.quantised import Adapted, Joined, Matrix, Rows, host
from ladderlm.types import FloatArray

if TYPE_CHECKING:
    from ladderlm.engine.engine import Engine
    from ladderlm.models.folder import ModelFiles

MAX_ROWS = {"cpu": 256, "mps": 512}  # tokens of a step; more where reading the weights costs little beside computing
SHARE = 0.85  # of the device's free memory, once the weights are there, for keys and values
HOST_BYTES = 2**30  # for keys and values where the device's memory is the machine's


def load_engine(files: ModelFiles, *, device: str = "auto", kv_bytes: int | None = None) -> Engine:
    """An Engine for `files` on a torch device, its weights as small as the file has them.

    Raises UsageError for a device that is not there, or a model that does not continue text.
    """
    engine.check(files)
    from ladderlm.engine.engine import Engine

    backend = TorchBackend(files.arch, files.weights, device=device, kv_bytes=kv_bytes)
    # Its sums depend on how many rows a step has: there, guesses could change an answer.
    return Engine(backend, files.tokenizer, kv_bytes=backend.kv_bytes, speculate=False)


def find_device(name: str) -> torch.device:
    """The torch device that "auto", "cpu", "cuda", "cuda:1" or "mps" names. Raises UsageError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise UsageError("must be auto, cpu, cuda, cuda:N or mps", where=f"device={name}")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= there:
        raise UsageError(f"torch {torch.__version__} sees no such device", where=f"device={name}", cure="device=cpu")
    return torch.device(name)


class TorchBackend:
    """Runs steps of a decoder on `device`. Not for concurrent use.

    Matrices are computed in `dtype` (default: bfloat16 on CUDA, float32 elsewhere) and kept in the file's precision
    if that is smaller. `kv_bytes`: memory for keys and values (default: most of what is free on the device).
    """

    def __init__(
        self, arch: Architecture, weights: Weights, *, device: str = "auto", dtype: torch.dtype | None = None,
        kv_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self.arch, self.device = arch, find_device(device)
        self.dtype = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        events.emit("load", f"loading the weights onto {self.device}")
        self._adapted = Adapted()
        self._decoder, self._head = place(arch, weights, self._adapted, self.device, self.dtype)
        events.emit("load", finished=True)
        self._layers = [layer for layer in self._decoder.model.layers if isinstance(layer, Layer)]
        pages = (kv_bytes or self._free_bytes()) // page_bytes(arch, self.dtype)
        self._pool = Pool(arch, pages, device=self.device, dtype=self.dtype)
        self._angles = Angles(arch, self.device)
        self._slopes_H: Tensor | None = None
        if arch.positions == "alibi":
            self._slopes_H = torch.from_numpy(rope.alibi_slopes(arch.heads) * np.float32(arch.scale)).to(self.device)
        self._logits = torch.zeros(0, arch.vocab_size, pin_memory=self.device.type == "cuda")
        self._graphs = Graphs(self._decode, self.device, record=self.device.type == "cuda" and not arch.experts)

    @property
    def block_bytes(self) -> int:
        return self._pool.page_bytes

    @property
    def kv_bytes(self) -> int:
        """Memory of the pool of keys and values."""
        return self._pool.nbytes

    @property
    def max_rows(self) -> int:
        return MAX_ROWS.get(self.device.type, 2048)

    def cache(self) -> KVCache:
        return self._pool.cache()

    @torch.no_grad()
    def run(self, pieces: Sequence[Piece]) -> FloatArray:
        """Appends every piece to its cache; logits (rows, vocab) of the wanted rows in order, valid until the next.

        Raises Overloaded, and appends nothing, where the pool is full.
        """
        for cache, ids, _, _ in pieces:
            cache.reserve(len(cache) + len(ids))
        found = self._fetch(self._pass(pieces) if _plain(pieces) else self._passes(pieces))
        for cache, ids, _, _ in pieces:
            cache.ids.extend(ids)
        return found

    @torch.no_grad()
    def adapt(self, adapter: Adapter) -> LoadedAdapter:
        """Takes up an adapter. FormatError where it does not fit."""
        adapter, start = fit(adapter, self.arch), self.cache()
        if adapter.virtual is not None:
            start.reserve(adapter.tokens)
            start.ids = [VIRTUAL] * adapter.tokens
            virtual = self._values(adapter.virtual)
            at = np.arange(adapter.tokens)
            slots = self._slots(start, at)
            if adapter.kind == "prefix":
                self._pool.pages.flatten(2, 3)[:, :, self._tensor(slots)] = virtual
            else:
                placed = self._tensor(np.stack([0 * at, at, 0 * at + len(at), slots]))
                unscaled = virtual / self.arch.embed_scale  # which is applied to every embedding
                self._hidden(placed, [self._view(0, [range(adapter.tokens)], [start])], unscaled)
        scale = np.float32(adapter.scale)
        return LoadedAdapter(
            adapter, {n: (self._values(a), self._values(scale * b)) for n, (a, b) in adapter.pairs.items()}, start
        )

    def update(self, weights: Weights) -> None:
        """Other weights of the same shapes and precisions, in place, so that recorded graphs go on with them."""
        matrices = [m for m in (*self._decoder.modules(), self._head) if isinstance(m, Matrix)]
        for matrix in matrices:
            matrix.check(weights)
        for matrix in matrices:
            matrix.load(weights)
        fill(self._decoder, weights)

    def close(self) -> None:
        """Frees the device's memory, as far as no sequence holds pages."""
        self._graphs.clear()
        self._layers, self._decoder, self._head = [], nn.Module(), nn.Module()  # type: ignore[assignment]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _free_bytes(self) -> int:
        if self.device.type != "cuda":
            return HOST_BYTES
        torch.cuda.empty_cache()
        return int(SHARE * torch.cuda.mem_get_info(self.device)[0])

    def _tensor(self, values: object) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.int64)).to(self.device, non_blocking=True)

    def _values(self, values: FloatArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, self.dtype)

    def _pass(self, pieces: Sequence[Piece]) -> Tensor:
        """logits_NV of pieces that have one adapter, or none."""
        single = all(len(p.ids) == 1 and p.want == 0 for p in pieces) and len(pieces) <= self._graphs.most
        if single and not self._adapted.pairs:
            return self._graphs.run([(p.cache.addresses, len(p.cache), p.ids[0]) for p in pieces])
        return self._mixed(pieces)

    def _passes(self, pieces: Sequence[Piece]) -> Tensor:
        """logits_NV of any pieces: those of each adapter in a pass of their own."""
        groups: dict[int, list[int]] = {}
        for i, piece in enumerate(pieces):
            groups.setdefault(id(piece.adapter) if piece.adapter and piece.adapter.packed else 0, []).append(i)
        rows: dict[int, Tensor] = {}
        for members in groups.values():
            adapter = pieces[members[0]].adapter
            self._adapted.pairs = adapter.packed if adapter else {}
            try:
                logits_NV = self._pass([pieces[i] for i in members]).clone()
            finally:
                self._adapted.pairs = {}
            split = logits_NV.split([len(pieces[i].ids) - pieces[i].want for i in members])
            rows.update(zip(members, split, strict=True))
        return torch.cat([rows[i] for i in range(len(pieces))])

    @staticmethod
    def _slots(cache: KVCache, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where in the pool a sequence's positions are."""
        return cache.addresses[at // BLOCK] * BLOCK + at % BLOCK

    def _mixed(self, pieces: Sequence[Piece]) -> Tensor:
        """logits_NV of the wanted rows of pieces of any lengths: single tokens share a view, each other has its own."""
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].ids) != 1)
        ids: list[int] = []
        positions, ends, slots, views = [], [], [], []
        rows: dict[int, range] = {}
        for i in order:
            cache, tokens, want, _ = pieces[i]
            start, end = len(cache), len(cache) + len(tokens)
            at = np.arange(start, end)
            rows[i] = range(len(ids) + want, len(ids) + len(tokens))
            ids.extend(tokens)
            positions.append(at)
            ends.append(np.full(len(at), end))
            slots.append(self._slots(cache, at))
        wanted = [row for i in range(len(pieces)) for row in rows[i]]
        singles = [pieces[i] for i in order if len(pieces[i].ids) == 1]
        if singles:
            views.append(self._view(0, [[len(p.cache)] for p in singles], [p.cache for p in singles]))
        row = len(singles)
        for i in order[len(singles) :]:
            start, new = len(pieces[i].cache), len(pieces[i].ids)
            views.append(self._view(row, [range(start, start + new)], [pieces[i].cache]))
            row += new
        placed = self._tensor(np.stack([np.asarray(ids), *map(np.concatenate, (positions, ends, slots))]))
        return self._score(self._hidden(placed, views)[self._tensor(wanted)])

    def _view(self, row: int, positions: Sequence[Sequence[int]], caches: list[KVCache]) -> View:
        pages = max(max(p) for p in positions) // BLOCK + 1
        table_BP = self._tensor(np.stack([c.addresses[:pages] for c in caches]))
        return view(self.arch, row, self._tensor(positions), table_BP, self._slopes_H)

    def _decode(self, input_B2P: Tensor) -> Tensor:
        """logits_BV of one more token for each row: its id, its position, and its sequence's page table."""
        ids_B, positions_B, table_BP = input_B2P[:, 0], input_B2P[:, 1], input_B2P[:, 2:]
        pages_B = table_BP.gather(1, positions_B[:, None] // BLOCK)[:, 0]
        placed = torch.stack([ids_B, positions_B, positions_B + 1, pages_B * BLOCK + positions_B % BLOCK])
        seen = view(self.arch, 0, positions_B[:, None], table_BP, self._slopes_H)
        return self._score(self._hidden(placed, [seen]))

    def _hidden(self, placed_4N: Tensor, views: list[View], embedded_ND: Tensor | None = None) -> Tensor:
        """hidden_ND of tokens given as ids (or `embedded_ND`), positions, ends of sequences, slots in the pool."""
        ids_N, positions_N, ends_N, slots_N = placed_4N
        body = self._decoder.model
        x_ND = body.place(body.embed_tokens(ids_N) if embedded_ND is None else embedded_ND, positions_N)
        turns = self._angles(positions_N, ends_N)
        for i, layer in enumerate(self._layers):
            x_ND = self._graphs.step(layer, x_ND, turns[i], self._pool.pages[i], slots_N, views)
        return body.finish(x_ND)

    def _score(self, hidden_ND: Tensor) -> Tensor:
        logits_NV = self._head(hidden_ND).float()
        cap = self.arch.logit_cap
        return cap * torch.tanh(logits_NV / cap) if cap else logits_NV

    def _fetch(self, logits_NV: Tensor) -> FloatArray:
        """Copies logits to the host: the one wait of a step."""
        if self.device.type == "cpu":
            return logits_NV.numpy()
        rows = len(logits_NV)
        if rows > len(self._logits):
            size = max(rows, 2 * len(self._logits))
            self._logits = torch.zeros(size, self.arch.vocab_size, pin_memory=self.device.type == "cuda")
        self._logits[:rows].copy_(logits_NV)
        return self._logits[:rows].numpy()


def _plain(pieces: Sequence[Piece]) -> bool:
    """Whether no matrix is updated for any of them."""
    return not any(p.adapter and p.adapter.packed for p in pieces)


def place(
    arch: Architecture, weights: Weights, adapted: Adapted, device: torch.device, dtype: torch.dtype
) -> tuple[Decoder, Matrix]:
    """The decoder on `device`, its linears as matrices in their files' precision, and the matrix of its head."""

    def make(names: Sequence[str]) -> Matrix:
        return Matrix(weights, names, adapted, device=device, dtype=dtype)

    with torch.device("meta"):
        decoder = Decoder(arch)
    embeddings = make(["model.embed_tokens"])
    head = embeddings if arch.tied else make(["lm_head"])
    decoder.lm_head = head  # type: ignore[assignment]
    decoder.model.embed_tokens = Rows(embeddings)  # type: ignore[assignment]
    for name, module in list(decoder.named_modules()):
        if isinstance(module, Attention):
            module.joined = Joined([f"{name}.{x}_proj" for x in "qkv"], weights, make)
            module.q_proj = module.k_proj = module.v_proj = None  # type: ignore[assignment]
        elif isinstance(module, FeedForward) and module.gate_proj is not None:
            module.joined = Joined([f"{name}.gate_proj", f"{name}.up_proj"], weights, make)
            module.gate_proj = module.up_proj = None  # type: ignore[assignment]
    for name, module in list(decoder.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(decoder.get_submodule(parent), child, make([name]))
    for name, parameter in list(decoder.named_parameters()):
        parent, _, child = name.rpartition(".")
        kept = torch.empty(parameter.shape, dtype=dtype, device=device)
        setattr(decoder.get_submodule(parent), child, nn.Parameter(kept, requires_grad=False))
    fill(decoder, weights)
    return decoder, head


@torch.no_grad()
def fill(decoder: nn.Module, weights: Weights) -> None:
    """Norms and learned positions: what is no Matrix."""
    for name, parameter in decoder.named_parameters():
        parameter.copy_(host(weights, name))
