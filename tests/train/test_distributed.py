"""Two processes under torchrun learn what one learns, and go on where the other number of them stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stories import SIZES, STORIES, write_jsonl

from ladderlm import store
from ladderlm.errors import UsageError
from ladderlm.models import open_model
from ladderlm.train.distributed import ALONE, World, joined
from ladderlm.train.settings import PretrainConfig
from ladderlm.types import Run

ONE = Path(__file__).with_name("one_of_several.py")


def test_a_process_alone_agrees_with_itself() -> None:
    assert ALONE.total([1.5, 2.0]) == [1.5, 2.0]
    assert ALONE.told_text("so") == "so"
    with joined() as world:
        assert world == World()
    with pytest.raises(UsageError, match="unknown parallelism"), joined("tensor"):
        pass


def test_steps_are_cut_for_all_processes_alike() -> None:
    config = PretrainConfig(steps=1, seq_len=64, batch_tokens=512, micro_tokens=4096)
    assert (config.accumulate, config.micro_batch) == (1, 8)
    shared = config.shared(2)
    assert (shared.accumulate, shared.micro_batch) == (2, 4)
    assert config.shared(4).accumulate * config.shared(4).micro_batch == 8


def pretrained(count: int, settings: dict[str, Any], stop: int = 0) -> Run:
    """The run of a pretraining by so many processes; `stop`: interrupted in that forward pass."""
    before = {run.id for run in store.list_runs()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable]
    if count > 1:
        start += ["-m", "torch.distributed.run", f"--nproc-per-node={count}", f"--master-port={port}"]
    done = subprocess.run(
        [*start, str(ONE), json.dumps(settings), *([str(stop)] if stop else [])], capture_output=True, text=True,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    if "resume" in settings:
        return store.open_run(settings["resume"])
    return next(run for run in store.list_runs() if run.id not in before)


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    rows = [{"text": " ".join(STORIES[i:] + STORIES[:i])} for i in range(20)]
    data = write_jsonl(tmp_path / "stories.jsonl", rows)
    shape = {**SIZES, "precision": "fp32", "threads": 1, "seq_len": 64, "ema": 0.9, "evaluate_every": 5, "steps": 10}
    return {**shape, "data": str(data), "replace": True, **changes}


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in store.read_jsonl(run.metrics)]


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "close"), [("ddp", 1e-5), ("fsdp", 1e-4)])
def test_two_processes_learn_as_one_and_either_goes_on_for_the_other(
    parallel: str, close: float, tmp_path: Path
) -> None:  # fmt: skip
    given = settings(tmp_path, parallel=parallel, micro_tokens=256)
    alone = pretrained(1, given | {"out": "alone"})
    both = pretrained(2, given | {"out": "both"})
    assert losses(both) == pytest.approx(losses(alone), abs=close)
    for first, then in ((2, 1), (1, 2)):
        name = f"{first}-{then}"
        run = pretrained(first, given | {"out": name}, stop=8 // first)
        assert [p.name for p in run.checkpoints.iterdir()][-1].startswith("step-")
        assert len(losses(run)) == 4
        pretrained(then, {"resume": run.id})
        assert losses(run) == pytest.approx(losses(alone), abs=close)
        ours, theirs = (open_model(n).weights for n in (name, "alone"))
        assert all(np.allclose(ours.float32(n), theirs.float32(n), atol=1e-3) for n in ours.names())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mlm+nsp", "spans"])
def test_other_objectives_are_shared_out_too(objective: str, tmp_path: Path) -> None:
    given = settings(tmp_path, objective=objective, vocab_size=340, steps=5, recompute=True)
    alone = pretrained(1, given | {"out": "alone", "micro_tokens": 256})
    for parallel in ("ddp", "fsdp"):
        both = pretrained(2, given | {"out": parallel, "parallel": parallel})
        assert losses(both) == pytest.approx(losses(alone), abs=1e-4)
