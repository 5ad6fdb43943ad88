"""Tasks that need no download: their records come from the docstrings of the Python standard library.

`DocsMatch`       class records: does this sentence describe this function? (for fine-tuning)
`docs_questions`  messages records: "What does `os.path.join` do?" and the answer (for teaching a small model)
`docs_preferences` preference records on the same prompts: an answer that names what was asked about against a bare one
`forgetting_probe` answer records with choices: general facts and grammar, to see what tuning has cost

What is held out is held out by package: no module, function or sentence is on both sides.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm.data.collect import PYTHON_LICENCE
from ladderlm.data.docstrings import Documented, about, documented
from ladderlm.data.records import make_record
from ladderlm.data.shapes import conversation
from ladderlm.errors import FormatError, UsageError
from ladderlm.types import Conversation, Record

Splits = dict[str, tuple[Record, ...]]


@dataclass(frozen=True)
class ClassTask:
    """Texts to be labelled. `template` turns a text into the user's turn ("{text}" stands for it)."""

    name: str
    splits: Splits
    labels: tuple[str, ...]
    template: str = "{text}"
    system: str | None = None

    def records(self, split: str) -> Sequence[Record]:
        return _split(self.splits, split)

    def prompt(self, record: Record) -> Conversation:
        return Conversation.of(self.template.replace("{text}", record["text"]), self.system)

    def score(self, record: Record, completion: str) -> float:
        """1 when the completion begins with the record's label."""
        return float(completion.strip().lower().startswith(record["label"].lower()))

    @classmethod
    def of(cls, name: str, splits: Splits, template: str | None = None) -> ClassTask:
        """The task in class records, its labels in order of the alphabet. Raises FormatError for other kinds."""
        kinds = {r.kind for rows in splits.values() for r in rows}
        if kinds != {"class"}:
            raise FormatError(f"a classification task needs class records, not {', '.join(sorted(kinds)) or 'none'}")
        labels = tuple(sorted({r["label"] for rows in splits.values() for r in rows}))
        ask = f"Answer with one of: {', '.join(labels)}."
        return cls(name, splits, labels, template or "{text}\n" + ask)


def _split(splits: Splits, name: str) -> Sequence[Record]:
    if name not in splits:
        raise UsageError(f"no split {name!r}", cure="known: " + ", ".join(splits))
    return splits[name]


# --- The fine-tuning rung -----------------------------------------------------------------------------------------


class DocsMatch(ClassTask):
    """Does the sentence describe the function? A stale or misplaced docstring is found by the same question.

    Half the pairs are true; in the other half the sentence belongs to another function of the library. Each function
    and each sentence appears once in all, so that words taken singly say nothing about the label: what counts is
    whether name and sentence go together. (A rule made for this task does well too: say yes when the signature and the
    sentence share the first four letters of a word, right on 88 % of the held-out pairs. The model is not told it.)
    """

    def __init__(self, held_out: float = 0.15, seed: int = 0, root: Path | None = None) -> None:
        usable = [d for d in documented(root) if d.kind != "class" and len(d.sentence.split()) <= 20]
        sides = _sides(usable, held_out, seed, root)
        splits = {name: tuple(_pairs(items, seed)) for name, items in sides.items()}
        system = "Does the description fit the function? Answer yes or no."
        super().__init__("docs-match", splits, ("no", "yes"), system=system)

    @staticmethod
    def rule(record: Record) -> str:
        """The rule made for this task: yes when signature and sentence share the first four letters of a word."""
        signature, _, sentence = record["text"].partition("\n")
        stems = ({w[:4].lower() for w in re.findall(r"[A-Za-z]{4,}", part)} for part in (signature, sentence))
        return "yes" if set.intersection(*stems) else "no"


def held_out_packages(fraction: float, seed: int = 0, root: Path | None = None) -> frozenset[str]:
    """The standard library's packages whose documentation is held out, the same ones for every task.

    Whole packages, in the order of a hash, until they hold `fraction` of all documented things. Packages of over a
    tenth of them are never held out: one of them would be the whole test.
    """
    sizes = Counter(d.package for d in documented(root))
    total, held = sum(sizes.values()), set[str]()
    for name in sorted(sizes, key=lambda n: hashlib.sha256(f"{seed}:{n}".encode()).digest()):
        if sum(sizes[n] for n in held) < fraction * total and sizes[name] < total / 10:
            held.add(name)
    return frozenset(held)


def _sides(items: Iterable[Documented], held_out: float, seed: int, root: Path | None) -> dict[str, list[Documented]]:
    held = held_out_packages(held_out, seed, root)
    sides: dict[str, list[Documented]] = {"train": [], "test": []}
    for item in items:
        sides["test" if item.package in held else "train"].append(item)
    return sides


def _pairs(items: Sequence[Documented], seed: int) -> list[Record]:
    """As many true pairs as false ones. The functions of the false half pass their sentences round."""
    rng, items = random.Random(seed), list(items)
    rng.shuffle(items)
    half = len(items) // 2
    true, false = items[:half], items[half : 2 * half]
    records = [_pair(item, item.sentence, "yes") for item in true]
    records += [_pair(a, b.sentence, "no") for a, b in zip(false, false[1:] + false[:1], strict=True)]
    rng.shuffle(records)
    return records


