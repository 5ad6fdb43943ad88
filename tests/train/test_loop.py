"""The loop: exact resume, clean stops, clear failures, accumulation, schedule, time budget."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ladderlm import events, store
from ladderlm.errors import FormatError, LadderError, StorageError, UsageError
from ladderlm.train import checkpoint, loop
from ladderlm.train.loop import LoopConfig, Watch, calibrated_total, fit, spike_bound
from ladderlm.train.optim import Optimiser
from ladderlm.train.schedule import batches_before, batches_in, falls, learning_rate_scale
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
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-00000006", "step-00000007"]
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
        fit(net, bad, batches, optimiser, store.new_run("t", {}, path=tmp_path / "a"), varied(rollbacks=0))


def bad_at(*numbers: int, times: float = float("nan")):  # type: ignore[no-untyped-def]
    """A loss that is multiplied on the batches of these numbers."""

    def loss(net: Net, batch: Rows) -> tuple[Tensor, dict[str, float]]:
        value, figures = loss_fn(net, batch)
        return (value * times if any(torch.equal(batch.x, batches(n).x) for n in numbers) else value), figures

    return loss


def varied(**changes: object) -> LoopConfig:
    return LoopConfig(**(CONFIG.to_dict() | changes))


def test_a_runaway_loss_rolls_back_past_its_batches_and_says_so(tmp_path: Path) -> None:
    """As a run whose data never held the batches passed over."""
    seen: list[events.Event] = []
    net, optimiser = start()
    run = store.new_run("t", {}, path=tmp_path / "a")
    with events.listening(seen.append):
        found = fit(net, bad_at(11), batches, optimiser, run, varied(checkpoint_steps=4))
    assert [(r["at"], r["to"]) for r in found.rollbacks] == [(5, 4)]
    assert any("back to step 4, passing over the batches of 2 steps" in e.message for e in seen)
    assert [r["step"] for r in store.read_jsonl(run.metrics)] == list(range(1, 13))
    other, optimiser = start()
    fit(
        other, loss_fn, lambda i: batches(i if i < 8 else i + 4), optimiser,
        store.new_run("t", {}, path=tmp_path / "b"), CONFIG,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_that_leads_there_again_is_not_good(tmp_path: Path) -> None:
    net, optimiser = start()
    run = store.new_run("t", {}, path=tmp_path / "a")
    found = fit(net, bad_at(11, 15), batches, optimiser, run, varied(checkpoint_steps=2, keep=3))
    assert [(r["at"], r["to"]) for r in found.rollbacks] == [(5, 4), (5, 2)]


def test_rollbacks_are_bounded(tmp_path: Path) -> None:
    net, optimiser = start()
    with pytest.raises(LadderError, match=r"nan.*after 2 rollbacks"):
        fit(
            net, bad_at(*range(10, 40)), batches, optimiser, store.new_run("t", {}, path=tmp_path / "a"),
            varied(rollbacks=2),
        )  # fmt: skip


def test_a_spike_rolls_back_and_ordinary_noise_does_not(tmp_path: Path) -> None:
    assert spike_bound([1.0] * 10, 6.0) == float("inf")
    assert spike_bound([1.0] * 32, 6.0) == pytest.approx(1.12)
    assert spike_bound([1.0] * 32, 0.0) == float("inf")
    net, optimiser = start()
    config = varied(steps=30, spike=8.0, checkpoint_steps=10)
    run = store.new_run("t", {}, path=tmp_path / "a")
    found = fit(net, bad_at(51, times=30.0), batches, optimiser, run, config)
    assert [(r["at"], r["to"]) for r in found.rollbacks] == [(25, 20)]
    assert "the loss jumped to" in found.rollbacks[0]["why"]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store.new_run("t", {}, path=tmp_path / "a")
    real = checkpoint.write_safetensors

    def full(path: Path, tensors: dict) -> None:
        if len(store.read_jsonl(run.metrics)) == 6:
            path.write_bytes(b"torn")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr(checkpoint, "write_safetensors", full)
    with pytest.raises(StorageError, match="the disk is full"):
        train(run, varied(checkpoint_steps=3))
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-00000000", "step-00000003"]
    monkeypatch.undo()
    resumed, _ = train(run, varied(checkpoint_steps=3))
    whole, _ = train(store.new_run("t", {}, path=tmp_path / "b"), CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    run = store.new_run("t", {}, path=tmp_path / "a")
    train(run, varied(checkpoint_steps=4), stop_after=20)
    newest = sorted(run.checkpoints.iterdir())[-1] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-9])
    (run.checkpoints / ".step-00000099.abc.part").mkdir()
    seen: list[events.Event] = []
    with events.listening(seen.append):
        resumed, _ = train(run, varied(checkpoint_steps=4))
    assert any("damaged checkpoint" in e.message for e in seen)
    assert not list(run.checkpoints.glob(".*"))
    whole, _ = train(store.new_run("t", {}, path=tmp_path / "b"), CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_average_is_kept_measured_and_resumed(tmp_path: Path) -> None:
    config = varied(ema=0.9, evaluate_every=4)
    results = []
    for name, stop in (("a", None), ("b", 9)):
        run = store.new_run("t", {}, path=tmp_path / name)
        net, found = train(run, config, stop)
        if found.stopped:
            net, found = train(run, config)
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*results)
    plain, _ = train(store.new_run("t", {}, path=tmp_path / "c"), CONFIG)
    assert not torch.equal(results[0], torch.cat([p.detach().flatten() for p in plain.parameters()]))


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    net, optimiser = start()
    kept: dict[float, Tensor] = {}

    def evaluate() -> dict[str, float]:
        loss = (1.0, 0.5, 0.7)[len(kept)]
        kept[loss] = net.layers[0].weight.detach().clone()
        return {"held_out_loss": loss}

    run = store.new_run("t", {}, path=tmp_path / "a")
    found = fit(net, loss_fn, batches, optimiser, run, varied(best=True, evaluate_every=4), watch=Watch(evaluate))
    assert found.best == 8
    assert torch.equal(net.layers[0].weight, kept[0.5])


def test_the_batch_grows() -> None:
    config = LoopConfig(steps=9, accumulate=4, batch_ramp=6)
    sizes = [batches_in(p, config) for p in range(9)]
    assert sizes == [1, 2, 2, 3, 4, 4, 4, 4, 4]
    assert [batches_before(p, config) for p in range(9)] == [sum(sizes[:p]) for p in range(9)]
    assert [batches_in(p, config, 2) for p in range(9)] == [2, 2, 2, 4, 4, 4, 4, 4, 4]


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
    cosine = LoopConfig(steps=100, warmup=10, schedule="cosine")
    scales = [learning_rate_scale(s, 100, cosine) for s in range(100)]
    assert scales[9] == scales[10] == 1.0
    assert scales[55] == pytest.approx(0.55)
    assert 0.1 < scales[99] < 0.102
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        LoopConfig(steps=1, schedule="cosin")


def test_minutes_give_the_steps() -> None:
    config = LoopConfig(minutes=1)
    assert calibrated_total([9.0] + [1.0] * 4, 5, 13.0, config.minutes) is None
    assert calibrated_total([9.0] + [1.0] * 5, 6, 14.0, config.minutes) == 6 + 46
    assert calibrated_total([9.0] + [1.0] * 5, 6, 61.0, config.minutes) == 6
    assert not falls(99, None, LoopConfig(minutes=1, cooldown=0.4))
    assert not falls(60, 100, LoopConfig(minutes=1, cooldown=0.4))
    assert falls(61, 100, LoopConfig(minutes=1, cooldown=0.4))
    with pytest.raises(UsageError, match="steps or minutes"):
        LoopConfig(steps=1, minutes=1)


def test_a_machine_that_slows_down_costs_steps_and_not_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def slower(number: int) -> Any:
        nonlocal now
        now += 0.5 if number < 20 else 1.0
        return batches(number)

    monkeypatch.setattr("ladderlm.train.loop.time.monotonic", lambda: now)
    net, optimiser = start()
    config = LoopConfig(minutes=1, cooldown=0.4, checkpoint_minutes=9)
    fitted = fit(net, loss_fn, slower, optimiser, store.new_run("t", {}, path=tmp_path / "a"), config)
    assert not fitted.stopped
    assert 55 < fitted.seconds < 70  # told by the first steps alone it would be 110
    scales = [row["lr"] for row in store.read_jsonl(tmp_path / "a" / "metrics.jsonl")]
    assert scales[-1] < 0.1 * max(scales)


def test_progress_and_evaluation(tmp_path: Path) -> None:
    seen: list[events.Event] = []
    net, optimiser = start()
    run = store.new_run("t", {}, path=tmp_path / "a")
    with events.listening(seen.append):
        fit(
            net, loss_fn, batches, optimiser, run,
            LoopConfig(steps=5, evaluate_every=2, sample_every=3, tensorboard=True),
            watch=Watch(lambda: {"val": 1.0}, lambda: [{"text": "so"}], flops=1.0, peak=1e6),
        )  # fmt: skip
    assert [r["step"] for r in store.read_jsonl(run.metrics) if "val" in r] == [2, 4, 5]
    assert store.read_jsonl(run.samples) == [{"step": 3, "text": "so"}, {"step": 5, "text": "so"}]
    assert {"loss", "tokens_per_second", "eta", "mfu"} <= set(seen[0].data)
    assert len(list(run.path.glob("events.out.tfevents.*"))) == 1
    assert seen[-1].finished


def test_a_file_too_large_for_the_system_is_told_as_a_full_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    run = store.new_run("t", {}, path=tmp_path / "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    net, optimiser = start()
    calls = itertools.count()

    def limited(n: Net, b: Rows) -> tuple[Tensor, dict[str, float]]:
        if next(calls) == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # the generator's state alone has 5056 bytes
        return loss_fn(n, b)

    try:
        with pytest.raises(StorageError, match=r"the disk is full.*free space"):
            fit(net, limited, batches, optimiser, run, varied(checkpoint_steps=3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-00000000", "step-00000003"]
    resumed, found = train(run, varied(checkpoint_steps=3))
    assert found.steps == 12
    whole, _ = train(store.new_run("t", {}, path=tmp_path / "b"), CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
