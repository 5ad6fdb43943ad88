"""What every task has, and what those with a head on an encoder share.

Letters: T tokens of all documents, B documents, N wanted positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ladderlm.errors import UsageError
from ladderlm.evals.helped import Scored
from ladderlm.evals.outcome import Sample
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.encoder import Encoder
from ladderlm.nn.tuned import Model
from ladderlm.train.settings import FinetuneConfig
from ladderlm.train.tuning import room
from ladderlm.types import Record

SAMPLES = 3  # held-out records of which the page tells what was said
LOSS = "loss per token"


class Piece(NamedTuple):
    """A stretch of an example as the model reads it; `learnt` where the loss counts it, `note` what is wanted there."""

    text: str
    learnt: bool
    note: str = ""


class Found(NamedTuple):
    """How good a model is on held-out records: figures of each record, the first of which decides, figures over all of
    them, and what was said."""

    scored: list[Scored]
    scores: dict[str, float]
    samples: list[Sample]


class Limits:
    """How long an example may be, and what becomes of a longer one."""

    def __init__(self, config: FinetuneConfig, files: ModelFiles) -> None:
        self.context = config.max_length if files.arch.positions == "relative" else room(config, files)
        self.longest, self.cut = min(config.max_length, self.context), config.cut
        self.vocab_size = files.arch.vocab_size
        self.shortened = False  # whether something has been cut since this was last said to be False

    def fitting(self, count: int, room: int | None = None) -> int:
        """How many of `count` tokens are kept. UsageError where they are too many and are not to be cut."""
        room = self.longest if room is None else room
        if count <= room:
            return count
        if not self.cut or room < 1:
            raise UsageError(f"{count} tokens, more than max_length {self.longest}", cure="--max-length, or --cut")
        self.shortened = True
        return room

    def known(self, ids: Sequence[int]) -> None:
        """UsageError for a token that the model has no embedding for."""
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            where = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise UsageError(f"token {where} is outside the model's vocabulary of {self.vocab_size}")


class TuningTask(Protocol):
    """One thing to learn, for given settings, files and labels."""

    name: str
    limits: Limits

    @property
    def load(self) -> Callable[[], Model] | None:
        """Gives the model in the files, with what the task needs on it; None where that is a decoder as it is."""

    def example(self, record: Record) -> Any:
        """What is learnt from a record; its `tokens` are counted. LadderError with the reason when nothing can be."""

    def batch(self, examples: Sequence[Any]) -> Any:
        """Examples end to end."""

    def loss(self, model: Any, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """A batch's mean loss, and figures to log."""

    def held(self, records: Sequence[Record], examples: Sequence[Any], train: Sequence[Record]) -> HeldScores:
        """What measures a model on held-out records; `examples` are theirs, `train` helps to tell labels."""

    def pieces(self, record: Record) -> list[Piece]:
        """An example as it is read, for people."""


class HeldScores(Protocol):
    """What the page of a run measures by (train/page.py), and figures over all records, before and after."""

    @property
    def scores(self) -> Mapping[str, float]: ...

    def measure(self, model: Any) -> Sequence[Scored]: ...

    def samples(self, model: Any) -> Sequence[Sample]: ...


class HeldOut:
    """Held-out records that `measure` tells all of at once. `before` stands for the model as it comes, where its head
    is new and says nothing yet: the best constant answer."""

    def __init__(self, measure: Callable[[Any], Found], before: Callable[[], Found] | None = None) -> None:
        self._measure, self._before = measure, before
        self._found: list[Found] = []

    @property
    def scores(self) -> dict[str, float]:
        if len(self._found) < 2:
            return {}
        return {f"{name}_before": x for name, x in self._found[0].scores.items()} | self._found[-1].scores

    def measure(self, model: Any) -> list[Scored]:
        first = self._before if not self._found else None
        with torch.no_grad():
            self._found.append(first() if first else self._measure(model))
        return self._found[-1].scored

    def samples(self, model: Any) -> list[Sample]:
        return self._found[-1].samples[:SAMPLES]


def names(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(record.id for record in records)


# --- Encoders with a head -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Document:
    """What an encoder reads, with what is wanted of it: as many numbers as the task has it."""

    ids: list[int]
    types: list[int]
    targets: list[int]

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """Documents end to end; `targets_N` are theirs, one after the other, and `weight` what the mean loss is over."""

    ids_T: Tensor
    lengths: tuple[int, ...]
    types_T: Tensor
    targets_N: Tensor
    weight: int

    @property
    def tokens(self) -> int:
        return len(self.ids_T)


def documents(items: Sequence[Document], weight: int) -> DocumentBatch:
    return DocumentBatch(
        torch.tensor([i for d in items for i in d.ids]),
        tuple(len(d.ids) for d in items),
        torch.tensor([t for d in items for t in d.types]),
        torch.tensor([t for d in items for t in d.targets]),
        weight,
    )


def hidden(model: Encoder, batch: DocumentBatch) -> Tensor:
    """hidden_TD."""
    out: Tensor = model(batch.ids_T, batch.lengths, batch.types_T if model.arch.token_types else None)
    return out
