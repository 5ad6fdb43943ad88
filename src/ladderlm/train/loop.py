"""THE training loop: accumulation, clipping, schedule, checkpoints, exact resume, clean stops, progress.

Everything that decides the next step is a function of (seed, step) or in the checkpoint: batches are asked for by
number, so the data position is one integer. A run that was stopped, or killed after a checkpoint, goes on to the
same bits as one that never was.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ladderlm import events, store
from ladderlm.errors import FormatError, LadderError
from ladderlm.train.optim import Optimiser
from ladderlm.train.settings import LoopConfig
from ladderlm.types import Cancel, Run, Value

CALIBRATION_STEPS = 5  # at least; and at least a twentieth of the time budget


class Counted(Protocol):
    """What the loop needs of a batch: how many tokens it reads, and how many terms its mean loss is over."""

    @property
    def tokens(self) -> int: ...

    @property
    def weight(self) -> int: ...


B = TypeVar("B", bound=Counted)
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Fit(Value):
    """How it went. `stopped`: on request before the last step, with a checkpoint to go on from."""

    steps: int
    total: int
    tokens: int
    seconds: float
    loss: float
    stopped: bool = False


@dataclass(slots=True)
class _Progress:
    """What a checkpoint keeps beside tensors. `total` is None until the calibration has fixed it."""

    total: int | None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = math.nan


def learning_rate_scale(step: int, total: int | None, config: LoopConfig) -> float:
    """Warm-up, plateau, linear cooldown. `total` None: not known yet, so no cooldown yet."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    falling = config.cooldown * total if total else 0.0
    return rise * min(1.0, (total - step) / falling) if total and falling else rise


def fit(
    model: M,
    loss_fn: Callable[[M, B], tuple[Tensor, dict[str, float]]],
    batches: Callable[[int], B],
    optimiser: Optimiser,
    run: Run,
    config: LoopConfig,
    *,
    evaluate: Callable[[], dict[str, float]] | None = None,
    stage: str = "train",
    cancel: Cancel | None = None,
) -> Fit:
    """Trains until done or stopped, going on from the run's last checkpoint if it has one.

    `batches(i)` is the i-th batch, the same whenever asked. `loss_fn` gives a batch's mean loss and figures to log.
    SIGINT, SIGTERM and `cancel` stop after the current step with a checkpoint. Raises LadderError when the loss or a
    gradient is not finite.
    """
    torch.manual_seed(config.seed)
    progress = restore(run, optimiser, config) or _Progress(config.steps or None)
    model.train()
    durations: list[float] = []
    saved = time.monotonic()
    with _stop_requests(cancel) as stop:
        while (progress.total is None or progress.step < progress.total) and not stop.is_set():
            began = time.monotonic()
            scale = learning_rate_scale(progress.step, progress.total, config)
            row = _step(model, loss_fn, batches, optimiser, config, progress.step, scale)
            progress.step, progress.tokens = progress.step + 1, progress.tokens + row["tokens"]
            progress.loss = row["loss"]
            if evaluate and _due(progress, config):
                row |= evaluate()
                model.train()
            durations.append(time.monotonic() - began)
            progress.seconds += durations[-1]
            if progress.total is None:
                progress.total = calibrated_total(durations, progress.step, progress.seconds, config.minutes)
            _report(run, stage, progress, row, scale * optimiser.lr, durations)
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save(run, optimiser, config, progress)
                saved = time.monotonic()
        save(run, optimiser, config, progress)
    total = progress.total or progress.step
    stopped = progress.total is None or progress.step < progress.total
    events.emit(stage, done=progress.step, total=total, unit="steps", finished=True)
    return Fit(progress.step, total, progress.tokens, progress.seconds, progress.loss, stopped)


