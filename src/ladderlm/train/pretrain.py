"""Pretraining: text, tokenizer, an objective, the loop, and how good it got on unseen text."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ladderlm import events, store
from ladderlm.data.collect import collect
from ladderlm.data.records import make_record, split
from ladderlm.data.shards import is_shards
from ladderlm.errors import UsageError
from ladderlm.evals.report import Report
from ladderlm.models.arch import Architecture
from ladderlm.models.card import joint_licence
from ladderlm.models.folder import ModelFiles, save_model
from ladderlm.models.reference import open_model
from ladderlm.nn.loss import Batch
from ladderlm.nn.stack import recompute
from ladderlm.text.template import CHATML, ChatTemplate
from ladderlm.text.tokenizer import SpecialTokens, Tokenizer
from ladderlm.train import before_after
from ladderlm.train.before_after import BeforeAfter
from ladderlm.train.causal import Causal, FillMiddle, length_at, shorten
from ladderlm.train.corpus import Tokens, from_shards, tokenise
from ladderlm.train.derive import derived, peak_flops, token_flops
from ladderlm.train.device import present
from ladderlm.train.distributed import World, first, joined
from ladderlm.train.loop import Fit, Watch, fit
from ladderlm.train.masked import Masked, MaskedPairs
from ladderlm.train.memory import GROWTH, Peak, footprint
from ladderlm.train.objective import Objective
from ladderlm.train.optim import optimiser_of
from ladderlm.train.planned import LEAST_SECONDS, PlanOutcome, kept_plan, outcome, outcome_of_first
from ladderlm.train.result import Result, begin, check_finished, conclude, describe_data, destination, use_threads
from ladderlm.train.settings import PretrainConfig
from ladderlm.train.spans import Spans
from ladderlm.types import Record, Run

HELD_OUT_SHARE = 0.05
HELD_OUT_BYTES = 200_000
HELD_OUT_PIECE = 4_000  # characters; several pieces make an interval possible
KINDS: dict[str, type[Causal | Masked | Spans]] = {
    "causal": Causal, "fim": FillMiddle, "mlm": Masked, "mlm+nsp": MaskedPairs, "spans": Spans,
}  # fmt: skip
USUAL = {"decoder": "causal", "encoder": "mlm", "encoder-decoder": "spans"}


def run(config: PretrainConfig) -> Result:
    """Trains and writes a model folder; how it compares with simple baselines goes into its run's report.

    Under torchrun every process calls it; the first writes, and all return its result.
    """
    if not (config.data or config.resume):
        raise UsageError("no data to train on", cure="name a file or folder, or python:docs")
    check(config)
    with joined(config.parallel, config.device) as world:
        return _run(config, world)


def check(config: PretrainConfig) -> None:
    """Complains of settings that cannot be, before any work is done."""
    present(config.device)
    if config.general and not (config.model or config.resume):
        raise UsageError("what a model forgets is told of one that there was", where="general", cure="--from MODEL")
    if not config.resume:
        derived(config).loop()


def _run(config: PretrainConfig, world: World) -> Result:
    (run_, asked), whole_run = _begin(config, world), world.size == 1 and not config.resume
    use_threads(asked.threads)
    config, files, kind = resolved(asked)
    config = config.shared(world.size) if world.size > 1 else config
    tokens, tokenizer, held, data = load(config, kind, files, world)
    objective: Objective = kind(config, tokenizer)
    arch = files.arch if files else kind.architecture(config, tokenizer)
    peak = Peak(world.device)
    model = objective.load(files) if files else objective.build(arch)
    before = _before(model.to(world.device), objective, held, config) if files and world.main else None
    if world.main:
        documents = len(tokens.starts)
        message = f"{arch.parameters / 1e6:.2f} M parameters, {len(tokens.ids_N):,} tokens in {documents:,} documents"
        events.emit("pretrain", message, data={"parameters": arch.parameters, "tokens": len(tokens.ids_N)})
    arch, cpu = model.arch, time.process_time()  # type: ignore[assignment]
    fitted = learn(model := _prepared(model, config, world), objective, tokens, held, config, run_, world)
    check_finished(run_, fitted, "pretrain")
    taken = {"seconds": fitted.seconds, "cpu_seconds": time.process_time() - cpu, "memory": peak.growth()}
    planned = _planned(asked, config, objective, arch, tokens, run_, fitted, taken) if whole_run else None
    whole = world.unsharded(model, lambda: objective.build(arch))
    said = ""
    if world.main:
        said = _conclude(whole, objective, data, held, tokens, files, config, run_, fitted, before, planned)
    return Result.from_dict(json.loads(world.told_text(said)))


def _begin(config: PretrainConfig, world: World) -> tuple[Run, PretrainConfig]:
    """The run and its settings: the first process makes or opens it, the others follow."""
    made = begin("pretrain", config, config.resume) if world.main else None
    path = Path(first(world, lambda: str(made[0].path.resolve()) if made else ""))
    if made:
        return made
    return Run(path), type(config).from_dict(store.read_json(path / "config.json")["settings"])


def objective_name(config: PretrainConfig, files: ModelFiles | None) -> str:
    """What was asked for, else what the model to go on from does. UsageError for what such a model cannot."""
    if files is None:
        return config.objective or "causal"
    usual = "mlm+nsp" if files.arch.head == "pretraining" else USUAL[files.arch.kind]
    name = config.objective or usual
    if KINDS[name].kind != files.arch.kind:
        raise UsageError(f"{files.name} cannot learn {name!r}", cure=f"it {files.arch.purpose}: --objective {usual}")
    return name


def resolved(config: PretrainConfig) -> tuple[PretrainConfig, ModelFiles | None, type[Causal | Masked | Spans]]:
    """(the settings in numbers, the model to go on from, what to learn)."""
    config = derived(config)
    files = open_model(config.model) if config.model else None
    if files:
        config = dataclasses.replace(config, seq_len=min(config.seq_len, files.arch.context_length))
    return config, files, KINDS[objective_name(config, files)]


def _planned(
    asked: PretrainConfig, config: PretrainConfig, objective: Objective, arch: Architecture, tokens: Tokens, run_: Run,
    fitted: Fit, taken: dict[str, float | None],
) -> PlanOutcome | None:  # fmt: skip
    """What the run took beside what was foretold: by a plan of these settings, else by arithmetic and its beginning."""
    if fitted.rollbacks:
        return None
    if plan := kept_plan(asked):
        return outcome(plan, fitted.steps, taken)
    if fitted.seconds < LEAST_SECONDS:
        return None
    batch = objective.batches(tokens)(0)
    found = footprint(lambda: objective.build(arch), objective, batch, config, config.accumulate)
    memory = GROWTH * found.tensors if config.device == "cpu" else None
    return outcome_of_first(
        store.read_jsonl(run_.metrics), memory, {k: v for k, v in taken.items() if k != "cpu_seconds"}
    )


def _prepared(model: nn.Module, config: PretrainConfig, world: World) -> nn.Module:
    if config.recompute:
        recompute(model)
    return world.shard(model)


def learn(
    model: nn.Module, objective: Objective, tokens: Tokens, held: Sequence[Record], config: PretrainConfig, run_: Run,
    world: World,
) -> Fit:  # fmt: skip
    """Trains `model` in the run, or goes on with it, by settings that are all in numbers."""
    optimiser = optimiser_of(model, config)
    watch = Watch(
        (lambda: {"held_out_loss": objective.held_out_loss(model, held)}) if config.evaluate_every else None,
        (lambda: objective.sample(model, held)) if config.sample_every else None,
        token_flops(model.arch, config.seq_len),  # type: ignore[arg-type]
        peak_flops(world.device, config.precision),
    )
    if config.packing != "windows" and (config.length_ramp or type(objective) is not Causal):
        raise UsageError("best-fit packing is for next tokens, without a length ramp", where="packing=best-fit")
    if config.length_ramp and type(objective) is not Causal:
        raise UsageError("windows grow under the objective causal only", where=f"length_ramp={config.length_ramp}")

    def shape(batch: Batch, step: int) -> Batch:
        length = length_at(step, config.length_ramp, config.seq_len)
        return batch if length == config.seq_len else shorten(batch, length)

    return fit(
        model, objective.loss, objective.batches(tokens), optimiser, run_, config.loop(), watch=watch,
        shape=shape if config.length_ramp else None, stage="pretrain", world=world,
    )  # fmt: skip


def _conclude(
    model: Any, objective: Objective, data: list[dict[str, Any]], held: Sequence[Record], tokens: Tokens,
    files: ModelFiles | None, config: PretrainConfig, run_: Run, fitted: Fit, before: BeforeAfter | None,
    planned: PlanOutcome | None,
) -> str:  # fmt: skip
    """Measures, writes the folder and the report; the result as JSON."""
    scores, summary = objective.measure(model, held, tokens)
    found = before.compare(model, config.seed) if before else {}
    if found:
        scores["change"] = {name.replace(" ", "_"): helped.to_dict() for name, helped in found.items()}
        summary = f"{before_after.said(found)} Now {summary}"
    path = destination(config.out)
    save(path, config, model, objective.tokenizer, files, data, run_, scores)

    def fill(report: Report) -> None:
        if found:
            before_after.changes(report, found)
        before_after.stages(report, data)

    result = conclude(run_, f"Pretraining of {path.name}", summary, path, fitted, scores, fill, planned=planned)
    return json.dumps(result.to_dict())


def _before(model: Any, objective: Objective, held: Sequence[Record], config: PretrainConfig) -> BeforeAfter | None:
    """How good the model to go on from is, where that is told in bits per byte; None where not."""
    if not isinstance(objective, Causal):
        return None
    general = _some(collect(config.general)) if config.general else []
    sets = {before_after.NEW: held, before_after.GENERAL: general}
    return BeforeAfter(model, objective.tokenizer, objective.start, sets)


def load(
    config: PretrainConfig, kind: type[Causal | Masked | Spans], files: ModelFiles | None, world: World
) -> tuple[Tokens, Tokenizer, list[Record], list[dict[str, Any]]]:  # fmt: skip
    """(what to train on, its tokenizer, held-out records, what the lineage says of the data)."""
    if not is_shards(config.data):
        train, held = load_text(config)
        tokenizer = files.tokenizer if files else load_tokenizer(config, kind, train, world)
        return tokenise(train, tokenizer), tokenizer, held, describe_data(config.data, train)
    if config.tokenizer:
        raise UsageError("shards have their tokenizer with them", where=config.tokenizer, cure="leave out --tokenizer")
    found = from_shards(config.data, 0 if config.held_out else HELD_OUT_BYTES)
    if files and files.tokenizer.to_json() != found.tokenizer.to_json():
        cure = f"ladderlm data shard ... --tokenizer {config.model}"
        raise UsageError("shards of another tokenizer than the model's", where=config.data, cure=cure)
    held = _some(collect(config.held_out, licence=config.licence)) if config.held_out else found.held
    return found.tokens, files.tokenizer if files else found.tokenizer, held, found.data


def load_text(config: PretrainConfig) -> tuple[list[Record], list[Record]]:
    """(train, held out). A lone document is cut near its end; else whole documents are kept apart."""
    records = collect(config.data, licence=config.licence)
    if config.held_out:
        held = collect(config.held_out, licence=config.licence)
    elif len(records) == 1:
        text = records[0]["text"]
        cut = len(text) - min(int(len(text) * HELD_OUT_SHARE), HELD_OUT_BYTES)
        pieces = [text[i : i + HELD_OUT_PIECE] for i in range(cut, len(text), HELD_OUT_PIECE)]
        records, held = [part_of(records[0], text[:cut])], [part_of(records[0], piece) for piece in pieces]
    else:
        records, held = split(records, HELD_OUT_SHARE, config.seed)
    return records, _some(held)


def _some(held: Sequence[Record]) -> list[Record]:
    """The first HELD_OUT_BYTES, about."""
    kept, size = [], 0
    for record in held:
        if size < HELD_OUT_BYTES:
            kept.append(record)
            size += len(record["text"].encode())
    return kept


def part_of(record: Record, text: str) -> Record:
    return make_record("text", {"text": text}, source=record.source, licence=record.licence)


def load_tokenizer(
    config: PretrainConfig, kind: type[Causal | Masked | Spans], train: Sequence[Record], world: World
) -> Tokenizer:  # fmt: skip
    """The one that is named, else one trained on the data, by the first process for all."""
    if config.tokenizer:
        path = Path(config.tokenizer).expanduser()
        return Tokenizer.from_folder(path) if path.is_dir() else Tokenizer.from_file(path)

    def make() -> str:
        made = kind.make_tokenizer([r["text"] for r in train], config)
        return json.dumps([made.to_json(), dataclasses.asdict(made.special)])

    text, special = json.loads(first(world, make))
    return Tokenizer.from_json(text, SpecialTokens(**special | {"stop": tuple(special["stop"])}))


def save(
    path: Path, config: PretrainConfig, model: Any, tokenizer: Tokenizer, files: ModelFiles | None,
    data: list[dict[str, Any]], run_: Run, scores: Mapping[str, Any],
) -> None:  # fmt: skip
    """The model folder. A base model carries a chat template too, so that it can be served and tuned as it is."""
    recipe = dataclasses.asdict(config)
    parent = None
    if files:
        parent = {"name": files.name, "hash": files.hash, "licence": files.lineage.get("licence", "unknown")}
    lineage: dict[str, Any] = {"parent": parent, "data": data, "recipe": recipe, "run": run_.id, "scores": dict(scores)}
    lineage["licence"] = joint_licence(lineage)
    texts = [tokenizer.token_text(i) if i is not None else "" for i in (tokenizer.bos_id, tokenizer.eos_id)]
    template = ChatTemplate(CHATML, *texts) if "<|im_start|>" in tokenizer.control else None
    save_model(
        path, model.arch, model.state(), tokenizer, files.template if files else template,
        generation=files.generation if files else {}, lineage=lineage, replace=config.replace,
    )  # fmt: skip
