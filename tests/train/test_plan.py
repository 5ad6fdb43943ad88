"""What a run is foretold to take: counted against real objects, and against what runs then take."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stories import SIZES, STORIES, write_jsonl
from torch import nn

from ladderlm import store
from ladderlm.cli.main import main
from ladderlm.data.records import make_record
from ladderlm.nn.linear import products
from ladderlm.train import memory, plan, planned, pretrain
from ladderlm.train.corpus import tokenise
from ladderlm.train.derive import FAST, derived
from ladderlm.train.ema import Average
from ladderlm.train.memory import Footprint, footprint
from ladderlm.train.optim import Optimiser, optimiser_of
from ladderlm.train.planned import Plan, best_split, kept_plan, outcome, outcome_of_first, plan_path
from ladderlm.train.settings import PlanConfig, PretrainConfig

RECORDS = [make_record("text", {"text": " ".join(STORIES) + f" {i}"}, source=str(i)) for i in range(8)]


def ready(**changes: Any) -> tuple[Any, Any, Any, PretrainConfig]:
    """(objective, architecture, batch, settings)."""
    config = derived(PretrainConfig(**{**SIZES, "steps": 4, "vocab_size": 400, **changes}))
    kind = pretrain.KINDS[config.objective or "causal"]
    tokenizer = kind.make_tokenizer([r["text"] for r in RECORDS], config)
    objective = kind(config, tokenizer)
    batch = objective.batches(tokenise(RECORDS, tokenizer))(0)
    return objective, kind.architecture(config, tokenizer), batch, config


def stepped(model: nn.Module, objective: Any, batch: Any, config: PretrainConfig, times: int = 2) -> Optimiser:
    optimiser = optimiser_of(model, config)
    for _ in range(times):
        with products(config.precision, config.device):
            loss, _ = objective.loss(model, batch)
        loss.backward()
        del loss
        nn.utils.clip_grad_norm_(optimiser.parameters, 1.0)
        optimiser.step(1.0)
    return optimiser


def size(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
def test_bytes_kept_are_those_of_the_real_objects(muon_lr: float) -> None:
    objective, arch, batch, config = ready(muon_lr=muon_lr, ema=0.9)
    found = footprint(lambda: objective.build(arch), objective, batch, config, 1)
    model = objective.build(arch)
    optimiser = stepped(model, objective, batch, config)
    assert found.weights == found.gradients == 4 * arch.parameters == size(model.parameters())
    assert found.optimiser == size(optimiser.state().values())
    assert found.average == size(Average(optimiser.named, 0.9).state().values())
    assert found.logits == 4 * 256 * arch.vocab_size
    if muon_lr == 0:  # two moments, and a step number for each parameter
        assert found.optimiser == 2 * found.weights + 4 * len(list(model.parameters()))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("objective", ["causal", "fim", "mlm", "mlm+nsp", "spans"])
def test_a_step_without_memory_counts_as_a_real_one(objective: str, precision: str) -> None:
    """The same counting, over tensors that do exist."""
    made, arch, batch, config = ready(objective=objective, precision=precision)
    found = footprint(lambda: made.build(arch), made, batch, config, 1)
    with memory._Live() as live:
        stepped(made.build(arch), made, batch, config)
    assert found.tensors == pytest.approx(live.most, rel=0.02)
    assert found.activations > 0


def test_recomputing_and_smaller_passes_take_less() -> None:
    objective, arch, batch, config = ready(layers=6, z_loss=1e-4)

    def activations(batch: Any = batch, passes: int = 1, **changes: Any) -> int:
        changed = dataclasses.replace(config, **changes)
        return footprint(lambda: objective.build(arch), objective, batch, changed, passes).activations

    plain = activations()
    assert activations(recompute=True) < 0.6 * plain
    half = dataclasses.replace(
        batch, ids_T=batch.ids_T[:256], lengths=batch.lengths[:2], wanted_N=batch.wanted_N[:256],
        targets_N=batch.targets_N[:256],
    )  # fmt: skip
    assert activations(half) < 0.7 * plain
    assert activations(passes=2) == pytest.approx(plain, rel=0.1)  # gradients were counted already


def test_a_checkpoint_is_as_large_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": r["text"]} for r in RECORDS])
    monkeypatch.setattr("ladderlm.train.result.discard_checkpoints", lambda run: None)
    config = PretrainConfig(data=str(data), out="m", steps=3, ema=0.9, **SIZES)  # type: ignore[arg-type]
    run = store.open_run(pretrain.run(config).run)
    files = sum(p.stat().st_size for p in (run.checkpoints / "step-00000003").glob("*.safetensors"))
    objective, arch, batch, settings = ready(ema=0.9, vocab_size=SIZES["vocab_size"])
    found = footprint(lambda: objective.build(arch), objective, batch, settings, 1)
    assert found.checkpoint == pytest.approx(files - torch.get_rng_state().numel(), rel=0.08)  # headers apart


# --- The whole ----------------------------------------------------------------------------------------------------


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": r["text"]} for r in RECORDS])
    return {"data": str(data), "steps": 30, **SIZES, "threads": 1, **changes}


def test_a_plan_tells_what_the_run_then_takes(tmp_path: Path) -> None:
    given = settings(tmp_path)
    made = plan.run(PlanConfig(**given, price=2.0, calibrate=4))
    result = pretrain.run(PretrainConfig(**given, out=str(tmp_path / "m")))
    assert made.steps == result.steps == 30
    assert made.tokens == result.tokens
    assert made.cost == pytest.approx(2 * made.seconds / 3600)
    assert made.epochs == pytest.approx(made.tokens / len(tokenise(RECORDS, ready_tokenizer(tmp_path)).ids_N), rel=0.2)
    assert result.planned is not None
    assert result.planned.source == "a plan made before"
    assert abs(result.planned.error["cpu_seconds"]) < 0.6
    assert result.planned.measured["seconds"] == result.seconds
    report = store.open_run(result.run).report.read_text()
    assert "As foretold" in report
    assert "CPU seconds" in report
    assert kept_plan(PretrainConfig(**given, out="elsewhere")) == made
    assert kept_plan(PretrainConfig(**{**given, "layers": 3})) is None


def ready_tokenizer(folder: Path) -> Any:
    from ladderlm.models import open_model

    return open_model(str(folder / "m")).tokenizer


def test_minutes_give_steps_and_ramps_and_measurements_count(tmp_path: Path) -> None:
    made = plan.run(PlanConfig(**settings(tmp_path, steps=0, minutes=1.0), calibrate=2))
    assert made.seconds == pytest.approx(60, rel=0.05)
    trial = plan.Trial((1.0, 0.5, 0.001), (2.0, 1.0, 0.002), 10**8, 10**8, 5, 5.0)
    config = derived(PretrainConfig(**settings(tmp_path, batch_tokens=2048, micro_tokens=512, evaluate_every=10)))
    held = [make_record("text", {"text": "x" * 100}, source="h")]
    sample = plan.Sample(None, None, held, None)  # type: ignore[arg-type]

    def told(**changes: Any) -> Plan:
        changed = dataclasses.replace(config, **changes)
        return plan.foretell(
            PlanConfig(), changed, Footprint(4, 4, 8, 0, 1, 9), trial, 100, 512, sample, 600.0, 1e9, None
        )

    plain = told()
    assert plain.seconds == pytest.approx(30 * (4 * 1.0 + 0.5) + 3 * 100 * 0.001)
    assert plain.cpu_seconds == pytest.approx(2 * plain.seconds)
    assert plain.tokens == 30 * 2048
    ramped = told(batch_ramp=20)
    assert 0.6 * plain.tokens < ramped.tokens < 0.8 * plain.tokens
    assert plain.disk == 3 * 12 + 4


def test_what_does_not_fit_is_said_and_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "available", lambda device: 1_000_000)
    monkeypatch.setattr(plan, "try_out", None)
    made = plan.run(PlanConfig(**settings(tmp_path)))
    assert not made.fits
    assert any("--micro-tokens" in note for note in made.notes)
    assert any("nothing was tried out" in note for note in made.notes)
    assert made.seconds > 0


def test_what_is_compute_optimal_is_said() -> None:
    parameters, tokens = best_split(6.0 * 1e6 * 20e6)
    assert (parameters, tokens) == pytest.approx((1e6, 20e6))

    def notes(tokens: int) -> str:
        made = Plan(1_000_000, tokens, 1, 1.0, 1.0, {"peak": 1}, 1, 1.0, 1.0, 0.1)
        return " ".join(plan._notes(made, None, plan.Sample(None, None, [], 1.0)))  # type: ignore[arg-type]

    assert "20.0 tokens a parameter: compute-optimal" in notes(20_000_000)
    assert "smaller model on more" in notes(1_000_000)
    assert "larger model on fewer" in notes(500_000_000)


def test_a_run_without_a_plan_is_measured_against_its_beginning() -> None:
    rows = [{"step": i, "seconds": 2.0 + 0.5 * (i - 1)} for i in range(1, 201)]
    taken = {"seconds": 101.5, "memory": 2e8}
    found = outcome_of_first(rows, 1e8, taken)
    assert found is not None
    assert found.predicted["seconds"] == pytest.approx(101.5)
    assert found.error["memory"] == pytest.approx(-0.5)
    assert found.rows()[0][3] == "+0.0%"
    assert outcome_of_first(rows, 1e8, {"seconds": 59.0}) is None
    assert outcome_of_first(rows[50:], 1e8, taken) is None


def test_a_plan_scales_with_the_steps_taken_and_survives_damage(tmp_path: Path) -> None:
    made = Plan(10, 100, 10, 5.0, 8.0, {"peak": 1000}, 1, 1.0, 1.0, 0.1)
    found = outcome(made, 20, {"seconds": 20.0, "cpu_seconds": 16.0, "memory": None})
    assert found is not None
    assert found.error == {"seconds": -0.5, "cpu_seconds": 0.0}
    config = PretrainConfig(data="x", steps=1)
    planned.keep_plan(config, made)
    assert kept_plan(config) == made
    plan_path(config).write_text("{")
    assert kept_plan(config) is None


def test_without_data_the_machines_own_documentation_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "collect", lambda name: RECORDS)
    made = plan.run(PlanConfig(**{**SIZES, "steps": 2}, calibrate=1))  # type: ignore[arg-type]
    assert made.epochs is None
    assert any("no data" in note for note in made.notes)


def test_the_verb_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{n.replace('_', '-')}={v}" for n, v in settings(tmp_path).items() if n != "data"]
    arguments = ["plan", str(tmp_path / "d.jsonl"), "--calibrate=1", *flags]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "memory, by which the program grows\t" in shown
    assert "tokens a parameter" in shown
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 30


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--resume", "pretrain-1"], "tells its own time"),
        (["--steps", "2", "--price", "-1"], "price >= 0"),
        (["--steps", "2", "--precision", "bf16"], "no instructions for products in bf16"),
        (["--steps", "2", "--minutes", "2"], "give steps or minutes"),
        (["x.txt", "--steps", "2"], "no such file"),
        (["--steps", "2", "--dim", "100", "--heads", "3"], "multiple of twice the heads"),
    ],
)
def test_impossible_settings_are_clear_errors(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "collect", lambda name: RECORDS)
    monkeypatch.setitem(FAST, "bf16", lambda device: False)
    assert main(["plan", *flags]) in (1, 2)
    assert said in capsys.readouterr().err
