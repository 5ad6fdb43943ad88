"""GRPO: its loss against a formula and trl, rollouts that are the model's own, and a tiny model that learns a word."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stories import write_jsonl

from ladderlm.data.records import make_record
from ladderlm.errors import FormatError
from ladderlm.evals import outcome
from ladderlm.models import open_model
from ladderlm.models.adapter import LoraConfig
from ladderlm.nn.decoder import load_decoder
from ladderlm.nn.lora import add_lora
from ladderlm.nn.loss import Batch
from ladderlm.store import open_run, read_jsonl
from ladderlm.train.align import AlignConfig, run
from ladderlm.train.grpo import GroupBatch, advantages, grpo_loss
from ladderlm.train.rollout import Roller, check, load_prompts

ROWS = [{"prompt": f"Tell {i} of the cat.", "pattern": ".*e.*"} for i in range(12)]


def batch(beta: float = 0.1) -> tuple[GroupBatch, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    lengths = [3, 5, 2, 4]
    owners_N = torch.arange(4).repeat_interleave(torch.tensor(lengths))
    drawn_N = -2 * torch.rand(14, generator=rng)
    reference_N, policy_N = (drawn_N + 0.5 * torch.randn(14, generator=rng) for _ in range(2))
    advantage_B = advantages(torch.tensor([[1.0, 0.0], [0.2, 0.9]])).flatten()
    empty = Batch(torch.zeros(14), (14,), torch.arange(14), torch.zeros(14))
    return GroupBatch(empty, drawn_N, reference_N, advantage_B[owners_N], owners_N, 14), policy_N


@pytest.mark.parametrize("average", ["token", "answer"])
def test_the_loss_equals_trl(average: str) -> None:
    grpo = pytest.importorskip("trl.trainer.grpo_trainer", reason="trl is not installed")
    given, policy_N = batch()
    ours, figures = grpo_loss(policy_N, given, beta=0.1, clip=0.2, average=average)
    counts = torch.bincount(given.owners_N)
    mask = torch.arange(5)[None] < counts[:, None]

    def padded(values_N: torch.Tensor) -> torch.Tensor:
        return torch.zeros(4, 5).masked_scatter(mask, values_N)

    theirs = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (padded(policy_N), torch.zeros(4, 5), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=0.1,
        importance_sampling_level="token", loss_type="grpo" if average == "answer" else "bnpo", epsilon_low=0.2,
        epsilon_high=0.2, use_vllm=False, _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False), model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, **_: x, num_processes=1),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.zeros(4, 1), "prompt_mask": torch.ones(4, 1), "completion_ids": torch.zeros(4, 5),
        "completion_mask": mask.float(), "advantages": torch.zeros(4).index_reduce(
            0, given.owners_N, given.advantage_N, "mean", include_self=False),
        "old_per_token_logps": padded(given.drawn_N), "ref_per_token_logps": padded(given.reference_N),
    }  # fmt: skip
    expected = grpo.GRPOTrainer._compute_loss(theirs, theirs.model, inputs)
    assert ours.item() == pytest.approx(float(expected), abs=1e-5)
    assert 0 < figures["clipped"] < 1


def test_advantages_are_against_the_group() -> None:
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 3.0, 3.0, 3.0]]))
    assert found[0].tolist() == pytest.approx([0.8659, -0.8659, -0.8659, 0.8659], abs=1e-3)
    assert found[1].tolist() == [0.0] * 4


def test_rollouts_are_the_models_own_and_follow_its_weights(tiny: Path) -> None:
    files = open_model(str(tiny))
    decoder = add_lora(load_decoder(files), LoraConfig(4, 8.0))
    records = [make_record("answer", {"prompt": f"Say {i}.", "answer": "a"}, source="t") for i in range(3)]
    prompts = load_prompts("t", records, files, 100, skip_bad=False)
    with Roller(decoder, files, 12, threads=1) as roller:
        first = roller.sample(prompts, 4, 0, 0)
        assert [a.prompt for a in first] == [0] * 4 + [1] * 4 + [2] * 4
        assert first == roller.sample(prompts, 4, 0, 0)
        assert first != roller.sample(prompts, 4, 0, 1)
        assert check(decoder, prompts, first, 500) < 1e-4
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
        with pytest.raises(Exception, match="differ by"):
            check(decoder, prompts, first, 500)
        roller.update()
        assert check(decoder, prompts, roller.sample(prompts, 4, 0, 0), 500) < 1e-4


def config(tiny: Path, data: Path, **changes: object) -> AlignConfig:
    given = AlignConfig(
        data=str(data), model=str(tiny), held_out=str(data), objective="grpo", prompts=4, samples=6, max_tokens=8,
        steps=6, lr=0.01, threads=1, batch_tokens=600, warmup=1,
    )  # fmt: skip
    return dataclasses.replace(given, **changes)  # type: ignore[arg-type]


def test_a_tiny_model_learns_what_is_rewarded(tiny: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", ROWS)
    result = run(config(tiny, data, steps=12, method="full", lr=0.002))
    shown = read_jsonl(open_run(result.run).metrics)
    assert shown[-1]["reward"] > shown[0]["reward"] + 0.15
    assert {"kl", "length", "entropy", "told_apart"} <= shown[-1].keys()
    told = outcome.load(open_run(result.run))
    assert [h.metric for h in told.kept] == ["bits per byte of general texts", "accuracy on general knowledge"]
    assert told.after.samples[0].prompt == ROWS[0]["prompt"]
    assert "kl to the reference" in open_run(result.run).report.read_text()


def test_records_without_a_check_are_refused(tiny: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": str(i), "completion": "b"} for i in range(30)])
    with pytest.raises(FormatError, match="nothing that an answer can be checked by"):
        run(config(tiny, data))
