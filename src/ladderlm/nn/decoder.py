"""The Llama-style decoder in torch, for training: fp32, padding-free.

A batch is documents laid end to end: ids_T and their lengths. Attention is causal inside each document and rotary
positions restart with it, so nothing is padded and no mask is built. Parameter names are those of the Hugging Face
layout, so that `state()` goes into a model folder as it is.

Letters: T tokens of all documents, B documents of one length, D model, H heads, G key/value heads, K head dim,
F hidden of the feed-forward part, V vocabulary, N wanted positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ladderlm.errors import ContextOverflow, FormatError
from ladderlm.nn.linear import Linear, linear
from ladderlm.types import FloatArray

if TYPE_CHECKING:
    from ladderlm.models.arch import Architecture
    from ladderlm.models.folder import ModelFiles


class Norm(nn.Module):
    """Root-mean-square norm with a learned scale (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        return F.rms_norm(x_TD, self.weight.shape, self.weight, self.eps)


def rotate(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021), the two halves of a head being the two coordinates (Hugging Face order).

    `sin_TK` carries the minus sign of its first half, so that one roll does for both.
    """
    return x_THK * cos_TK[:, None] + x_THK.roll(x_THK.shape[-1] // 2, -1) * sin_TK[:, None]


class Attention(nn.Module):
    """Grouped-query causal attention, document by document."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = arch.heads, arch.kv_heads, arch.head_dim
        self.q_proj = Linear(arch.dim, arch.heads * arch.head_dim)
        self.k_proj = Linear(arch.dim, arch.kv_heads * arch.head_dim)
        self.v_proj = Linear(arch.dim, arch.kv_heads * arch.head_dim)
        self.o_proj = Linear(arch.heads * arch.head_dim, arch.dim)

    def forward(self, x_TD: Tensor, cos_TK: Tensor, sin_TK: Tensor, lengths: Sequence[int]) -> Tensor:
        tokens = len(x_TD)
        q_THK = rotate(self.q_proj(x_TD).view(tokens, self.heads, self.head_dim), cos_TK, sin_TK)
        k_TGK = rotate(self.k_proj(x_TD).view(tokens, self.kv_heads, self.head_dim), cos_TK, sin_TK)
        v_TGK = self.v_proj(x_TD).view(tokens, self.kv_heads, self.head_dim)
        out, start = [], 0
        for length, run in itertools.groupby(lengths):  # neighbours of one length share a call
            end = start + length * len(list(run))
            q_BHTK, k_BGTK, v_BGTK = (
                t[start:end].view(-1, length, t.shape[1], self.head_dim).transpose(1, 2) for t in (q_THK, k_TGK, v_TGK)
            )
            o_BHTK = F.scaled_dot_product_attention(
                q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=self.kv_heads != self.heads
            )
            out.append(o_BHTK.transpose(1, 2).reshape(end - start, -1))
            start = end
        return self.o_proj(out[0] if len(out) == 1 else torch.cat(out))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.gate_proj = Linear(arch.dim, arch.hidden)
        self.up_proj = Linear(arch.dim, arch.hidden)
        self.down_proj = Linear(arch.hidden, arch.dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))


class Layer(nn.Module):
    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.input_layernorm = Norm(arch.dim, arch.norm_eps)
        self.self_attn = Attention(arch)
        self.post_attention_layernorm = Norm(arch.dim, arch.norm_eps)
        self.mlp = FeedForward(arch)

    def forward(self, x_TD: Tensor, cos_TK: Tensor, sin_TK: Tensor, lengths: Sequence[int]) -> Tensor:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), cos_TK, sin_TK, lengths)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class Body(nn.Module):
    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.dim)
        self.layers = nn.ModuleList(Layer(arch) for _ in range(arch.layers))
        self.norm = Norm(arch.dim, arch.norm_eps)


class Decoder(nn.Module):
    """`forward` gives hidden states; `logits` scores those of them that are wanted."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.model = Body(arch)
        if not arch.tied:
            self.lm_head = Linear(arch.dim, arch.vocab_size)
        # The table grows with the longest document seen: a context of 128k would cost memory nobody uses.
        self.cos_TK, self.sin_TK = _rotary_table(0, arch.head_dim, arch.rope_theta)

    @property
    def head_VD(self) -> Tensor:
        """The output matrix; the embedding itself where the two are tied."""
        return self.model.embed_tokens.weight if self.arch.tied else self.lm_head.weight

    def forward(self, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """hidden_TD after the last norm. `lengths` of the documents in `ids_T` sum to T.

        Raises ContextOverflow for a document longer than the model's context.
        """
        longest = max(lengths)
        if longest > self.arch.context_length:
            raise ContextOverflow(f"a document of {longest} tokens", where=f"context {self.arch.context_length}")
        if longest > len(self.cos_TK):
            self.cos_TK, self.sin_TK = _rotary_table(longest, self.arch.head_dim, self.arch.rope_theta)
        positions_T = torch.cat([torch.arange(n) for n in lengths])
        cos_TK, sin_TK = self.cos_TK[positions_T], self.sin_TK[positions_T]
        x_TD = self.model.embed_tokens(ids_T)
        for layer in self.model.layers:
            x_TD = layer(x_TD, cos_TK, sin_TK, lengths)
        return self.model.norm(x_TD)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        return linear(hidden_ND, self.head_VD)

    @torch.no_grad()
    def initialise(self, seed: int) -> Decoder:
        """Random weights: normal with deviation 1/sqrt(inputs), the two that end a residual branch zero.

        Zero branches make the fresh network an identity, which lets deep and shallow ones start at one rate
        (Zhang et al. 2019, "Fixup").
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim != 2:
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            else:
                scale = 0.02 if "embed_tokens" in name or "lm_head" in name else parameter.shape[1] ** -0.5
                parameter.normal_(0.0, scale, generator=generator)
        return self

    def state(self) -> dict[str, FloatArray]:
        """The weights under their Hugging Face names; a copy."""
        return {name: p.detach().numpy().astype(np.float32, copy=True) for name, p in self.named_parameters()}


def _rotary_table(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    frequency_K = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle_TK = torch.outer(torch.arange(length, dtype=torch.float64), frequency_K)
    cos_TK, sin_TK = angle_TK.cos().float(), angle_TK.sin().float()
    return torch.cat([cos_TK, cos_TK], 1), torch.cat([-sin_TK, sin_TK], 1)


def load_decoder(files: ModelFiles) -> Decoder:
    """A Decoder with the weights of any model folder or GGUF, dequantised to fp32.

    Raises FormatError where a tensor is missing or has the wrong shape.
    """
    with torch.device("meta"):
        decoder = Decoder(files.arch)
    decoder.to_empty(device="cpu")
    decoder.cos_TK, decoder.sin_TK = _rotary_table(0, files.arch.head_dim, files.arch.rope_theta)
    held = set(files.weights.names())
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name not in held:
                raise FormatError(f"the model has no tensor {name!r}", where=str(files.path))
            array = files.weights.float32(name)
            if array.shape != tuple(parameter.shape):
                raise FormatError(f"{name} is {array.shape}, not {tuple(parameter.shape)}", where=str(files.path))
            parameter.copy_(torch.from_numpy(np.require(array, np.float32, ["C", "W"])))
    return decoder
