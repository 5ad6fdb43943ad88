"""Questions with known answers, put to any model under a prompt: what it says, and whether that is right.

A local model's labels are told by likelihood, so that it cannot answer beside the point; a hosted one writes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ladderlm import events
from ladderlm.data.shapes import conversation
from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.classify import label_ids, prompt_ids
from ladderlm.types import Completion, Conversation, Message, Record, Sampling, Usage, Value

MOST_LABELS = 20


@dataclass(frozen=True, slots=True)
class Item(Value):
    """A question and its answer; `before` are the turns that lead to the question."""

    id: str
    text: str
    answer: str
    before: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt(Value):
    """How an item is asked: the template with its `{text}`, after solved examples as turns, after a system message."""

    template: str = "{text}"
    system: str = ""
    shots: tuple[Item, ...] = ()

    def conversation(self, item: Item) -> Conversation:
        """The prompt's own system message takes the place of the item's."""
        turns = [Message.of("system", self.system)] if self.system else [m for m in item.before if m.role == "system"]
        for shot in self.shots:
            turns += [Message.of("user", self.ask(shot.text)), Message.of("assistant", shot.answer)]
        turns += [m for m in item.before if m.role != "system"]
        return Conversation((*turns, Message.of("user", self.ask(item.text))))

    def ask(self, text: str) -> str:
        return self.template.replace("{text}", text)

    def __str__(self) -> str:
        shown = " ".join(f"{self.system} | {self.template}".removeprefix(" | ").split())
        return f"{shown[:100]} ({len(self.shots)} examples)" if self.shots else shown[:100]


@dataclass(frozen=True, slots=True)
class Said(Value):
    """What was answered to an item, and its score in [0, 1]."""

    answer: str
    score: float


def items_of(records: Sequence[Record]) -> list[Item]:
    """Class, completion, answer and messages records as items. FormatError for other kinds."""
    found = []
    for record in records:
        if record.kind == "class":
            found.append(Item(record.id, record["text"], record["label"]))
        elif record.kind == "answer":
            found.append(Item(record.id, record["prompt"], record["answer"]))
        elif record.kind in ("completion", "messages"):
            turns = conversation(record).messages
            if [turn.role for turn in turns[-2:]] != ["user", "assistant"]:
                raise FormatError("no question with an answer", where=f"record {record.id}")
            found.append(Item(record.id, turns[-2].text, turns[-1].text, tuple(turns[:-2])))
        else:
            cure = "text+label, prompt+completion or messages; --columns text=...,label=... names a table's columns"
            raise FormatError(f"a {record.kind} record has no answer to check", where=f"record {record.id}", cure=cure)
    return found


def labels_of(items: Sequence[Item]) -> tuple[str, ...]:
    """The answers, sorted, where they are few and repeat; else none."""
    counts = Counter(item.answer for item in items)
    return tuple(sorted(counts)) if 2 <= len(counts) <= min(MOST_LABELS, max(2, len(items) // 5)) else ()


def first_prompt(records: Sequence[Record], labels: Sequence[str]) -> Prompt:
    """What one would write without a thought: of class records the words in which finetune asks too."""
    asks = all(record.kind == "class" for record in records)
    return Prompt("{text}\n" + f"Answer with one of: {', '.join(labels)}." if asks else "{text}")


class Asker:
    """A model, and what asking it has used so far."""

    def __init__(
        self, ref: str, labels: Sequence[str] = (), *, max_cost: float | None = None, tokens: int = 64
    ) -> None:
        from ladderlm.talk import open_chat

        self.ref, self.labels = ref, tuple(labels)
        self._chat: Any = open_chat(ref, max_cost=max_cost)
        self._local = hasattr(self._chat, "engine")
        self._tokens = tokens
        self.calls, self.usage, self.cost = 0, Usage(), 0.0

    @property
    def hosted(self) -> bool:
        return "://" in self.ref

    def close(self) -> None:
        self._chat.close()

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, prompt: Prompt, items: Sequence[Item], stage: str = "ask") -> list[Said]:
        """An answer to each item."""
        if "{text}" not in prompt.template:
            raise UsageError("the template must have {text} in it", where=prompt.template[:80])
        by_likelihood = self._local and bool(self.labels)
        if by_likelihood:
            files = self._chat.files
            endings = [label_ids(files.tokenizer, files.template, label) for label in self.labels]
        found = []
        for item in events.track(items, stage, unit="items"):
            self.calls += 1
            turns = prompt.conversation(item)
            if by_likelihood:
                ids = prompt_ids(files.tokenizer, files.template, turns)
                rows = self._chat.engine.score(ids, endings, adapter=self._chat.adapter)
                sums = [sum(row) for row in rows]
                said = self.labels[sums.index(max(sums))]
            else:
                said = self.write(turns)
            found.append(Said(said, score(said, item.answer, self.labels)))
        return found

    def write(self, turns: Conversation, temperature: float = 0.0, most: int = 0, seed: int | None = None) -> str:
        """One written answer."""
        sampling = Sampling(temperature=temperature, max_tokens=most or self._tokens, seed=seed)
        done = Completion.fold(self._chat.stream(turns, sampling))
        self.cost += done.usage.cost or 0.0
        read, written = done.usage.prompt_tokens, done.usage.completion_tokens
        self.usage = Usage(self.usage.prompt_tokens + read, self.usage.completion_tokens + written)
        return done.text.strip()

    def rank(self, turns: Conversation, choices: Sequence[str]) -> list[float]:
        """Log-likelihood of each choice as the answer, where the model tells."""
        self.calls += 1
        return list(self._chat.rank(turns, choices))


def score(said: str, wanted: str, labels: Sequence[str] = ()) -> float:
    """1 or 0 for a label: the one that the answer begins with. Else the words in common with the wanted answer (F1)."""
    if labels:
        plain = said.strip().strip("\"'`*.").casefold()
        begun = [label for label in labels if plain.startswith(label.casefold())]
        return float(bool(begun) and max(begun, key=len) == wanted)
    left, right = (re.findall(r"\w+", text.casefold()) for text in (said, wanted))
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right)) if common else float(left == right)


def pick(items: Sequence[Item], count: int, rng: Any, labels: Sequence[str] = ()) -> tuple[Item, ...]:
    """`count` items drawn by `rng`; labels take turns."""
    if not labels:
        return tuple(rng.sample(list(items), min(count, len(items))))
    groups = {label: [item for item in items if item.answer == label] for label in labels}
    for group in groups.values():
        rng.shuffle(group)
    order = rng.sample(list(labels), len(labels))
    rounds = max(map(len, groups.values()), default=0)
    return tuple(groups[label][i] for i in range(rounds) for label in order if i < len(groups[label]))[:count]
