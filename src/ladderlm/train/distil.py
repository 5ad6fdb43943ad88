"""Distillation: a model learns to answer as a teacher does.

logits  the teacher's probabilities of every token of the records' answers (Hinton et al. 2015): loss = KL(teacher ||
        student) in nats a token. Both must have one vocabulary.
text    what the teacher writes to the records' prompts, as any text is learnt (Kim & Rush 2016). Any teacher.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ladderlm import events, store
from ladderlm.errors import UsageError
from ladderlm.evals.helped import Scored
from ladderlm.evals.outcome import Sample
from ladderlm.models.folder import ModelFiles
from ladderlm.models.reference import open_model
from ladderlm.nn.decoder import Decoder, load_decoder
from ladderlm.nn.loss import ROWS, Batch, mean_nats, wanted_hidden
from ladderlm.nn.tuned import without_adapter
from ladderlm.train.aligning import loop_config, two_sides
from ladderlm.train.distributed import World
from ladderlm.train.examples import Example, Packing, example_nats, make_all, make_example, per_document, sorted_batch
from ladderlm.train.held import answered
from ladderlm.train.loop import fit
from ladderlm.train.page import Page
from ladderlm.train.result import Result, bad_rows, check_finished, conclude, describe_data, destination
from ladderlm.train.rollout import Roller, load_prompts
from ladderlm.train.settings import AlignConfig
from ladderlm.train.tuning import prepare, room, save_tuned
from ladderlm.train.watching import watch
from ladderlm.types import Record, Run

Loss = Callable[[Decoder, Batch], tuple[Tensor, dict[str, float]]]
Measure = Callable[[Decoder, Sequence[Example], int], list[float]]  # nats a token, example by example


def divergence(student: Decoder, teacher: Decoder, batch: Batch) -> Tensor:
    """kl_N: KL(teacher || student) in nats at every wanted position. Only some rows' logits exist at a time."""
    hidden_ND = wanted_hidden(student, batch)
    with torch.no_grad():
        taught_ND = wanted_hidden(teacher, batch)

    def rows(hidden_RD: Tensor, taught_RD: Tensor) -> Tensor:
        with torch.no_grad():
            taught_RV = teacher.logits(taught_RD).log_softmax(-1)
        said_RV = student.logits(hidden_RD).log_softmax(-1)
        return F.kl_div(said_RV, taught_RV, reduction="none", log_target=True).sum(-1)

    parts = zip(hidden_ND.split(ROWS), taught_ND.split(ROWS), strict=True)
    return torch.cat([checkpoint(rows, said, taught, use_reentrant=False) for said, taught in parts])


def learn(config: AlignConfig, run: Run, files: ModelFiles) -> Result:
    """Learns from `config.teacher`; `run` and `files` are the run begun and the student."""
    if not config.teacher:
        raise UsageError("whom to learn from?", cure="--teacher MODEL")
    teacher_files = open_model(config.teacher)
    train, held_records = two_sides(config)
    decoder, optimiser = prepare(config, files, lora_lr=5e-4, full_lr=5e-5)
    records = {"train": train, "held out": held_records}
    if config.learn == "text":
        records = _written(config, run, teacher_files, records)
    longest = min(config.max_length, room(config, files))
    examples = _examples(config.data, records["train"], files, longest, config.skip_bad)
    held = _examples("held out", records["held out"], files, longest, config.skip_bad)
    packing = Packing([len(e.ids) for e in examples], config.batch_tokens, config.seed)
    if config.learn == "logits":
        _alike(files, teacher_files)
        loss, measure = _by_logits(load_decoder(teacher_files).requires_grad_(False).eval().to(config.device))
        metric = "nats a token that the teacher's distribution is away"
    else:
        loss, measure, metric = mean_nats, _text_loss, "loss per token of the teacher's answers"
    side = _Held(metric, measure, held, config.batch_tokens, records["held out"], files)
    told = Page(decoder, files, side, config.seed, functools.partial(without_adapter, decoder))
    fitted = fit(
        decoder, loss, lambda i: sorted_batch([examples[k] for k in packing(i)]), optimiser, run,
        loop_config(config, packing.batches_in(config.epochs)), watch=watch(config, decoder, loss, held, sorted_batch),
        stage="align", world=World(device=config.device),
    )  # fmt: skip
    check_finished(run, fitted, "align")
    outcome = told.after(decoder, destination(config.out).name)
    helped = outcome.task[0]
    scores = {"held_out_before": helped.before.mean, "held_out": helped.after.mean, **outcome.scores()}
    path = save_tuned(config, files, decoder, describe_data(config.data, train), run.id, scores)
    title = f"Distillation of {teacher_files.name} into {files.name}"
    return conclude(run, title, outcome.sentence, path, fitted, scores, outcome=outcome)


