"""SIGTERM to torchrun, as Slurm and Kubernetes send it: the workers finish their step and write a checkpoint."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stories import STORIES, write_jsonl

from ladderlm.store import read_jsonl

pytest.importorskip("torch")
SLURM = Path(__file__).resolve().parents[2] / "deploy" / "slurm" / "pretrain.sbatch"


def torchrun(home: Path, *options: str) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = re.findall(r"(--shutdown-timeout \d+)", SLURM.read_text())[0].split()  # as the Slurm script gives it
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-id", "7-0", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", *flags]
    env = {**os.environ, "LADDERLM_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *rendezvous, "-m", "ladderlm", "pretrain", *options], env=env, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_sigterm_to_torchrun_ends_with_a_checkpoint_of_the_last_step(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": " ".join(STORIES[i:] + STORIES[:i])} for i in range(20)])
    sizes = ["--dim", "32", "--heads", "2", "--layers", "2", "--vocab-size", "320", "--seq-len", "64", "--threads", "1"]
    out, home = tmp_path / "base", tmp_path / "home"
    options = [str(data), "--out", str(out), "--batch-tokens", "512", "--micro-tokens", "256", *sizes]
    first = torchrun(home, *options, "--steps", "2000", "--checkpoint-minutes", "1000")
    rows: list[dict] = []
    while len(rows) < 5 and first.poll() is None:
        time.sleep(0.2)
        rows = [row for log in home.glob("runs/*/metrics.jsonl") for row in read_jsonl(log)]
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=240)[1]
    assert first.returncode != 0
    (run,) = (home / "runs").iterdir()
    assert not (run / "result.json").exists()
    done = read_jsonl(run / "metrics.jsonl")[-1]["step"]
    kept = sorted(int(re.sub(r"\D", "", p.name)) for p in (run / "checkpoints").iterdir() if p.is_dir())
    assert kept[-1] == done > 4, said[-2000:]
