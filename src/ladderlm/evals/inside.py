"""A decoder opened up: what each head attends to, what each layer would say, what is lost without a part of it.

Letters: L layers, H heads, T tokens, D model, V vocabulary, B copies of one text, K head dim.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ladderlm import events
from ladderlm.errors import UsageError
from ladderlm.models.arch import Architecture
from ladderlm.nn import Decoder, Encoder
from ladderlm.types import FloatArray, Value

_BATCH_TOKENS = 2048  # of the copies that are run together


@dataclass(frozen=True, slots=True)
class Part(Value):
    """A layer, or one head of it. Written "layer:3" and "head:3.5"."""

    layer: int
    head: int | None = None

    def __str__(self) -> str:
        return f"layer:{self.layer}" if self.head is None else f"head:{self.layer}.{self.head}"

    @classmethod
    def parse(cls, text: str) -> Part:
        kind, _, place = text.partition(":")
        numbers = place.split(".")
        wanted = {"layer": 1, "head": 2}.get(kind)
        if wanted != len(numbers) or not all(n.isdecimal() for n in numbers):
            raise UsageError(f"no part of a model: {text!r}", cure="such as layer:3 or head:3.5")
        return cls(*map(int, numbers))


@dataclass(frozen=True, slots=True)
class Trace:
    """One run of a text: x_TD before the first layer and after each, shares_LHTT of attention, logits_TV."""

    ids: tuple[int, ...]
    stream: tuple[Tensor, ...]
    shares_LHTT: FloatArray
    logits_TV: Tensor


@contextlib.contextmanager
def _hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch(layers: Sequence[nn.Module], run: Callable[[], Tensor]) -> tuple[tuple[Tensor, ...], FloatArray, Tensor]:
    """(x_TD before the first of `layers` and after each, shares_LHTT, what `run` returns); `run` feeds one text."""
    stream: list[Tensor] = []
    shares: list[Tensor] = []

    def entering(layer: nn.Module, args: tuple[Any, ...]) -> None:
        stream.append(args[0])

    def leaving(layer: nn.Module, args: tuple[Any, ...], out_TD: Tensor) -> None:
        stream.append(out_TD)

    def attending(attention: Any, args: tuple[Any, ...]) -> None:
        x_TD, turns = args[:2]
        q_THK, k_TGK, _ = attention.project(x_TD, turns)
        seen = attention.shares(q_THK.transpose(0, 1)[None], k_TGK.transpose(0, 1)[None], turns)
        shares.append(seen[0])

    handles = [layer.register_forward_pre_hook(entering) for layer in layers]
    handles += [layer.self_attn.register_forward_pre_hook(attending) for layer in layers]  # type: ignore[union-attr]
    handles.append(layers[-1].register_forward_hook(leaving))
    with torch.no_grad(), _hooked(*handles):
        found = run()
    return tuple(stream), torch.stack(shares).numpy(), found


def shares(encoder: Encoder, ids: Sequence[int]) -> FloatArray:
    """shares_LHTT of an encoder's attention."""
    ids_T = torch.tensor(ids)
    return watch(list(encoder.model.layers), lambda: encoder(ids_T, [len(ids)]))[1]


def trace(decoder: Decoder, ids: Sequence[int]) -> Trace:
    """Runs a text once and keeps what happens inside."""
    ids_T = torch.tensor(ids)
    layers = list(decoder.model.layers)
    stream, shares, logits = watch(layers, lambda: decoder.logits(decoder(ids_T, [len(ids)])))
    return Trace(tuple(ids), stream, shares, logits)


# --- The logit lens -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LensArrays:
    """For the embedding and each layer, at each position: the likeliest token, its probability, and the probability
    and rank (1: the likeliest) of `final_T`, what the model predicts in the end. Shapes (L + 1, T)."""

    final_T: np.ndarray
    top: np.ndarray
    probability: np.ndarray
    final_probability: np.ndarray
    final_rank: np.ndarray


@torch.no_grad()
def lens(decoder: Decoder, trace: Trace) -> LensArrays:
    """Each layer's residual stream read as if it were the last (nostalgebraist 2020, "interpreting GPT")."""
    final_T1 = trace.logits_TV.argmax(-1, keepdim=True)
    rows: list[tuple[np.ndarray, ...]] = []
    for x_TD in trace.stream:
        logits_TV = decoder.logits(decoder.finish(x_TD))
        shares_TV = logits_TV.softmax(-1)
        best_T, top_T = shares_TV.max(-1)
        rank_T = 1 + (logits_TV > logits_TV.gather(1, final_T1)).sum(-1)
        found = (top_T, best_T, shares_TV.gather(1, final_T1)[:, 0], rank_T)
        rows.append(tuple(t.numpy() for t in found))
    return LensArrays(final_T1[:, 0].numpy(), *(np.stack(column) for column in zip(*rows, strict=True)))


