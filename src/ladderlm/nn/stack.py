"""A stack of layers with what stands around it: positions and segments before it, a norm after it.

Letters: T tokens of all documents, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ladderlm.errors import ContextOverflow
from ladderlm.nn.blocks import Layer, Norm, Turns
from ladderlm.nn.positions import Positions, RelativeBias, sinusoids

if TYPE_CHECKING:
    from ladderlm.models.arch import Architecture


class Stack(nn.Module):
    """Layers over embedded tokens; `causal` ones see only what came before. With `tokens`, it embeds them itself."""

    def __init__(self, arch: Architecture, layers: Sequence[Layer], *, causal: bool, tokens: bool = False) -> None:
        super().__init__()
        self.arch = arch
        if tokens:
            self.embed_tokens = nn.Embedding(arch.vocab_size, arch.dim)
        if arch.positions == "learned":
            self.embed_positions = nn.Embedding(arch.context_length + arch.position_offset, arch.dim)
        if arch.token_types:
            self.embed_types = nn.Embedding(arch.token_types, arch.dim)
        if arch.embed_norm:
            self.embed_norm = Norm(arch)
        if arch.positions == "relative":
            self.relative = RelativeBias(arch, causal=causal)
        self.layers = nn.ModuleList(layers)
        if arch.placement != "post":
            self.norm = Norm(arch)
        self.positions = Positions(arch)
        self.recompute = False  # whether activations inside layers are made again on the way back, not kept

    def through(self, layer: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """What a layer makes of its inputs."""
        if self.recompute and torch.is_grad_enabled():
            made: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
            return made
        return layer(*inputs)

    def fits(self, length: int) -> int:
        """`length`. Raises ContextOverflow where it is more than the positions that the model knows."""
        if length > self.arch.context_length and self.arch.positions != "relative":
            raise ContextOverflow(f"a document of {length} tokens", where=f"context {self.arch.context_length}")
        return length

    def place(self, x_TD: Tensor, positions_T: Tensor, types_T: Tensor | None = None) -> Tensor:
        """Embedded tokens, scaled, with all that is added to them. Without `types_T`, all are of type 0."""
        return self.stand(x_TD if self.arch.embed_scale == 1.0 else x_TD * self.arch.embed_scale, positions_T, types_T)

    def stand(self, x_TD: Tensor, positions_T: Tensor, types_T: Tensor | None = None) -> Tensor:
        """The same of tokens that are scaled already, or have never been tokens."""
        if self.arch.positions == "learned":
            x_TD = x_TD + self.embed_positions(positions_T + self.arch.position_offset)
        elif self.arch.positions == "sinusoidal":
            x_TD = x_TD + sinusoids(positions_T, self.arch.dim)
        if self.arch.token_types:
            x_TD = x_TD + (self.embed_types.weight[0] if types_T is None else self.embed_types(types_T))
        return self.embed_norm(x_TD) if self.arch.embed_norm else x_TD

    def turns(self, layer: int, positions_T: Tensor, length: int) -> Turns:
        """What a layer's attention needs to place tokens at `positions_T` in texts of at most `length`."""
        if self.arch.positions != "relative":
            return self.positions(layer, positions_T, length)
        if self.recompute:  # every layer must do on the way back what it did before
            return Turns(bias=self.relative)
        known: dict[torch.Size, Tensor] = {}  # as many layers use it

        def bias(back_TS: Tensor) -> Tensor:
            if back_TS.shape not in known:
                known[back_TS.shape] = self.relative(back_TS)
            return known[back_TS.shape]

        return Turns(bias=bias)

    def each(self, positions_T: Tensor, length: int) -> list[Turns]:
        """`turns` of every layer, made once for those alike."""
        made: dict[bool, Turns] = {}
        kinds = [self.arch.window(i) > 0 for i in range(len(self.layers))]
        for i, local in enumerate(kinds):
            if local not in made:
                made[local] = self.turns(i, positions_T, length)
        return [made[local] for local in kinds]

    def finish(self, x_TD: Tensor) -> Tensor:
        """What the last layer gives, normed where layers do not end in a norm."""
        return x_TD if self.arch.placement == "post" else self.norm(x_TD)


class VirtualTokens(Protocol):
    """What nn.soft puts before every document; a module."""

    off: bool
    tokens: int

    def __call__(self, body: Body, ids_T: Tensor, lengths: Sequence[int]) -> Tensor: ...

    def begin(self, decoder: Any, cache: Any) -> None: ...


class Body(Stack):
    """The whole network of a decoder or an encoder, but for its head."""

    def __init__(self, arch: Architecture, *, causal: bool) -> None:
        layers = [Layer(arch, i, causal=causal) for i in range(arch.layers)]
        super().__init__(arch, layers, causal=causal, tokens=True)
        self.soft: VirtualTokens | None = None

    def embed(self, ids_T: Tensor) -> Tensor:
        """Tokens embedded and scaled."""
        x_TD: Tensor = self.embed_tokens(ids_T)
        return x_TD if self.arch.embed_scale == 1.0 else x_TD * self.arch.embed_scale

    def forward(self, ids_T: Tensor, lengths: Sequence[int], types_T: Tensor | None = None) -> Tensor:
        """hidden_TD. `lengths` of the documents in `ids_T` sum to T."""
        if self.soft is not None and not self.soft.off:
            return self.soft(self, ids_T, lengths)
        longest, positions_T = self.fits(max(lengths)), starts_over(lengths).to(ids_T.device)
        x_TD = self.place(self.embed_tokens(ids_T), positions_T, types_T)
        for layer, turns in zip(self.layers, self.each(positions_T, longest), strict=True):
            x_TD = self.through(layer, x_TD, turns, lengths)
        return self.finish(x_TD)


def starts_over(lengths: Sequence[int]) -> Tensor:
    """positions_T: 0, 1, 2... in every document."""
    return torch.cat([torch.arange(n) for n in lengths])


def recompute(model: nn.Module) -> None:
    """Trades time for memory (Chen et al. 2016): each layer keeps its input and makes the rest again going back."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.recompute = True