class _Held:
    """How far the student is from the teacher on each held-out record, for train/page.py."""

    def __init__(
        self, metric: str, measure: Measure, examples: Sequence[Example], budget: int, records: Sequence[Record],
        files: ModelFiles,
    ) -> None:  # fmt: skip
        self._metric, self._of, self._budget = metric, measure, budget
        self._examples, self._records, self._files = examples, records, files

    def measure(self, model: Decoder) -> list[Scored]:
        names = tuple(str(i) for i in range(len(self._examples)))
        return [Scored(self._metric, names, tuple(self._of(model, self._examples, self._budget)), (), False)]

    def samples(self, model: Decoder) -> list[Sample]:
        return answered(model, self._files, self._records)


def _written(
    config: AlignConfig, run: Run, teacher: ModelFiles, records: dict[str, list[Record]]
) -> dict[str, list[Record]]:
    """The records with what the teacher writes to their prompts, kept in the run's folder."""
    path = run.path / "teacher.json"
    if path.exists():
        kept = store.read_json(path)
        return {name: [Record.from_dict(row) for row in kept[name]] for name in records}
    out: dict[str, list[Record]] = {}
    longest = min(config.max_length, teacher.arch.context_length) - 1
    with Roller(None, teacher, config.max_tokens, config.threads) as roller:
        for name, some in records.items():
            prompts = load_prompts(name, some, teacher, longest, skip_bad=config.skip_bad)
            events.emit("align", f"the teacher answers {len(prompts):,} prompts")
            answers = [(prompts[a.prompt].record, a.text) for a in roller.greedy(prompts) if a.text]
            out[name] = [_answered(record, text) for record, text in answers]
    store.write_json(path, {"format": 1, **{name: [r.to_dict() for r in rows] for name, rows in out.items()}})
    return out


def _answered(record: Record, text: str) -> Record:
    """The record's prompt with another answer."""
    if record.kind == "messages":
        turns = list(record["messages"])
        turns = turns[:-1] if turns[-1].get("role") == "assistant" else turns
        fields: dict[str, Any] = {**record.fields, "messages": [*turns, {"role": "assistant", "content": text}]}
        return dataclasses.replace(record, fields=fields)
    return dataclasses.replace(record, kind="completion", fields={**record.fields, "completion": text})


def _examples(name: str, records: Sequence[Record], files: ModelFiles, longest: int, skip_bad: bool) -> list[Example]:
    examples, problems = make_all(records, lambda record: make_example(record, files, longest))
    bad_rows(name, problems, skip_bad)
    if not examples:
        raise UsageError("no usable record", where=name)
    return examples


def _alike(student: ModelFiles, teacher: ModelFiles) -> None:
    """Raises UsageError where the two cut texts into other tokens."""
    sizes = (student.arch.vocab_size, teacher.arch.vocab_size)
    tokens = [[f.tokenizer.token_text(i) for i in range(f.tokenizer.vocab_size)] for f in (student, teacher)]
    if sizes[0] != sizes[1] or tokens[0] != tokens[1]:
        raise UsageError("student and teacher have other vocabularies", where=f"{sizes[0]} and {sizes[1]} tokens",
                         cure="--learn text")  # fmt: skip


def _by_logits(teacher: Decoder) -> tuple[Loss, Measure]:
    def loss(model: Decoder, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return divergence(model, teacher, batch).mean(), {}

    return loss, functools.partial(_divergences, teacher)


def _text_loss(decoder: Decoder, examples: Sequence[Example], budget: int) -> list[float]:
    nats = example_nats(decoder, examples, budget, "measure")
    return [n / sum(e.mask[1:]) for n, e in zip(nats, examples, strict=True)]


@torch.no_grad()
def _divergences(teacher: Decoder, decoder: Decoder, examples: Sequence[Example], budget: int) -> list[float]:
    """Nats a token, example by example."""
    decoder.eval()
    out: list[float] = []
    packing: list[list[Example]] = [[]]
    for example in examples:
        if packing[-1] and sum(len(e.ids) for e in packing[-1]) + len(example.ids) > budget:
            packing.append([])
        packing[-1].append(example)
    for group in packing:
        batch = sorted_batch(group)
        sums = per_document(divergence(decoder, teacher, batch), batch).tolist()
        order = sorted(range(len(group)), key=lambda i: len(group[i].ids))
        placed = [0.0] * len(group)
        for i, value in zip(order, sums, strict=True):
            placed[i] = value / sum(group[i].mask[1:])
        out += placed
    return out
