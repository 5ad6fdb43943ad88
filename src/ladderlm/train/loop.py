"""THE training loop: accumulation, clipping, schedule, rollback, exact resume, clean stops, progress.

Everything that decides the next step is a function of (seed, step) or in the checkpoint: batches are asked for by
number, so the data position is one integer. A run that was stopped, or killed at any moment, goes on to the same bits
as one that never was. Several processes (train/distributed.py) share the batches of each step.
"""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ladderlm import events, store
from ladderlm.errors import LadderError
from ladderlm.nn.linear import products
from ladderlm.nn.loss import moved
from ladderlm.train.checkpoint import Checkpoints, Progress
from ladderlm.train.distributed import ALONE, World
from ladderlm.train.ema import Average
from ladderlm.train.optim import Optimiser
from ladderlm.train.schedule import batches_before, batches_in, falls, learning_rate_scale
from ladderlm.train.settings import LoopConfig
from ladderlm.train.tensorboard import Board
from ladderlm.types import Cancel, Run, Value

CALIBRATION_STEPS = 5  # at least; and at least a twentieth of the time budget
WINDOW = 64  # losses that a spike is told by
LEAST_WINDOW = 16


class Counted(Protocol):
    """What the loop needs of a batch: how many tokens it reads, and how many terms its mean loss is over."""

    @property
    def tokens(self) -> int: ...

    @property
    def weight(self) -> int: ...


B = TypeVar("B", bound=Counted)
M = TypeVar("M", bound=nn.Module)
LossFunction = Callable[[M, B], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True, slots=True)
class Fit(Value):
    """How it went. `stopped`: on request before the last step, with a checkpoint to go on from.

    `rollbacks`: where a loss ran away ("at"), where it went back "to", and "why". `best`: the step of the weights that
    were kept, if they are not the last.
    """

    steps: int
    total: int
    tokens: int
    seconds: float
    loss: float
    stopped: bool = False
    rollbacks: tuple[Mapping[str, Any], ...] = ()
    best: int | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """What is looked at while training.

    `evaluate` gives figures (of which "held_out_loss" tells the best weights), `sample` rows for samples.jsonl;
    `flops` are those of a token, forward and backward, and `peak` those of the machine in a second: for the MFU.
    """

    evaluate: Callable[[], dict[str, float]] | None = None
    sample: Callable[[], Sequence[Mapping[str, Any]]] | None = None
    flops: float = 0.0
    peak: float = 0.0


NOTHING = Watch()


def fit(
    model: M,
    loss_fn: LossFunction[M, B],
    batches: Callable[[int], B],
    optimiser: Optimiser,
    run: Run,
    config: LoopConfig,
    *,
    watch: Watch = NOTHING,
    shape: Callable[[B, int], B] | None = None,
    stage: str = "train",
    cancel: Cancel | None = None,
    world: World = ALONE,
) -> Fit:
    """Trains until done or stopped, going on from the run's last checkpoint if it has one.

    `batches(i)` is the i-th batch, the same whenever asked; `shape(batch, step)`, if given, what a step makes of it.
    `loss_fn` gives a batch's mean loss and figures to log. SIGINT, SIGTERM and `cancel` stop after the current step
    with a checkpoint. Raises LadderError when the loss runs away more often than `config.rollbacks`.
    """
    torch.manual_seed(config.seed)
    with _stop_requests(cancel) as stop:
        return _Loop(model, loss_fn, batches, shape, optimiser, run, config, watch, stage, world).train(stop)


