"""What a pretraining will take, before it runs: arithmetic, and a few of its own steps tried out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ladderlm import events
from ladderlm.data.collect import collect
from ladderlm.data.shards import is_shards
from ladderlm.errors import UsageError
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.linear import products
from ladderlm.nn.loss import moved
from ladderlm.nn.stack import recompute
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.train import pretrain
from ladderlm.train.corpus import Tokens, tokenise
from ladderlm.train.derive import TOKENS_PER_PARAMETER, peak_flops, token_flops
from ladderlm.train.distributed import ALONE
from ladderlm.train.ema import Average
from ladderlm.train.memory import GROWTH, Footprint, Peak, available, footprint
from ladderlm.train.objective import Objective
from ladderlm.train.optim import optimiser_of
from ladderlm.train.planned import Plan, best_split, keep_plan
from ladderlm.train.result import use_threads
from ladderlm.train.schedule import batches_before
from ladderlm.train.settings import PlanConfig, PretrainConfig
from ladderlm.types import Record

SAMPLE = 2_000_000  # characters of text that stand for all of it
PASSES = 2  # forward passes of a step that is tried out, where a step has as many
ENOUGH = 40  # steps tried out
USUAL_MFU = 0.25  # where nothing could be tried out
EVALUATED = 20_000  # bytes of held-out text to time


@dataclass(frozen=True, slots=True)
class Trial:
    """Seconds and CPU seconds: of a forward pass with its way back, of what ends a step, of measuring a byte.

    `growth`: bytes by which the process grew; None where the system does not tell. `program`: those it had before.
    """

    seconds: tuple[float, float, float]
    cpu_seconds: tuple[float, float, float]
    growth: int | None
    program: int
    steps: int
    took: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Some of the data, tokenised as all of it will be; `tokens` in all of it, None where none was named."""

    part: Tokens
    tokenizer: Tokenizer
    held: list[Record]
    tokens: float | None


def run(config: PlanConfig) -> Plan:
    """What the pretraining with these settings will take; kept, so that its report can tell how true it was.

    Raises UsageError for settings that cannot be.
    """
    if config.resume:
        raise UsageError("a run that has begun tells its own time", where="resume", cure="ladderlm runs")
    if config.price < 0 or config.calibrate < 0:
        raise UsageError("price >= 0, calibrate >= 0", where=f"{config.price}, {config.calibrate}")
    pretrain.check(config)
    use_threads(config.threads)
    settings, files, kind = pretrain.resolved(config)
    sample = _sample(settings, kind, files)
    objective: Objective = kind(settings, sample.tokenizer)
    arch = files.arch if files else kind.architecture(settings, sample.tokenizer)
    batches = objective.batches(sample.part)
    taken = footprint(lambda: objective.build(arch), objective, batches(0), settings, settings.accumulate)
    trial = None
    room = available(config.device)
    peak = peak_flops(config.device, config.precision)
    one_pass = batches(0).tokens * token_flops(arch, settings.seq_len) / (USUAL_MFU * peak)
    if config.calibrate and (room is None or taken.tensors < room) and one_pass * PASSES < config.calibrate:
        events.emit("plan", f"trying a few steps out, for at most {config.calibrate:.0f} s")
        trial = try_out(lambda: objective.load(files) if files else objective.build(arch), objective, batches,
                        settings, config.calibrate, sample.held)  # fmt: skip
    plan = foretell(config, settings, taken, trial, arch.parameters, batches(0).tokens, sample,
                    token_flops(arch, settings.seq_len), peak, room)  # fmt: skip
    keep_plan(config, plan)
    return plan


def _sample(config: PretrainConfig, kind: Any, files: ModelFiles | None) -> Sample:
    """All of the data where it is short, or shards; else pieces from all over it."""
    if config.data and is_shards(config.data):
        tokens, tokenizer, held, _ = pretrain.load(config, kind, files, ALONE)
        return Sample(tokens, tokenizer, held, len(tokens.ids_N))
    if config.data:
        records, held = pretrain.load_text(config)
    else:
        records, held = collect("python:docs"), []
    size = sum(len(r["text"]) for r in records)
    every = max(1, round(size / SAMPLE))
    some = records[::every] if len(records) > every else [_cut(records[0], SAMPLE)]
    tokenizer = files.tokenizer if files else pretrain.load_tokenizer(config, kind, some, ALONE)
    part = tokenise(some, tokenizer)
    whole = len(part.ids_N) * size / max(1, sum(len(r["text"]) for r in some))
    return Sample(part, tokenizer, held, whole if config.data else None)


def _cut(record: Record, most: int) -> Record:
    return pretrain.part_of(record, record["text"][:most])


# --- Trying out ---------------------------------------------------------------------------------------------------


def try_out(
    build: Callable[[], nn.Module], objective: Objective, batches: Callable[[int], Any], config: PretrainConfig,
    most: float, held: list[Record],
) -> Trial:  # fmt: skip
    """A few steps as the loop takes them, on a model that is thrown away; for at most about `most` seconds."""
    began, peak = time.monotonic(), Peak(config.device)
    model = build().to(config.device)
    if config.recompute:
        recompute(model)
    optimiser = optimiser_of(model, config)
    average = Average(optimiser.named, config.ema) if config.ema else None
    passes, ends, measured = _Clock(config.device), _Clock(config.device), _Clock(config.device)
    number, count = 0, min(PASSES, config.accumulate)
    while len(ends.wall) < ENOUGH and (time.monotonic() - began < 0.8 * most or not ends.wall):
        model.train()
        for _ in range(count):
            with passes:
                with products(config.precision, config.device):
                    loss, _ = objective.loss(model, moved(batches(number), config.device))
                (loss / count).backward()
                loss.item()
            number += 1
        del loss
        with ends:
            nn.utils.clip_grad_norm_(optimiser.parameters, 1.0).item()
            optimiser.step(0.0)  # no learning: what a step costs does not depend on it
            if average:
                average.update(len(ends.wall))
        events.emit("plan", done=time.monotonic() - began, total=most, unit="s")
    events.emit("plan", done=most, total=most, unit="s", finished=True)
    growth = peak.growth()
    if config.evaluate_every and held:
        _measure(objective, model, held, measured)
    clocks = (passes, ends, measured)
    wall, cpu = (tuple(statistics.median(c.of(kind)) for c in clocks) for kind in ("wall", "cpu"))
    return Trial(wall, cpu, growth, peak.before, len(ends.wall), time.monotonic() - began)  # type: ignore[arg-type]


