"""Supervised fine-tuning: a model and records of what it should say, find or tell apart; a tuned model comes out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ladderlm import events
from ladderlm.errors import UsageError
from ladderlm.evals.helped import Helped
from ladderlm.models.folder import ModelFiles
from ladderlm.models.reference import open_model
from ladderlm.nn.tuned import without_adapter
from ladderlm.train.derive import settled
from ladderlm.train.device import on, on_processor, present
from ladderlm.train.distributed import World
from ladderlm.train.examples import Packing
from ladderlm.train.loop import fit
from ladderlm.train.material import Material, load_material
from ladderlm.train.optim import Optimiser
from ladderlm.train.page import Page
from ladderlm.train.result import Result, begin, check_finished, conclude, describe_data, destination, use_threads
from ladderlm.train.settings import FinetuneConfig, LoopConfig
from ladderlm.train.tasks.embed import Embed
from ladderlm.train.tasks.task import LOSS, Piece
from ladderlm.train.tuning import adapt, optimiser, prepare, save_tuned
from ladderlm.train.watching import check_best, watch
from ladderlm.types import Run

LORA_LR, FULL_LR = 5e-4, 5e-5


def run(config: FinetuneConfig) -> Result:
    """Tunes, measures before and after on held-out records, and writes an adapter or a model folder."""
    if not (config.data or config.resume):
        raise UsageError("no data to train on", cure="name a file of records")
    check_best(config)
    present(config.device)
    run_, config = begin("finetune", config, config.resume)
    use_threads(config.threads)
    with on(config.device):
        return _tune(config, run_, open_model(config.model))


def _tune(config: FinetuneConfig, run_: Run, files: ModelFiles) -> Result:
    material = load_material(config, files)
    material.settle_bad(run_, config.skip_bad)
    task, packing, examples = material.task, material.packing, material.examples
    model, steps = prepared(config, files, material)
    trained = sum(p.numel() for p in steps.parameters)
    events.emit("finetune", f"{task.name}: {material.lengths}; {trained / 1e6:.2f} M weights train")
    for note in material.notes:
        events.emit("data", note)
    held = task.held(material.held, material.held_examples, material.records)
    page = Page(model, files, held, config.seed, functools.partial(without_adapter, model))
    fitted = fit(
        model, task.loss, lambda i: task.batch([examples[k] for k in packing(i)]), steps, run_,
        loop_config(config, packing), watch=watch(config, model, task.loss, material.held_examples, task.batch),
        stage="finetune", world=World(device=config.device),
    )  # fmt: skip
    check_finished(run_, fitted, "finetune")
    outcome = page.after(model, destination(config.out).name)
    scores = {"task": task.name, **held.scores, **losses(outcome.task), **outcome.scores()}
    path = save_tuned(config, files, model, describe_data(config.data, material.records), run_.id, scores)
    title = f"Fine-tuning of {files.name}"
    return conclude(run_, title, outcome.sentence, path, fitted, scores, material.report, outcome)


def losses(found: Sequence[Helped]) -> dict[str, float]:
    """The loss on held-out records before and after, where it was measured record by record."""
    loss = next((h for h in found if h.metric == LOSS), None)
    return {"held_out_loss_before": loss.before.mean, "held_out_loss": loss.after.mean} if loss else {}


def prepared(config: FinetuneConfig, files: ModelFiles, material: Material) -> tuple[Any, Optimiser]:
    """The model to train and its optimiser. How a decoder is loaded depends on the method."""
    load = material.task.load
    if load is None or files.arch.kind == "decoder":
        decoder, steps = prepare(config, files, lora_lr=LORA_LR, full_lr=FULL_LR)
        if isinstance(material.task, Embed) and not files.arch.tied:  # no token is told: the head is not used
            decoder.lm_head.requires_grad_(False)
            steps = optimiser(decoder, config, lora_lr=LORA_LR, full_lr=FULL_LR)
        return decoder, steps
    with on_processor():
        model = load()
        adapt(model, config, files)
    model.to(config.device)
    return model, optimiser(model, config, lora_lr=LORA_LR, full_lr=FULL_LR)


def loop_config(config: FinetuneConfig, packing: Packing) -> LoopConfig:
    steps = config.steps
    if not steps and not config.minutes:
        if config.epochs <= 0:
            raise UsageError("epochs must be positive", where=f"epochs={config.epochs}")
        steps = packing.batches_in(config.epochs)
    return LoopConfig(
        steps=steps, minutes=config.minutes, warmup=config.warmup, cooldown=config.cooldown, seed=config.seed,
        precision=settled(config.precision, config.device), evaluate_every=config.evaluate_every, best=config.best,
    )  # fmt: skip


def look(config: FinetuneConfig) -> tuple[Material, list[list[Piece]]]:
    """The material of a run to be, and its first `config.show` records as the model would read them."""
    if not config.data:
        raise UsageError("no data to look at", cure="name a file of records")
    material = load_material(config, open_model(config.model))
    return material, [material.task.pieces(record) for record in material.records[: config.show]]
