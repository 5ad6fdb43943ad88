"""Choosing by likelihood: which label, or which ending, does the model find likeliest?"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ladderlm import events
from ladderlm.data.tasks import ClassTask
from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.intervals import Interval, bootstrap
from ladderlm.evals.metrics import Classification, classification
from ladderlm.types import Conversation, Message, Record, Value


class Scorer(Protocol):
    """What is needed of an engine: log-probabilities of continuations of one prefix."""

    def score(self, prefix_ids: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[list[float]]: ...


@dataclass(frozen=True, slots=True)
class Labelled(Value):
    """What a classifier said: one prediction a record, and its scores. `probabilities[i][j]` is of label j."""

    labels: tuple[str, ...]
    predictions: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]
    correct: tuple[float, ...]  # 1 or 0 of each record, in order, for paired comparisons
    accuracy: Interval
    scores: Classification


def classify(
    engine: Scorer,
    tokenizer: Any,
    template: Any,
    task: ClassTask,
    records: Sequence[Record],
    *,
    examples: Sequence[Record] = (),
    calibrate: bool = False,
) -> Labelled:
    """Labels each record with the label whose tokens are likeliest after the prompt.

    `template` is the model's ChatTemplate, or None for a base model (then turns become plain lines). `examples` are
    shown first, as earlier turns (few-shot); they are the same for every record, so their prefix is computed once.
    `calibrate` divides by what the model says of an empty text (contextual calibration, Zhao et al. 2021).
    """
    if not records:
        raise UsageError("no records to classify")
    labels = task.labels
    continuations = [label_ids(tokenizer, template, label) for label in labels]

    def log_likelihoods(record: Record) -> np.ndarray:
        prefix = prompt_ids(tokenizer, template, with_examples(task, record, examples))
        return np.array([math.fsum(row) for row in engine.score(prefix, continuations)])

    blank = Record("blank", "", "", "class", {"text": "N/A", "label": labels[0]})
    prior = log_likelihoods(blank) if calibrate else np.zeros(len(labels))
    predictions, probabilities, correct = [], [], []
    for record in events.track(records, "classify", unit="records"):
        scores = log_likelihoods(record) - prior
        shifted = np.exp(scores - scores.max())
        probabilities.append(tuple(float(p) for p in shifted / shifted.sum()))
        predictions.append(labels[int(scores.argmax())])
        correct.append(float(predictions[-1] == record["label"]))
    truth = [r["label"] for r in records]
    unknown = sorted({*truth} - {*labels})
    if unknown:
        raise FormatError(f"labels the task does not have: {', '.join(unknown)}", where=task.name)
    return Labelled(
        labels, tuple(predictions), tuple(probabilities), tuple(correct), bootstrap(correct),
        classification(truth, predictions, labels),
    )  # fmt: skip


def with_examples(task: ClassTask, record: Record, examples: Sequence[Record]) -> Conversation:
    """The task's prompt for `record`, with solved examples as earlier turns."""
    prompt = task.prompt(record)
    turns: list[Message] = []
    for example in examples:
        turns += [task.prompt(example).messages[-1], Message.of("assistant", example["label"])]
    return Conversation((*prompt.messages[:-1], *turns, prompt.messages[-1]), prompt.tools)


def prompt_ids(tokenizer: Any, template: Any, conversation: Conversation) -> list[int]:
    """The ids a model reads before it answers; without a template, plain lines after the document start."""
    from ladderlm.text.render import render

    if template is not None:
        return list(render(conversation, tokenizer, template).ids)
    names = {"user": "", "assistant": "Answer: ", "system": "", "tool": ""}
    text = "\n".join(names[m.role] + m.text for m in conversation.messages) + "\nAnswer:"
    start = [] if tokenizer.document_start_id is None else [tokenizer.document_start_id]
    return [*start, *tokenizer.encode(text)]


def label_ids(tokenizer: Any, template: Any, label: str) -> list[int]:
    ids = list(tokenizer.encode(label if template is not None else " " + label))
    if not ids:
        raise UsageError("a label has no tokens", where=repr(label))
    return ids


def pick_examples(records: Sequence[Record], count: int, seed: int = 0) -> list[Record]:
    """`count` examples, the labels taking turns, chosen by a hash so that they do not depend on the order."""
    ranked = sorted(records, key=lambda r: hashlib.sha256(f"{seed}:{r.id}".encode()).digest())
    by_label = {label: [r for r in ranked if r["label"] == label] for label in sorted({r["label"] for r in ranked})}
    rounds = max(map(len, by_label.values()), default=0)
    return [rows[i] for i in range(rounds) for rows in by_label.values() if i < len(rows)][:count]


# --- Choices ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chosen(Value):
    """How often the right choice was the likeliest; `correct` is 1 or 0 of each record, in order."""

    accuracy: Interval
    correct: tuple[float, ...]


def choose(engine: Scorer, tokenizer: Any, records: Sequence[Record]) -> Chosen:
    """Scores answer records that have `choices`: the plain prompt, continued by each; the likeliest total wins."""
    if not records:
        raise UsageError("no records to score")
    start = [] if tokenizer.document_start_id is None else [tokenizer.document_start_id]
    correct = []
    for record in events.track(records, "choices", unit="records"):
        choices = record.fields.get("choices")
        if record.kind != "answer" or not choices or record["answer"] not in choices:
            raise FormatError("needs an answer among choices", where=f"record {record.id}")
        rows = engine.score([*start, *tokenizer.encode(record["prompt"])], [tokenizer.encode(c) for c in choices])
        best = choices[int(np.argmax([math.fsum(row) for row in rows]))]
        correct.append(float(best == record["answer"]))
    return Chosen(bootstrap(correct), tuple(correct))
