"""Checkpoints: all that the next step depends on, written whole or not at all, the last few and the best kept.

A folder `checkpoints/step-NNNNNNNN` holds model.safetensors, optimiser.safetensors (moments, moving average, the
state of every process's generator) and state.json. It is written under another name, brought to the disk and then
renamed, so that a process killed at any moment leaves the ones before as they were. Tensors are whole, however many
processes there are: a run of two goes on as a run of one.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ladderlm import events, store
from ladderlm.errors import FormatError, LadderError
from ladderlm.models.safetensors import read_safetensors, write_safetensors
from ladderlm.train.distributed import World, fill
from ladderlm.train.ema import Average
from ladderlm.train.optim import Optimiser
from ladderlm.train.settings import LoopConfig
from ladderlm.types import Run

FORMAT = 2


@dataclass(slots=True)
class Progress:
    """What a checkpoint keeps beside tensors.

    `total` is None until the calibration has fixed it; `skipped` counts the steps whose batches were passed over by
    `rollbacks`; `recent` are the last losses, by which a spike is told; `best` is the lowest held-out loss so far.
    """

    total: int | None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    skipped: int = 0
    best: float = math.inf
    recent: list[float] = field(default_factory=list)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Where in the data the next step reads, in steps."""
        return self.step + self.skipped


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run of the loop."""

    run: Run
    optimiser: Optimiser
    config: LoopConfig
    world: World
    average: Average | None = None

    def paths(self) -> list[Path]:
        """From the oldest to the newest."""
        return sorted(self.run.checkpoints.glob("step-*"))

    def save(self, progress: Progress) -> Path:
        """Writes one and drops all but the last `keep`. StorageError, the others intact, when the disk is full."""
        path = self.run.checkpoints / f"step-{progress.step:08d}"
        model, state = self._gather()
        if self.world.main:
            with store.atomic_dir(path, replace=True) as folder:
                write_safetensors(folder / "model.safetensors", model)
                write_safetensors(folder / "optimiser.safetensors", state)
                self._write_state(folder, progress)
            for older in self.paths()[: -self.config.keep]:
                shutil.rmtree(older, ignore_errors=True)
        self.world.wait()
        return path

    def save_best(self, progress: Progress) -> None:
        """Keeps the weights as those of the lowest held-out loss so far, in `checkpoints/best-NNNNNNNN`."""
        path = self.run.checkpoints / f"best-{progress.step:08d}"
        tensors = {n: self.world.whole(self._shown(n)).numpy() for n in self.optimiser.named}
        if self.world.main:
            with store.atomic_dir(path, replace=True) as folder:
                write_safetensors(folder / "model.safetensors", tensors)
                store.write_json(
                    folder / "state.json", {"format": FORMAT, "step": progress.step, "loss": progress.best}
                )
            for older in self.run.checkpoints.glob("best-*"):
                if older != path:
                    shutil.rmtree(older, ignore_errors=True)
        self.world.wait()

    def adopt_best(self) -> int | None:
        """Puts the best weights into the parameters; the step they are of, None if nothing was measured."""
        found = sorted(self.run.checkpoints.glob("best-*"))
        if not found:
            return None
        _fill_all(self.optimiser.named, _tensors(found[-1] / "model.safetensors"), str(found[-1]))
        return _step_of(found[-1])

    def restore(self) -> Progress | None:
        """Goes back to the newest checkpoint that is sound; None if there is none.

        One that is damaged is named and passed over while there are others. FormatError for one of other settings.
        """
        self._tidy()
        paths = self.paths()
        for path in reversed(paths):
            try:
                state = store.read_json(path / "state.json")
                tensors, saved = (_tensors(path / f"{name}.safetensors") for name in ("model", "optimiser"))
            except LadderError as error:
                if path == paths[0]:
                    raise
                events.emit("checkpoint", f"passing over a damaged checkpoint: {error}")
                continue
            if state.get("format") != FORMAT or state.get("config") != self._settings():
                raise FormatError("the checkpoint belongs to other settings", where=str(path), cure="start a new run")
            self._place(path, tensors, saved)
            self._cut_logs(state["step"])
            return Progress(**{name: state[name] for name in Progress.__slots__})
        self._cut_logs(0)
        return None

    def newest(self) -> int:
        """The step of the newest one."""
        return _step_of(self.paths()[-1])

    def drop_newest(self) -> None:
        """Removes the newest one, unless it is the only one."""
        if self.world.main and len(self.paths()) > 1:
            shutil.rmtree(self.paths()[-1])
        self.world.wait()

    def note(self, progress: Progress) -> None:
        """Writes into the checkpoint of `progress.step` what is now known of the way from there."""
        if self.world.main:
            self._write_state(self.run.checkpoints / f"step-{progress.step:08d}", progress)
        self.world.wait()

    # --- Parts ----------------------------------------------------------------------------------------------------

    def _write_state(self, folder: Path, progress: Progress) -> None:
        fields = {name: getattr(progress, name) for name in Progress.__slots__}
        store.write_json(folder / "state.json", {"format": FORMAT, "config": self._settings(), **fields})

    def _gather(self) -> tuple[dict[str, Any], dict[str, Any]]:
        whole = self.world.whole
        model = {name: whole(p).numpy() for name, p in self.optimiser.named.items()}
        held = self.optimiser.state() | (self.average.state() if self.average else {})
        state = {name: whole(tensor).numpy() for name, tensor in held.items()}
        generators = self.world.each_bytes(torch.get_rng_state())
        return model, state | {f"rng.{rank}": g.numpy() for rank, g in enumerate(generators)}

    def _shown(self, name: str) -> Tensor:
        """A parameter as it is evaluated: its average where there is one."""
        return self.average.values[name] if self.average else self.optimiser.named[name]

    def _settings(self) -> dict[str, Any]:
        """The settings that the bits depend on: how a step is cut into batches, and when it is saved, are not."""
        left_out = ("accumulate", "checkpoint_minutes", "checkpoint_steps", "keep")
        kept = {name: value for name, value in self.config.to_dict().items() if name not in left_out}
        return dict(json.loads(json.dumps(kept)))

    def _place(self, path: Path, tensors: Mapping[str, Tensor], saved: dict[str, Tensor]) -> None:
        _fill_all(self.optimiser.named, tensors, str(path))
        self.optimiser.restore(saved)
        if self.average:
            for name, value in self.average.values.items():
                fill(value, self.average.place(name, saved))
        if (generator := saved.get(f"rng.{self.world.rank}")) is not None:
            torch.set_rng_state(generator)

    def _tidy(self) -> None:
        """Removes what a killed process had begun to write."""
        if self.world.main:
            for left in self.run.checkpoints.glob(".*"):
                shutil.rmtree(left, ignore_errors=True)
        self.world.wait()

    def _cut_logs(self, step: int) -> None:
        """Takes back what was logged after `step`: those steps are done again."""
        for file in (self.run.metrics, self.run.samples) if self.world.main else ():
            if file.exists():
                rows = [row for row in store.read_jsonl(file) if row["step"] <= step]
                with store.atomic_file(file) as f:
                    f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _tensors(path: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(held.array().copy()) for name, held in read_safetensors(path).items()}


def _fill_all(named: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    for name, parameter in named.items():
        if name not in tensors:
            raise FormatError(f"the checkpoint lacks {name}", where=where, cure="start a new run")
        fill(parameter, tensors[name])


def discard_checkpoints(run: Run) -> None:
    """Called once the finished model is written."""
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    store.make_dir(run.checkpoints)
