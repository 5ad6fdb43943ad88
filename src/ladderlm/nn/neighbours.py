"""A start for encoders from which masked tokens and pairs of texts are learnt: heads that look where it pays.

A masked token says nothing of itself, so that nothing is learnt until some head finds the neighbours by their
positions alone, which from random weights takes long. Here positions begin as waves, and the queries of
each head as its keys turned by a whole number of positions: the score is highest where the key stands that far away.
Weights that begin with the structure that training ends in are Trockman and Kolter's (2023, arXiv 2305.09828).

For pairs of texts the queries and keys of the second layer begin alike, whichever text a token is in, so that like
finds like; in the layers after it some heads of the first token look at the one text, some at the other.

All of it goes on to train; the file is a BERT's.

Letters: S positions, D model, K head dim, F waves.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderlm.models.arch import Architecture
from ladderlm.nn.encoder import Encoder

OFFSETS = (-1, 1, -2, 2, -3, 3, -4, 4)  # of the heads, in turns
PEAK = 5.5  # by how much the score of the token looked at exceeds the mean
LIKE_PEAK = 13.0  # the same of a token like it: high, for a hundred others add up
SIDE_PEAK = 2.8  # the same of a text's tokens, for the first token
NOISE = 0.1  # share of the random weights that stays
DEVIATION = 0.02  # of embeddings; tokens, positions and types make a third each of what is normed


@torch.no_grad()
def look_around(encoder: Encoder) -> Encoder:
    """Gives an encoder with learned positions this start, in place."""
    arch, layer = encoder.arch, encoder.model.layers[0]
    positions_SD = encoder.model.embed_positions.weight
    count, waves, size = len(positions_SD), arch.dim // 2, arch.head_dim
    # Spread evenly, so that their sum is high where the two meet and about zero anywhere else. A token turned with its
    # position then is unlike itself: with longer waves a head would look at its own place.
    turns_F = torch.linspace(2 * math.pi / count, 0.95 * math.pi, waves)
    angles_SF = torch.arange(count)[:, None] * turns_F
    waves_SD = torch.stack([angles_SF.sin(), angles_SF.cos()], 2).reshape(count, -1)
    positions_SD[:, : 2 * waves] = waves_SD * (DEVIATION * math.sqrt(2))
    gain = _gain(PEAK, size, arch)
    q_DD, k_DD = (getattr(layer.self_attn, name).weight for name in ("q_proj", "k_proj"))
    q_DD *= NOISE
    k_DD *= NOISE
    for head in range(arch.heads):
        offset = OFFSETS[head % len(OFFSETS)]
        for place, wave in enumerate(range(head, waves, arch.heads)[: size // 2]):
            row, sine, cosine = head * size + 2 * place, 2 * wave, 2 * wave + 1
            turn = offset * float(turns_F[wave])
            k_DD[row, sine] += gain
            k_DD[row + 1, cosine] += gain
            q_DD[row, sine] += gain * math.cos(turn)
            q_DD[row, cosine] += gain * math.sin(turn)
            q_DD[row + 1, cosine] += gain * math.cos(turn)
            q_DD[row + 1, sine] -= gain * math.sin(turn)
    return encoder


@torch.no_grad()
def look_across(encoder: Encoder, first: int, seed: int) -> Encoder:
    """Gives one that also tells whether a text follows another its second layer and those after it, in place.

    `first` is the token that begins every document, whose vector tells.
    """
    arch, rng = encoder.arch, torch.Generator().manual_seed(seed)
    tokens_VD, types_CD = encoder.model.embed_tokens.weight, encoder.model.embed_types.weight
    for number, layer in enumerate(encoder.model.layers[1:]):
        q_DD, k_DD, v_DD, o_DD = (getattr(layer.self_attn, f"{name}_proj").weight for name in "qkvo")
        if number == 0:
            across_DD = torch.linalg.qr(torch.randn(arch.dim, arch.dim, generator=rng))[0]
            # Else a text's own tokens are the likest, and of these the token itself, which stands where it stands.
            placed_DR = torch.linalg.qr(torch.cat([types_CD, _directions(encoder)]).t())[0]
            across_DD -= across_DD @ placed_DR @ placed_DR.t()
            across_DD *= math.sqrt(arch.dim / (arch.dim - placed_DR.shape[1]))
            for weight_DD in (q_DD, k_DD):
                weight_DD.mul_(NOISE).add_(across_DD, alpha=_gain(LIKE_PEAK, arch.head_dim, arch))
        else:
            gain = _gain(SIDE_PEAK, arch.dim, arch)
            for head in range(arch.heads // 2):
                row = slice(head * arch.head_dim, (head + 1) * arch.head_dim)
                way_K1 = F.normalize(torch.randn(arch.head_dim, 1, generator=rng), dim=0)
                q_DD[row] += gain * way_K1 * F.normalize(tokens_VD[first], dim=0)
                k_DD[row] += gain * way_K1 * F.normalize(types_CD[head % len(types_CD)], dim=0)
        o_DD.copy_(v_DD.t() * (DEVIATION * math.sqrt(3)))  # what is seen is passed on as it is
    return encoder


def _directions(encoder: Encoder) -> Tensor:
    """rows_RD that span what positions add to tokens, or as much of it as leaves a third of all directions to these."""
    positions_SD = encoder.model.embed_positions.weight
    return torch.linalg.svd(positions_SD, full_matrices=False)[2][: 2 * encoder.arch.dim // 3]


def _gain(peak: float, width: int, arch: Architecture) -> float:
    """Of queries and keys, so that a match in a third of `width` coordinates of deviation 1 scores `peak`."""
    return math.sqrt(3 * peak / (width * arch.scale))
