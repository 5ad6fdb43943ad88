"""What time-to-loss is measured against, frozen: GPT-2's network with nanoGPT's recipe, and an LSTM of the same size.

Written from their descriptions (Radford et al. 2019; the settings nanoGPT trains with), in plain torch.
Letters: B rows, T tokens of a row, D model, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ladderlm.nn.linear import linear

DECAY, BETAS, CLIP, LOWEST = 0.1, (0.9, 0.95), 1.0, 0.1  # LOWEST: of the learning rate, where its cosine ends


class Product(nn.Linear):
    """A linear layer through the package's matrix product: where that is faster, the peer shall have it too."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv, self.mixed = Product(dim, 3 * dim, bias=False), Product(dim, dim, bias=False)
        self.up, self.down = Product(dim, 4 * dim, bias=False), Product(4 * dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        rows, tokens, dim = x_BTD.shape
        q, k, v = (
            part.view(rows, tokens, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.before(x_BTD)).split(dim, -1)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.mixed(seen.transpose(1, 2).reshape(rows, tokens, dim))
        return x_BTD + self.down(F.gelu(self.up(self.between(x_BTD))))


class GPT(nn.Module):
    """Learned positions, layer norms before each branch, GELU, tied embeddings."""

    def __init__(self, vocab: int, dim: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                ends = name.endswith(("mixed.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if ends else 0.02)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """logits_BTV"""
        x_BTD = self.embed(ids_BT) + self.place.weight[: ids_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        x_BTD = self.norm(x_BTD)
        return linear(x_BTD.view(-1, x_BTD.shape[-1]), self.embed.weight).view(*ids_BT.shape, -1)


class LSTM(nn.Module):
    """Layers of long short-term memory (Hochreiter & Schmidhuber 1997) with a tied head."""

    def __init__(self, vocab: int, dim: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.cells = nn.LSTM(dim, dim, layers, batch_first=True)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """logits_BTV"""
        hidden_BTD, _ = self.cells(self.embed(ids_BT))
        return linear(hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), self.embed.weight).view(*ids_BT.shape, -1)


def rate(step: int, total: int, warmup: int) -> float:
    """The learning rate's share: a rise, then a cosine down to a tenth."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class Trainer:
    """One step at a time of nanoGPT's recipe: AdamW, weight decay of matrices, clipping."""

    def __init__(self, model: nn.Module, lr: float, total: int) -> None:
        self.model, self.lr, self.total, self.warmup = model, lr, total, min(100, max(1, total // 20))
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=BETAS, fused=True)

    def step(self, number: int, batches: list[Callable[[], tuple[Tensor, Tensor]]]) -> float:
        """Trains on `batches` of (ids_BT, targets_N), which count alike; their mean loss."""
        mean = 0.0
        for get in batches:
            ids_BT, targets_N = get()
            loss = F.cross_entropy(self.model(ids_BT).view(len(targets_N), -1), targets_N) / len(batches)
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in self.adamw.param_groups:
            group["lr"] = self.lr * rate(number, self.total, self.warmup)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return mean
