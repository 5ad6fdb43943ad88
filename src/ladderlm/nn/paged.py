"""Keys and values in pages of one pool on the device, and attention over them.

A page holds `cache.BLOCK` positions of one sequence in all layers; a sequence's KVCache.addresses is its page table
(Kwon et al. 2023, "PagedAttention"). Letters: N tokens of a step, B sequences with T new tokens each, S positions of
the longest one's pages, P pages of it, H heads, G key heads, R = H / G, K head dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderlm.engine.cache import BLOCK, KVCache
from ladderlm.errors import Overloaded
from ladderlm.models import rope
from ladderlm.models.arch import Architecture
from ladderlm.nn.blocks import Attention, Layer, Turns


class Page:
    """A page in use; it returns to its pool with its last reference."""

    __slots__ = ("__weakref__", "_pool", "address")

    def __init__(self, pool: Pool, number: int) -> None:
        self._pool, self.address = pool, number

    def __del__(self) -> None:
        self._pool.free.append(self.address)

    @property
    def nbytes(self) -> int:
        return self._pool.page_bytes

    def copy(self) -> Page:
        other = self._pool.take()
        self._pool.pages[:, :, other.address] = self._pool.pages[:, :, self.address]
        return other


class Pool:
    """All pages: (layers, 2, pages, BLOCK, G, K). Page 0 is nobody's: rows that only fill a batch write there."""

    def __init__(self, arch: Architecture, count: int, *, device: torch.device, dtype: torch.dtype) -> None:
        self._length = arch.context_length
        shape = (arch.layers, 2, max(2, count), BLOCK, arch.kv_heads, arch.head_dim)
        self.pages = torch.zeros(shape, dtype=dtype, device=device)
        self.page_bytes = page_bytes(arch, dtype)
        self.free = list(range(shape[2] - 1, 0, -1))
        self._fresh = shape[2]  # pages from here down were never used

    @property
    def nbytes(self) -> int:
        return self.pages.shape[2] * self.page_bytes

    def take(self) -> Page:
        """A page of zeros. Raises Overloaded where all are in use."""
        if not self.free:
            raise Overloaded(
                f"the memory for keys and values is full: {self.pages.shape[2]} pages of {BLOCK} positions",
                cure="fewer or shorter requests at a time",
            )
        page = Page(self, self.free.pop())
        self.pages[:, :, page.address].zero_()  # a mask hides finite values only
        return page

    def cache(self) -> KVCache:
        return KVCache(self.take, self._length)


def page_bytes(arch: Architecture, dtype: torch.dtype) -> int:
    return arch.layers * 2 * BLOCK * arch.kv_heads * arch.head_dim * dtype.itemsize


class Angles:
    """Turns of every layer for tokens anywhere, computed where they are needed: no table grows with the context.

    Angles are float64 where the device has it, so that far positions are as exact as near ones. LongRoPE has two sets
    of frequencies, for texts within and beyond its original context: a token's is chosen by its step's end.
    """

    def __init__(self, arch: Architecture, device: torch.device) -> None:
        self._original = int(arch.rope_scaling.get("original_max_position_embeddings") or arch.context_length)
        self._kinds: list[int] = []  # of each layer
        self._frequencies: list[Tensor] = []
        self._scales: list[Tensor] = []
        known: dict[bool, int] = {}
        self._turned, self._layers = arch.positions == "rotary", arch.layers
        for layer in range(arch.layers if self._turned else 0):
            local = bool(arch.local_theta) and arch.window(layer) > 0
            if local not in known:
                known[local] = len(known)
                both = [rope.frequencies(arch, layer, n) for n in (1, max(arch.context_length, self._original + 1))]
                exact = torch.float32 if device.type == "mps" else torch.float64
                self._frequencies.append(torch.tensor([f.tolist() for f, _ in both], dtype=exact, device=device))
                self._scales.append(torch.tensor([[s] for _, s in both], dtype=torch.float32, device=device))
            self._kinds.append(known[local])

    def __call__(self, positions_N: Tensor, ends_N: Tensor) -> list[Turns]:
        """By layer. `ends_N`: how long each token's sequence is after this step."""
        beyond_N = (ends_N > self._original).long()
        made = []
        for frequencies, scales in zip(self._frequencies, self._scales, strict=True):
            angles_NK = positions_N[:, None].to(frequencies.dtype) * frequencies[beyond_N]
            cos, sin = (f(angles_NK).float() * scales[beyond_N] for f in (torch.cos, torch.sin))
            made.append(Turns(torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)))
        return [made[kind] for kind in self._kinds] if self._turned else [Turns()] * self._layers


