"""Entities in a text: a tag of every token by a head on an encoder, in the scheme B-x, I-x, O."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.answers import f1
from ladderlm.evals.helped import Scored
from ladderlm.evals.outcome import Sample
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.encoder import Encoder, load_encoder
from ladderlm.train.examples import grouped
from ladderlm.train.settings import FinetuneConfig
from ladderlm.train.tasks.task import Document, DocumentBatch, Found, HeldOut, Limits, Piece, documents, hidden, names
from ladderlm.types import Record

OUTSIDE = "O"
UNASKED = -100  # the target of what is put around a text (torch's own number for it)
Spot = tuple[int, int]
Entity = tuple[int, int, str]


class Tag:
    """Finds entities. One belongs to all tokens that hold a character of it."""

    name = "tag"

    def __init__(self, config: FinetuneConfig, files: ModelFiles, records: Sequence[Record]) -> None:
        self.config, self.files = config, files
        self.limits = Limits(config, files)
        found = sorted({s["label"] for r in records if r.kind == "spans" for s in r["spans"]})
        if not found:
            raise UsageError("no record holds a span", where=config.data)
        wanted = (OUTSIDE, *(f"{begins}-{label}" for label in found for begins in "BI"))
        self.known = files.arch.head == "tag" and set(wanted) <= set(files.arch.labels)
        self.labels = files.arch.labels if self.known else wanted

    def load(self) -> Encoder:
        return load_encoder(self.files, head="tag", labels=self.labels, seed=self.config.seed)

    def _tokens(self, text: str) -> tuple[list[int], list[Spot]]:
        """Ids of a text and the characters of each, blanks at its edges left out."""
        ids, spots = self.files.tokenizer.encode_pieces([(text, None)])[0]
        trimmed = []
        for a, b in spots:
            words = text[a:b]
            start = a + len(words) - len(words.lstrip())
            trimmed.append((start, max(start, a + len(words.rstrip()))))
        return ids, trimmed

    def example(self, record: Record) -> Document:
        if record.kind != "spans":
            raise FormatError(f"a {record.kind} record marks no spans", cure="text and spans, or tokens and tags")
        ids, spots = self._tokens(record["text"])
        if not ids:
            raise UsageError("the text has no tokens")
        around = self.files.tokenizer.around
        kept = self.limits.fitting(len(ids), self.limits.longest - len(around.head) - len(around.tail))
        tags = [self.labels.index(tag) for tag in tags_of(spots[:kept], record["spans"])]
        whole, types = around.join(ids[:kept], None, None)
        self.limits.known(whole)
        targets = [*[UNASKED] * len(around.head), *tags, *[UNASKED] * len(around.tail)]
        return Document(whole, types, targets)

    def batch(self, examples: Sequence[Document]) -> DocumentBatch:
        ordered = sorted(examples, key=lambda d: d.tokens)
        return documents(ordered, sum(t != UNASKED for d in ordered for t in d.targets))

    def loss(self, model: Encoder, batch: DocumentBatch) -> tuple[Tensor, dict[str, float]]:
        logits_TC = model.logits(hidden(model, batch)).float()
        return F.cross_entropy(logits_TC, batch.targets_N, ignore_index=UNASKED), {}

    def held(self, records: Sequence[Record], examples: Sequence[Document], train: Sequence[Record]) -> HeldOut:
        """With a new head, what is compared with is finding no entity anywhere."""
        constant = None if self.known else lambda: scored(records, [[] for _ in records], {})
        return HeldOut(lambda model: self.measure(model, records, examples), constant)

    @torch.no_grad()
    def measure(self, model: Encoder, records: Sequence[Record], examples: Sequence[Document]) -> Found:
        model.eval()
        said: list[list[Entity]] = [[] for _ in examples]
        nats, asked = 0.0, 0
        head = len(self.files.tokenizer.around.head)
        for group in grouped([d.tokens for d in examples], self.config.batch_tokens):
            batch = self.batch([examples[i] for i in group])
            ordered = sorted(group, key=lambda i: examples[i].tokens)
            logits_TC = model.logits(hidden(model, batch)).float()
            nats += F.cross_entropy(logits_TC, batch.targets_N, ignore_index=UNASKED, reduction="sum").item()
            asked += batch.weight
            for i, best_T in zip(ordered, logits_TC.argmax(-1).split(batch.lengths), strict=True):
                spots = self._tokens(records[i]["text"])[1]
                tags = [self.labels[k] for k in best_T.tolist()[head : head + len(spots)]]
                said[i] = entities(spots[: len(tags)], tags)
        return scored(records, said, {"held_out_loss": nats / max(asked, 1)})

    def pieces(self, record: Record) -> list[Piece]:
        text, at, found = record["text"], 0, []
        for span in record["spans"]:
            found += [Piece(text[at : span["start"]], True, OUTSIDE)] if span["start"] > at else []
            found.append(Piece(text[span["start"] : span["end"]], True, span["label"]))
            at = span["end"]
        return [*found, Piece(text[at:], True, OUTSIDE)] if at < len(text) else found


def tags_of(spots: Sequence[Spot], spans: Sequence[dict[str, object]]) -> list[str]:
    """The tag of each token; `spots` and `spans` are characters of one text."""
    tags, begun = [], -1
    for start, end in spots:
        number = next((n for n, s in enumerate(spans) if s["start"] < max(end, start + 1) and start < s["end"]), -1)  # type: ignore[operator]
        tags.append(OUTSIDE if number < 0 else ("I-" if number == begun else "B-") + str(spans[number]["label"]))
        begun = number
    return tags


def entities(spots: Sequence[Spot], tags: Sequence[str]) -> list[Entity]:
    """(start, end, label) in characters. An I that goes on from nothing of its label begins an entity (conlleval)."""
    found: list[Entity] = []
    last = OUTSIDE
    for (start, end), tag in zip(spots, tags, strict=True):
        begins, _, label = tag.partition("-")
        if tag != OUTSIDE and begins == "I" and last.partition("-")[2] == label:
            found[-1] = (found[-1][0], max(end, found[-1][1]), label)
        elif tag != OUTSIDE:
            found.append((start, end, label))
        last = tag
    return found


def scored(records: Sequence[Record], said: Sequence[Sequence[Entity]], more: dict[str, float]) -> Found:
    """F1 of each text over its entities, and micro-averaged over all of them."""
    truth = [[(s["start"], s["end"], s["label"]) for s in r["spans"]] for r in records]
    hits = sum(len(set(a) & set(b)) for a, b in zip(truth, said, strict=True))
    told, there = sum(map(len, said)), sum(map(len, truth))
    scores = {
        "entity_f1": 2 * hits / (told + there) if told + there else 1.0,
        "entity_precision": hits / told if told else 0.0,
        "entity_recall": hits / there if there else 0.0,
    }

    def listed(record: Record, found: Sequence[Entity]) -> str:
        return ", ".join(f"{label}: {record['text'][a:b]}" for a, b, label in found) or "none"

    samples = [Sample(r["text"], listed(r, a), listed(r, b)) for r, a, b in zip(records, truth, said, strict=True)]
    each = tuple(f1(a, b) for a, b in zip(said, truth, strict=True))
    return Found([Scored("entity F1 of a text", names(records), each)], {**scores, **more}, samples)
