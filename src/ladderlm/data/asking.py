"""How records are put to a model that writes: a prompt and the answer wanted, for every kind that has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ladderlm.data.shapes import conversation
from ladderlm.errors import FormatError, UsageError
from ladderlm.types import Record

NOTHING = "none"  # what is answered where a text holds no entity, or no answer
_KNOWN = ("class", "spans", "qa", "translation")


@dataclass(frozen=True)
class Asking:
    """Prompts in one set of words for all records, so that both sides of a split are asked alike.

    `labels` are those of each kind. `template` takes the place of the usual words: names of a record's fields stand
    in it in braces. With `bare` a source to translate is the prompt by itself, as models made for one task read it.
    """

    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    template: str = ""
    bare: bool = False

    @classmethod
    def of(cls, records: Sequence[Record], template: str = "", *, bare: bool = False) -> Asking:
        """With the labels that the records have. UsageError for a template that names a field none of them has."""
        labels = {"class": {r["label"] for r in records if r.kind == "class"}}
        labels["spans"] = {s["label"] for r in records if r.kind == "spans" for s in r["spans"]}
        asking = cls({kind: tuple(sorted(found)) for kind, found in labels.items()}, template, bare)
        asked = [r for r in records if r.kind in _KNOWN]
        if template and not any("{" + name + "}" in template for r in asked[:100] for name in r.fields):
            raise UsageError("the template names no field", where=template, cure="such as {text}, {question}, {source}")
        return asking

    def prompt(self, record: Record) -> str:
        """What is asked. FormatError for a kind that asks nothing."""
        if record.kind not in _KNOWN:
            return conversation(record, answer=False).messages[-1].text
        if self.template:
            text = self.template
            for name in ("text", "context", "question", "source"):
                if isinstance(record.fields.get(name), str):
                    text = text.replace("{" + name + "}", record[name])
            return text
        if record.kind == "class":
            return f"{record['text']}\nAnswer with one of: {', '.join(self.labels['class'])}."
        if record.kind == "spans":
            names = ", ".join(self.labels["spans"])
            return f"{record['text']}\nList what is named in it, one a line, as {names}, a colon and the words."
        if record.kind == "qa":
            return f"{record['context']}\n{record['question']} Answer in the words of the text, or with {NOTHING}."
        return self._to_translate(record)

    def _to_translate(self, record: Record) -> str:
        if self.bare:
            return str(record["source"])
        if record.meta.get("task") == "summary":
            return f"Summarise:\n{record['source']}"
        source, target = record.meta.get("languages") or ("", "")
        return f"Translate from {source} to {target}:\n{record['source']}" if target else str(record["source"])

    def answer(self, record: Record) -> str:
        """What is to be said. FormatError for a record that ends without an answer."""
        if record.kind == "class":
            return str(record["label"])
        if record.kind == "spans":
            lines = [f"{s['label']}: {record['text'][s['start'] : s['end']]}" for s in record["spans"]]
            return "\n".join(lines) or NOTHING
        if record.kind == "qa":
            return str(record["answers"][0]["text"]) if record["answers"] else NOTHING
        if record.kind == "translation":
            return str(record["target"])
        last = conversation(record).messages[-1]
        if last.role != "assistant":
            raise FormatError("the assistant says nothing")
        return last.text

    def as_messages(self, record: Record) -> Record:
        """A record of one of the kinds that are asked in words as a conversation; others stay as they are."""
        if record.kind not in _KNOWN:
            return record
        turns = [
            {"role": "user", "content": self.prompt(record)},
            {"role": "assistant", "content": self.answer(record)},
        ]
        return dataclasses.replace(record, kind="messages", fields={"messages": turns})
