"""The start that lets masked tokens be learnt: before any training the first layer's heads look at tokens nearby."""

from __future__ import annotations

import pytest
import torch

from ladderlm.nn.neighbours import OFFSETS, look_across, look_around
from ladderlm.train.masked import Encoder, Masked, MaskedPairs
from ladderlm.train.settings import PretrainConfig


@pytest.mark.parametrize(("dim", "heads", "length"), [(192, 6, 128), (64, 2, 64), (128, 4, 512)])
def test_heads_look_at_the_tokens_nearby(dim: int, heads: int, length: int) -> None:
    config = PretrainConfig(data="x", dim=dim, heads=heads, layers=2, vocab_size=300, seq_len=length)
    tokenizer = Masked.make_tokenizer(["the cat sat on the mat"] * 20, config)
    encoder = look_around(Encoder(MaskedPairs.architecture(config, tokenizer)).initialise(0))
    body = encoder.model
    ids_T = torch.randint(tokenizer.vocab_size, (length,), generator=torch.Generator().manual_seed(1))
    places_T = torch.arange(length)
    with torch.no_grad():
        x_TD = body.layers[0].input_layernorm(body.place(body.embed_tokens(ids_T), places_T))
        q_THK, k_THK, _ = body.layers[0].self_attn.project(x_TD, next(iter(body.each(places_T, length))))
        scores_HTT = torch.einsum("thk,shk->hts", q_THK, k_THK) * encoder.arch.scale
    inside = slice(8, length - 8)
    for head in range(heads):
        shares_TT = scores_HTT[head].softmax(-1)[inside]
        by_offset = {o: shares_TT.gather(1, places_T[inside, None] + o).mean().item() for o in range(-8, 9)}
        assert max(by_offset, key=by_offset.__getitem__) == OFFSETS[head]
        assert by_offset[OFFSETS[head]] > 5 / length


def test_it_is_a_start_and_no_more() -> None:
    """Nothing changes but positions and the first layer's queries and keys."""
    config = PretrainConfig(data="x", dim=64, heads=2, layers=2, vocab_size=300, seq_len=64)
    tokenizer = Masked.make_tokenizer(["the cat sat on the mat"] * 20, config)
    encoder = Encoder(Masked.architecture(config, tokenizer)).initialise(0)
    later = [encoder.model.layers[1].self_attn.q_proj.weight.clone(), encoder.model.embed_tokens.weight.clone()]
    look_around(encoder)
    assert torch.equal(later[0], encoder.model.layers[1].self_attn.q_proj.weight)
    assert torch.equal(later[1], encoder.model.embed_tokens.weight)
    assert encoder.model.embed_positions.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_like_finds_like_and_the_first_token_looks_at_either_text() -> None:
    config = PretrainConfig(data="x", dim=192, heads=6, layers=4, vocab_size=300, seq_len=64)
    tokenizer = Masked.make_tokenizer(["the cat sat on the mat"] * 20, config)
    encoder = look_across(look_around(Encoder(MaskedPairs.architecture(config, tokenizer)).initialise(0)), 2, 0)
    body, places_T = encoder.model, torch.arange(64)
    ids_T = torch.cat([torch.tensor([2]), torch.arange(7, 20).repeat(5)[:63]])  # every token again, thirteen on
    types_T = (places_T > 31).long()
    with torch.no_grad():
        x_TD = body.place(body.embed_tokens(ids_T), places_T, types_T)
        turns = next(iter(body.each(places_T, 64)))

        def shares(layer: int) -> torch.Tensor:
            q, k, _ = body.layers[layer].self_attn.project(body.layers[layer].input_layernorm(x_TD), turns)
            return (torch.einsum("thk,shk->hts", q, k) * encoder.arch.scale).softmax(-1)

        others_TT = places_T[:, None] != places_T
        same_TT = (ids_T[:, None] == ids_T) & others_TT
        among_HTT = shares(1) * others_TT
        assert ((among_HTT * same_TT).sum(-1) / among_HTT.sum(-1))[:, 1:].mean() > 5 * same_TT[1:].float().mean()
        each_HT = shares(1)[:, places_T, places_T][:, 1:]  # a twin in the other text is as like as the token itself
        twins_HT = (shares(1) * same_TT * (types_T[:, None] != types_T)).sum(-1)[:, 1:]
        found_T = (same_TT & (types_T[:, None] != types_T)).sum(-1)[1:]
        assert (twins_HT / each_HT / found_T)[:, found_T > 0].median() > 0.5
        for head in range(3):  # the first token looks at one text or the other
            assert shares(2)[head, 0, types_T == head % 2].sum() > 0.75
