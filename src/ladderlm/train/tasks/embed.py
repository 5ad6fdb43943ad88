"""Vectors of texts: what belongs together lies together (InfoNCE, van den Oord et al. 2018; Gao et al. 2021).

Each anchor of a batch is to find its positive among all positives and negatives of the batch, by the cosine. A text is
the mean of an encoder's hidden states, or a decoder's last one, as the engine's Embedder makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.helped import Scored
from ladderlm.evals.outcome import Sample
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.encoder import Encoder, load_encoder
from ladderlm.nn.heads import mean
from ladderlm.train.examples import grouped
from ladderlm.train.settings import FinetuneConfig
from ladderlm.train.tasks.task import Found, HeldOut, Limits, Piece, names
from ladderlm.types import Record


@dataclass(frozen=True, slots=True)
class Triple:
    """Ids of an anchor, of what belongs to it, and of what does not (empty: none)."""

    anchor: list[int]
    positive: list[int]
    negative: list[int]

    @property
    def tokens(self) -> int:
        return len(self.anchor) + len(self.positive) + len(self.negative)


@dataclass(frozen=True, slots=True)
class TripleBatch:
    """B anchors, then C candidates, end to end; candidate b belongs to anchor b. same_BC: candidates that are the same
    text as the one that belongs, and so no mistake."""

    ids_T: Tensor
    lengths: tuple[int, ...]
    same_BC: Tensor

    @property
    def tokens(self) -> int:
        return len(self.ids_T)

    @property
    def weight(self) -> int:
        return len(self.same_BC)


class Embed:
    """Learns vectors. `load` is for encoders, which lose their head."""

    name = "embed"

    def __init__(self, config: FinetuneConfig, files: ModelFiles, records: Sequence[Record]) -> None:
        if config.temperature <= 0:
            raise UsageError("the temperature must be positive", where=f"temperature={config.temperature}")
        self.config, self.files = config, files
        self.limits = Limits(config, files)

    def load(self) -> Encoder:
        encoder = load_encoder(self.files, head="none", seed=self.config.seed)
        encoder.arch, encoder.pooler = dataclasses.replace(encoder.arch, pooler=""), None
        return encoder

    def example(self, record: Record) -> Triple:
        if record.kind != "triple":
            raise FormatError(f"a {record.kind} record has no anchor", cure="anchor, positive and perhaps negative")
        anchor, positive = (self._ids(record[name], name) for name in ("anchor", "positive"))
        return Triple(anchor, positive, self._ids(record["negative"], "negative") if record["negative"] else [])

    def _ids(self, text: str, name: str) -> list[int]:
        ids = self.files.tokenizer.encode_pair(text)[0]
        if not self.files.tokenizer.encode(text):
            raise UsageError(f"the {name} is empty")
        if self.limits.fitting(len(ids)) < len(ids):
            ids = self.files.tokenizer.encode_pair(text, max_length=self.limits.longest)[0]
        self.limits.known(ids)
        return ids

    def batch(self, examples: Sequence[Triple]) -> TripleBatch:
        candidates = [e.positive for e in examples] + [e.negative for e in examples if e.negative]
        texts = [e.anchor for e in examples] + candidates
        same_BC = torch.tensor([[c == e.positive for c in candidates] for e in examples])
        return TripleBatch(torch.tensor([i for ids in texts for i in ids]), tuple(map(len, texts)), same_BC)

    def vectors(self, model: Any, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """vectors_ND of length 1."""
        hidden_TD = model(ids_T, lengths)
        if isinstance(model, Encoder):
            return F.normalize(mean(hidden_TD, lengths))
        return F.normalize(hidden_TD[torch.tensor(lengths).cumsum(0) - 1])

    def loss(self, model: Any, batch: TripleBatch) -> tuple[Tensor, dict[str, float]]:
        count = len(batch.same_BC)
        found_ND = self.vectors(model, batch.ids_T, batch.lengths)
        scores_BC = found_ND[:count] @ found_ND[count:].t() / self.config.temperature
        own_B = torch.arange(count)
        twins_BC = batch.same_BC.clone()
        twins_BC[own_B, own_B] = False
        scores_BC = scores_BC.masked_fill(twins_BC, -torch.inf)
        right = (scores_BC.argmax(-1) == own_B).float().mean().item()
        return F.cross_entropy(scores_BC, own_B), {"found": right}

    def held(self, records: Sequence[Record], examples: Sequence[Triple], train: Sequence[Record]) -> HeldOut:
        return HeldOut(lambda model: self.measure(model, records, examples))

    @torch.no_grad()
    def measure(self, model: Any, records: Sequence[Record], examples: Sequence[Triple]) -> Found:
        """At which place each anchor finds its positive among all held-out positives and negatives."""
        model.eval()
        texts = [(r["positive"], e.positive) for r, e in zip(records, examples, strict=True)]
        texts += [(r["negative"], e.negative) for r, e in zip(records, examples, strict=True) if e.negative]
        candidates = dict(texts)
        anchors_ND = self._all(model, [e.anchor for e in examples])
        scores_NC = anchors_ND @ self._all(model, list(candidates.values())).t()
        places = {text: i for i, text in enumerate(candidates)}
        each, samples = [], []
        for record, scores_C in zip(records, scores_NC, strict=True):
            own = scores_C[places[record["positive"]]]
            each.append(1.0 / (1 + int((scores_C > own).sum())))
            nearest = list(candidates)[int(scores_C.argmax())]
            samples.append(Sample(record["anchor"], record["positive"], nearest))
        first = tuple(float(r == 1.0) for r in each)
        ids = names(records)
        told = [Scored("reciprocal rank", ids, tuple(each)), Scored("found first", ids, first)]
        return Found(told, {"candidates": float(len(candidates))}, samples)

    def _all(self, model: Any, texts: Sequence[Sequence[int]]) -> Tensor:
        found_ND = torch.empty(len(texts), self.files.arch.dim)
        for group in grouped([len(t) for t in texts], self.config.batch_tokens):
            ids = [i for k in group for i in texts[k]]
            found_ND[group] = self.vectors(model, torch.tensor(ids), [len(texts[k]) for k in group]).float()
        return found_ND

    def pieces(self, record: Record) -> list[Piece]:
        triple, decode = self.example(record), self.files.tokenizer.decode
        sides = (triple.anchor, triple.positive, triple.negative)
        notes = ("anchor", "belongs to it", "does not")
        told = [(ids, note) for ids, note in zip(sides, notes, strict=True) if ids]
        return [Piece(decode(ids, special=True), n > 0, note) for n, (ids, note) in enumerate(told)]
