"""Direct preference optimisation (Rafailov et al. 2023): pairs of answers, the better one made likelier.

loss = -log sigmoid(beta ((log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected)))), where p is the model
that trains and q the one it started from. What q thinks never changes, so it is computed once, up front.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderlm import events
from ladderlm.data.records import read_records, split
from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.helped import did_it_help
from ladderlm.models.folder import ModelFiles
from ladderlm.models.reference import open_model
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.loss import Batch, make_batch, nats
from ladderlm.train.examples import Example, Packing, example_nats, make_all, make_example, per_document
from ladderlm.train.loop import fit
from ladderlm.train.result import Result, bad_rows, begin, check_finished, conclude, describe_data, use_threads
from ladderlm.train.settings import AlignConfig, LoopConfig
from ladderlm.train.tuning import prepare, room, save_tuned
from ladderlm.types import Record

HELD_OUT_SHARE = 0.1
MOST_HELD_OUT = 100


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, and the reference's log-probability of each."""

    chosen: Example
    rejected: Example
    reference: tuple[float, float] = (0.0, 0.0)

    @property
    def tokens(self) -> int:
        return len(self.chosen.ids) + len(self.rejected.ids)


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Documents in the order chosen, rejected, chosen, ...; reference_P2 in the same order."""

    batch: Batch
    reference_P2: Tensor

    @property
    def tokens(self) -> int:
        return self.batch.tokens

    @property
    def weight(self) -> int:
        return len(self.reference_P2)


def dpo_loss(policy_P2: Tensor, reference_P2: Tensor, beta: float) -> tuple[Tensor, dict[str, float]]:
    """The mean loss over P pairs of (chosen, rejected) log-probabilities, and what to watch.

    `reward_accuracy`: share of pairs whose chosen answer gained more; `margin`: mean difference of rewards;
    the two log-ratios tell how far the model has moved from the reference on either side.
    """
    ratio_P2 = policy_P2 - reference_P2
    margin_P = beta * (ratio_P2[:, 0] - ratio_P2[:, 1])
    figures = {
        "reward_accuracy": (margin_P > 0).float().mean().item(),
        "margin": margin_P.mean().item(),
        "chosen_logratio": ratio_P2[:, 0].mean().item(),
        "rejected_logratio": ratio_P2[:, 1].mean().item(),
    }
    return -F.logsigmoid(margin_P).mean(), figures


def pair_batch(pairs: Sequence[Pair]) -> PairBatch:
    batch = make_batch([example for pair in pairs for example in (pair.chosen, pair.rejected)])
    return PairBatch(batch, torch.tensor([pair.reference for pair in pairs]))


def run(config: AlignConfig) -> Result:
    """Aligns, measures on held-out pairs before and after, and writes an adapter or a model folder."""
    if not (config.data or config.resume):
        raise UsageError("no data to align on", cure="name a file of preference records")
    if config.beta <= 0:
        raise UsageError("beta must be positive", where=f"beta={config.beta}")
    run_, config = begin("align", config, config.resume)
    use_threads(config.threads)
    files = open_model(config.model)
    train, held = load_pairs(config, files)
    decoder, optimiser = prepare(config, files, lora_lr=1e-4, full_lr=1e-5)
    events.emit("align", f"{len(train):,} pairs, {sum(p.tokens for p in train):,} tokens")
    pairs = with_reference(decoder, train, config.batch_tokens, "reference")
    held_pairs = with_reference(decoder, held, config.batch_tokens, "before")
    packing = Packing([p.tokens for p in pairs], config.batch_tokens, config.seed)
    steps = config.steps or (0 if config.minutes else packing.batches_in(config.epochs))
    loop = LoopConfig(
        steps=steps, minutes=config.minutes, warmup=config.warmup, cooldown=config.cooldown, seed=config.seed
    )

    def loss(model: Decoder, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        policy_P2 = -per_document(nats(model, batch.batch), batch.batch).view(-1, 2)
        return dpo_loss(policy_P2, batch.reference_P2, config.beta)

    fitted = fit(
        decoder, loss, lambda i: pair_batch([pairs[k] for k in packing(i)]), optimiser, run_, loop, stage="align"
    )
    check_finished(run_, fitted, "align")
    scores, summary = compare(held_pairs, with_reference(decoder, held, config.batch_tokens, "after"), config)
    records = read_records(config.data, skip_bad=config.skip_bad, licence=config.licence)
    path = save_tuned(config, files, decoder, describe_data(config.data, records), run_.id, scores)
    return conclude(run_, f"Alignment of {files.name}", summary, path, fitted, scores)


def load_pairs(config: AlignConfig, files: ModelFiles) -> tuple[list[Pair], list[Pair]]:
    """(train, held out). A bad record is an error that names it, or is left out with --skip-bad."""
    records = read_records(config.data, skip_bad=config.skip_bad, licence=config.licence)
    if config.held_out:
        held = read_records(config.held_out, skip_bad=config.skip_bad, licence=config.licence)
    elif len({r.id for r in records}) < 2:
        raise UsageError("one pair cannot be split", where=config.data, cure="give more, or --held-out FILE")
    else:
        records, held = split(records, HELD_OUT_SHARE, config.seed)
    longest = min(config.max_length, room(config, files))

    def make(record: Record) -> Pair:
        if record.kind != "preference":
            raise FormatError(f"a {record.kind} record", cure="DPO needs prompt, chosen and rejected")
        other = dataclasses.replace(record, fields={**record.fields, "chosen": record["rejected"]})
        return Pair(make_example(record, files, longest), make_example(other, files, longest))

    sides = []
    for name, side in ((config.data, records), ("held out", held[:MOST_HELD_OUT])):
        made, problems = make_all(side, make)
        bad_rows(name, problems, config.skip_bad)
        if not made:
            raise UsageError("no usable pair", where=name)
        sides.append(made)
    return sides[0], sides[1]


def with_reference(decoder: Decoder, pairs: Sequence[Pair], budget: int, stage: str) -> list[Pair]:
    """The pairs with what `decoder` now thinks of each answer."""
    values = example_nats(decoder, [e for pair in pairs for e in (pair.chosen, pair.rejected)], budget, stage)
    return [dataclasses.replace(pair, reference=(-values[2 * i], -values[2 * i + 1])) for i, pair in enumerate(pairs)]


def compare(before: Sequence[Pair], after: Sequence[Pair], config: AlignConfig) -> tuple[dict[str, Any], str]:
    """Does the model find the chosen answer the likelier one, and has it moved the right way?"""
    likelier = [[float(p.reference[0] > p.reference[1]) for p in side] for side in (before, after)]
    helped = did_it_help("share of pairs whose chosen answer is the likelier", *likelier, seed=config.seed)
    policy_P2, reference_P2 = (torch.tensor([p.reference for p in side]) for side in (after, before))
    loss, figures = dpo_loss(policy_P2, reference_P2, config.beta)
    scores: dict[str, Any] = {
        "chosen_likelier_before": helped.before.mean,
        "chosen_likelier": helped.after.mean,
        "held_out_loss": loss.item(),
        **{f"held_out_{name}": value for name, value in figures.items()},
        "helped": helped.to_dict(),
    }
    accuracy = f"On held-out pairs the chosen answer gained on the rejected one in {figures['reward_accuracy']:.1%}."
    return scores, f"{helped} {accuracy}"
