"""Supervised fine-tuning: a model and records of what it should say; an adapter or a whole model comes out."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ladderlm import events
from ladderlm.data.records import read_records, split
from ladderlm.errors import UsageError
from ladderlm.models.folder import ModelFiles
from ladderlm.models.reference import open_model
from ladderlm.nn.loss import Batch, mean_nats
from ladderlm.nn.tuned import without_adapter
from ladderlm.train.examples import Example, Packing, as_messages, make_all, make_example, sorted_batch
from ladderlm.train.held import HeldAnswers
from ladderlm.train.loop import fit
from ladderlm.train.page import Page
from ladderlm.train.result import (
    Result,
    bad_rows,
    begin,
    check_finished,
    conclude,
    describe_data,
    destination,
    use_threads,
)
from ladderlm.train.settings import FinetuneConfig, LoopConfig
from ladderlm.train.tuning import prepare, room, save_tuned
from ladderlm.types import Record

HELD_OUT_SHARE = 0.05
MOST_HELD_OUT = 100


def run(config: FinetuneConfig) -> Result:
    """Tunes, measures before and after on held-out records, and writes an adapter or a model folder."""
    if not (config.data or config.resume):
        raise UsageError("no data to train on", cure="name a file of records")
    run_, config = begin("finetune", config, config.resume)
    use_threads(config.threads)
    files = open_model(config.model)
    train, held = load_records(config)
    examples, _ = render_all(config, files, train, held)
    packing = Packing([len(e.ids) for e in examples], config.batch_tokens, config.seed)
    decoder, optimiser = prepare(config, files, lora_lr=5e-4, full_lr=5e-5)
    trained = sum(p.numel() for p in optimiser.parameters)
    tokens = sum(len(e.ids) for e in examples)
    events.emit("finetune", f"{len(examples):,} records, {tokens:,} tokens; {trained / 1e6:.2f} M weights train")
    sides = HeldAnswers(held, train, files, longest(config, files))
    page = Page(decoder, files, sides, config.seed, functools.partial(without_adapter, decoder))

    def batches(i: int) -> Batch:
        return sorted_batch([examples[k] for k in packing(i)])

    loop = loop_config(config, packing)
    fitted = fit(decoder, mean_nats, batches, optimiser, run_, loop, stage="finetune")
    check_finished(run_, fitted, "finetune")
    outcome = page.after(decoder, destination(config.out).name)
    loss = next(h for h in outcome.task if h.metric == "loss per token")
    losses = {"held_out_loss_before": loss.before.mean, "held_out_loss": loss.after.mean}
    scores = losses | outcome.scores()
    path = save_tuned(config, files, decoder, describe_data(config.data, train), run_.id, scores)
    title = f"Fine-tuning of {files.name}"
    return conclude(run_, title, outcome.sentence, path, fitted, scores, outcome=outcome)


def load_records(config: FinetuneConfig) -> tuple[list[Record], list[Record]]:
    """(train, held out)."""
    records = read_records(config.data, skip_bad=config.skip_bad, licence=config.licence)
    if config.held_out:
        return records, read_records(config.held_out, skip_bad=config.skip_bad, licence=config.licence)
    if len({r.id for r in records}) < 2:
        raise UsageError("one record cannot be split", where=config.data, cure="give more, or --held-out FILE")
    train, held = split(records, HELD_OUT_SHARE, config.seed)
    return train, held[:MOST_HELD_OUT]


def render_all(
    config: FinetuneConfig, files: ModelFiles, train: Sequence[Record], held: Sequence[Record]
) -> tuple[list[Example], list[Example]]:
    """Both sides as examples. A bad record is an error that names it, or is left out with --skip-bad."""
    most = longest(config, files)
    sides = []
    everything = as_messages([*train, *held])  # together, so that both sides are asked with the same labels
    for name, side in ((config.data, everything[: len(train)]), ("held out", everything[len(train) :])):
        made, problems = make_all(side, lambda record: make_example(record, files, most))
        bad_rows(name, problems, config.skip_bad)
        if not made:
            raise UsageError("no usable record", where=name)
        sides.append(made)
    return sides[0], sides[1]


def loop_config(config: FinetuneConfig, packing: Packing) -> LoopConfig:
    steps = config.steps
    if not steps and not config.minutes:
        if config.epochs <= 0:
            raise UsageError("epochs must be positive", where=f"epochs={config.epochs}")
        steps = packing.batches_in(config.epochs)
    return LoopConfig(
        steps=steps, minutes=config.minutes, warmup=config.warmup, cooldown=config.cooldown, seed=config.seed
    )


def longest(config: FinetuneConfig, files: ModelFiles) -> int:
    """The most tokens a record may have."""
    return min(config.max_length, room(config, files))
