"""A decoder that writes: conversations as they are, and every other kind of record put as a question (data/asking.py).

The loss is on what the assistant says. Labels are chosen by likelihood; what else has a right answer is answered
greedily for the first few held-out records, and the answers scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ladderlm import events
from ladderlm.data.asking import Asking
from ladderlm.data.shapes import conversation
from ladderlm.errors import UsageError
from ladderlm.evals import answers
from ladderlm.evals.classify import prompt_ids
from ladderlm.evals.helped import Scored
from ladderlm.evals.outcome import Sample
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.loss import Batch, mean_nats
from ladderlm.nn.search import go_on
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.train.examples import Example, render_example, sorted_batch
from ladderlm.train.held import HeldAnswers
from ladderlm.train.settings import FinetuneConfig
from ladderlm.train.tasks.task import Limits, Piece
from ladderlm.types import Record

ANSWERS, LONGEST_ANSWER = 20, 48  # records that are answered, and tokens of an answer
ANSWERED = ("class", "spans", "qa", "translation")


class Write:
    """Says what the assistant of a record says."""

    name = "sft"
    load = None

    def __init__(self, config: FinetuneConfig, files: ModelFiles, records: Sequence[Record]) -> None:
        self.config, self.files = config, files
        self.limits = Limits(config, files)
        self.asking = Asking.of(records, config.template)

    def example(self, record: Record) -> Example:
        if record.kind == "kto" and not record["label"]:
            raise UsageError("the answer is marked as a bad one", cure="align learns from both kinds")
        found = self._whole(record)
        self.limits.known(found.ids)
        kept = self.limits.fitting(len(found.ids))
        if not any(found.mask[1:kept]):
            raise UsageError("the assistant says nothing" + (" in what is kept" if kept < len(found.ids) else ""))
        return Example(found.ids[:kept], found.mask[:kept])

    def _whole(self, record: Record) -> Example:
        return render_example(self.asking.as_messages(record), self.files)

    def batch(self, examples: Sequence[Example]) -> Batch:
        return sorted_batch(examples)

    def loss(self, model: Decoder, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return mean_nats(model, batch)

    def held(self, records: Sequence[Record], examples: Sequence[Example], train: Sequence[Record]) -> WrittenHeld:
        return WrittenHeld(self, records, train)

    def write(self, model: Decoder, record: Record) -> str:
        """What the model answers, greedily."""
        tokenizer = self.files.tokenizer
        asked = conversation(self.asking.as_messages(record), answer=False)
        ids = prompt_ids(tokenizer, self.files.template, asked)
        room = min(LONGEST_ANSWER, self.limits.context - len(ids))
        return tokenizer.decode(go_on(model, ids, max_tokens=max(0, room), stop_ids=tokenizer.stop_ids)).strip()

    def pieces(self, record: Record) -> list[Piece]:
        return runs(*self.example(record), self.files.tokenizer)


class WrittenHeld:
    """Held-out records as train/held.py measures them, and the score of what is answered to the first of them."""

    scores: Mapping[str, float] = {}

    def __init__(self, task: Write, records: Sequence[Record], train: Sequence[Record]) -> None:
        turned = [[task.asking.as_messages(r) for r in side] for side in (records, train)]
        self._told = HeldAnswers(turned[0], turned[1], task.files, task.limits.longest)
        self._task, self._records = task, [r for r in records if r.kind != "class"]

    def measure(self, model: Decoder) -> list[Scored]:
        scored, _ = answered(self._records, self._task.asking, lambda record: self._task.write(model, record))
        return [*self._told.measure(model), *scored]

    def samples(self, model: Decoder) -> list[Sample]:
        return self._told.samples(model)


def answered(
    records: Sequence[Record], asking: Asking, write: Callable[[Record], str]
) -> tuple[list[Scored], list[Sample]]:
    """What `write` says to the first records that have a right answer: the scores by metric, and the words."""
    asked = [r for r in records if r.kind in ANSWERED][:ANSWERS]
    said = [write(record) for record in events.track(asked, "answers", unit="records")]
    by_metric: dict[str, dict[str, float]] = {}
    for record, text in zip(asked, said, strict=True):
        by_metric.setdefault(answers.metric(record.kind), {})[record.id] = answers.score(record, text)
    scored = [Scored(name, tuple(each), tuple(each.values())) for name, each in by_metric.items()]
    return scored, [Sample(asking.prompt(r), asking.answer(r), s) for r, s in zip(asked, said, strict=True)]


def runs(ids: Sequence[int], mask: Sequence[bool], tokenizer: Tokenizer) -> list[Piece]:
    """The text of the ids, cut where the mask changes."""
    pieces: list[Piece] = []
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or mask[i] != mask[start]:
            pieces.append(Piece(tokenizer.decode(ids[start:i], special=True), mask[start]))
            start = i
    return pieces
