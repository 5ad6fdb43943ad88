"""Answers that stand in a text: a head on an encoder scores where one starts and ends (Rajpurkar et al. 2016).

A context too long for the model is read in windows that overlap by half. A question without an answer points at the
first token (Rajpurkar et al. 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.answers import best_f1, exact
from ladderlm.evals.helped import Scored
from ladderlm.evals.outcome import Sample
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.encoder import Encoder, load_encoder
from ladderlm.train.examples import grouped
from ladderlm.train.settings import FinetuneConfig
from ladderlm.train.tasks.task import Document, DocumentBatch, Found, HeldOut, Limits, Piece, documents, hidden, names
from ladderlm.types import Record

LONGEST = 30  # tokens of an answer


class Window(NamedTuple):
    """A question with `width` tokens of its context: token `first` of the document is the context's token `at`."""

    document: Document
    first: int
    at: int
    width: int


class FindAnswer:
    """Finds the answer to a question in a text."""

    name = "qa"

    def __init__(self, config: FinetuneConfig, files: ModelFiles, records: Sequence[Record]) -> None:
        self.config, self.files = config, files
        self.limits = Limits(config, files)
        self.known = files.arch.head == "qa"
        self.always = all(r["answers"] for r in records if r.kind == "qa")  # then every question is answered

    def load(self) -> Encoder:
        return load_encoder(self.files, head="qa", seed=self.config.seed)

    def windows(self, record: Record) -> list[Window]:
        """All windows of the context. UsageError for a question that leaves no room."""
        if record.kind != "qa":
            raise FormatError(f"a {record.kind} record asks nothing", cure="context, question and answers")
        tokenizer = self.files.tokenizer
        asked = tokenizer.encode(record["question"])
        (ids, spots) = tokenizer.encode_pieces([(record["context"], None)])[0]
        bare = len(tokenizer.around.join(asked, [], None)[0])
        room = self.limits.longest - bare
        if room < min(len(ids), 16) or not ids:
            raise UsageError(f"a question of {len(asked)} tokens leaves no room for a context of {len(ids)}")
        wanted = self._target(record, spots)
        found = []
        for at in range(0, max(1, len(ids) - room // 2), max(1, room // 2)) if len(ids) > room else (0,):
            part = ids[at : at + room]
            whole, types = tokenizer.around.join(asked, part, None)
            self.limits.known(whole)
            first = self._first(asked, part, len(whole))
            inside = wanted and at <= wanted[0] and wanted[1] < at + len(part)
            ends = [first + w - at for w in wanted] if inside and wanted else [0, 0]
            found.append(Window(Document(whole, types, ends), first, at, len(part)))
        return found

    def _first(self, asked: Sequence[int], part: Sequence[int], whole: int) -> int:
        """Where the second text begins: everything after it is what the tokenizer puts there."""
        tail = len(self.files.tokenizer.around.tail)
        return whole - tail - len(part)

    @staticmethod
    def _target(record: Record, spots: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
        """The context's first and last token of the first answer."""
        if not record["answers"]:
            return None
        answer = record["answers"][0]
        start, end = answer["start"], answer["start"] + len(answer["text"])
        inside = [i for i, (a, b) in enumerate(spots) if a < end and start < b]
        if not inside:
            raise UsageError("the answer has no tokens", where=repr(answer["text"][:40]))
        return inside[0], inside[-1]

    def example(self, record: Record) -> Document:
        """The window that holds the answer whole, else the first."""
        found = self.windows(record)
        return next((w.document for w in found if w.document.targets != [0, 0]), found[0].document)

    def batch(self, examples: Sequence[Document]) -> DocumentBatch:
        return documents(sorted(examples, key=lambda d: d.tokens), len(examples))

    def loss(self, model: Encoder, batch: DocumentBatch) -> tuple[Tensor, dict[str, float]]:
        """The mean of both ends' cross-entropies over the tokens of each document."""
        logits_T2 = model.logits(hidden(model, batch)).float()
        targets_B2 = batch.targets_N.view(-1, 2)
        each = [
            -part_T2.log_softmax(0).gather(0, ends_2[None])
            for part_T2, ends_2 in zip(logits_T2.split(batch.lengths), targets_B2, strict=True)
        ]
        return torch.cat(each).mean(), {}

    def held(self, records: Sequence[Record], examples: Sequence[Document], train: Sequence[Record]) -> HeldOut:
        """With a new head, what is compared with is never answering."""
        constant = None if self.known else lambda: scored(records, [""] * len(records), {})
        return HeldOut(lambda model: self.measure(model, records, examples), constant)

    @torch.no_grad()
    def measure(self, model: Encoder, records: Sequence[Record], examples: Sequence[Document]) -> Found:
        model.eval()
        windows = [(i, w) for i, record in enumerate(records) for w in self.windows(record)]
        best: dict[int, tuple[float, str]] = {}
        for group in grouped([w.document.tokens for _, w in windows], self.config.batch_tokens):
            batch = documents([windows[k][1].document for k in group], len(group))
            logits_T2 = model.logits(hidden(model, batch)).float()
            for k, part_T2 in zip(group, logits_T2.split(batch.lengths), strict=True):
                i, window = windows[k]
                score, text = self._answer(records[i], window, part_T2)
                if i not in best or score > best[i][0]:
                    best[i] = score, text
        losses = [
            self.loss(model, self.batch([examples[i] for i in group]))[0].item() * len(group)
            for group in grouped([d.tokens for d in examples], self.config.batch_tokens)
        ]
        said = [best[i][1] for i in range(len(records))]
        return scored(records, said, {"held_out_loss": sum(losses) / len(examples)})

    def _answer(self, record: Record, window: Window, logits_T2: Tensor) -> tuple[float, str]:
        """(score, text) of the likeliest answer in a window, by how much it beats that there is none."""
        ends_C2 = logits_T2[window.first : window.first + window.width]
        pairs_CC = ends_C2[:, 0][:, None] + ends_C2[:, 1][None]
        allowed_CC = torch.ones_like(pairs_CC, dtype=torch.bool).triu().tril(LONGEST - 1)
        pairs_CC = pairs_CC.masked_fill(~allowed_CC, -torch.inf)
        start, end = divmod(int(pairs_CC.argmax()), window.width)
        score = float(pairs_CC[start, end])
        if not self.always and (score := score - float(logits_T2[0].sum())) < 0:
            return score, ""
        spots = self.files.tokenizer.encode_pieces([(record["context"], None)])[0][1]
        return score, record["context"][spots[window.at + start][0] : spots[window.at + end][1]].strip()

    def pieces(self, record: Record) -> list[Piece]:
        document, decode = self.example(record), self.files.tokenizer.decode
        start, end = document.targets
        cuts = (document.ids[:start], document.ids[start : end + 1], document.ids[end + 1 :])
        return [Piece(decode(ids, special=True), i == 1) for i, ids in enumerate(cuts) if ids]


def scored(records: Sequence[Record], said: Sequence[str], more: dict[str, float]) -> Found:
    """F1 over words and exact match; of a question without answer, that none is given."""
    wanted = [[a["text"] for a in r["answers"]] or [""] for r in records]
    each = tuple(best_f1(s, w) for s, w in zip(said, wanted, strict=True))
    right = tuple(exact(s, w) for s, w in zip(said, wanted, strict=True))
    samples = [Sample(r["question"], w[0], s) for r, w, s in zip(records, wanted, said, strict=True)]
    ids = names(records)
    return Found([Scored("answer F1", ids, each), Scored("exact match", ids, right)], more, samples)
