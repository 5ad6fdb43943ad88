"""Masked tokens, and with them whether one text follows another (BERT, Devlin et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ladderlm.errors import UsageError
from ladderlm.models.arch import Architecture
from ladderlm.models.families import bert
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.encoder import Encoder, load_encoder
from ladderlm.nn.neighbours import look_across, look_around
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.train.corpus import Tokens
from ladderlm.train.objective import (
    Counts,
    framed,
    held_batches,
    held_tokens,
    proportion,
    sizes,
    text_windows,
)
from ladderlm.train.settings import PretrainConfig
from ladderlm.train.watching import mean_loss
from ladderlm.types import Record

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Shares of a text's tokens that are masked to learn and to measure: more teach more at a time (Wettig et al. 2023,
# arXiv 2202.08005). Of these 80 % become [MASK], 10 % any token, and 10 % stay.
MASKED, MEASURED = 0.3, 0.15
SAMPLES = 3


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """Documents end to end; positions wanted_N of ids_T are asked for targets_N.

    With pairs, types_T tells the second text, and apart_B is 1 where it does not follow the first.
    """

    ids_T: Tensor
    lengths: tuple[int, ...]
    types_T: Tensor
    wanted_N: Tensor
    targets_N: Tensor
    apart_B: Tensor | None = None

    @property
    def tokens(self) -> int:
        return len(self.ids_T)

    @property
    def weight(self) -> int:
        return len(self.wanted_N)


class Masked:
    """Fills in masked tokens, seeing both sides; with `pairs` tells also whether the second text follows the first."""

    kind = "encoder"
    pairs = False

    def __init__(self, config: PretrainConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        around = tokenizer.around
        if tokenizer.mask_id is None or not around.head or not around.tail:
            raise UsageError("the tokenizer cannot mask", where=config.tokenizer, cure="it needs [MASK], [CLS], [SEP]")
        self.mask, self.head, self.tail = tokenizer.mask_id, around.head[0], around.tail[-1]
        special = set(tokenizer.control.values())
        self.ordinary = np.array([i for i in range(tokenizer.vocab_size) if i not in special])

    @staticmethod
    def make_tokenizer(texts: Sequence[str], config: PretrainConfig) -> Tokenizer:
        return framed(texts, config.vocab_size, SPECIAL, "[CLS]", "[SEP]")

    @classmethod
    def architecture(cls, config: PretrainConfig, tokenizer: Tokenizer) -> Architecture:
        """Megatron-BERT's: with its norms before the branches a small model learns faster than BERT itself."""
        shape = sizes(config, tokenizer.vocab_size) | {
            "kind": "encoder", "family": "megatron-bert", "norm": "layer", "norm_bias": True, "norm_eps": 1e-12,
            "placement": "pre", "positions": "learned", "gated": False, "qkv_bias": True, "out_bias": True,
            "mlp_bias": True, "activation": "gelu", "token_types": 2, "pad_id": 0,
            "hidden": config.hidden or 4 * config.dim, "head": "none",
        }  # fmt: skip
        return bert.with_head(Architecture(**shape), "pretraining" if cls.pairs else "mlm")

    def build(self, arch: Architecture) -> Encoder:
        encoder = look_around(Encoder(arch).initialise(self.config.seed))
        return look_across(encoder, self.head, self.config.seed) if self.pairs else encoder

    def load(self, files: ModelFiles) -> Encoder:
        wanted = "pretraining" if self.pairs else "mlm"
        return load_encoder(files, head="" if files.arch.head == wanted else wanted, seed=self.config.seed)

    def batches(self, tokens: Tokens) -> Callable[[int], MaskedBatch]:
        return self._batches(tokens, self.config.micro_batch, self.config.seed, MASKED, learning=True)

    def _batches(
        self, tokens: Tokens, count: int, seed: int, share: float, *, learning: bool = False
    ) -> Callable[[int], MaskedBatch]:
        marks = 3 if self.pairs else 2
        get = text_windows(tokens, self.config.seq_len - marks, count, seed)

        def make(i: int) -> MaskedBatch:
            rng = np.random.default_rng([seed, 2, i])
            ids_BT = get(i)
            if self.pairs:
                return self._pairs(ids_BT, rng, share, twice=learning)
            head_B1, tail_B1 = (np.full((count, 1), id) for id in (self.head, self.tail))
            return self.masked(np.concatenate([head_B1, ids_BT, tail_B1], 1), rng, share)

        return make

    def masked(
        self, ids_BT: np.ndarray, rng: np.random.Generator, share: float, types_BT: np.ndarray | None = None,
        apart_B: np.ndarray | None = None,
    ) -> MaskedBatch:  # fmt: skip
        """Documents of one length with a `share` of the tokens masked in each."""
        types_BT = np.zeros_like(ids_BT) if types_BT is None else types_BT
        free_BT = (ids_BT != self.head) & (ids_BT != self.tail)
        chance_BT = np.where(free_BT, rng.random(ids_BT.shape), 2.0)
        amount = max(1, round(share * ids_BT.shape[1]))
        chosen_BN = np.sort(np.argsort(chance_BT, axis=1, kind="stable")[:, :amount], axis=1)
        wanted_N = (chosen_BN + ids_BT.shape[1] * np.arange(len(ids_BT))[:, None]).ravel()
        flat_T = ids_BT.ravel().copy()
        targets_N = flat_T[wanted_N].copy()
        fate_N, other_N = rng.random(len(wanted_N)), rng.choice(self.ordinary, len(wanted_N))
        flat_T[wanted_N] = np.where(fate_N < 0.8, self.mask, np.where(fate_N < 0.9, other_N, targets_N))
        return MaskedBatch(
            torch.from_numpy(flat_T), (ids_BT.shape[1],) * len(ids_BT), torch.from_numpy(types_BT.ravel()),
            torch.from_numpy(wanted_N), torch.from_numpy(targets_N),
            None if apart_B is None else torch.from_numpy(apart_B),
        )  # fmt: skip

    def _pairs(self, ids_BT: np.ndarray, rng: np.random.Generator, share: float, *, twice: bool) -> MaskedBatch:
        """[CLS] A [SEP] B [SEP]: B is what follows A in its window, or as often the end of another window.

        With `twice` every text stands in the batch in a pair of each kind (but for one at either end). Then none tells
        by itself, and what the texts of a pair have in common is learnt from fewer pairs.
        """
        count, size = ids_BT.shape
        rows_B = np.arange(count)
        half = (count + 1) // 2
        first_B, apart_B = (rows_B % half, rows_B // half) if twice else (rows_B, rng.integers(0, 2, (count,)))
        apart_B = np.minimum(apart_B, count - 1)  # a window alone has no other
        cut_B = rng.integers(size // 4, size - size // 4, (1 if twice else count,)).repeat(count if twice else 1)
        rows, types = [], []
        for first, apart in zip(first_B, apart_B, strict=True):
            cut = int(cut_B[first])
            second = ids_BT[(first + apart) % count][cut:]
            rows.append(np.concatenate([[self.head], ids_BT[first][:cut], [self.tail], second, [self.tail]]))
            types.append(np.repeat([0, 1], [cut + 2, size - cut + 1]))
        return self.masked(np.stack(rows), rng, share, types_BT=np.stack(types), apart_B=apart_B)

    def loss(self, model: Encoder, batch: MaskedBatch) -> tuple[Tensor, dict[str, float]]:
        hidden_TD = model(batch.ids_T, batch.lengths, batch.types_T if model.arch.token_types else None)
        logits_NV = model.logits(hidden_TD[batch.wanted_N])
        loss = F.cross_entropy(logits_NV.float(), batch.targets_N)
        found = {"masked_loss": loss.item(), "masked_accuracy": _share(logits_NV, batch.targets_N)}
        if batch.apart_B is None:
            return loss, found
        apart_BC = model.text_logits(hidden_TD, batch.lengths)
        apart = F.cross_entropy(apart_BC.float(), batch.apart_B)
        return loss + apart, found | {"next_loss": apart.item(), "next_accuracy": _share(apart_BC, batch.apart_B)}

    def _held(self, held: Sequence[Record]) -> list[MaskedBatch]:
        kept = held_tokens(self.tokenizer, held, 2 * self.config.seq_len)
        size = self.config.seq_len - 3
        count = max(1, min(self.config.micro_batch, len(kept.ids_N) // size - 1))
        return held_batches(self._batches(kept, count, self.config.seed + 1, MEASURED), kept, size, count)

    def held_out_loss(self, model: Encoder, held: Sequence[Record]) -> float:
        return mean_loss(model, self.loss, self._held(held))

    @torch.no_grad()
    def measure(self, model: Encoder, held: Sequence[Record], tokens: Tokens) -> tuple[dict[str, Any], str]:
        """Top-1 on masked tokens beside the commonest token and the one that follows the left neighbour most often."""
        model.eval()
        counts = Counts(tokens.ids_N, self.tokenizer.vocab_size)
        hits = np.zeros(3)
        total = pairs = right = 0
        losses = []
        for batch in self._held(held):
            loss, figures = self.loss(model, batch)
            losses.append(loss.item())
            targets = batch.targets_N.numpy()
            left = batch.ids_T.numpy()[batch.wanted_N.numpy() - 1]
            guesses = (counts.commonest, counts.next_V[left])
            hits += [figures["masked_accuracy"] * len(targets), *(float(np.sum(g == targets)) for g in guesses)]
            total += len(targets)
            if batch.apart_B is not None:
                pairs += len(batch.apart_B)
                right += round(figures["next_accuracy"] * len(batch.apart_B))
        names = ("masked_accuracy", "unigram_accuracy", "bigram_accuracy")
        scores: dict[str, Any] = dict(zip(names, (hits / total).tolist(), strict=True))
        scores |= {"held_out_loss": float(np.mean(losses)), "masked_tokens": total}
        said = (
            f"{scores['masked_accuracy']:.1%} of {total:,} masked tokens of unseen text are found at the first guess; "
            f"the commonest token is right {scores['unigram_accuracy']:.1%}, the left neighbour's usual follower "
            f"{scores['bigram_accuracy']:.1%}."
        )
        if pairs:
            found = proportion(right, pairs)
            scores |= {"next_accuracy": found["share"], "next_accuracy_low": found["low"]}
            scores |= {"next_accuracy_high": found["high"], "pairs": pairs}
            said += (
                f" Of {pairs:,} pairs {found['share']:.1%} [{found['low']:.1%}, {found['high']:.1%}] are told right."
            )
        return scores, said

    @torch.no_grad()
    def sample(self, model: Encoder, held: Sequence[Record]) -> list[dict[str, Any]]:
        rows = []
        for record in held[:SAMPLES]:
            ids = self.tokenizer.encode(record["text"][:400])[: min(30, self.config.seq_len - 2)]
            if not ids:
                continue
            place = 1 + len(ids) // 2
            asked = torch.tensor([self.head, *ids, self.tail])
            asked[place] = self.mask
            best = int(model.logits(model(asked, (len(asked),)))[place].argmax())
            parts = [self.tokenizer.decode(part) for part in (ids[: place - 1], ids[place:], [best], [ids[place - 1]])]
            rows.append({"prompt": f"{parts[0]}[MASK]{parts[1]}", "text": parts[2], "was": parts[3]})
        return rows


class MaskedPairs(Masked):
    """Masked tokens and next sentences."""

    pairs = True


def _share(logits_NC: Tensor, targets_N: Tensor) -> float:
    return (logits_NC.argmax(-1) == targets_N).float().mean().item()
