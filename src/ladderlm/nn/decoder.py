"""The decoder in torch, for training and for machines with a GPU: fp32, padding-free, every decoder-only family.

A batch is documents laid end to end: ids_T and their lengths. Attention is causal inside each document and positions
restart with it, so nothing is padded and no mask is built. Parameter names are the canonical ones of a model folder
(models/arch.py), so that `state()` goes into one as it is.

Letters: T tokens of all documents, D model, K head dim, V vocabulary, N wanted positions, S positions in a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ladderlm.errors import UsageError
from ladderlm.nn import branches
from ladderlm.nn.blocks import Layer, Turns, scores
from ladderlm.nn.linear import Linear
from ladderlm.nn.stack import Body
from ladderlm.nn.weights import fill, initialise, state
from ladderlm.types import FloatArray

if TYPE_CHECKING:
    from ladderlm.models.arch import Architecture
    from ladderlm.models.folder import ModelFiles


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
            raise UsageError(f"a {arch.family} {arch.kind} does not continue text", cure=f"it {arch.purpose}")
        self.arch = arch
        self.model = Body(arch, causal=True)
        if not arch.tied:
            self.lm_head = Linear(arch.dim, arch.vocab_size)

    @property
    def head_VD(self) -> Tensor:
        """The output matrix; the embedding itself where the two are tied."""
        return self.model.embed_tokens.weight if self.arch.tied else self.lm_head.weight

    @property
    def room(self) -> int:
        """The longest document that it reads, beside virtual tokens (also where they are switched off)."""
        soft = self.model.soft
        return self.arch.context_length - (0 if soft is None else soft.tokens)

    def forward(self, ids_T: Tensor, lengths: Sequence[int], after: Sequence[int] = ()) -> Tensor:
        """hidden_TD after the last norm. `lengths` of the documents in `ids_T` sum to T; `after`: see nn/branches.py.

        Raises ContextOverflow for a document longer than the model's context.
        """
        return branches.through(self.model, ids_T, lengths, after) if after else self.model(ids_T, lengths)

    def extend(self, ids_T: Tensor, cache: KeyValues) -> Tensor:
        """hidden_TD of tokens that follow those in `cache`, which then holds them too. Virtual tokens come first."""
        soft = self.model.soft
        if soft is not None and not soft.off and not cache.length:
            soft.begin(self, cache)
        return self.read(self.model.embed(ids_T), cache)

    def read(self, x_TD: Tensor, cache: KeyValues) -> Tensor:
        """The same of embedded and scaled tokens, whatever comes first."""
        start, end = cache.length, self.model.fits(cache.length + len(x_TD))
        positions_T = torch.arange(start, end, device=x_TD.device)
        x_TD = self.model.stand(x_TD, positions_T)
        for i, (layer, turns) in enumerate(zip(self.model.layers, self.model.each(positions_T, end), strict=True)):
            assert isinstance(layer, Layer)

            def attention(y_TD: Tensor, i: int = i, layer: Layer = layer, turns: Turns = turns) -> Tensor:
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

    def finish(self, x_TD: Tensor) -> Tensor:
        """The last norm, where there is one: what `logits` takes."""
        return self.model.finish(x_TD)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        return scores(hidden_ND, self.head_VD, self.arch.logit_cap)

    def initialise(self, seed: int) -> Decoder:
        """Random weights, the same for the same seed."""
        return initialise(self, self.arch, seed)

    def state(self) -> dict[str, FloatArray]:
        """The weights under their canonical names; a copy."""
        return state(self)


def load_decoder(files: ModelFiles) -> Decoder:
    """A Decoder with the weights of any decoder-only model folder or GGUF, dequantised to fp32.

    Raises FormatError where a tensor is missing or has the wrong shape, UsageError for another kind of model.
    """
    with torch.device("meta"):
        decoder = Decoder(files.arch)
    return fill(decoder, files)