def _pair(item: Documented, sentence: str, label: str) -> Record:
    fields = {"text": f"{item.signature}\n{sentence}", "label": label}
    return _from_python("class", fields, item)


# --- The build and align rungs ------------------------------------------------------------------------------------

_FUNCTION_PROMPTS = (
    "What does `{path}` do?",
    "Describe `{signature}` in one sentence.",
    "What is `{path}` for?",
    "Explain `{path}` briefly.",
    "When would I call `{signature}`?",
    "Tell me about `{path}`.",
)
_THING_PROMPTS = (
    "What is `{path}`?",
    "Describe `{path}` in one sentence.",
    "What is `{path}` for?",
    "Explain `{path}` briefly.",
    "When would I use `{path}`?",
    "Tell me about `{path}`.",
)


def docs_questions(held_out: float = 0.15, seed: int = 0, variants: int = 2, root: Path | None = None) -> Splits:
    """`train` and `test` messages records: questions about public functions and classes, answered by their docstring.

    Each is asked about in `variants` different ways.
    """
    sides = _sides((d for d in documented(root) if d.public), held_out, seed, root)
    splits = {}
    for name, items in sides.items():
        records = []
        for item, prompt, _ in _asked(items, seed, variants):
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": item.sentence}]
            records.append(_from_python("messages", {"messages": turns}, item))
        splits[name] = tuple(records)
    return splits


def docs_preferences(held_out: float = 0.15, seed: int = 0, variants: int = 1, root: Path | None = None) -> Splits:
    """`train` and `test` preference records on the prompts of `docs_questions`.

    Chosen: a full sentence that names what was asked about. Rejected: the docstring's bare line, or (one in four)
    the full sentence about something else in the package.
    """
    sides = _sides((d for d in documented(root) if d.public and about(d)), held_out, seed, root)
    splits = {}
    for name, items in sides.items():
        package, records = defaultdict(list), []
        for item in items:
            package[item.package].append(item)
        for item, prompt, rng in _asked(items, seed, variants):
            other = rng.choice(package[item.package])
            rejected = about(other) if other is not item and rng.random() < 0.25 else item.sentence
            fields = {"prompt": prompt, "chosen": about(item), "rejected": rejected}
            records.append(_from_python("preference", fields, item))
        splits[name] = tuple(records)
    return splits


def _asked(items: Iterable[Documented], seed: int, variants: int) -> Iterator[tuple[Documented, str, random.Random]]:
    """(item, question, randomness) in a shuffled order; `variants` different questions about each item."""
    rng = random.Random(seed)
    asked = []
    for item in items:
        forms = _FUNCTION_PROMPTS if item.kind == "function" else _THING_PROMPTS
        if not 1 <= variants <= len(forms):
            raise UsageError(f"variants must lie in [1, {len(forms)}]", where=f"variants={variants}")
        asked += [
            (item, form.format(path=item.path, signature=item.signature), rng) for form in rng.sample(forms, variants)
        ]
    rng.shuffle(asked)
    yield from asked


def _from_python(kind: str, fields: Mapping[str, Any], item: Documented) -> Record:
    return make_record(kind, fields, source=f"python/{item.module}", licence=PYTHON_LICENCE)


@dataclass(frozen=True)
class Answers:
    """Any task whose records hold their answer: the score is the share of the answer's words that were said (F1)."""

    name: str
    splits: Splits

    def records(self, split: str) -> Sequence[Record]:
        return _split(self.splits, split)

    def prompt(self, record: Record) -> Conversation:
        return conversation(record, answer=False)

    def score(self, record: Record, completion: str) -> float:
        wanted = conversation(record).messages[-1].text.lower().split()
        said = completion.lower().split()
        common = sum(min(said.count(w), wanted.count(w)) for w in set(wanted))
        return 2 * common / (len(said) + len(wanted)) if common else 0.0


# --- The forgetting probe -----------------------------------------------------------------------------------------


def forgetting_probe() -> tuple[Record, ...]:
    """Answer records {prompt, answer, choices}: the beginning of a sentence, and how it may go on.

    Scored by which choice the model finds likeliest (evals.classify.choose). Small models know most of them; what
    a tuned model has lost against its parent shows here.
    """
    text = importlib.resources.files("ladderlm.data").joinpath("probe.jsonl").read_text(encoding="utf-8")
    records = []
    for line in text.splitlines():
        row = json.loads(line)
        fields = {"prompt": row["prompt"], "answer": row["choices"][0], "choices": row["choices"]}
        records.append(make_record("answer", fields, source=f"probe/{row['topic']}", licence="Apache-2.0"))
    return tuple(records)


def general_texts() -> tuple[Record, ...]:
    """Text records of many kinds, written for this package: what a tuned model has lost of plain English shows here."""
    text = importlib.resources.files("ladderlm.data").joinpath("general.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return tuple(
        make_record("text", {"text": row["text"]}, source=f"general/{row['topic']}", licence="Apache-2.0")
        for row in rows
    )


BUILTIN: dict[str, Callable[[], Splits]] = {
    "docs-match": lambda: DocsMatch().splits,
    "docs-questions": docs_questions,
    "docs-preferences": docs_preferences,
    "forgetting-probe": lambda: {"test": forgetting_probe()},
    "general-texts": lambda: {"test": general_texts()},
}