class _Loss(nn.Module):
    """The model with its loss as one module: what several processes wrap."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction[Any, Any], config: LoopConfig, device: str) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn
        self.precision, self.device = config.precision, device

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        with products(self.precision, self.device):
            return self.loss_fn(self.model, batch)


class _Loop(Generic[M, B]):
    def __init__(
        self, model: M, loss_fn: LossFunction[M, B], batches: Callable[[int], B], shape: Callable[[B, int], B] | None,
        optimiser: Optimiser, run: Run, config: LoopConfig, watch: Watch, stage: str, world: World,
    ) -> None:  # fmt: skip
        self.model, self.batches, self.shape, self.optimiser = model, batches, shape, optimiser
        self.run, self.config, self.watch, self.stage, self.world = run, config, watch, stage, world
        self.module = world.wrap(_Loss(model, loss_fn, config, world.device))
        self.average = Average(optimiser.named, config.ema) if config.ema else None
        self.checkpoints = Checkpoints(run, optimiser, config, world, self.average)
        self.durations: list[float] = []
        self.saved_step, self.saved_at = -1, time.monotonic()

    def train(self, stop: threading.Event) -> Fit:
        progress = self.checkpoints.restore()
        if progress is None:  # the first is there to be rolled back to
            progress = Progress(self.config.steps or None)
            self.save(progress)
        self.saved_step = progress.step
        board = Board(self.run.path) if self.config.tensorboard and self.world.main else None
        stopped = self.world.size == 1 and stop.is_set()
        while (progress.total is None or progress.step < progress.total) and not stopped:
            began = time.monotonic()
            self.model.train()
            scale = learning_rate_scale(progress.step, progress.total, self.config)
            row, stopped, save = self.step(progress, stop)
            if why := self.runaway(row, progress):
                progress = self.roll_back(progress, why)
                continue
            self.optimiser.step(scale)
            self.count(progress, row)
            self.look(progress, row)
            self.durations.append(time.monotonic() - began)
            progress.seconds += self.durations[-1]
            if not self.config.steps and not falls(progress.step, progress.total, self.config):
                known = calibrated_total(self.durations, progress.step, progress.seconds, self.config.minutes)
                progress.total = int(self.world.told(known or progress.total or 0)) or None
            if self.world.main:
                self.report(progress, row, scale * self.optimiser.lr, board)
            if save or (self.config.checkpoint_steps and progress.step % self.config.checkpoint_steps == 0):
                self.save(progress)
            stopped = stopped or (self.world.size == 1 and stop.is_set())
        return self.finish(progress)

    def finish(self, progress: Progress) -> Fit:
        """Saves once more, and when all is done lets the weights be those that are kept."""
        if progress.step != self.saved_step:
            self.save(progress)
        total = progress.total or progress.step
        stopped = progress.total is None or progress.step < progress.total
        best = None
        if not stopped:
            if self.average:
                self.average.adopt()
            best = self.checkpoints.adopt_best() if self.config.best else None
        if self.world.main:
            events.emit(self.stage, done=progress.step, total=total, unit="steps", finished=True)
        return Fit(
            progress.step, total, progress.tokens, progress.seconds, progress.loss, stopped, tuple(progress.rollbacks),
            best,
        )  # fmt: skip

    # --- One step -------------------------------------------------------------------------------------------------

    def step(self, progress: Progress, stop: threading.Event) -> tuple[dict[str, Any], bool, bool]:
        """Gradients of one step; what it measured, whether to stop, whether to save.

        Each batch counts by its weight, as if all were one. Processes take turns at the batches, and agree here on
        all that they do together.
        """
        size, rank, position = self.world.size, self.world.rank, progress.position
        start = batches_before(position, self.config, size)
        mine = [start + i for i in range(batches_in(position, self.config, size)) if i % size == rank]
        micro = [self.batches(i) for i in mine]
        if self.shape:
            micro = [self.shape(batch, progress.step) for batch in micro]
        weight = self.world.total([sum(b.weight for b in micro)])[0]
        total: dict[str, float] = {}
        for number, batch in enumerate(micro, 1):
            with self.world.syncing(self.module, self.model, number == len(micro)):
                loss, figures = self.module(moved(batch, self.world.device))
                share = batch.weight / weight
                (loss * (share * size)).backward()  # times `size`: gradients are averaged over processes
            for name, value in {"loss": loss.item(), **figures}.items():
                total[name] = total.get(name, 0.0) + value * share
        late = time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes
        flags = [sum(b.tokens for b in micro), float(stop.is_set()), float(late and self.world.main)]
        tokens, stopping, save, *means = self.world.total([*flags, *total.values()])
        norm: Any = nn.utils.clip_grad_norm_(self.optimiser.parameters, self.config.clip or math.inf)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        row = {"tokens": int(tokens), **dict(zip(total, means, strict=True)), "grad_norm": norm.item()}
        return row, stopping > 0, save > 0

    def count(self, progress: Progress, row: Mapping[str, Any]) -> None:
        progress.step, progress.tokens = progress.step + 1, progress.tokens + row["tokens"]
        progress.loss = row["loss"]
        progress.recent = [*progress.recent, row["loss"]][-WINDOW:]
        if self.average:
            self.average.update(progress.step)

    def save(self, progress: Progress) -> None:
        self.checkpoints.save(progress)
        self.saved_step, self.saved_at = progress.step, time.monotonic()

    # --- Running away ---------------------------------------------------------------------------------------------

    def runaway(self, row: Mapping[str, Any], progress: Progress) -> str:
        """What is wrong with a step before it is taken; "" for nothing."""
        if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
            return f"the loss is {row['loss']:.4g} and the gradient norm {row['grad_norm']:.4g}"
        highest = spike_bound(progress.recent, self.config.spike)
        return f"the loss jumped to {row['loss']:.4g}, above {highest:.4g}" if row["loss"] > highest else ""

    def roll_back(self, progress: Progress, why: str) -> Progress:
        """The last good checkpoint, from which all batches up to the one of this step are passed over.

        A checkpoint that was gone back to before, and led here again, was not good: then the one before it.
        """
        done = progress.rollbacks
        if len(done) >= self.config.rollbacks:
            raise LadderError(
                why + (f" after {len(done)} rollbacks" if done else ""), where=f"step {progress.step}",
                cure="lower the learning rate, or look for damaged weights or data",
            )  # fmt: skip
        for parameter in self.optimiser.parameters:
            parameter.grad = None
        if done and self.checkpoints.newest() == done[-1]["to"]:
            self.checkpoints.drop_newest()
        back = self.checkpoints.restore()
        assert back is not None  # the first checkpoint is written before the first step
        back.skipped = progress.position + 1 - back.step
        back.seconds = progress.seconds
        back.rollbacks = [*done, {"at": progress.step, "to": back.step, "why": why}]
        self.checkpoints.note(back)
        self.saved_step = back.step
        if self.world.main:
            steps = f"back to step {back.step}, passing over the batches of {progress.step + 1 - back.step} steps"
            events.emit(self.stage, f"{why} at step {progress.step}: {steps}", data={"rollbacks": len(back.rollbacks)})
        return back

    # --- Looking --------------------------------------------------------------------------------------------------

    def look(self, progress: Progress, row: dict[str, Any]) -> None:
        """Measures and samples where it is time to, with the averaged weights if there are such."""
        measure = self.watch.evaluate if _due(progress, self.config.evaluate_every) else None
        sample = self.watch.sample if _due(progress, self.config.sample_every) else None
        if not (measure or sample):
            return
        self.model.eval()
        with self.average.applied() if self.average else contextlib.nullcontext(), torch.no_grad():
            row |= measure() if measure else {}
            for found in sample() if sample else ():
                if self.world.main:
                    store.append_jsonl(self.run.samples, {"step": progress.step, **found})
        self.world.after_reading(self.model)
        if self.config.best and row.get("held_out_loss", math.inf) < progress.best:
            progress.best = row["held_out_loss"]
            self.checkpoints.save_best(progress)

    def report(self, progress: Progress, row: dict[str, Any], lr: float, board: Board | None) -> None:
        speed = row["tokens"] / self.durations[-1]
        data = {"loss": row["loss"], "tokens_per_second": round(speed, 1)}
        if self.watch.flops and self.watch.peak:
            data["mfu"] = round(speed * self.watch.flops / self.watch.peak, 4)
        if progress.total is not None:
            recent = statistics.mean(self.durations[-20:])
            data["eta"] = round((progress.total - progress.step) * recent, 1)
        speeds = {name: value for name, value in data.items() if name in ("tokens_per_second", "mfu")}
        so_far = {"tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
        logged = {"step": progress.step, **row, "lr": lr, **so_far, **speeds}
        store.append_jsonl(self.run.metrics, logged)
        if board:
            board.scalars(progress.step, {k: v for k, v in logged.items() if k != "step"})
        events.emit(self.stage, done=progress.step, total=progress.total, unit="steps", data=data)


def spike_bound(recent: Sequence[float], deviations: float) -> float:
    """The highest loss that is no spike: so many deviations above the median of `recent`, infinite while those are few.

    The deviation is the median one, scaled to be a normal distribution's, and at least 2 % of the median.
    """
    if not deviations or len(recent) < LEAST_WINDOW:
        return math.inf
    middle = statistics.median(recent)
    spread = 1.4826 * statistics.median(abs(loss - middle) for loss in recent)
    return middle + deviations * max(spread, 0.02 * abs(middle))


def calibrated_total(durations: list[float], step: int, seconds: float, minutes: float) -> int | None:
    """How many steps fit into `minutes`; None while too few have been timed. The first, which warms up, is left out."""
    if len(durations) <= CALIBRATION_STEPS or sum(durations) < 60 * minutes / 20:
        return None
    left = 60 * minutes - seconds
    return step + max(0, int(left / statistics.mean(durations[1:])))


def _due(progress: Progress, every: int) -> bool:
    return every > 0 and (progress.step == progress.total or progress.step % every == 0)


@contextlib.contextmanager
def _stop_requests(cancel: Cancel | None) -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, once; a second SIGINT interrupts at once. Only in the main thread."""
    stop = cancel or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
