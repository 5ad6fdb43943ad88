"""Span corruption (T5, Raffel et al. 2019): the source lacks spans, the target tells them one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ladderlm.errors import UsageError
from ladderlm.models.arch import Architecture
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.search import generate
from ladderlm.nn.seq2seq import EncoderDecoder, load_encoder_decoder
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.train.corpus import Tokens
from ladderlm.train.objective import Counts, framed, held_batches, held_tokens, sizes, text_windows
from ladderlm.train.settings import PretrainConfig
from ladderlm.train.watching import mean_loss
from ladderlm.types import Record

SPECIAL = ("<pad>", "</s>", "<unk>")
CUT, SPAN = 0.15, 3  # share of tokens that are cut out, and the mean length of a span
SAMPLES = 3


@dataclass(frozen=True, slots=True)
class SpanBatch:
    """Sources end to end and targets end to end, which are read from start_id on: read_T; said_T is what is learnt."""

    source_S: Tensor
    source_lengths: tuple[int, ...]
    read_T: Tensor
    target_lengths: tuple[int, ...]
    said_T: Tensor

    @property
    def tokens(self) -> int:
        return len(self.source_S) + len(self.read_T)

    @property
    def weight(self) -> int:
        return len(self.said_T)


def spans_in(size: int) -> tuple[int, int]:
    """(tokens cut out, spans) of a text of `size` tokens."""
    cut = min(max(1, round(size * CUT)), size - 1)
    return cut, max(1, min(round(cut / SPAN), size - cut))


def parts(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as a random sum of `count` numbers that are at least 1, all sums alike likely."""
    ends = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], ends, [total]]))


