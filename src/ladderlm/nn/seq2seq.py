"""The encoder-decoder in torch: the Transformer of 2017, BART and T5, for translation and summarisation.

A batch is pairs of documents, all sources end to end and all targets end to end, in one order; nothing is padded.
Parameter names are the canonical ones of a model folder (models/arch.py).

Letters: S tokens of all sources, T tokens of all targets, B targets of one length, D model, H heads, G key/value heads,
K head dim, N wanted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ladderlm.errors import UsageError
from ladderlm.nn.blocks import Attention, Layer, Norm, Turns
from ladderlm.nn.heads import Vocabulary
from ladderlm.nn.stack import Stack, starts_over
from ladderlm.nn.weights import fill, initialise, state
from ladderlm.types import FloatArray

if TYPE_CHECKING:
    from ladderlm.models.arch import Architecture
    from ladderlm.models.folder import ModelFiles


class CrossLayer(Layer):
    """A causal layer that, between its two branches, attends to another text."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__(arch, layer)
        before, after, _ = arch.norms
        self.cross_attn_layernorm = Norm(arch) if before else nn.Identity()
        self.cross_attn = Attention(arch, layer, causal=False)
        self.cross_attn_out_norm = Norm(arch) if after else nn.Identity()

    def steps(
        self, x_TD: Tensor, attention: Callable[[Tensor], Tensor], cross: Callable[[Tensor], Tensor]
    ) -> Tensor:  # fmt: skip
        """The layer with `attention` and `cross` in the places of its own."""
        x_TD = self.branch(x_TD, self.input_layernorm, attention, self.attention_out_norm)
        x_TD = self.branch(x_TD, self.cross_attn_layernorm, cross, self.cross_attn_out_norm)
        return self.branch(x_TD, self.post_attention_layernorm, self.mlp, self.mlp_out_norm)


class Pair(nn.Module):
    """Encoder and decoder over one table of embeddings."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.dim)
        self.encoder = Stack(arch, [Layer(arch, i, causal=False) for i in range(arch.layers)], causal=False)
        self.decoder = Stack(arch, [CrossLayer(arch, i) for i in range(arch.decoder_layers)], causal=True)


class Memory:
    """What decoding remembers: keys and values of the source, and those of B targets so far, by layer."""

    def __init__(self, source: list[tuple[Tensor, Tensor]]) -> None:
        self.source = source
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.length = 0

    def choose(self, rows_B: Tensor) -> None:
        """The targets become those of these rows, in this order."""
        self.kept = [(k_BGSK[rows_B], v_BGSK[rows_B]) for k_BGSK, v_BGSK in self.kept]


class EncoderDecoder(nn.Module):
    """`forward` gives the decoder's hidden states; `logits` scores those of them that are wanted."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        if arch.kind != "encoder-decoder":
            raise UsageError(f"a {arch.family} {arch.kind} is no encoder-decoder", cure=f"it {arch.purpose}")
        self.arch = arch
        self.model = Pair(arch)
        self.lm_head = Vocabulary(arch)

    def forward(
        self, source_S: Tensor, source_lengths: Sequence[int], target_T: Tensor, target_lengths: Sequence[int]
    ) -> Tensor:
        """hidden_TD. The i-th target belongs to the i-th source; every target begins with the architecture's start_id.

        Raises ContextOverflow for a document longer than the model's context.
        """
        memory_SD = self.encode(source_S, source_lengths)
        stack, positions_T = self.model.decoder, starts_over(target_lengths)
        x_TD = stack.place(self.model.embed_tokens(target_T), positions_T)
        for layer, turns in zip(stack.layers, stack.each(positions_T, stack.fits(max(target_lengths))), strict=True):
            assert isinstance(layer, CrossLayer)

            def cross(y_TD: Tensor, attn: Attention = layer.cross_attn) -> Tensor:
                q_THK, (k_SGK, v_SGK) = _queries(attn, y_TD), _keys_values(attn, memory_SD)
                return attn.mix(q_THK, k_SGK, v_SGK, Turns(), target_lengths, source_lengths)

            def attention(y_TD: Tensor, attn: Attention = layer.self_attn, turns: Turns = turns) -> Tensor:
                return attn(y_TD, turns, target_lengths)

            x_TD = stack.through(layer.steps, x_TD, attention, cross)
        return stack.finish(x_TD)

    def encode(self, source_S: Tensor, lengths: Sequence[int]) -> Tensor:
        """memory_SD: what the decoder attends to."""
        stack, positions_S = self.model.encoder, starts_over(lengths)
        x_SD = stack.place(self.model.embed_tokens(source_S), positions_S)
        for layer, turns in zip(stack.layers, stack.each(positions_S, stack.fits(max(lengths))), strict=True):
            x_SD = stack.through(layer, x_SD, turns, lengths)
        return stack.finish(x_SD)

    def begin(self, source_S: Tensor) -> Memory:
        """Reads one source, for `extend`."""
        memory_SD = self.encode(source_S, [len(source_S)])
        found = []
        for layer in self.model.decoder.layers:
            assert isinstance(layer, CrossLayer)
            k_SGK, v_SGK = _keys_values(layer.cross_attn, memory_SD)
            found.append((k_SGK.transpose(0, 1)[None], v_SGK.transpose(0, 1)[None]))
        return Memory(found)

    def extend(self, ids_BT: Tensor, memory: Memory) -> Tensor:
        """hidden_BTD of tokens that follow the B targets in `memory`, which then holds them too."""
        stack, (rows, new) = self.model.decoder, ids_BT.shape
        positions_T = torch.arange(memory.length, stack.fits(memory.length + new)).repeat(rows)
        x_TD = stack.place(self.model.embed_tokens(ids_BT.flatten()), positions_T)
        for i, turns in enumerate(stack.each(positions_T, memory.length + new)):
            layer = stack.layers[i]
            assert isinstance(layer, CrossLayer)

            def attention(y_TD: Tensor, i: int = i, layer: CrossLayer = layer, turns: Turns = turns) -> Tensor:
                return _grown(layer.self_attn, y_TD, turns, memory, i, rows)

            def cross(y_TD: Tensor, i: int = i, layer: CrossLayer = layer) -> Tensor:
                return _crossed(layer.cross_attn, y_TD, memory.source[i], rows)

            x_TD = layer.steps(x_TD, attention, cross)
        memory.length += new
        return stack.finish(x_TD).view(rows, new, -1)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        return self.lm_head(hidden_ND, self.model.embed_tokens.weight)

    def initialise(self, seed: int) -> EncoderDecoder:
        """Random weights, the same for the same seed."""
        return initialise(self, self.arch, seed)

    def state(self) -> dict[str, FloatArray]:
        """The weights under their canonical names; a copy."""
        return state(self)


