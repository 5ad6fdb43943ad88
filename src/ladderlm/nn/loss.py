"""What a decoder thinks of the tokens that came: negative log-likelihoods on wanted positions only."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderlm.nn.blocks import scores
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.dense import narrow
from ladderlm.nn.linear import product

B = TypeVar("B")
ROWS = 256  # logits of this many positions exist at a time


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents end to end. Position wanted_N[i] of ids_T is asked for targets_N[i]; `lengths` sum to T.

    `counts`: targets of each document, where it matters whose they are. `after`: which documents go on from others, if
    any do (nn/branches.py). `tokens` counts what is read, for the speed shown; `weight` what the mean loss is over.
    """

    ids_T: Tensor
    lengths: tuple[int, ...]
    wanted_N: Tensor
    targets_N: Tensor
    counts: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def owners_N(self) -> Tensor:
        """The document of each target."""
        return torch.tensor([i for i, count in enumerate(self.counts) for _ in range(count)], dtype=torch.long)

    @property
    def tokens(self) -> int:
        return len(self.ids_T)

    @property
    def weight(self) -> int:
        return len(self.wanted_N)


def moved(batch: B, device: str) -> B:
    """A batch (a dataclass) with its tensors on `device`."""
    if device == "cpu":
        return batch
    held: Any = batch
    found = {f.name: getattr(held, f.name) for f in dataclasses.fields(held)}
    tensors = {name: value.to(device) for name, value in found.items() if isinstance(value, Tensor)}
    return dataclasses.replace(held, **tensors)


