"""Next tokens (causal language modelling), and filling in the middle (Bavarian et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladderlm.errors import UsageError
from ladderlm.evals.compress import xz_bits_per_byte
from ladderlm.evals.intervals import bootstrap_ratio
from ladderlm.evals.ngram import KneserNey
from ladderlm.models.arch import Architecture
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.decoder import Decoder, load_decoder
from ladderlm.nn.loss import Batch, make_batch, mean_nats, nats
from ladderlm.nn.search import go_on
from ladderlm.text.bpe import SPECIAL, train_bpe
from ladderlm.text.middle import MIDDLE
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.train.corpus import Tokens, packed, text_nats, windows
from ladderlm.train.objective import held_batches, held_tokens, text_windows
from ladderlm.train.settings import PretrainConfig
from ladderlm.types import Record

SAMPLES, PROMPT, WRITTEN = 3, 16, 48  # tokens


class Causal:
    """Every token of a window from those before it."""

    kind = "decoder"

    def __init__(self, config: PretrainConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        start = tokenizer.document_start_id
        if start is None:
            raise UsageError("the tokenizer has no document-start token", where=config.tokenizer, cure="train one")
        self.start = start

    @staticmethod
    def make_tokenizer(texts: Sequence[str], config: PretrainConfig) -> Tokenizer:
        return train_bpe(texts, config.vocab_size)

    @staticmethod
    def architecture(config: PretrainConfig, tokenizer: Tokenizer) -> Architecture:
        return config.architecture(tokenizer.vocab_size)

    def build(self, arch: Architecture) -> Decoder:
        return Decoder(arch).initialise(self.config.seed)

    def load(self, files: ModelFiles) -> Decoder:
        return load_decoder(files)

    def batches(self, tokens: Tokens) -> Callable[[int], Batch]:
        config = self.config
        cut = packed if config.packing == "best-fit" else windows
        return cut(tokens, config.seq_len, config.micro_batch, config.seed, self.start)

    def loss(self, model: Decoder, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return mean_nats(model, batch, self.config.z_loss)

    def held_out_loss(self, model: Decoder, held: Sequence[Record]) -> float:
        ids = self.tokenizer.encode_batch([r["text"] for r in held])
        return sum(text_nats(model, ids, self.start)) / max(1, sum(map(len, ids)))

    def measure(self, model: Decoder, held: Sequence[Record], tokens: Tokens) -> tuple[dict[str, Any], str]:
        """Bits per byte: the model's, a Kneser-Ney trigram's on the same tokens, and xz's."""
        sizes = [len(r["text"].encode()) for r in held]
        held_ids = self.tokenizer.encode_batch([r["text"] for r in held])
        nats_each = text_nats(model, held_ids, self.start)
        found = bootstrap_ratio([n / math.log(2) for n in nats_each], sizes)
        trigram = KneserNey(3).fit(np.asarray(tokens.ids_N, dtype=np.int64))
        said = [i for ids in held_ids for i in (self.start, *ids)]
        scores = {
            "bits_per_byte": found.mean,
            "bits_per_byte_low": found.low,
            "bits_per_byte_high": found.high,
            "perplexity": math.exp(sum(nats_each) / max(1, sum(map(len, held_ids)))),
            "trigram_bits_per_byte": trigram.bits(said) / sum(sizes),
            "xz_bits_per_byte": xz_bits_per_byte("".join(r["text"] for r in held)),
            "held_out_bytes": sum(sizes),
        }
        return scores, summary(scores)

    def sample(self, model: Decoder, held: Sequence[Record]) -> list[dict[str, Any]]:
        rows = []
        for record in held[:SAMPLES]:
            prompt = self.tokenizer.encode(record["text"][:400])[:PROMPT]
            ids = go_on(model, [self.start, *prompt], max_tokens=WRITTEN, stop_ids=self.tokenizer.stop_ids)
            rows.append({"prompt": self.tokenizer.decode(prompt), "text": self.tokenizer.decode(ids)})
        return rows


