"""What a model in training writes: a decoder greedily, an encoder-decoder greedily or by beam search
(Sutskever et al. 2014; Wu et al. 2016).

Beam search keeps the `beams` likeliest texts. A text that ends is scored by its logprob over its length to the power
of `length_penalty` (0: the likeliest text, short ones mostly; 1: the mean over its tokens). The search is over when
`beams` texts have ended and none that still runs has a score that beats them, taken at its present length; the rules
and their ties are those of transformers' generate with early_stopping=False.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ladderlm.errors import UsageError
from ladderlm.nn.decoder import Decoder, KeyValues
from ladderlm.nn.seq2seq import EncoderDecoder


@torch.no_grad()
def go_on(decoder: Decoder, ids: Sequence[int], *, max_tokens: int, stop_ids: Sequence[int] = ()) -> list[int]:
    """The ids that a decoder finds likeliest after `ids`, one by one, within its context."""
    cache, found = KeyValues(), list(ids)
    new = torch.tensor(found, device=decoder.model.embed_tokens.weight.device)
    soft = decoder.model.soft
    room = decoder.arch.context_length - len(found) - (0 if soft is None or soft.off else soft.tokens)
    for _ in range(min(max_tokens, room)):
        id = int(decoder.logits(decoder.extend(new, cache)[-1:]).argmax())
        if id in stop_ids:
            break
        found.append(id)
        new = new.new_tensor([id])
    return found[len(ids) :]


@torch.no_grad()
def generate(
    model: EncoderDecoder,
    source: Sequence[int],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    beams: int = 1,
    length_penalty: float = 1.0,
    banned: Sequence[int] = (),
) -> list[int]:
    """The ids that follow from `source`, at most `max_tokens`, without the stop id that ended them.

    `banned` ids are never written. Raises UsageError for a number that makes no sense, ContextOverflow for a source
    longer than the model's context.
    """
    if not source or max_tokens < 1 or not 1 <= beams <= model.arch.vocab_size // (2 + len(stop_ids)):
        raise UsageError(f"cannot write {max_tokens} tokens with {beams} beams from a source of {len(source)} tokens")
    if model.arch.positions != "relative":
        max_tokens = min(max_tokens, model.arch.context_length)
    run = _beam if beams > 1 else _greedy
    ids = run(model, torch.tensor(source), max_tokens, tuple(stop_ids), beams, length_penalty, list(banned))
    return ids[:-1] if ids and ids[-1] in stop_ids else ids


def _greedy(
    model: EncoderDecoder, source_S: Tensor, limit: int, stops: tuple[int, ...], _: int, __: float, banned: list[int]
) -> list[int]:
    memory, ids = model.begin(source_S), [model.arch.start_id]
    while len(ids) <= limit and (len(ids) == 1 or ids[-1] not in stops):
        logits_V = model.logits(model.extend(torch.tensor([ids[-1:]]), memory)[0, -1:])[0]
        logits_V[banned] = -torch.inf
        ids.append(int(logits_V.argmax()))
    return ids[1:]


def _beam(
    model: EncoderDecoder, source_S: Tensor, limit: int, stops: tuple[int, ...], beams: int, penalty: float,
    banned: list[int],
) -> list[int]:  # fmt: skip
    memory, vocabulary = model.begin(source_S), model.arch.vocab_size
    running, logprobs_B = [[model.arch.start_id]], torch.zeros(1)
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, limit + 1):
        last_B1 = torch.tensor([ids[-1:] for ids in running])
        logprobs_BV = model.logits(model.extend(last_B1, memory)[:, -1]).log_softmax(-1)
        logprobs_BV[:, banned] = -torch.inf
        # Enough candidates that `beams` of them go on even if as many of every stop id are among them.
        found = (logprobs_B[:, None] + logprobs_BV).flatten().topk(max(2, 1 + len(stops)) * beams)
        candidates = [
            (logprob, place // vocabulary, running[place // vocabulary] + [place % vocabulary])
            for logprob, place in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]
        final = length == limit
        ended += [(p / length**penalty, ids) for p, _, ids in candidates[:beams] if final or ids[-1] in stops]
        ended = sorted(ended, key=lambda e: -e[0])[:beams]
        going = [c for c in candidates if c[2][-1] not in stops][:beams]
        if len(ended) == beams and going[0][0] / length**penalty <= ended[-1][0]:
            break
        running, logprobs_B = [ids for _, _, ids in going], torch.tensor([p for p, _, _ in going])
        memory.choose(torch.tensor([row for _, row, _ in going]))
    return ended[0][1][1:]
