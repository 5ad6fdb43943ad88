"""The parts that all architectures are composed of: norms, attention, feed-forward layers, experts, the layer.

A batch is documents laid end to end, so nothing is padded. Letters: T tokens of all documents, B documents of one
length, D model, H heads, G key/value heads, K head dim, F hidden of the feed-forward part, E experts, S positions
attended to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ladderlm.nn import dense
from ladderlm.nn.dense import narrow
from ladderlm.nn.linear import Linear, linear

if TYPE_CHECKING:
    from ladderlm.models.arch import Architecture

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


class Norm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019) or layer norm (Ba et al. 2016) with a learned scale."""

    def __init__(self, arch: Architecture, dim: int = 0, *, kind: str = "", bias: bool | None = None) -> None:
        super().__init__()
        dim, self.eps, self.layer = dim or arch.dim, arch.norm_eps, (kind or arch.norm) == "layer"
        self.offset = arch.norm_offset
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if (arch.norm_bias if bias is None else bias) else None

    def forward(self, x_TD: Tensor) -> Tensor:
        weight = 1 + self.weight if self.offset else self.weight
        if self.layer:
            return narrow(F.layer_norm(x_TD, weight.shape, weight, self.bias, self.eps))
        return narrow(F.rms_norm(x_TD, weight.shape, weight, self.eps))