class Spans:
    """Writes what was cut out, each span led by the sentinel that stands in its place."""

    kind = "encoder-decoder"

    def __init__(self, config: PretrainConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        named = [f"<extra_id_{i}>" for i in range(spans_in(config.seq_len)[1])]
        missing = [name for name in named if name not in tokenizer.control]
        if missing or tokenizer.eos_id is None:
            raise UsageError(f"the tokenizer has no {(missing or ['</s>'])[0]}", cure="leave out --tokenizer")
        self.sentinels, self.end = [tokenizer.control[name] for name in named], tokenizer.eos_id
        self.start = tokenizer.pad_id or 0

    @staticmethod
    def make_tokenizer(texts: Sequence[str], config: PretrainConfig) -> Tokenizer:
        named = (f"<extra_id_{i}>" for i in range(spans_in(config.seq_len)[1] + 1))
        return framed(texts, config.vocab_size, (*SPECIAL, *named), "", "</s>")

    @staticmethod
    def architecture(config: PretrainConfig, tokenizer: Tokenizer) -> Architecture:
        """T5's, its layers shared out between encoder and decoder, gated as in v1.1 and tied as in v1.0."""
        return Architecture(
            **sizes(config, tokenizer.vocab_size)
            | {
                "kind": "encoder-decoder", "family": "t5", "layers": math.ceil(config.layers / 2),
                "decoder_layers": max(1, config.layers // 2), "positions": "relative", "relative_buckets": 32,
                "relative_distance": 128, "attention_scale": 1.0, "activation": "gelu_tanh", "norm_eps": 1e-6,
                "logit_scale": config.dim**-0.5, "pad_id": 0, "start_id": 0,
            }
        )  # fmt: skip

    def build(self, arch: Architecture) -> EncoderDecoder:
        return EncoderDecoder(arch).initialise(self.config.seed)

    def load(self, files: ModelFiles) -> EncoderDecoder:
        self.start = files.arch.start_id
        return load_encoder_decoder(files)

    def batches(self, tokens: Tokens) -> Callable[[int], SpanBatch]:
        return self._batches(tokens, self.config.micro_batch, self.config.seed)

    def _batches(self, tokens: Tokens, count: int, seed: int) -> Callable[[int], SpanBatch]:
        get = text_windows(tokens, self.config.seq_len - 1, count, seed)

        def make(i: int) -> SpanBatch:
            rng = np.random.default_rng([seed, 3, i])
            pairs = [self.corrupted(row, rng) for row in get(i)]
            sources, targets = ([side[k] for side in pairs] for k in (0, 1))
            read = [np.concatenate([[self.start], target[:-1]]) for target in targets]
            return SpanBatch(
                torch.from_numpy(np.concatenate(sources)), tuple(map(len, sources)),
                torch.from_numpy(np.concatenate(read)), tuple(map(len, read)),
                torch.from_numpy(np.concatenate(targets)),
            )  # fmt: skip

        return make

    def corrupted(self, row: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(source, target), both ended. Kept and cut stretches take turns, a kept one first."""
        cut, count = spans_in(len(row))
        lengths = np.stack([parts(len(row) - cut, count, rng), parts(cut, count, rng)], 1).ravel()
        pieces = np.split(row, np.cumsum(lengths)[:-1])
        source: list[int] = []
        target: list[int] = []
        for sentinel, kept, gone in zip(self.sentinels, pieces[::2], pieces[1::2], strict=False):
            source += [*kept.tolist(), sentinel]
            target += [sentinel, *gone.tolist()]
        return np.array([*source, self.end]), np.array([*target, self.end])

    def loss(self, model: EncoderDecoder, batch: SpanBatch) -> tuple[Tensor, dict[str, float]]:
        nats_T = self._nats(model, batch)
        text_T = torch.isin(batch.said_T, torch.tensor([*self.sentinels, self.end], device=nats_T.device), invert=True)
        return nats_T.mean(), {"span_loss": ((nats_T.detach() * text_T).sum() / text_T.sum()).item()}

    def _nats(self, model: EncoderDecoder, batch: SpanBatch) -> Tensor:
        hidden_TD = model(batch.source_S, batch.source_lengths, batch.read_T, batch.target_lengths)
        return F.cross_entropy(model.logits(hidden_TD).float(), batch.said_T, reduction="none")

    def _held(self, held: Sequence[Record]) -> list[SpanBatch]:
        kept = held_tokens(self.tokenizer, held, 2 * self.config.seq_len)
        size = self.config.seq_len - 1
        count = max(1, min(self.config.micro_batch, len(kept.ids_N) // size - 1))
        return held_batches(self._batches(kept, count, self.config.seed + 1), kept, size, count)

    def held_out_loss(self, model: EncoderDecoder, held: Sequence[Record]) -> float:
        return mean_loss(model, self.loss, self._held(held))

    @torch.no_grad()
    def measure(self, model: EncoderDecoder, held: Sequence[Record], tokens: Tokens) -> tuple[dict[str, Any], str]:
        """Nats of a token that was cut out, sentinels left aside, beside those of its frequency in the text."""
        model.eval()
        counts = Counts(tokens.ids_N, self.tokenizer.vocab_size)
        marks, spent, gone = [*self.sentinels, self.end], [], []
        for batch in self._held(held):
            said = batch.said_T.numpy()
            text = ~np.isin(said, marks)
            spent.append(self._nats(model, batch).numpy()[text])
            gone.append(said[text])
        loss, unigram = float(np.concatenate(spent).mean()), counts.nats(np.concatenate(gone))
        scores = {"span_loss": loss, "unigram_loss": unigram, "span_tokens": sum(map(len, gone))}
        said_of = f"A token cut out of unseen text costs {loss:.3f} nats; by its frequency alone {unigram:.3f}."
        return scores, said_of

    def sample(self, model: EncoderDecoder, held: Sequence[Record]) -> list[dict[str, Any]]:
        rows = []
        for record in held[:SAMPLES]:
            ids = self.tokenizer.encode(record["text"][:400])[:24]
            if len(ids) < 6:
                continue
            third = len(ids) // 3
            source = [*ids[:third], self.sentinels[0], *ids[third + 3 :], self.end]
            written = generate(model, source, max_tokens=12, stop_ids=[self.end])
            prompt = self.tokenizer.decode(ids[:third]) + "<extra_id_0>" + self.tokenizer.decode(ids[third + 3 :])
            was = self.tokenizer.decode(ids[third : third + 3])
            rows.append({"prompt": prompt, "text": self.tokenizer.decode(written), "was": was})
        return rows
