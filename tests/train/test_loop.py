"""The loop: exact resume, clean stops, clear failures, accumulation, schedule, time budget."""

from __future__ import annotations

import itertools
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ladderlm import events, store
from ladderlm.errors import FormatError, LadderError, UsageError
from ladderlm.train import loop
from ladderlm.train.loop import LoopConfig, calibrated_total, fit, learning_rate_scale
from ladderlm.train.optim import Optimiser
from ladderlm.types import Run


@dataclass
class Rows:
    x: Tensor
    tokens: int = 4
    weight: int = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.dropout(self.layers[0](x).relu()))


def batches(i: int) -> Rows:
    return Rows(torch.randn(4, 6, generator=torch.Generator().manual_seed(i)))


def loss_fn(net: Net, batch: Rows) -> tuple[Tensor, dict[str, float]]:
    loss = (net(batch.x) - batch.x.flip(1)).square().mean()
    return loss, {"twice": 2 * loss.item()}


def start() -> tuple[Net, Optimiser]:
    torch.manual_seed(1)
    net = Net()
    return net, Optimiser([("model." + n, p) for n, p in net.named_parameters()], 0.01, muon_lr=0.02, weight_decay=0.1)


def train(run: Run, config: LoopConfig, stop_after: int | None = None) -> tuple[Net, loop.Fit]:
    net, optimiser = start()
    calls = itertools.count(1)

    def counted(n: Net, b: Rows) -> tuple[Tensor, dict[str, float]]:
        if next(calls) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss_fn(n, b)

    return net, fit(net, counted, batches, optimiser, run, config)


CONFIG = LoopConfig(steps=12, accumulate=2, warmup=3, seed=5)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, _ = train(store.new_run("t", {}, path=tmp_path / "a"), CONFIG)
    run = store.new_run("t", {}, path=tmp_path / "b")
    _, first = train(run, CONFIG, stop_after=9)
    assert first.stopped
    assert first.steps == 5
    resumed, second = train(run, CONFIG)
    assert not second.stopped
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = store.read_jsonl(run.metrics)
    assert [r["step"] for r in rows] == list(range(1, 13))
    assert rows[3]["twice"] == pytest.approx(2 * rows[3]["loss"])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole, _ = train(store.new_run("t", {}, path=tmp_path / "a"), CONFIG)
    run = store.new_run("t", {}, path=tmp_path / "b")
    often = LoopConfig(**(CONFIG.to_dict() | {"checkpoint_minutes": 0.0}))
    net, optimiser = start()

    def dying(n: Net, b: Rows) -> tuple[Tensor, dict[str, float]]:
        if len(store.read_jsonl(run.metrics)) == 7:
            raise MemoryError
        return loss_fn(n, b)

    with pytest.raises(MemoryError):
        fit(net, dying, batches, optimiser, run, often)
    store.append_jsonl(run.metrics, {"step": 8, "loss": 0.0})  # a line later than the checkpoint
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-00000007"]
    resumed, _ = train(run, often)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert [r["step"] for r in store.read_jsonl(run.metrics)] == list(range(1, 13))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run = store.new_run("t", {}, path=tmp_path / "a")
    train(run, CONFIG)
    with pytest.raises(FormatError, match="other settings"):
        train(run, LoopConfig(steps=13))


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path) -> None:
    net, optimiser = start()

    def bad(n: Net, b: Rows) -> tuple[Tensor, dict[str, float]]:
        loss, figures = loss_fn(n, b)
        return (loss * float("nan") if torch.equal(b.x, batches(6).x) else loss), figures

    with pytest.raises(LadderError, match=r"step 3.*lower the learning rate"):
        fit(net, bad, batches, optimiser, store.new_run("t", {}, path=tmp_path / "a"), CONFIG)


def test_accumulated_batches_weigh_like_one(tmp_path: Path) -> None:
    def ragged(i: int) -> Rows:
        rows = batches(i)
        return Rows(rows.x[: 1 + 2 * (i % 2)], weight=1 + 2 * (i % 2))

    def joined(i: int) -> Rows:
        return Rows(torch.cat([ragged(2 * i).x, ragged(2 * i + 1).x]))

    results = []
    for name, source, accumulate in (("a", ragged, 2), ("b", joined, 1)):
        net, optimiser = start()
        net.dropout.p = 0.0
        run = store.new_run("t", {}, path=tmp_path / name)
        fit(net, loss_fn, source, optimiser, run, LoopConfig(steps=3, accumulate=accumulate))
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.allclose(*results, atol=1e-4)


def test_the_schedule_rises_holds_and_falls() -> None:
    config = LoopConfig(steps=100, warmup=10, cooldown=0.4)
    scales = [learning_rate_scale(s, 100, config) for s in range(100)]
    assert scales[0] == 0.1
    assert scales[10:60] == [1.0] * 50
    assert scales[80] == pytest.approx(0.5)
    assert scales[99] == pytest.approx(0.025)
    assert learning_rate_scale(99, None, config) == 1.0


def test_minutes_fix_the_steps_once() -> None:
    config = LoopConfig(minutes=1)
    assert calibrated_total([9.0] + [1.0] * 4, 5, 13.0, config.minutes) is None
    assert calibrated_total([9.0] + [1.0] * 5, 6, 14.0, config.minutes) == 6 + 46
    with pytest.raises(UsageError, match="steps or minutes"):
        LoopConfig(steps=1, minutes=1)


def test_progress_and_evaluation(tmp_path: Path) -> None:
    seen: list[events.Event] = []
    net, optimiser = start()
    run = store.new_run("t", {}, path=tmp_path / "a")
    with events.listening(seen.append):
        fit(net, loss_fn, batches, optimiser, run, LoopConfig(steps=5, evaluate_every=2), evaluate=lambda: {"val": 1.0})
    assert [r["step"] for r in store.read_jsonl(run.metrics) if "val" in r] == [2, 4, 5]
    assert {"loss", "tokens_per_second", "eta"} <= set(seen[0].data)
    assert seen[-1].finished
