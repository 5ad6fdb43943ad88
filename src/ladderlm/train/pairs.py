"""Two answers to one prompt: read, batched, and what a model thinks of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ladderlm import events
from ladderlm.errors import FormatError, UsageError
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.loss import Batch, make_batch, make_shared, nats
from ladderlm.train.examples import Example, grouped, make_all, make_example, per_document
from ladderlm.train.result import bad_rows
from ladderlm.types import Record


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers, a model's log-probability of each (while training the reference's), and whether the first is liked.

    The first is preferred to the second, but for KTO: there one answer is liked or not, and the second, an answer to
    another prompt, only tells how far the model has moved on the whole.
    """

    chosen: Example
    rejected: Example
    reference: tuple[float, float] = (0.0, 0.0)
    liked: bool = True
    id: str = ""  # of the record

    @property
    def tokens(self) -> int:
        return len(self.chosen.ids) + len(self.rejected.ids)

    @property
    def answers(self) -> tuple[int, int]:
        """Tokens of either answer."""
        return sum(self.chosen.mask[1:]), sum(self.rejected.mask[1:])


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Documents in the order chosen, rejected, chosen, ...; reference_P2 in the same order."""

    batch: Batch
    reference_P2: Tensor
    counts_P2: Tensor
    liked_P: Tensor

    @property
    def tokens(self) -> int:
        return self.batch.tokens

    @property
    def weight(self) -> int:
        return len(self.reference_P2)


def pair_batch(pairs: Sequence[Pair], *, shared: bool = True) -> PairBatch:
    """`shared`: both answers of a pair come after one reading of their prompt."""
    make = make_shared if shared else make_batch
    batch = make([example for pair in pairs for example in (pair.chosen, pair.rejected)])
    counts_P2 = torch.tensor([pair.answers for pair in pairs])
    reference_P2 = torch.tensor([pair.reference for pair in pairs])
    return PairBatch(batch, reference_P2, counts_P2, torch.tensor([pair.liked for pair in pairs]))


def make_pair(record: Record, files: ModelFiles, longest: int) -> Pair:
    """Raises FormatError for a record of another kind."""
    if record.kind != "preference":
        raise FormatError(f"a {record.kind} record", cure="preferences need prompt, chosen and rejected")
    other = dataclasses.replace(record, fields={**record.fields, "chosen": record["rejected"]})
    return Pair(make_example(record, files, longest), make_example(other, files, longest), id=record.id)


def make_liked(record: Record, files: ModelFiles, longest: int) -> list[tuple[Record, bool]]:
    """The answers that a KTO or a preference record holds, as completion records, and whether each is liked."""
    if record.kind not in ("kto", "preference"):
        raise FormatError(f"a {record.kind} record", cure="KTO needs prompt, completion and label, or preferences")
    sides = [("chosen", True), ("rejected", False)]
    if record.kind == "kto":
        sides = [("completion", bool(record["label"]))]
    answers = [
        (dataclasses.replace(record, kind="completion", fields={**record.fields, "completion": record[name]}), liked)
        for name, liked in sides
    ]
    for answer, _ in answers:
        make_example(answer, files, longest)  # raises for one that cannot be learnt
    return answers


def load(
    name: str, records: Sequence[Record], files: ModelFiles, longest: int, *, skip_bad: bool, kto: bool = False
) -> list[Pair]:
    """The pairs in `records`. A bad record is an error that names it, or is left out with `skip_bad`."""
    if not kto:
        pairs, problems = make_all(records, lambda record: make_pair(record, files, longest))
        bad_rows(name, problems, skip_bad)
    else:
        found, problems = make_all(records, lambda record: make_liked(record, files, longest))
        bad_rows(name, problems, skip_bad)
        pairs = mismatched([answer for answers in found for answer in answers], files, longest)
    if not pairs:
        raise UsageError("no usable pair", where=name)
    return pairs


def mismatched(answers: Sequence[tuple[Record, bool]], files: ModelFiles, longest: int) -> list[Pair]:
    """Every answer beside the next prompt's answer to its own prompt, cut where it would be too long."""
    pairs = []
    for i, (record, liked) in enumerate(answers):
        others = (answers[(i + k) % len(answers)][0] for k in range(1, len(answers) + 1))
        other = next((o for o in others if o["prompt"] != record["prompt"]), record)
        fields = {**record.fields, "completion": other["completion"]}
        strange = make_example(dataclasses.replace(record, fields=fields), files, 2 * longest + len(fields))
        strange = Example(strange.ids[:longest], strange.mask[:longest])
        matched = make_example(record, files, longest)
        pairs.append(Pair(matched, strange if any(strange.mask[1:]) else matched, liked=liked))
    return pairs


def with_reference(
    decoder: Decoder, pairs: Sequence[Pair], budget: int, stage: str, *, shared: bool = True
) -> list[Pair]:  # fmt: skip
    """The pairs with what `decoder` now thinks of each answer."""
    out = list(pairs)
    for group in events.track(grouped([p.tokens for p in pairs], budget), stage, unit="batches"):
        for i, pair in zip(group, thought_of(decoder, [pairs[i] for i in group], shared=shared), strict=True):
            out[i] = pair
    return out


@torch.no_grad()
def thought_of(decoder: Decoder, pairs: Sequence[Pair], *, shared: bool) -> list[Pair]:
    """`with_reference` of pairs that make one batch."""
    training = decoder.training
    decoder.eval()
    batch = pair_batch(pairs, shared=shared).batch
    sums_P2 = -per_document(nats(decoder, batch), batch).view(-1, 2)
    decoder.train(training)
    return [
        dataclasses.replace(pair, reference=(chosen, rejected))
        for pair, (chosen, rejected) in zip(pairs, sums_P2.tolist(), strict=True)
    ]