class HeadNorms(nn.Module):
    """A norm with its own weight for each head (StableLM 2)."""

    def __init__(self, arch: Architecture, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(Norm(arch, arch.head_dim, bias=False) for _ in range(heads))

    def forward(self, x_THK: Tensor) -> Tensor:
        return torch.stack([norm(x_THK[:, i]) for i, norm in enumerate(self.norms)], 1)


class Turns(NamedTuple):
    """What positions do in a layer: sines and cosines for each token, and what is added to scores.

    `bias` gives bias_HTS for back_TS: how far back the S keys lie of the T queries, which are the last of the S.
    """

    cos_TK: Tensor | None = None
    sin_TK: Tensor | None = None
    bias: Callable[[Tensor], Tensor] | None = None


def rotate(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021), the two halves of what is turned being the two coordinates.

    `sin_TK` carries the minus sign of its first half, so that one roll does for both; coordinates beyond its width
    stay as they are.
    """
    width = cos_TK.shape[-1]
    turned, rest = (x_THK, None) if width == x_THK.shape[-1] else (x_THK[..., :width], x_THK[..., width:])
    turned = turned * cos_TK[:, None] + turned.roll(width // 2, -1) * sin_TK[:, None]
    return turned if rest is None else torch.cat([turned, rest], -1)


class Attention(nn.Module):
    """Grouped-query attention, document by document; causal unless told otherwise."""

    def __init__(self, arch: Architecture, layer: int, *, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = arch.heads, arch.kv_heads, arch.head_dim
        self.scale, self.cap, self.window, self.causal = arch.scale, arch.attention_cap, arch.window(layer), causal
        self.rotated = arch.positions == "rotary" and layer not in arch.unrotated
        width = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
        self.q_proj = Linear(arch.dim, width[0], arch.qkv_bias)
        self.k_proj = Linear(arch.dim, width[1], arch.qkv_bias)
        self.v_proj = Linear(arch.dim, width[1], arch.qkv_bias)
        self.o_proj = Linear(width[0], arch.dim, arch.out_bias)
        self.joined: nn.Module | None = None  # gives queries, keys and values at once, in the place of the three
        self.qk_norm = arch.qk_norm
        if arch.qk_norm:
            self.q_norm, self.k_norm = (self._norm(arch, heads) for heads in (arch.heads, arch.kv_heads))

    @staticmethod
    def _norm(arch: Architecture, heads: int) -> nn.Module:
        if arch.qk_norm == "heads":
            return HeadNorms(arch, heads)
        return Norm(arch, heads * arch.head_dim if arch.qk_norm == "all" else arch.head_dim, bias=False)

    def project(self, x_TD: Tensor, turns: Turns) -> tuple[Tensor, Tensor, Tensor]:
        """q_THK, k_TGK and v_TGK, normed and turned."""
        tokens = len(x_TD)
        q, k, v = self.joined(x_TD) if self.joined else (self.q_proj(x_TD), self.k_proj(x_TD), self.v_proj(x_TD))
        if self.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q_THK, k_TGK = q.view(tokens, self.heads, -1), k.view(tokens, self.kv_heads, -1)
        if self.qk_norm in ("head", "heads"):
            q_THK, k_TGK = self.q_norm(q_THK), self.k_norm(k_TGK)
        if self.rotated and turns.cos_TK is not None and turns.sin_TK is not None:
            q_THK = rotate(q_THK, turns.cos_TK, turns.sin_TK)
            k_TGK = rotate(k_TGK, turns.cos_TK, turns.sin_TK)
        return q_THK, k_TGK, v.view(tokens, self.kv_heads, -1)

    def forward(self, x_TD: Tensor, turns: Turns, lengths: Sequence[int]) -> Tensor:
        return self.mix(*self.project(x_TD, turns), turns, lengths, lengths)

    def mix(
        self, q_THK: Tensor, k_SGK: Tensor, v_SGK: Tensor, turns: Turns, lengths_T: Sequence[int],
        lengths_S: Sequence[int],
    ) -> Tensor:  # fmt: skip
        """What the documents of the queries take from those of the keys, the first from the first and so on."""
        out, t, s = [], 0, 0
        for (length, seen), run in itertools.groupby(zip(lengths_T, lengths_S, strict=True)):
            count = len(list(run))  # neighbours of one length share a call
            t_end, s_end = t + length * count, s + seen * count
            q_BHTK = q_THK[t:t_end].view(count, length, self.heads, self.head_dim).transpose(1, 2)
            k_BGSK, v_BGSK = (
                x[s:s_end].view(count, seen, self.kv_heads, self.head_dim).transpose(1, 2) for x in (k_SGK, v_SGK)
            )
            o_BHTK = self.attend(q_BHTK, k_BGSK, v_BGSK, turns)
            out.append(o_BHTK.transpose(1, 2).reshape(t_end - t, -1))
            t, s = t_end, s_end
        return self.o_proj(out[0] if len(out) == 1 else torch.cat(out))

    def attend(
        self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, turns: Turns, bias: Tensor | None = None
    ) -> Tensor:
        """Mixed values o_BHTK; the T queries are the last of the S positions.

        `bias` (T, S) or (H, T, S), made by `bias`, takes the place of what follows from that.
        """
        length, seen = q_BHTK.shape[2], k_BGSK.shape[2]
        local = 0 < self.window < seen if self.causal else 0 < self.window // 2 < seen
        grouped, share = self.kv_heads != self.heads, self.heads // self.kv_heads
        plain = bias is None and not (local or self.cap or turns.bias)
        known = bias is not None and bias.dim() == 2 and not self.cap
        if self.causal and ((plain and length == seen) or known) and dense.suits(q_BHTK, seen):
            k_BHSK, v_BHSK = (x if share == 1 else x.repeat_interleave(share, 1) for x in (k_BGSK, v_BGSK))
            return dense.attend(q_BHTK, k_BHSK, v_BHSK, self.scale, bias)
        if plain and (length == seen or length == 1 or not self.causal):
            return F.scaled_dot_product_attention(
                q_BHTK, k_BGSK, v_BGSK, is_causal=self.causal and length > 1, enable_gqa=grouped, scale=self.scale
            )
        if self.cap:
            return self.shares(q_BHTK, k_BGSK, turns, bias) @ v_BGSK.repeat_interleave(share, 1)
        if bias is None:
            bias = self.bias(distances(length, seen, q_BHTK.device), turns)
        return F.scaled_dot_product_attention(
            q_BHTK, k_BGSK, v_BGSK, attn_mask=bias.to(q_BHTK.dtype), enable_gqa=grouped, scale=self.scale
        )

    def shares(self, q_BHTK: Tensor, k_BGSK: Tensor, turns: Turns, bias: Tensor | None = None) -> Tensor:
        """How much of each position each query takes: shares_BHTS, whose rows sum to 1."""
        k_BHSK = k_BGSK.repeat_interleave(self.heads // self.kv_heads, 1)
        scores_BHTS = self.scale * q_BHTK @ k_BHSK.transpose(2, 3)
        if self.cap:
            scores_BHTS = self.cap * torch.tanh(scores_BHTS / self.cap)
        if bias is None:
            bias = self.bias(distances(q_BHTK.shape[2], k_BGSK.shape[2], q_BHTK.device), turns)
        return (scores_BHTS + bias).softmax(-1)

    def bias(self, back_TS: Tensor, turns: Turns) -> Tensor:
        """What is added to the scores of keys that lie so far back: -inf where a query does not see."""
        hidden_TS = back_TS < 0 if self.causal else torch.zeros_like(back_TS, dtype=torch.bool)
        if self.window:
            hidden_TS = hidden_TS | (back_TS >= self.window if self.causal else back_TS.abs() > self.window // 2)
        bias = torch.zeros(hidden_TS.shape, device=back_TS.device).masked_fill(hidden_TS, -math.inf)
        return bias + turns.bias(back_TS) if turns.bias else bias


def distances(length: int, seen: int, device: torch.device) -> Tensor:
    """back_TS: how far back each of `seen` positions lies of the last `length` of them."""
    at_S = torch.arange(seen, device=device)
    return at_S[seen - length :, None] - at_S[None]


class FeedForward(nn.Module):
    """down(f(gate x) * up x), with SiLU that is SwiGLU (Shazeer 2020); without a gate down(f(up x))."""

    def __init__(self, arch: Architecture, hidden: int = 0) -> None:
        super().__init__()
        hidden = hidden or arch.hidden
        self.act = ACTIVATIONS[arch.activation]
        self.gate_proj = Linear(arch.dim, hidden, arch.mlp_bias) if arch.gated else None
        self.up_proj = Linear(arch.dim, hidden, arch.mlp_bias)
        self.down_proj = Linear(hidden, arch.dim, arch.mlp_bias)
        self.joined: nn.Module | None = None  # gate and up at once, in the place of the two

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.joined is not None:
            gate, up = self.joined(x_TD)
            return self.down_proj(self.act(gate) * up)
        if self.gate_proj is None:
            return self.down_proj(self.act(self.up_proj(x_TD)))
        return self.down_proj(self.act(self.gate_proj(x_TD)) * self.up_proj(x_TD))


class Experts(nn.Module):
    """Mixture of experts (Shazeer et al. 2017): each token goes to the few its router prefers, weighed by it."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.used, self.normed = arch.experts_used, arch.expert_weights_normed
        self.gate = Linear(arch.dim, arch.experts)
        self.experts = nn.ModuleList(FeedForward(arch, arch.expert_hidden) for _ in range(arch.experts))
        self.shared_expert = FeedForward(arch, arch.shared_hidden) if arch.shared_hidden else None
        self.shared_expert_gate = Linear(arch.dim, 1) if arch.shared_hidden else None

    def forward(self, x_TD: Tensor) -> Tensor:
        share_TE, chosen_TE = self.gate(x_TD).float().softmax(-1).topk(self.used, -1)
        if self.normed:
            share_TE = share_TE / share_TE.sum(-1, keepdim=True)
        share_TE = share_TE.to(x_TD.dtype)
        out_TD = torch.zeros_like(x_TD)
        for number, expert in enumerate(self.experts):
            tokens, place = (chosen_TE == number).nonzero(as_tuple=True)
            if len(tokens):
                mixed = expert(x_TD[tokens]) * share_TE[tokens, place, None]
                out_TD = out_TD.index_add(0, tokens, mixed)
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            out_TD = out_TD + self.shared_expert_gate(x_TD).sigmoid() * self.shared_expert(x_TD)
        return out_TD


class Layer(nn.Module):
    """Attention and a feed-forward part around the residual stream; see Architecture.placement."""

    def __init__(self, arch: Architecture, layer: int, *, causal: bool = True) -> None:
        super().__init__()
        before, after, extra = arch.norms
        self.placement = arch.placement
        self.input_layernorm = Norm(arch) if before and (layer or arch.first_norm) else nn.Identity()
        self.self_attn = Attention(arch, layer, causal=causal)
        self.attention_out_norm = Norm(arch) if after else nn.Identity()
        self.post_attention_layernorm = Norm(arch) if extra else nn.Identity()
        self.mlp = Experts(arch) if arch.experts and layer not in arch.dense_layers else FeedForward(arch)
        self.mlp_out_norm = Norm(arch) if after else nn.Identity()
        self.shared_norm = before and not extra

    def forward(self, x_TD: Tensor, turns: Turns, lengths: Sequence[int]) -> Tensor:
        return self.around(x_TD, lambda y_TD: self.self_attn(y_TD, turns, lengths))

    def around(self, x_TD: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer with `attention` in the place of its own."""
        if self.placement == "parallel":
            normed_TD = self.input_layernorm(x_TD)
            beside_TD = normed_TD if self.shared_norm else self.post_attention_layernorm(x_TD)
            return x_TD + attention(normed_TD) + self.mlp(beside_TD)
        x_TD = self.branch(x_TD, self.input_layernorm, attention, self.attention_out_norm)
        return self.branch(x_TD, self.post_attention_layernorm, self.mlp, self.mlp_out_norm)

    def branch(self, x_TD: Tensor, before: nn.Module, f: Callable[[Tensor], Tensor], after: nn.Module) -> Tensor:
        """The residual stream after a branch and its norms."""
        if self.placement == "post":
            return after(x_TD + f(x_TD))
        return x_TD + after(f(before(x_TD)))


def scores(hidden_ND: Tensor, head_VD: Tensor, cap: float = 0.0) -> Tensor:
    """logits_NV, capped if `cap`."""
    logits_NV = linear(hidden_ND, head_VD)
    return cap * torch.tanh(logits_NV / cap) if cap else logits_NV