def _step(
    model: M,
    loss_fn: Callable[[M, B], tuple[Tensor, dict[str, float]]],
    batches: Callable[[int], B],
    optimiser: Optimiser,
    config: LoopConfig,
    step: int,
    scale: float,
) -> dict[str, Any]:
    """One optimiser step; what it measured. Each batch counts by its weight, as if all were one batch."""
    micro = [batches(step * config.accumulate + i) for i in range(config.accumulate)]
    weight = sum(b.weight for b in micro)
    total: dict[str, float] = {}
    for batch in micro:
        loss, figures = loss_fn(model, batch)
        share = batch.weight / weight
        (loss * share).backward()
        for name, value in {"loss": loss.item(), **figures}.items():
            total[name] = total.get(name, 0.0) + value * share
    norm = torch.nn.utils.clip_grad_norm_(optimiser.parameters, config.clip or math.inf).item()
    if not (math.isfinite(total["loss"]) and math.isfinite(norm)):
        raise LadderError(
            f"the loss is {total['loss']:.4g} and the gradient norm {norm:.4g}",
            where=f"step {step}",
            cure="lower the learning rate, or look for damaged weights",
        )
    optimiser.step(scale)
    return {"tokens": sum(b.tokens for b in micro), **total, "grad_norm": norm}


def calibrated_total(durations: list[float], step: int, seconds: float, minutes: float) -> int | None:
    """How many steps fit into `minutes`; None while too few have been timed. The first, which warms up, is left out."""
    if len(durations) <= CALIBRATION_STEPS or sum(durations) < 60 * minutes / 20:
        return None
    left = 60 * minutes - seconds
    return step + max(1, int(left / statistics.median(durations[1:])))


def _due(progress: _Progress, config: LoopConfig) -> bool:
    every = config.evaluate_every
    return progress.step == progress.total or (every > 0 and progress.step % every == 0)


def _report(run: Run, stage: str, progress: _Progress, row: dict[str, Any], lr: float, durations: list[float]) -> None:
    recent = durations[-20:]
    speed = row["tokens"] / recent[-1]
    data = {"loss": row["loss"], "tokens_per_second": round(speed, 1)}
    if progress.total is not None:
        data["eta"] = round((progress.total - progress.step) * statistics.mean(recent), 1)
    store.append_jsonl(
        run.metrics,
        {"step": progress.step, **row, "lr": lr, "tokens": progress.tokens, "seconds": round(progress.seconds, 3),
         "tokens_per_second": round(speed, 1)},
    )  # fmt: skip
    events.emit(stage, done=progress.step, total=progress.total, unit="steps", data=data)


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


# --- Checkpoints --------------------------------------------------------------------------------------------------


def save(run: Run, optimiser: Optimiser, config: LoopConfig, progress: _Progress) -> Path:
    """Writes what a resume needs, whole or not at all, and drops older checkpoints."""
    path = run.checkpoints / f"step-{progress.step:08d}"
    with store.atomic_dir(path, replace=True) as folder:
        save_file({n: p.detach().contiguous() for n, p in optimiser.named.items()}, folder / "model.safetensors")
        state = {name: tensor.clone() for name, tensor in optimiser.state().items()}
        save_file(state | {"rng": torch.get_rng_state()}, folder / "optimiser.safetensors")
        fields = {name: getattr(progress, name) for name in _Progress.__slots__}
        store.write_json(folder / "state.json", {"format": 1, "config": config.to_dict(), **fields})
    for older in run.checkpoints.glob("step-*"):
        if older != path:
            shutil.rmtree(older, ignore_errors=True)
    return path


@torch.no_grad()
def restore(run: Run, optimiser: Optimiser, config: LoopConfig) -> _Progress | None:
    """Puts the last checkpoint into the parameters, the optimiser and the generator; None if there is none."""
    paths = sorted(run.checkpoints.glob("step-*"))
    if not paths:
        return None
    path = paths[-1]
    state: Mapping[str, Any] = store.read_json(path / "state.json")
    if state["config"] != config.to_dict():
        raise FormatError("the checkpoint belongs to other settings", where=str(path), cure="start a new run")
    tensors = load_file(path / "model.safetensors")
    for name, parameter in optimiser.named.items():
        if name not in tensors:
            raise FormatError(f"the checkpoint lacks {name}", where=str(path), cure="start a new run")
        parameter.copy_(tensors[name])
    saved = load_file(path / "optimiser.safetensors")
    torch.set_rng_state(saved.pop("rng"))
    optimiser.restore(saved)
    rows = [row for row in store.read_jsonl(run.metrics) if row["step"] <= state["step"]]
    run.metrics.unlink(missing_ok=True)
    for row in rows:
        store.append_jsonl(run.metrics, row)
    return _Progress(**{name: state[name] for name in _Progress.__slots__})


def discard_checkpoints(run: Run) -> None:
    """Called once the finished model is written."""
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    store.make_dir(run.checkpoints)
