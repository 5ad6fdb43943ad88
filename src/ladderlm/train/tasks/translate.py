"""An encoder-decoder that writes a target from a source: translations, summaries, and answers to what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderlm.data.asking import Asking
from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.helped import Scored
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.search import generate
from ladderlm.nn.seq2seq import EncoderDecoder, load_encoder_decoder
from ladderlm.train.examples import grouped
from ladderlm.train.settings import FinetuneConfig
from ladderlm.train.spans import SpanBatch
from ladderlm.train.tasks.task import LOSS, Found, HeldOut, Limits, Piece, names
from ladderlm.train.tasks.write import LONGEST_ANSWER, answered
from ladderlm.types import Record


@dataclass(frozen=True, slots=True)
class Pair:
    """Ids of a source and of the target, each with what the tokenizer puts around a text."""

    source: list[int]
    target: list[int]

    @property
    def tokens(self) -> int:
        return len(self.source) + len(self.target)


class Translate:
    """Writes the target; `asking` puts records of other kinds as a source."""

    name = "translate"

    def __init__(self, config: FinetuneConfig, files: ModelFiles, records: Sequence[Record]) -> None:
        self.config, self.files = config, files
        self.limits = Limits(config, files)
        self.asking = Asking.of(records, config.template, bare=True)

    def load(self) -> EncoderDecoder:
        return load_encoder_decoder(self.files)

    def example(self, record: Record) -> Pair:
        if record.kind == "messages" and len([m for m in record["messages"] if m.get("role") != "system"]) > 2:
            raise FormatError("a conversation of several turns", cure="a prompt and an answer")
        answer = self.asking.answer(record)
        if not answer.strip():
            raise UsageError("there is nothing to write")
        return Pair(self._around(self.asking.prompt(record)), self._around(answer, target=True))

    def _around(self, text: str, *, target: bool = False) -> list[int]:
        tokenizer = self.files.tokenizer
        ids = tokenizer.encode_pair(text)[0]
        if self.limits.fitting(len(ids)) < len(ids):
            ids = tokenizer.encode_pair(text, max_length=self.limits.longest)[0]
        if target and tokenizer.eos_id is not None and ids[-1:] != [tokenizer.eos_id]:
            ids = [*ids, tokenizer.eos_id]
        self.limits.known(ids)
        return ids

    def batch(self, examples: Sequence[Pair]) -> SpanBatch:
        return pairs(sorted(examples, key=lambda p: p.tokens), self.files.arch.start_id)

    def loss(self, model: EncoderDecoder, batch: SpanBatch) -> tuple[Tensor, dict[str, float]]:
        return nats(model, batch).mean(), {}

    def held(self, records: Sequence[Record], examples: Sequence[Pair], train: Sequence[Record]) -> HeldOut:
        return HeldOut(lambda model: self.measure(model, records, examples))

    @torch.no_grad()
    def measure(self, model: EncoderDecoder, records: Sequence[Record], examples: Sequence[Pair]) -> Found:
        """Loss per token of every target; what is written from the first sources is scored."""
        model.eval()
        each = [0.0] * len(examples)
        for group in grouped([p.tokens for p in examples], self.config.batch_tokens):
            batch = pairs([examples[i] for i in group], self.files.arch.start_id)
            for i, some_T in zip(group, nats(model, batch).split(batch.target_lengths), strict=True):
                each[i] = some_T.mean().item()
        sources = {record.id: pair.source for record, pair in zip(records, examples, strict=True)}
        scored, samples = answered(records, self.asking, lambda record: self.write(model, sources[record.id]))
        return Found([Scored(LOSS, names(records), tuple(each), (), False), *scored], {}, samples)

    def write(self, model: EncoderDecoder, source: Sequence[int]) -> str:
        """What the model writes from a source, greedily."""
        tokenizer = self.files.tokenizer
        ids = generate(model, source, max_tokens=LONGEST_ANSWER, stop_ids=tokenizer.stop_ids)
        return tokenizer.decode(ids).strip()

    def pieces(self, record: Record) -> list[Piece]:
        pair, decode = self.example(record), self.files.tokenizer.decode
        return [Piece(decode(pair.source, special=True), False), Piece(decode(pair.target, special=True), True)]


def pairs(examples: Sequence[Pair], start_id: int) -> SpanBatch:
    """Sources and targets end to end; a target is read from the start id on."""
    read = [[start_id, *pair.target[:-1]] for pair in examples]
    return SpanBatch(
        torch.tensor([i for pair in examples for i in pair.source]),
        tuple(len(pair.source) for pair in examples),
        torch.tensor([i for ids in read for i in ids]),
        tuple(map(len, read)),
        torch.tensor([i for pair in examples for i in pair.target]),
    )


def nats(model: EncoderDecoder, batch: SpanBatch) -> Tensor:
    """nats_T of every target token."""
    hidden_TD = model(batch.source_S, batch.source_lengths, batch.read_T, batch.target_lengths)
    return F.cross_entropy(model.logits(hidden_TD).float(), batch.said_T, reduction="none")
