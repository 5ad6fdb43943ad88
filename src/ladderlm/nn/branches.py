"""Several continuations of one text, which is read once.

Answers to one prompt, or the two answers of a preference, share all that comes before them. A causal model makes the
same of the prompt whatever follows, so it goes through the model once and is seen by every answer; the gradients of all
answers meet in it. Hidden states are those that each prompt with each answer would have by itself.

Letters: T tokens of all documents, or queries of a call; S positions they see.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ladderlm.errors import UsageError
from ladderlm.nn.blocks import Attention, Layer, Turns
from ladderlm.nn.stack import Body

TOGETHER = 512  # positions that answers see in one call, their own and each other's, which are then hidden


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of attention: its queries, and the positions they see, a prompt's and their own; how far back these lie,
    -1 being never seen."""

    queries: slice
    keys: tuple[slice, ...]
    back_TS: Tensor
    _biases: dict[int, Tensor] = field(default_factory=dict)

    def bias(self, attention: Attention, turns: Turns) -> Tensor:
        """Made once for the layers of one window."""
        if turns.bias:
            return attention.bias(self.back_TS, turns)
        if attention.window not in self._biases:
            self._biases[attention.window] = attention.bias(self.back_TS, turns)
        return self._biases[attention.window]


def _groups(lengths: Sequence[int], after: Sequence[int]) -> list[list[int]]:
    """Documents that share a call, in their order: a prompt and what goes on from it, as far as TOGETHER allows."""
    groups: list[list[int]] = []
    size = 0
    for i, before in enumerate(after):
        kin = before >= 0 and before in (groups[-1][0], after[groups[-1][0]])
        if kin and size + lengths[i] <= TOGETHER:
            groups[-1].append(i)
            size += lengths[i]
        else:
            groups.append([i])
            size = lengths[i] + (lengths[before] if before >= 0 else 0)
    return groups


def _call(
    group: Sequence[int], lengths: Sequence[int], after: Sequence[int], starts: Sequence[int], device: torch.device
) -> _Call:  # fmt: skip
    apart = after[group[0]] >= 0  # whether their prompt was read in another call
    prompt = after[group[0]] if apart else group[0]
    members = [prompt, *group] if apart else list(group)
    own = slice(starts[group[0]], starts[group[-1] + 1])
    owner_S = torch.tensor([i for i in members for _ in range(lengths[i])])
    place_S = torch.cat([torch.arange(lengths[i]) + (0 if i == prompt else lengths[prompt]) for i in members])
    queries = own.stop - own.start
    visible_TS = (owner_S[-queries:, None] == owner_S) | (owner_S == prompt)
    back_TS = torch.where(visible_TS, place_S[-queries:, None] - place_S, -1).to(device)
    return _Call(own, (slice(starts[prompt], starts[prompt + 1]), own) if apart else (own,), back_TS)


def through(body: Body, ids_T: Tensor, lengths: Sequence[int], after: Sequence[int]) -> Tensor:
    """hidden_TD of documents laid end to end, of which the i-th goes on from document after[i], or begins at -1.

    One that another goes on from begins itself, and those that go on from it follow it. Raises UsageError where virtual
    tokens come first, ContextOverflow for one that is too long.
    """
    if body.soft is not None and not body.soft.off:
        raise UsageError("virtual tokens cannot come before shared prompts")
    starts = [0, *itertools.accumulate(lengths)]
    calls = [_call(group, lengths, after, starts, ids_T.device) for group in _groups(lengths, after)]
    before = [lengths[a] if a >= 0 else 0 for a in after]
    ends = [b + n for b, n in zip(before, lengths, strict=True)]
    positions_T = torch.cat([torch.arange(b, n) for b, n in zip(before, ends, strict=True)]).to(ids_T.device)
    x_TD = body.place(body.embed_tokens(ids_T), positions_T)
    for layer, turns in zip(body.layers, body.each(positions_T, body.fits(max(ends))), strict=True):
        assert isinstance(layer, Layer)

        def attention(y_TD: Tensor, attn: Attention = layer.self_attn, turns: Turns = turns) -> Tensor:
            q_1HTK, k_1GTK, v_1GTK = (x.transpose(0, 1)[None] for x in attn.project(y_TD, turns))
            mixed = []
            for call in calls:
                k_1GSK, v_1GSK = (torch.cat([x[:, :, keys] for keys in call.keys], 2) for x in (k_1GTK, v_1GTK))
                mixed.append(attn.attend(q_1HTK[:, :, call.queries], k_1GSK, v_1GSK, turns, call.bias(attn, turns)))
            return attn.o_proj(torch.cat(mixed, 2)[0].transpose(0, 1).reshape(len(y_TD), -1))

        x_TD = body.through(layer.around, x_TD, attention)
    return body.finish(x_TD)
