"""Virtual tokens that are trained, before every text of a frozen decoder.

Prompt tuning (Lester et al. 2021) trains their embeddings, prefix tuning (Li and Liang 2021) their keys and values in
each layer, as they are after any rotation. Both start from real tokens: from a text's, or from some drawn at random.
The texts' own tokens stand at the positions after them. Parameters are laid out as PEFT stores them.

Letters: P virtual tokens, T tokens of all documents, S those with the virtual ones of each document, D model, G key
heads, K head dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ladderlm.errors import UsageError
from ladderlm.models.adapter_config import SoftConfig
from ladderlm.nn.blocks import Attention, Layer, Turns
from ladderlm.nn.decoder import Decoder, KeyValues
from ladderlm.nn.stack import Body, starts_over
from ladderlm.types import FloatArray


class Soft(nn.Module):
    """`off`: the decoder answers as if it had none."""

    def __init__(self, config: SoftConfig, start: Tensor) -> None:
        super().__init__()
        self.off = False
        self.config, self.tokens = config, config.tokens
        self.prompt_embeddings = nn.Parameter(start.detach().clone().reshape(config.shape))

    def forward(self, body: Body, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """hidden_TD of documents that come after the virtual tokens."""
        raise NotImplementedError

    def begin(self, decoder: Decoder, cache: KeyValues) -> None:
        """Puts the virtual tokens into an empty cache."""
        raise NotImplementedError

    def interleaved(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """index_S: where each position lies in [virtual tokens, documents' tokens], document by document."""
        parts, at = [], self.tokens
        virtual = torch.arange(self.tokens)
        for n in lengths:
            parts += [virtual, torch.arange(at, at + n)]
            at += n
        return torch.cat(parts).to(device)

    def own(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """index_T: where the documents' tokens then stand."""
        starts = itertools.accumulate((n + self.tokens for n in lengths[:-1]), initial=self.tokens)
        return torch.cat([torch.arange(at, at + n) for at, n in zip(starts, lengths, strict=True)]).to(device)


class Prompt(Soft):
    """Embeddings (P, D), after any scaling."""

    def forward(self, body: Body, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        longer = [n + self.tokens for n in lengths]
        index_S = self.interleaved(lengths, ids_T.device)
        positions_S = starts_over(longer).to(ids_T.device)
        x_SD = torch.cat([self.prompt_embeddings, body.embed(ids_T)]).index_select(0, index_S)
        x_SD = body.stand(x_SD, positions_S)
        for layer, turns in zip(body.layers, body.each(positions_S, body.fits(max(longer))), strict=True):
            x_SD = body.through(layer, x_SD, turns, longer)
        return body.finish(x_SD.index_select(0, self.own(lengths, ids_T.device)))

    def begin(self, decoder: Decoder, cache: KeyValues) -> None:
        decoder.read(self.prompt_embeddings, cache)


class Prefix(Soft):
    """Keys and values (P, layers * 2 * G * K)."""

    def past(self, layer: int) -> tuple[Tensor, Tensor]:
        """k_PGK and v_PGK of a layer."""
        sizes = (self.tokens, self.config.layers, 2, self.config.heads, -1)
        keys_values_P2GK = self.prompt_embeddings.view(sizes)[:, layer]
        return keys_values_P2GK[:, 0], keys_values_P2GK[:, 1]

    def forward(self, body: Body, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        longer = [n + self.tokens for n in lengths]
        index_S = self.interleaved(lengths, ids_T.device)
        positions_T = starts_over(lengths).to(ids_T.device) + self.tokens
        x_TD = body.place(body.embed_tokens(ids_T), positions_T)
        for i, turns in enumerate(body.each(positions_T, body.fits(max(longer)))):
            layer = body.layers[i]
            assert isinstance(layer, Layer)

            def attention(
                y_TD: Tensor, attn: Attention = layer.self_attn, turns: Turns = turns, number: int = i
            ) -> Tensor:
                q_THK, k_TGK, v_TGK = attn.project(y_TD, turns)
                k_SGK, v_SGK = (
                    torch.cat([virtual, own]).index_select(0, index_S)
                    for virtual, own in zip(self.past(number), (k_TGK, v_TGK), strict=True)
                )
                return attn.mix(q_THK, k_SGK, v_SGK, turns, lengths, longer)

            x_TD = body.through(layer.around, x_TD, attention)
        return body.finish(x_TD)

    def begin(self, decoder: Decoder, cache: KeyValues) -> None:
        for i in range(self.config.layers):
            k_PGK, v_PGK = self.past(i)
            cache.kept[i] = k_PGK.transpose(0, 1), v_PGK.transpose(0, 1)
        cache.length = decoder.model.fits(self.tokens)


def add_soft(decoder: Decoder, kind: str, tokens: int, *, ids: Sequence[int] = (), seed: int = 0) -> Decoder:
    """Freezes `decoder` and puts `tokens` virtual tokens before all that it reads, in place.

    They start as those of `ids`, repeated or cut off, or else as tokens drawn with `seed`. UsageError for another kind
    of model, or where they leave no room for texts.
    """
    arch = decoder.arch
    if not 1 <= tokens < arch.context_length:
        raise UsageError(f"virtual_tokens must be 1 to {arch.context_length - 1}", where=f"virtual_tokens={tokens}")
    decoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    drawn_P = torch.randint(arch.vocab_size, (tokens,), generator=generator)
    ids_P = torch.tensor(ids).repeat(-(-tokens // len(ids)))[:tokens] if len(ids) else drawn_P
    decoder.model.soft = (_prompt if kind == "prompt" else _prefix)(decoder, ids_P)
    return decoder


def _prompt(decoder: Decoder, ids_P: Tensor) -> Prompt:
    arch = decoder.arch
    config = SoftConfig("prompt", len(ids_P), arch.dim, arch.layers, arch.heads)
    return Prompt(config, decoder.model.embed(ids_P))


@torch.no_grad()
def _prefix(decoder: Decoder, ids_P: Tensor) -> Prefix:
    arch, cache = decoder.arch, KeyValues()
    decoder.extend(ids_P, cache)
    kept = [torch.stack([x.transpose(0, 1) for x in cache.kept[i]], 1) for i in range(arch.layers)]  # P, 2, G, K
    config = SoftConfig("prefix", len(ids_P), arch.kv_heads * arch.head_dim, arch.layers, arch.kv_heads)
    return Prefix(config, torch.stack(kept, 1))


def soft_tensors(decoder: Decoder) -> tuple[SoftConfig, dict[str, FloatArray]]:
    """The virtual tokens as `models.adapter.save_adapter` takes them."""
    soft = decoder.model.soft
    assert isinstance(soft, Soft)
    return soft.config, {"prompt_embeddings": soft.prompt_embeddings.detach().cpu().numpy().copy()}