@torch.no_grad()
def _measure(objective: Objective, model: nn.Module, held: list[Record], clock: _Clock) -> None:
    """Times a measurement on a little of the held-out text, as seconds for a byte."""
    some = [pretrain.part_of(r, r["text"][:EVALUATED]) for r in held[:3]]
    model.eval()
    with clock:
        objective.held_out_loss(model, some)
    size = sum(len(r["text"].encode()) for r in some)
    clock.wall[-1], clock.cpu[-1] = clock.wall[-1] / size, clock.cpu[-1] / size


class _Clock:
    """Times what is done under it, in seconds and in CPU seconds; the first time, which warms up, counts only alone."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __enter__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
        self.wall.append(time.perf_counter() - self.began[0])
        self.cpu.append(time.process_time() - self.began[1])

    def of(self, kind: str) -> list[float]:
        found: list[float] = getattr(self, kind)
        return found[1:] or found or [0.0]


# --- Foretelling --------------------------------------------------------------------------------------------------


def foretell(
    asked: PlanConfig, config: PretrainConfig, taken: Footprint, trial: Trial | None, parameters: int, batch: int,
    sample: Sample, flops: float, peak: float, room: int | None,
) -> Plan:  # fmt: skip
    """The plan, from what is known: `batch` tokens in a forward pass, `flops` of a token, `peak` of the machine."""
    loop = config.loop()
    if trial:
        one, end, byte = zip(trial.seconds, trial.cpu_seconds, strict=True)
    else:
        one, end, byte = (2 * (batch * flops / (USUAL_MFU * peak),), (0.0, 0.0), (0.0, 0.0))
    held = sum(len(r["text"].encode()) for r in sample.held)
    step = config.accumulate * one[0] + end[0]
    looks = 1 / config.evaluate_every if config.evaluate_every else 0.0
    steps = config.steps or max(1, int(60 * config.minutes / (step + looks * held * byte[0])))
    passes = batches_before(steps, loop)
    seconds, cpu_seconds = (
        passes * o + steps * e + int(steps * looks) * held * b for o, e, b in zip(one, end, byte, strict=True)
    )
    tokens = passes * batch
    memory = {**taken.to_dict(), "peak": _growth(taken, trial, asked.device)}
    plan = Plan(
        parameters, tokens, steps, seconds, cpu_seconds, memory, _disk(taken, config), flops * tokens,
        tokens / seconds, flops * tokens / seconds / peak, room,
        tokens / sample.tokens if sample.tokens else None, asked.price * seconds / 3600 if asked.price else None,
        {"seconds": trial.took, "steps": trial.steps, "program": trial.program} if trial else {},
    )  # fmt: skip
    return plan.noted(_notes(plan, trial, sample))


def _growth(taken: Footprint, trial: Trial | None, device: str) -> int:
    if trial and trial.growth is not None:
        return trial.growth
    return round(taken.tensors * (GROWTH if device == "cpu" else 1.0))


def _disk(taken: Footprint, config: PretrainConfig) -> int:
    """Bytes of the checkpoints kept, of the one that is being written, of the best weights, and of the result."""
    best = 2 * taken.weights if config.best else 0
    return (config.keep + 1) * taken.checkpoint + best + taken.weights


def _notes(plan: Plan, trial: Trial | None, sample: Sample) -> tuple[str, ...]:
    notes = []
    if not plan.fits:
        assert plan.available is not None
        notes.append(
            f"memory: {plan.memory['peak'] / 1e9:.2f} GB are more than the {plan.available / 1e9:.2f} GB free: "
            "lower --micro-tokens, --recompute, or choose a smaller model"
        )
    if not trial:
        notes.append(f"nothing was tried out: time is guessed from {USUAL_MFU:.0%} of the machine's speed")
    ratio = plan.tokens / plan.parameters
    parameters, tokens = best_split(6.0 * plan.parameters * plan.tokens)
    usual = f"about {TOKENS_PER_PARAMETER} are compute-optimal"
    if 0.5 <= ratio / TOKENS_PER_PARAMETER <= 2:
        notes.append(f"{ratio:.1f} tokens a parameter: compute-optimal ({usual})")
    else:
        what = "smaller model on more" if ratio < TOKENS_PER_PARAMETER else "larger model on fewer"
        notes.append(
            f"{ratio:.2g} tokens a parameter ({usual}): with the same work a {what} tokens usually gets lower, "
            f"{parameters / 1e6:.2g} M parameters on {tokens / 1e6:.3g} M"
        )
    if plan.epochs is not None and plan.epochs > 4:
        notes.append(
            f"the data is seen {plan.epochs:.1f} times; beyond 4 times it teaches less (Muennighoff et al. 2023)"
        )
    if sample.tokens is None:
        notes.append("no data was named: timed on the Python documentation")
    return tuple(notes)
