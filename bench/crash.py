"""A training run is killed at random moments and always goes on to the same bits.

A child process trains a small decoder with data in random order, a moving average and frequent
checkpoints. It is killed (SIGKILL) at random moments, some of them while a checkpoint is being written, and started
again until it ends; its final weights are compared, bit by bit, with those of a run that nobody touched.

Another child may all at once write no more than a few bytes to a file, as when the disk is full. It must say so, leave
its last checkpoint whole, and go on to the same bits once there is space again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS, EVERY = 400, 3
SPACE = 100_000  # bytes left on the full disk: for lines of the log, not for a checkpoint
ARGS = {"dim": 64, "layers": 2, "heads": 2, "vocab_size": 300, "seq_len": 64, "batch_tokens": 256, "threads": 1}


def text(path: Path) -> Path:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(200)]
    rows = [" ".join(rng.choices(words, k=60)) for _ in range(60)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def child(folder: Path, data: Path, steps: int) -> subprocess.Popen[bytes]:
    """The run in `folder`, begun or gone on with."""
    code = (
        "import sys, json, os; from pathlib import Path\n"
        "from bench import crash; crash.train(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))"
    )
    env = dict(os.environ, LADDERLM_HOME=str(folder.parent / "home"), OMP_WAIT_POLICY="PASSIVE")
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(data), str(steps)], env=env, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip


def train(folder: Path, data: Path, steps: int) -> None:
    """What the child does: the parts of `ladderlm pretrain`, in one run folder."""
    import torch

    from ladderlm import store
    from ladderlm.data.records import read_records
    from ladderlm.nn.decoder import Decoder
    from ladderlm.nn.loss import mean_nats
    from ladderlm.text.bpe import train_bpe
    from ladderlm.train.corpus import tokenise, windows
    from ladderlm.train.loop import fit
    from ladderlm.train.optim import Optimiser
    from ladderlm.train.settings import LoopConfig, PretrainConfig
    from ladderlm.types import Run

    torch.set_num_threads(1)
    run = Run(folder) if (folder / "config.json").exists() else store.new_run("pretrain", {}, path=folder)
    config = PretrainConfig(**ARGS)  # type: ignore[arg-type]
    records = read_records(data)
    tokenizer = train_bpe([r["text"] for r in records], config.vocab_size)
    decoder = Decoder(config.architecture(tokenizer.vocab_size)).initialise(0)
    optimiser = Optimiser(decoder.named_parameters(), 0.005, muon_lr=0.02)
    batches = windows(tokenise(records, tokenizer), config.seq_len, 4, 0, 0)
    loop = LoopConfig(steps=steps, warmup=10, ema=0.99, checkpoint_steps=EVERY, accumulate=2, batch_ramp=20)
    fit(decoder, mean_nats, batches, optimiser, run, loop)
    digest = hashlib.sha256(b"".join(decoder.state()[n].tobytes() for n in sorted(decoder.state()))).hexdigest()
    store.write_json(folder / "final.json", {"sha256": digest})


def finished(process: subprocess.Popen[bytes], folder: Path) -> str:
    """The weights' hash, once the process has ended well."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.decode()[-2000:])
    return str(json.loads((folder / "final.json").read_text())["sha256"])


def writing(folder: Path) -> bool:
    """Whether a checkpoint is being written at this moment."""
    return any((folder / "checkpoints").glob(".step-*.part"))


def kill(process: subprocess.Popen[bytes], folder: Path, rng: random.Random, in_write: bool) -> str:
    """Kills the process at a random moment after its first new step; tells whether while it wrote a checkpoint."""
    metrics = folder / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_mtime_ns > before):
        time.sleep(0.002)
    until = time.monotonic() + rng.uniform(0.0, 0.4)
    while process.poll() is None and (time.monotonic() < until or (in_write and not writing(folder))):
        time.sleep(0.0005)
    during = writing(folder)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return "while writing" if during else "between"


def checkpoints(folder: Path) -> list[int]:
    """The steps of those that are whole."""
    return sorted(int(p.name.rpartition("-")[2]) for p in (folder / "checkpoints").glob("step-*"))


def fill_up(folder: Path, data: Path, steps: int, whole: str) -> dict[str, Any]:
    """What a run says and leaves whose disk is suddenly full, and whether it then goes on."""
    process = child(folder, data, steps)
    while process.poll() is None and len(checkpoints(folder)) < 2:
        time.sleep(0.002)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (SPACE, SPACE))
    _, errors = process.communicate()
    left = checkpoints(folder)
    resumed = finished(child(folder, data, steps), folder)
    return {
        "said": errors.decode().strip().splitlines()[-1].replace(str(folder), "RUN"), "failed": process.returncode != 0,
        "checkpoints_left": left, "identical": resumed == whole,
    }  # fmt: skip


def prove(kills: int, steps: int, seed: int = 0) -> dict[str, Any]:
    """Kills a run so often, and compares; every second time it waits for a checkpoint being written."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = text(folder / "text.jsonl")
        whole = finished(child(folder / "whole", data, steps), folder / "whole")
        full = fill_up(folder / "full", data, steps, whole)
        moments: list[str] = []
        reached: list[int] = []
        while len(moments) < kills:
            process = child(folder / "killed", data, steps)
            moments.append(kill(process, folder / "killed", rng, len(moments) % 2 == 1))
            reached.append(max(checkpoints(folder / "killed"), default=0))
            if (folder / "killed" / "final.json").exists():
                raise RuntimeError(f"the run ended after {len(moments)} of {kills} kills: give it more steps")
        killed = finished(child(folder / "killed", data, steps), folder / "killed")
    return {
        "kills": kills, "while_writing_a_checkpoint": moments.count("while writing"), "steps": steps,
        "steps_reached": reached, "identical": killed == whole, "disk_full": full,
    }  # fmt: skip


def measure(minute: bool) -> dict[str, Any]:
    found = prove(3, 120) if minute else prove(20, STEPS)
    full = found["disk_full"]
    return found | {
        "bars": {
            "the final weights are bit-identical to those of the unbroken run": found["identical"],
            "some kills came while a checkpoint was being written": found["while_writing_a_checkpoint"] > 0,
            "a full disk is told, leaves the last checkpoints, and the run goes on to the same bits": full["failed"]
            and "the disk is full" in full["said"]
            and len(full["checkpoints_left"]) == 2
            and full["identical"],
        }
    }