# --- Ablation -----------------------------------------------------------------------------------------------------


def check(arch: Architecture, parts: Sequence[Part]) -> None:
    """UsageError for a part that the model does not have."""
    for part in parts:
        if part.layer >= arch.layers or (part.head or 0) >= arch.heads:
            raise UsageError(f"no {part}", where=f"{arch.layers} layers of {arch.heads} heads, counted from 0")


@contextlib.contextmanager
def without(decoder: Decoder, parts: Sequence[Sequence[Part]], mean: bool = False) -> Iterator[None]:
    """Within the block, text b of those run together, all of one length, lacks `parts[b]`.

    What a head or layer adds becomes zero or, if `mean`, its mean over the positions of the text, which keeps what it
    always adds and takes away what depends on the text.
    """

    def flattened(value_BTX: Tensor) -> Tensor | float:
        return value_BTX.mean(1, keepdim=True) if mean else 0.0

    def heads_of(layer: int) -> Callable[..., Any]:
        wanted = [(b, p.head) for b, some in enumerate(parts) for p in some if p.layer == layer and p.head is not None]

        def hook(o_proj: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            mixed_BTHK = args[0].reshape(len(parts), -1, decoder.arch.heads, decoder.arch.head_dim).clone()
            for b, head in wanted:
                mixed_BTHK[b, :, head] = flattened(mixed_BTHK[b : b + 1, :, head])
            return (mixed_BTHK.view(args[0].shape),)

        return hook

    def whole(layer: int) -> Callable[..., Any]:
        wanted = [b for b, some in enumerate(parts) if Part(layer) in some]

        def hook(module: nn.Module, args: tuple[Any, ...], out_TD: Tensor) -> Tensor:
            x_BTD = args[0].reshape(len(parts), -1, out_TD.shape[-1])
            out_BTD = out_TD.reshape(x_BTD.shape).clone()
            for b in wanted:
                out_BTD[b] = x_BTD[b] + flattened(out_BTD[b : b + 1] - x_BTD[b : b + 1])
            return out_BTD.view(out_TD.shape)

        return hook

    handles: list[Any] = []
    for number in sorted({p.layer for some in parts for p in some}):
        layer: Any = decoder.model.layers[number]
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(heads_of(number)))
        handles.append(layer.register_forward_hook(whole(number)))
    with _hooked(*handles):
        yield


@torch.no_grad()
def ablated(decoder: Decoder, ids: Sequence[int], parts: Sequence[Sequence[Part]], mean: bool = False) -> Tensor:
    """logits_BTV of the text without `parts[0]`, without `parts[1]`, and so on."""
    with without(decoder, parts, mean):
        hidden_TD = decoder(torch.tensor(list(ids) * len(parts)), [len(ids)] * len(parts))
    return decoder.logits(hidden_TD).view(len(parts), len(ids), -1)


def divergence(before_TV: Tensor, after_TV: Tensor) -> Tensor:
    """KL(before || after) in nats at each position, from logits."""
    p, q = before_TV.log_softmax(-1), after_TV.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


@dataclass(frozen=True, slots=True)
class Effect(Value):
    """How far the prediction moves without a part: KL divergence in nats after the last token, and the mean over all
    positions."""

    part: str
    layer: int
    head: int | None
    last: float
    mean: float


def sweep(decoder: Decoder, ids: Sequence[int], logits_TV: Tensor, mean: bool = False) -> list[Effect]:
    """The effect of each head and each layer alone, in their order. `logits_TV` are those of the whole model."""
    arch = decoder.arch
    parts = [Part(layer, head) for layer in range(arch.layers) for head in (*range(arch.heads), None)]
    step = max(1, _BATCH_TOKENS // len(ids))
    found = []
    for start in events.track(range(0, len(parts), step), "sweep", unit="batches"):
        some = parts[start : start + step]
        for part, after_TV in zip(some, ablated(decoder, ids, [[p] for p in some], mean), strict=True):
            moved_T = divergence(logits_TV, after_TV)
            found.append(Effect(str(part), part.layer, part.head, float(moved_T[-1]), float(moved_T.mean())))
    return found


# --- Embeddings ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def neighbours(decoder: Decoder, ids: Sequence[int], k: int) -> list[list[tuple[int, float]]]:
    """For each id the `k` other tokens whose embeddings point most nearly the same way, with the cosine."""
    table_VD = nn.functional.normalize(decoder.model.embed_tokens.weight.float(), dim=-1)
    cosine_NV = table_VD[list(ids)] @ table_VD.T
    cosine_NV[range(len(ids)), list(ids)] = -2.0
    values, best = cosine_NV.topk(k, dim=-1)
    return [list(zip(b.tolist(), v.tolist(), strict=True)) for b, v in zip(best, values, strict=True)]