def summary(scores: dict[str, Any]) -> str:
    return (
        f"{scores['bits_per_byte']:.3f} bits per byte [{scores['bits_per_byte_low']:.3f}, "
        f"{scores['bits_per_byte_high']:.3f}] on {scores['held_out_bytes']:,} bytes of unseen text; a trigram on the "
        f"same tokens {scores['trigram_bits_per_byte']:.3f}, xz on the text alone {scores['xz_bits_per_byte']:.3f}."
    )


def shorten(batch: Batch, length: int) -> Batch:
    """The same tokens in windows of at most `length`."""
    pieces = [min(length, n - at) for n in batch.lengths for at in range(0, n, length)]
    return Batch(batch.ids_T, tuple(pieces), batch.wanted_N, batch.targets_N)


def length_at(step: int, ramp: int, full: int) -> int:
    """The window's length while it grows: an eighth, a quarter and a half of `full` in the first `ramp` steps."""
    return full if step >= ramp else max(1, full >> (3 - 3 * step // ramp))


class FillMiddle(Causal):
    """Half of the windows are cut in three and told in another order, so that the middle comes last.

    Of those, half read prefix, suffix, middle (PSM), half suffix, then prefix and middle in one (SPM).
    """

    def __init__(self, config: PretrainConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        missing = [name for name in MIDDLE if name not in tokenizer.control]
        if missing:
            raise UsageError(f"the tokenizer has no {missing[0]}", cure="leave out --tokenizer: one is trained")
        if config.seq_len < 16:
            raise UsageError("too short to cut", where=f"seq_len={config.seq_len}")
        self.marks = tuple(tokenizer.control[name] for name in MIDDLE)

    @staticmethod
    def make_tokenizer(texts: Sequence[str], config: PretrainConfig) -> Tokenizer:
        return train_bpe(texts, config.vocab_size, (*SPECIAL, *MIDDLE))

    def batches(self, tokens: Tokens) -> Callable[[int], Batch]:
        config, size = self.config, self.config.seq_len - 4
        get = text_windows(tokens, size, config.micro_batch, config.seed)

        def make(i: int) -> Batch:
            rng = np.random.default_rng([config.seed, 1, i])
            plain, cut = [], []
            for row in get(i).tolist():
                order = rng.random()
                if order < 0.5:
                    plain.append([self.start, *row])
                else:
                    a, b = sorted(rng.integers(0, size + 1, 2).tolist())
                    cut.append(self.reordered(row[:a], row[a:b], row[b:], suffix_first=order > 0.75))
            return make_batch([(row, [True] * len(row)) for row in (*plain, *cut)])

        return make

    def reordered(self, prefix: list[int], middle: list[int], suffix: list[int], *, suffix_first: bool) -> list[int]:
        """A text with its middle last, ended so that the model learns where a middle ends."""
        before, after, between = self.marks
        told = [*suffix, between, *prefix] if suffix_first else [*suffix, between]
        opened = [before, after] if suffix_first else [before, *prefix, after]
        return [self.start, *opened, *told, *middle, self.start]

    def measure(self, model: Decoder, held: Sequence[Record], tokens: Tokens) -> tuple[dict[str, Any], str]:
        """As for next tokens; and what a middle costs with what follows it, and without."""
        scores, said = super().measure(model, held, tokens)
        kept = held_tokens(self.tokenizer, held, 2 * self.config.seq_len)
        size = self.config.seq_len - 4
        rows = held_batches(text_windows(kept, size, 1, self.config.seed), kept, size, 1)
        with_suffix, without = [], []
        for row in (r[0].tolist() for r in rows):
            a, b = size // 3, 2 * size // 3
            full = self.reordered(row[:a], row[a:b], row[b:], suffix_first=False)[:-1]
            with_suffix.append((full, [False] * (len(full) - (b - a)) + [True] * (b - a)))
            without.append(([self.start, *row[:b]], [False] * (1 + a) + [True] * (b - a)))
        model.eval()
        with torch.no_grad():
            costs = [float(nats(model, make_batch(side)).mean()) for side in (with_suffix, without)]
        scores |= {"middle_nats": costs[0], "middle_nats_without_suffix": costs[1]}
        return scores, said + f" A token of a middle costs {costs[0]:.3f} nats, {costs[1]:.3f} without what follows it."
