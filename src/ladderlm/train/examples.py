"""Records as what the loss sees: ids with a mask, packed into batches of about equally many tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from ladderlm import events
from ladderlm.data.shapes import conversation
from ladderlm.errors import LadderError, UsageError
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.loss import Batch, make_batch, nats
from ladderlm.text.render import render
from ladderlm.types import Conversation, Reasoning, Record, Text

T = TypeVar("T")


class Example(NamedTuple):
    """A document's ids; `mask` is true on the tokens to learn."""

    ids: list[int]
    mask: list[bool]

    @property
    def tokens(self) -> int:
        return len(self.ids)


def make_example(record: Record, files: ModelFiles, max_length: int) -> Example:
    """Ids and mask of a record: what the assistant says is learnt; of a text, all of it; of a prompt and what answers
    it only the answer, whoever spoke in the prompt.

    Raises LadderError with the reason when there is nothing to learn or it is too long.
    """
    example = render_example(record, files)
    if len(example.ids) > max_length:
        raise UsageError(f"{len(example.ids)} tokens, more than max_length {max_length}")
    if not any(example.mask[1:]):
        raise UsageError("the assistant says nothing")
    return example


def render_example(record: Record, files: ModelFiles) -> Example:
    """Ids and mask of a record, however long. LadderError for a turn in which the assistant says nothing."""
    if record.kind == "text":
        start = files.tokenizer.document_start_id
        ids = [*([] if start is None else [start]), *files.tokenizer.encode(record["text"])]
        return Example(ids, [True] * len(ids))
    turns = conversation(record)
    for number, turn in enumerate(turns.messages, 1):
        said = any(not isinstance(p, (Text, Reasoning)) or p.text.strip() for p in turn.parts)
        if turn.role == "assistant" and not said:
            raise UsageError("the assistant says nothing", where=f"message {number}")
    ids, mask = _rendered(turns, files)
    return Example(ids, mask if record.kind == "messages" else _last_run(mask))


def _rendered(turns: Conversation, files: ModelFiles) -> Example:
    rendered = render(turns, files.tokenizer, files.template, add_generation_prompt=False)
    # What follows the last turn's end (a newline of the template) is never learnt, so it need not be read.
    last = max((i for i, wanted in enumerate(rendered.mask) if wanted), default=len(rendered.ids) - 1)
    return Example(rendered.ids[: last + 1], rendered.mask[: last + 1])


def _last_run(mask: list[bool]) -> list[bool]:
    """The mask of the last turn alone: what is rendered ends with it."""
    first = len(mask)
    while first and mask[first - 1]:
        first -= 1
    return [False] * first + mask[first:]


def make_all(
    records: Sequence[Record], make: Callable[[Record], T], stage: str = "render"
) -> tuple[list[T], list[tuple[int, str]]]:
    """What `make` gives for each record, and (number from 1, reason) of those for which it cannot."""
    made, problems = [], []
    for number, record in enumerate(events.track(records, stage, unit="records"), 1):
        try:
            made.append(make(record))
        except LadderError as error:
            problems.append((number, str(error)))
    return made, problems


class Packing:
    """Batches of whole items up to a token budget, epoch after epoch, each shuffled anew; batch i is always the same.

    An item larger than the budget is a batch by itself.
    """

    def __init__(self, sizes: Sequence[int], budget: int, seed: int) -> None:
        self._sizes, self._budget, self._seed = sizes, budget, seed
        self._plan: list[list[int]] = []
        self._epochs = 0

    def __call__(self, i: int) -> list[int]:
        """Indices of the items of batch `i`."""
        while i >= len(self._plan):
            self._extend()
        return self._plan[i]

    def batches_in(self, epochs: float) -> int:
        """How many batches make that many epochs."""
        while self._epochs < epochs:
            self._extend()
        return max(1, round(len(self._plan) * epochs / self._epochs))

    def _extend(self) -> None:
        batch: list[int] = []
        filled = 0
        for i in np.random.default_rng([self._seed, self._epochs]).permutation(len(self._sizes)).tolist():
            if batch and filled + self._sizes[i] > self._budget:
                self._plan.append(batch)
                batch, filled = [], 0
            batch.append(i)
            filled += self._sizes[i]
        self._plan.append(batch)
        self._epochs += 1


def grouped(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Places of items, those of one size together, in groups of up to `budget`."""
    groups: list[list[int]] = []
    filled = 0
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if not groups or filled + sizes[i] > budget:
            groups.append([])
            filled = 0
        groups[-1].append(i)
        filled += sizes[i]
    return groups


def sorted_batch(examples: Sequence[Example]) -> Batch:
    """Neighbours of one length share an attention call."""
    return make_batch(sorted(examples, key=lambda e: len(e[0])))


@torch.no_grad()
def example_nats(decoder: Decoder, examples: Sequence[Example], budget: int, stage: str) -> list[float]:
    """Negative log-likelihood of what is to be learnt in each example, summed over its tokens."""
    decoder.eval()
    out = [0.0] * len(examples)
    packed = grouped([len(e.ids) for e in examples], budget)
    for group in events.track(packed, stage, unit="batches"):
        batch = make_batch([examples[i] for i in group])
        sums = per_document(nats(decoder, batch), batch)
        for i, value in zip(group, sums.tolist(), strict=True):
            out[i] = value
    return out


def per_document(values_N: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Values on the wanted positions summed over each document, (documents,)."""
    return torch.zeros(len(batch.counts)).index_add(0, batch.owners_N, values_N)