class View(NamedTuple):
    """Tokens `start`..`end` of a step: B sequences with T new tokens each, and what they see.

    `bias` by window is added to scores, or is where they are seen: (B, 1 or G, R * T or R, S), queries that share a
    key head one after the other.
    """

    start: int
    end: int
    table_BP: Tensor
    bias: dict[int, Tensor]


def view(arch: Architecture, start: int, positions_BT: Tensor, table_BP: Tensor, slopes_H: Tensor | None) -> View:
    """Of the tokens at `positions_BT`, those of a step from `start` on."""
    (count, new), seen = positions_BT.shape, table_BP.shape[1] * BLOCK
    share = arch.heads // arch.kv_heads
    back_BTS = positions_BT[:, :, None] - torch.arange(seen, device=positions_BT.device)
    bias = {}
    for window in {arch.window(i) for i in range(arch.layers)}:
        seen_BTS = back_BTS >= 0 if not window else (back_BTS >= 0) & (back_BTS < window)
        if slopes_H is None:
            bias[window] = seen_BTS[:, None, None].expand(-1, 1, share, -1, -1).reshape(count, 1, share * new, seen)
        else:
            held_BHTS = (-slopes_H[:, None, None] * back_BTS[:, None]).masked_fill(~seen_BTS[:, None], -math.inf)
            bias[window] = held_BHTS.view(count, arch.kv_heads, share * new, seen)
    return View(start, start + count * new, table_BP, bias)


def attend(attn: Attention, q_NHK: Tensor, pages: Tensor, view: View) -> Tensor:
    """Mixed values o_NHK of a view's tokens; `pages` (2, pages, BLOCK, G, K) of the layer hold theirs already."""
    count = len(view.table_BP)
    k_BGSK, v_BGSK = (x[view.table_BP].flatten(1, 2).transpose(1, 2) for x in pages)
    share, bias = attn.heads // attn.kv_heads, view.bias[attn.window]
    q_BGQK = q_NHK.view(count, -1, attn.kv_heads, share, attn.head_dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    if attn.cap:
        scores_BGQS = attn.scale * (q_BGQK @ k_BGSK.transpose(2, 3)).float()
        scores_BGQS = attn.cap * torch.tanh(scores_BGQS / attn.cap)
        scores_BGQS = scores_BGQS.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores_BGQS + bias
        o_BGQK = scores_BGQS.softmax(-1).to(v_BGSK.dtype) @ v_BGSK
    else:
        mask = bias if bias.dtype == torch.bool else bias.to(q_BGQK.dtype)
        o_BGQK = F.scaled_dot_product_attention(q_BGQK, k_BGSK, v_BGSK, attn_mask=mask, scale=attn.scale)
    o_BGRTK = o_BGQK.unflatten(2, (share, -1))
    return o_BGRTK.permute(0, 3, 1, 2, 4).reshape(len(q_NHK), -1)


def layer_step(
    layer: Layer, x_ND: Tensor, turns: Turns, pages: Tensor, slots_N: Tensor, views: list[View]
) -> Tensor:  # fmt: skip
    """A layer over all tokens of a step, whose keys and values go into `slots_N` of the layer's `pages`."""
    attn = layer.self_attn

    def attention(y_ND: Tensor) -> Tensor:
        q_NHK, k_NGK, v_NGK = attn.project(y_ND, turns)
        for which, new_NGK in enumerate((k_NGK, v_NGK)):
            pages[which].flatten(0, 1).index_copy_(0, slots_N, new_NGK.to(pages.dtype))
        q_NHK = q_NHK.to(pages.dtype)
        mixed = [attend(attn, q_NHK[v.start : v.end], pages, v) for v in views]
        return attn.o_proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    return layer.around(x_ND, attention)
