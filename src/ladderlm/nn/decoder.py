"""The decoder in torch, for training and for machines with a GPU: fp32, padding-free, every decoder-only family.

A batch is documents laid end to end: ids_T and their lengths. Attention is causal inside each document and positions
restart with it, so nothing is padded and no mask is built. Parameter names are the canonical ones of a model folder
(models/arch.py), so that `state()` goes into one as it is.

Letters: T tokens of all documents, D model, K head dim, V vocabulary, N wanted positions, S positions in a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ladderlm.errors import ContextOverflow, FormatError, UsageError
from ladderlm.models import rope
from ladderlm.nn.blocks import Layer, Norm, Turns, alibi_slopes, scores
from ladderlm.nn.linear import Linear
from ladderlm.types import FloatArray

if TYPE_CHECKING:
    from ladderlm.models.arch import Architecture
    from ladderlm.models.folder import ModelFiles


M = TypeVar("M", bound=nn.Module)


class Positions:
    """Sines and cosines by layer, for as many positions as were needed so far.

    The tables grow with the longest document seen: a context of 128k would cost memory nobody uses.
    """

    def __init__(self, arch: Architecture) -> None:
        self._arch = arch
        self._tables: dict[tuple[bool, bool], tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, positions_T: Tensor, length: int) -> Turns:
        """What a layer's attention needs to place tokens at `positions_T` in texts of at most `length`."""
        arch = self._arch
        if arch.positions == "alibi":
            return Turns(slopes_H=alibi_slopes(arch.heads) * arch.scale)  # Falcon scales it with the scores
        if arch.positions != "rotary":
            return Turns()
        long = length > arch.rope_scaling.get("original_max_position_embeddings", length)
        key = arch.window(layer) > 0, long
        if key not in self._tables or len(self._tables[key][0]) < length:
            table = torch.from_numpy(rope.table(arch, layer, max(64, 1 << (length - 1).bit_length()), length))
            cos, sin = table[:, 0], table[:, 1]
            self._tables[key] = torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)
        cos_SK, sin_SK = self._tables[key]
        return Turns(cos_SK[positions_T], sin_SK[positions_T])


class Body(nn.Module):
    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.dim)
        if arch.positions == "learned":
            self.embed_positions = nn.Embedding(arch.context_length + arch.position_offset, arch.dim)
        self.layers = nn.ModuleList(Layer(arch, i) for i in range(arch.layers))
        if arch.placement != "post":
            self.norm = Norm(arch)


class KeyValues:
    """Keys and values of one document, by layer: k_GSK and v_GSK."""

    def __init__(self) -> None:
        self.length = 0
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}


