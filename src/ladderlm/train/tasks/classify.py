"""Classes of whole texts, by a head on an encoder (Devlin et al. 2018)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.helped import Scored, balanced
from ladderlm.evals.metrics import classification
from ladderlm.evals.outcome import Sample
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.encoder import Encoder, load_encoder
from ladderlm.train.examples import grouped
from ladderlm.train.settings import FinetuneConfig
from ladderlm.train.tasks.task import Document, DocumentBatch, Found, HeldOut, Limits, Piece, documents, hidden, names
from ladderlm.types import Record


class Classify:
    """Tells the class of a text."""

    name = "classify"

    def __init__(self, config: FinetuneConfig, files: ModelFiles, records: Sequence[Record]) -> None:
        self.config, self.files = config, files
        self.limits = Limits(config, files)
        found = Counter(r["label"] for r in records if r.kind == "class")
        if len(found) < 2:
            raise UsageError(f"there is nothing to tell apart with {len(found)} label(s)", where=config.data)
        self.known = files.arch.head == "classify" and found.keys() <= set(files.arch.labels)
        self.labels = files.arch.labels if self.known else tuple(sorted(found))
        self.commonest = found.most_common(1)[0][0]

    def load(self) -> Encoder:
        return load_encoder(self.files, head="classify", labels=self.labels, seed=self.config.seed)

    def example(self, record: Record) -> Document:
        if record.kind != "class":
            raise FormatError(f"a {record.kind} record has no class", cure="text and label")
        ids, types = self.files.tokenizer.encode_pair(record["text"])
        if self.limits.fitting(len(ids)) < len(ids):
            ids, types = self.files.tokenizer.encode_pair(record["text"], max_length=self.limits.longest)
        self.limits.known(ids)
        return Document(ids, types, [self.labels.index(record["label"])])

    def batch(self, examples: Sequence[Document]) -> DocumentBatch:
        return documents(sorted(examples, key=lambda d: d.tokens), len(examples))

    def logits(self, model: Encoder, batch: DocumentBatch) -> Tensor:
        """logits_BC."""
        return model.text_logits(hidden(model, batch), batch.lengths)

    def loss(self, model: Encoder, batch: DocumentBatch) -> tuple[Tensor, dict[str, float]]:
        logits_BC = self.logits(model, batch).float()
        right = (logits_BC.argmax(-1) == batch.targets_N).float().mean().item()
        return F.cross_entropy(logits_BC, batch.targets_N), {"accuracy": right}

    def held(self, records: Sequence[Record], examples: Sequence[Document], train: Sequence[Record]) -> HeldOut:
        """With a new head, what is compared with is always saying the commonest label."""
        constant = None if self.known else lambda: self._found(records, [self.commonest] * len(records), {})
        return HeldOut(lambda model: self.measure(model, records, examples), constant)

    @torch.no_grad()
    def measure(self, model: Encoder, records: Sequence[Record], examples: Sequence[Document]) -> Found:
        model.eval()
        said, nats = [""] * len(examples), 0.0
        for group in grouped([d.tokens for d in examples], self.config.batch_tokens):
            batch = documents([examples[i] for i in group], len(group))
            logits_BC = self.logits(model, batch).float()
            nats += F.cross_entropy(logits_BC, batch.targets_N, reduction="sum").item()
            for i, k in zip(group, logits_BC.argmax(-1).tolist(), strict=True):
                said[i] = self.labels[k]
        return self._found(records, said, {"held_out_loss": nats / len(examples)})

    def _found(self, records: Sequence[Record], said: Sequence[str], more: dict[str, float]) -> Found:
        truth = [r["label"] for r in records]
        found = classification(truth, said, self.labels)
        right = tuple(float(a == b) for a, b in zip(truth, said, strict=True))
        return Found(
            [balanced(names(records), truth, said), Scored("accuracy", names(records), right)],
            {"macro_f1": found.macro_f1, **more},
            [Sample(r["text"], r["label"], s) for r, s in zip(records, said, strict=True)],
        )

    def pieces(self, record: Record) -> list[Piece]:
        document = self.example(record)
        return [Piece(self.files.tokenizer.decode(document.ids, special=True), False), Piece("", True, record["label"])]