def make_batch(documents: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> Batch:
    """A batch of (ids, mask): the loss counts tokens whose mask is true, save the first of a document.

    The last token of a document is only ever a target, so it is not read. Needs two tokens a document.
    """
    ids = [i for d, _ in documents for i in d[:-1]]
    following = [i for d, _ in documents for i in d[1:]]
    wanted = [at for at, learnt in enumerate(m for _, mask in documents for m in mask[1:]) if learnt]
    targets_N = torch.tensor([following[at] for at in wanted], dtype=torch.long)
    lengths = tuple(len(d) - 1 for d, _ in documents)
    counts = tuple(sum(mask[1:]) for _, mask in documents)
    return Batch(torch.tensor(ids), lengths, torch.tensor(wanted, dtype=torch.long), targets_N, counts)


def make_shared(documents: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> Batch:
    """The same targets as of `make_batch`, but what documents have in common before their first one is read once."""
    firsts = [list(mask).index(True, 1) for _, mask in documents]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (ids, _) in enumerate(documents):
        groups.setdefault(tuple(ids[: firsts[i]]), []).append(i)
    texts: list[Sequence[int]] = []
    after: list[int] = []
    places: dict[int, tuple[int, int]] = {}  # document -> its prompt's text and its own
    for prompt, members in sorted(groups.items(), key=lambda item: len(item[0])):
        texts.append(prompt)
        after.append(-1)
        shared = len(texts) - 1
        for i in sorted(members, key=lambda i: len(documents[i][0])):
            places[i] = shared, len(texts)
            if rest := documents[i][0][firsts[i] : -1]:
                texts.append(rest)
                after.append(shared)
    starts = [0, *itertools.accumulate(len(t) for t in texts)]
    wanted, targets = [], []
    for i, (ids, mask) in enumerate(documents):
        shared, own = places[i]
        for at in range(firsts[i], len(ids)):
            if mask[at]:
                targets.append(ids[at])
                wanted.append(starts[shared + 1] - 1 if at == firsts[i] else starts[own] + at - firsts[i] - 1)
    return Batch(
        torch.tensor([i for text in texts for i in text]), tuple(len(t) for t in texts), torch.tensor(wanted),
        torch.tensor(targets), tuple(sum(mask[1:]) for _, mask in documents), tuple(after),
    )  # fmt: skip


def wanted_hidden(decoder: Decoder, batch: Batch) -> Tensor:
    """hidden_ND of the wanted positions."""
    hidden_TD: Tensor = decoder(batch.ids_T, batch.lengths, batch.after)
    every = not batch.after and batch.tokens == len(batch.wanted_N)
    return hidden_TD if every else hidden_TD[batch.wanted_N]


def nats(decoder: Decoder, batch: Batch) -> Tensor:
    """nats_N: the negative log-likelihood of every wanted target."""
    batch = moved(batch, str(decoder.model.embed_tokens.weight.device))
    return nats_of(decoder, wanted_hidden(decoder, batch), batch.targets_N)


def nats_of(decoder: Decoder, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """nats_N of targets after positions with these hidden states."""
    head_VD = decoder.head_VD
    if head_VD.requires_grad and torch.is_grad_enabled():
        return F.cross_entropy(decoder.logits(hidden_ND), targets_N, reduction="none")
    return _FrozenHead.apply(hidden_ND, head_VD, targets_N, decoder.arch.logit_cap)


def mean_nats(decoder: Decoder, batch: Batch, z_loss: float = 0.0) -> tuple[Tensor, dict[str, float]]:
    """The language-modelling loss, as the training loop wants it.

    `z_loss` weighs the square of the logarithm of the softmax's denominator (Chowdhery et al. 2022), which keeps
    logits from growing without end; it is part of the loss, not of the figure "nats".
    """
    head_VD = decoder.head_VD
    if not (head_VD.requires_grad and torch.is_grad_enabled()):
        return nats(decoder, batch).mean(), {}
    hidden_ND = wanted_hidden(decoder, batch)
    loss, mean = _MeanHead.apply(hidden_ND, decoder.head_VD, batch.targets_N, decoder.arch.logit_cap, z_loss)
    return loss, {"nats": mean.item()} if z_loss else {}


class _MeanHead(torch.autograd.Function):
    """The mean cross-entropy through a head that trains, without ever holding all logits.

    For a mean all rows weigh alike, so both gradients are made block by block on the way forward, while a block's
    logits are there, and only scaled on the way back (as Liger Kernel does it).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, cap: float, z_loss: float
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        count, narrow_ND, narrow_VD = len(hidden_ND), narrow(hidden_ND), narrow(head_VD)
        grad_ND, grad_VD = torch.empty_like(hidden_ND), torch.zeros_like(head_VD)
        total, penalty = (torch.zeros((), device=hidden_ND.device) for _ in range(2))
        for start in range(0, count, ROWS):
            rows = slice(start, start + ROWS)
            logits_RV = scores(narrow_ND[rows], narrow_VD, cap).float()
            targets_R1 = targets_N[rows, None]
            wanted_R1 = logits_RV.gather(1, targets_R1)
            slope_RV = (1 - (logits_RV / cap) ** 2) if cap else None
            most_R1 = logits_RV.amax(-1, keepdim=True)
            grad_RV = logits_RV.sub_(most_R1).exp_()
            sum_R1 = grad_RV.sum(-1, keepdim=True)
            log_sum_R1 = sum_R1.log() + most_R1
            total += (log_sum_R1 - wanted_R1).sum()
            share_R1 = sum_R1.reciprocal()
            if z_loss:
                penalty += z_loss * log_sum_R1.square().sum()
                share_R1 *= 1 + 2 * z_loss * log_sum_R1
            grad_RV *= share_R1
            grad_RV.scatter_add_(1, targets_R1, torch.full_like(targets_R1, -1.0, dtype=grad_RV.dtype))
            grad_RV = narrow(grad_RV if slope_RV is None else grad_RV * slope_RV)
            grad_ND[rows] = product(grad_RV, narrow_VD.t())
            grad_VD += product(grad_RV.t(), narrow_ND[rows].t())
        ctx.save_for_backward(grad_ND.div_(count), grad_VD.div_(count))
        ctx.mark_non_differentiable(mean := total / count)
        return (total + penalty) / count, mean

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_ND, grad_VD = ctx.saved_tensors
        return grad_ND * upstream[0], grad_VD * upstream[0], None, None, None


class _FrozenHead(torch.autograd.Function):
    """Cross-entropy through a head that does not train, without ever holding all logits.

    Each row's gradient is its upstream gradient times (softmax - onehot) head (and the slope of the cap), so the
    product can be made on the way forward, block by block, and only scaled on the way back (as Liger Kernel does it
    for a scalar loss).
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, cap: float) -> Tensor:
        nats_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        grad_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden_ND), ROWS):
            rows = slice(start, start + ROWS)
            logits_RV = scores(hidden_ND[rows], head_VD, cap)
            logprobs_RV = logits_RV.log_softmax(-1)
            targets_R1 = targets_N[rows, None]
            nats_N[rows] = -logprobs_RV.gather(1, targets_R1).squeeze(1)
            if grad_ND is not None:
                grad_RV = logprobs_RV.exp_()
                grad_RV.scatter_add_(1, targets_R1, torch.full_like(targets_R1, -1.0, dtype=grad_RV.dtype))
                if cap:
                    grad_RV *= 1 - (logits_RV / cap) ** 2
                grad_ND[rows] = product(grad_RV, head_VD.t())
        ctx.save_for_backward(grad_ND)
        return nats_N

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * upstream[0][:, None], None, None, None