class Decoder(nn.Module):
    """`forward` gives hidden states; `logits` scores those of them that are wanted."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        if arch.kind != "decoder":
            raise UsageError(f"a {arch.kind} is no decoder", where=arch.family)
        self.arch = arch
        self.model = Body(arch)
        if not arch.tied:
            self.lm_head = Linear(arch.dim, arch.vocab_size)
        self.positions = Positions(arch)

    @property
    def head_VD(self) -> Tensor:
        """The output matrix; the embedding itself where the two are tied."""
        return self.model.embed_tokens.weight if self.arch.tied else self.lm_head.weight

    def forward(self, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """hidden_TD after the last norm. `lengths` of the documents in `ids_T` sum to T.

        Raises ContextOverflow for a document longer than the model's context.
        """
        longest = self._fits(max(lengths))
        positions_T = torch.cat([torch.arange(n) for n in lengths])
        x_TD = self._embed(ids_T, positions_T)
        turns: dict[bool, Turns] = {}
        for i, layer in enumerate(self.model.layers):
            local = self.arch.window(i) > 0
            if local not in turns:
                turns[local] = self.positions(i, positions_T, longest)
            x_TD = layer(x_TD, turns[local], lengths)
        return self.finish(x_TD)

    def extend(self, ids_T: Tensor, cache: KeyValues) -> Tensor:
        """hidden_TD of tokens that follow those in `cache`, which then holds them too."""
        start, end = cache.length, self._fits(cache.length + len(ids_T))
        positions_T = torch.arange(start, end)
        x_TD = self._embed(ids_T, positions_T)
        for i, layer in enumerate(self.model.layers):
            assert isinstance(layer, Layer)

            def attention(y_TD: Tensor, i: int = i, layer: Layer = layer) -> Tensor:
                turns = self.positions(i, positions_T, end)
                q_THK, k_TGK, v_TGK = layer.self_attn.project(y_TD, turns)
                k_GSK, v_GSK = k_TGK.transpose(0, 1), v_TGK.transpose(0, 1)
                if i in cache.kept:
                    k_GSK, v_GSK = (torch.cat([a, b], 1) for a, b in zip(cache.kept[i], (k_GSK, v_GSK), strict=True))
                cache.kept[i] = k_GSK, v_GSK
                o_1HTK = layer.self_attn.attend(q_THK.transpose(0, 1)[None], k_GSK[None], v_GSK[None], turns)
                return layer.self_attn.o_proj(o_1HTK[0].transpose(0, 1).reshape(len(y_TD), -1))

            x_TD = layer.around(x_TD, attention)
        cache.length = end
        return self.finish(x_TD)

    def _fits(self, length: int) -> int:
        if length > self.arch.context_length:
            raise ContextOverflow(f"a document of {length} tokens", where=f"context {self.arch.context_length}")
        return length

    def _embed(self, ids_T: Tensor, positions_T: Tensor) -> Tensor:
        x_TD = self.model.embed_tokens(ids_T)
        if self.arch.embed_scale != 1.0:
            x_TD = x_TD * self.arch.embed_scale
        if self.arch.positions == "learned":
            x_TD = x_TD + self.model.embed_positions(positions_T + self.arch.position_offset)
        return x_TD

    def finish(self, x_TD: Tensor) -> Tensor:
        """The last norm, where there is one: what `logits` takes."""
        return x_TD if self.arch.placement == "post" else self.model.norm(x_TD)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        return scores(hidden_ND, self.head_VD, self.arch.logit_cap)

    @torch.no_grad()
    def initialise(self, seed: int) -> Decoder:
        """Random weights: normal with deviation 1/sqrt(inputs), the two that end a residual branch zero.

        Zero branches make the fresh network an identity, which lets deep and shallow ones start at one rate
        (Zhang et al. 2019, "Fixup").
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim != 2:
                parameter.fill_(0.0 if name.endswith(".bias") or self.arch.norm_offset else 1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            else:
                scale = 0.02 if ".embed_" in name or "lm_head" in name else parameter.shape[1] ** -0.5
                parameter.normal_(0.0, scale, generator=generator)
        return self

    def state(self) -> dict[str, FloatArray]:
        """The weights under their canonical names; a copy."""
        return {name: p.detach().numpy().astype(np.float32, copy=True) for name, p in self.named_parameters()}


def load_decoder(files: ModelFiles) -> Decoder:
    """A Decoder with the weights of any decoder-only model folder or GGUF, dequantised to fp32.

    Raises FormatError where a tensor is missing or has the wrong shape, UsageError for another kind of model.
    """
    with torch.device("meta"):
        decoder = Decoder(files.arch)
    return fill(decoder, files)


def fill(module: M, files: ModelFiles) -> M:
    """Gives a module made on the meta device the weights of `files`, by name."""
    module.to_empty(device="cpu")
    held = set(files.weights.names())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name not in held:
                raise FormatError(f"the model has no tensor {name!r}", where=str(files.path))
            array = files.weights.float32(name)
            if array.shape != tuple(parameter.shape):
                raise FormatError(f"{name} is {array.shape}, not {tuple(parameter.shape)}", where=str(files.path))
            parameter.copy_(torch.from_numpy(np.require(array, np.float32, ["C", "W"])))
    return module
