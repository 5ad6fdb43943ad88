"""Held-out records of supervised fine-tuning, measured on a decoder in training.

Records with labels, or with answers that repeat, are scored by which label the model finds likeliest: a loss falls as
soon as a model knows what labels look like, whether or not it knows which is right. Of free answers the loss is told,
and beside it how much likelier the right answer is than one that belongs to another record.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ladderlm.data.asking import Asking
from ladderlm.data.shapes import conversation
from ladderlm.errors import LadderError
from ladderlm.evals.helped import Scored, balanced
from ladderlm.evals.outcome import FIT, Sample
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.decoder import Decoder
from ladderlm.train.examples import Example, example_nats, make_example
from ladderlm.train.page import BUDGET, answer
from ladderlm.train.pairs import Pair, with_reference
from ladderlm.types import Record

MOST_LABELS = 20
MOST_SCORED = 1000  # answers in all, where every label is tried on every record
SHOWN = 3


class HeldAnswers:
    """`records`: messages, whose assistant's last turn is to be learnt, or texts. `train` helps to tell the labels."""

    def __init__(self, records: Sequence[Record], train: Sequence[Record], files: ModelFiles, max_length: int) -> None:
        self._files = files
        self._kept: list[Record] = []
        self._examples: list[Example] = []
        asking = Asking.of([*records, *train])
        for record in map(asking.as_messages, records):
            try:
                self._examples.append(make_example(record, files, max_length))
                self._kept.append(record)
            except LadderError:  # reported by who renders the records
                continue
        self._length = max_length
        self.labels = labels_of([*self._kept, *map(asking.as_messages, train)])

    def measure(self, model: Decoder) -> list[Scored]:
        spent = example_nats(model, self._examples, BUDGET, "held out")
        counts = [float(sum(e.mask[1:])) for e in self._examples]
        names = tuple(record.id for record in self._kept)
        each = [n / c for n, c in zip(spent, counts, strict=True)]
        loss = Scored("loss per token", names, tuple(each), (), False)
        if self.labels:
            return [self._choose(model), loss]
        other = self._exchanged()
        if not other:
            return [loss]
        nats = example_nats(model, [example for _, example in other], BUDGET, "held out")
        gaps = [n / sum(e.mask[1:]) - each[i] for (i, e), n in zip(other, nats, strict=True)]
        return [loss, Scored(FIT, tuple(names[i] for i, _ in other), tuple(gaps))]

    def samples(self, model: Decoder) -> list[Sample]:
        return answered(model, self._files, self._kept)

    def _choose(self, model: Decoder) -> Scored:
        """Which label is the likeliest answer to each record: balanced accuracy."""
        records, examples = list[Record](), list[Example]()
        for record in self._kept[: max(20, MOST_SCORED // len(self.labels))]:
            try:
                tried = [make_example(with_answer(record, label), self._files, self._length) for label in self.labels]
            except LadderError:  # too long with another label
                continue
            records.append(record)
            examples += tried
        nats = example_nats(model, examples, BUDGET, "labels")
        many = len(self.labels)
        rows = [nats[i * many : (i + 1) * many] for i in range(len(records))]
        predicted = [self.labels[row.index(min(row))] for row in rows]
        return balanced([r.id for r in records], [answer_of(r) for r in records], predicted)

    def _exchanged(self) -> list[tuple[int, Example]]:
        """(place, example) of the records with the answer of another, where that differs and fits."""
        found = []
        for i, record in enumerate(self._kept):
            if record.kind == "text" or not answer_of(record):
                continue
            others = (answer_of(r) for r in (*self._kept[i + 1 :], *self._kept[:i]) if r.kind != "text")
            if (other := next((o for o in others if o and o != answer_of(record)), None)) is None:
                continue
            try:
                found.append((i, make_example(with_answer(record, other), self._files, self._length)))
            except LadderError:
                continue
        return found


class HeldPairs:
    """Held-out preferences: how often is the chosen answer the likelier one? `pairs` are as they were last measured."""

    def __init__(self, pairs: Sequence[Pair], records: Sequence[Record], files: ModelFiles, *, shared: bool) -> None:
        self.pairs, self._files, self._shared = list(pairs), files, shared
        usable = {pair.id for pair in pairs}
        self._kept = [record for record in records if record.id in usable]

    def measure(self, model: Decoder) -> list[Scored]:
        self.pairs = with_reference(model, self.pairs, BUDGET, "held out", shared=self._shared)
        names = tuple(pair.id for pair in self.pairs)
        sums = [pair.reference for pair in self.pairs]
        means = [(c / pair.answers[0], r / pair.answers[1]) for pair, (c, r) in zip(self.pairs, sums, strict=True)]
        # The likelier of two answers is often the shorter one: the mean over tokens knows no length.
        likelier, matched = (tuple(float(c > r) for c, r in each) for each in (sums, means))
        return [
            Scored("share of pairs whose chosen answer is the likelier", names, likelier),
            Scored("the same, by the mean over tokens", names, matched),
            Scored("loss per token of the chosen answers", names, tuple(-c for c, _ in means), (), False),
        ]

    def samples(self, model: Decoder) -> list[Sample]:
        return answered(model, self._files, self._kept)


def answered(model: Decoder, files: ModelFiles, records: Sequence[Record]) -> list[Sample]:
    """What a decoder says to the first prompts."""
    found = []
    for record in [r for r in records if r.kind != "text"][:SHOWN]:
        asked = conversation(record, answer=False)
        found.append(Sample(asked.messages[-1].text, answer_of(record), answer(model, files, asked)))
    return found


def labels_of(records: Sequence[Record]) -> tuple[str, ...]:
    """The answers, sorted, where they are few and repeat, as labels do; else none."""
    if any(record.kind == "text" for record in records):
        return ()
    counts = Counter(answer_of(record) for record in records)
    few = "" not in counts and 2 <= len(counts) <= min(MOST_LABELS, len(records) // 5)
    return tuple(sorted(counts)) if few else ()


def answer_of(record: Record) -> str:
    """What the last turn of a conversation's assistant says."""
    last: Any = conversation(record).messages[-1]
    return last.text if last.role == "assistant" else ""


def with_answer(record: Record, text: str) -> Record:
    """The record with another last answer."""
    if record.kind == "messages":
        turns = [*record["messages"][:-1], {"role": "assistant", "content": text}]
        return dataclasses.replace(record, fields={**record.fields, "messages": turns})
    name = "chosen" if record.kind == "preference" else "completion"
    return dataclasses.replace(record, fields={**record.fields, name: text})