def _queries(attn: Attention, x_TD: Tensor) -> Tensor:
    return attn.q_proj(x_TD).view(len(x_TD), attn.heads, -1)


def _keys_values(attn: Attention, memory_SD: Tensor) -> tuple[Tensor, Tensor]:
    """k_SGK and v_SGK of another text."""
    k, v = (linear(memory_SD).view(len(memory_SD), attn.kv_heads, -1) for linear in (attn.k_proj, attn.v_proj))
    return k, v


def _rows(x_THK: Tensor, rows: int) -> Tensor:
    """x_BHTK of documents of one length laid end to end."""
    return x_THK.view(rows, -1, *x_THK.shape[1:]).transpose(1, 2)


def _grown(attn: Attention, y_TD: Tensor, turns: Turns, memory: Memory, layer: int, rows: int) -> Tensor:
    """Self-attention over what `memory` keeps and the new tokens, which it then keeps."""
    q_BHTK, k_BGSK, v_BGSK = (_rows(x, rows) for x in attn.project(y_TD, turns))
    if layer < len(memory.kept):
        k_BGSK, v_BGSK = (torch.cat(both, 2) for both in zip(memory.kept[layer], (k_BGSK, v_BGSK), strict=True))
        memory.kept[layer] = k_BGSK, v_BGSK
    else:
        memory.kept.append((k_BGSK, v_BGSK))
    return _out(attn, attn.attend(q_BHTK, k_BGSK, v_BGSK, turns))


def _crossed(attn: Attention, y_TD: Tensor, source: tuple[Tensor, Tensor], rows: int) -> Tensor:
    """Attention to the one source of all rows."""
    q_BHTK = _rows(_queries(attn, y_TD), rows)
    k_BGSK, v_BGSK = (x.expand(rows, -1, -1, -1) for x in source)
    return _out(attn, attn.attend(q_BHTK, k_BGSK, v_BGSK, Turns()))


def _out(attn: Attention, o_BHTK: Tensor) -> Tensor:
    return attn.o_proj(o_BHTK.transpose(1, 2).reshape(-1, attn.o_proj.in_features))


def load_encoder_decoder(files: ModelFiles) -> EncoderDecoder:
    """An EncoderDecoder with the weights of a model folder, as fp32.

    Raises FormatError where a tensor is missing or has the wrong shape, UsageError for another kind of model.
    """
    with torch.device("meta"):
        module = EncoderDecoder(files.arch)
    return fill(module, files)
