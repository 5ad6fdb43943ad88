"""A start for encoders from which masked tokens are learnt: heads of the first layer look at the tokens nearby.

A masked token says nothing of itself, so that nothing is learnt until some head finds the neighbours by their
positions alone, which from random weights takes thousands of steps. Here positions begin as waves, and the queries of
each head as its keys turned by a whole number of positions: the score is highest where the key stands that far away.
Weights that begin with the structure that training ends in are Trockman and Kolter's (2023, arXiv 2305.09828). All of
it goes on to train; the file is a BERT's.

Letters: S positions, D model, K head dim, F waves.
"""

from __future__ import annotations

import math

import torch

from ladderlm.nn.encoder import Encoder

OFFSETS = (-1, 1, -2, 2, -3, 3, -4, 4)  # of the heads, in turns
PEAK = 5.5  # by how much the score of the token looked at exceeds the mean
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
    gain = math.sqrt(3 * PEAK / (size * arch.scale))
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
