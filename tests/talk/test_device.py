"""Where local models run, chosen without importing torch in vain."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ladderlm import engine
from ladderlm.errors import UsageError
from ladderlm.models import open_model
from ladderlm.talk import device, open_chat
from ladderlm.types import Sampling


def test_auto_without_a_gpu_is_the_cpu_engine_and_imports_no_torch(default_model: str) -> None:
    script = (
        "import sys; from ladderlm.talk import device; from ladderlm.models import open_model\n"
        "device.gpu_there = lambda: False\n"
        "device.load(open_model(sys.argv[1])).close(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, default_model], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_device_that_is_unknown_or_absent_is_refused(default_model: str) -> None:
    files = open_model(default_model)
    with pytest.raises(UsageError, match="unknown device"):
        device.load(files, "gpu")
    pytest.importorskip("torch")
    with pytest.raises(UsageError, match="no such device"):
        device.load(files, "cuda:99")


def test_torch_gives_the_same_answer(default_model: str) -> None:
    pytest.importorskip("torch")
    from ladderlm.nn.backend import load_engine

    files, greedy = open_model(default_model), Sampling(temperature=0, max_tokens=8)
    ids = files.tokenizer.encode("The capital of France is")
    with load_engine(files, device="cpu") as torch_engine, engine.load(files, exact=True) as cpu:
        first, second = ([i for d in e.generate(ids, greedy) for i in d.ids] for e in (torch_engine, cpu))
        close = abs(torch_engine.next_logits(ids) - cpu.next_logits(ids)).max()
    assert first == second
    assert close < 0.05


def test_the_echo_needs_no_device() -> None:
    assert open_chat("echo", device="cuda").name == "echo"
