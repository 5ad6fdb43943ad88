"""Reward models: the loss against trl's, calibration by hand, and one that is trained, written and read again."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stories import STORIES, write_jsonl

from ladderlm.data.records import make_record
from ladderlm.errors import NotFound
from ladderlm.train.align import AlignConfig, run
from ladderlm.train.reward import ScoredBy, calibration, reward_loss


def test_the_loss_equals_trl() -> None:
    trl = pytest.importorskip("trl.trainer.reward_trainer", reason="trl is not installed")
    rewards_P2 = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    logits = torch.cat([rewards_P2[:, 0], rewards_P2[:, 1]])[:, None]

    class Model:
        training = False

        def __call__(self, **_: object) -> SimpleNamespace:
            return SimpleNamespace(logits=logits)

    theirs = SimpleNamespace(
        model=Model(), args=SimpleNamespace(center_rewards_coefficient=0.01), _total_train_tokens=0,
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": defaultdict(list), "train": defaultdict(list)},
    )  # fmt: skip
    expected = trl.RewardTrainer.compute_loss(theirs, theirs.model, {})
    assert reward_loss(rewards_P2, 0.01)[0].item() == pytest.approx(expected.item(), abs=1e-5)


def test_calibration_by_hand() -> None:
    sure = math.log(9)  # 90 % sure
    error, bins = calibration([sure] * 9 + [-sure])
    wrong = next(b for b in bins if b.right < 1)  # one of two is wrong there, the others are all right
    assert error == pytest.approx((2 * abs(0.9 - wrong.right) + 8 * 0.1) / 10)
    assert sum(b.pairs for b in bins) == 10
    assert sum(b.pairs * b.right for b in bins) == pytest.approx(9)
    assert calibration([50.0] * 20)[0] == pytest.approx(0.0)
    assert calibration([-50.0] * 20)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_is_trained_and_read_again(tiny: Path, tmp_path: Path, method: str) -> None:
    rows = [{"prompt": "Tell.", "chosen": s, "rejected": " ".join(s.split()[::-1])} for s in STORIES]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    config = AlignConfig(
        data=str(data), model=str(tiny), held_out=str(data), objective="reward", method=method, lr=0.01, steps=15,
        batch_tokens=512, threads=1, out=str(tmp_path / "rm"),
    )  # fmt: skip
    result = run(config)
    assert result.scores["accuracy"] > 0.9
    assert 0 <= result.scores["calibration_error"] <= 1
    reward = ScoredBy(str(tmp_path / "rm"), 300)
    records = [make_record("completion", {"prompt": "Tell.", "completion": ""}, source="t")] * 2
    good, bad = reward(records, [rows[0]["chosen"], rows[0]["rejected"]])
    assert good > bad
    with pytest.raises(NotFound, match="not a reward model"):
        ScoredBy(str(tiny), 300)
