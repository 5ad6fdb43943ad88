"""DPO's loss by hand, its gradient's direction, and a tiny model that learns to prefer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from stories import STORIES, write_jsonl

from ladderlm.errors import FormatError
from ladderlm.models import open_model
from ladderlm.train.align import AlignConfig, dpo_loss, run

ROWS = [{"prompt": f"Tell of the {s.split()[1]}.", "chosen": s, "rejected": " ".join(s.split()[::-1])} for s in STORIES]


def test_the_loss_equals_the_formula() -> None:
    policy_P2 = torch.tensor([[-10.0, -12.0], [-30.0, -20.0]], requires_grad=True)
    reference_P2 = torch.tensor([[-11.0, -11.5], [-29.0, -24.0]])
    loss, figures = dpo_loss(policy_P2, reference_P2, beta=0.5)
    margins = [0.5 * ((-10 + 11) - (-12 + 11.5)), 0.5 * ((-30 + 29) - (-20 + 24))]
    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins) / 2)
    assert figures["reward_accuracy"] == 0.5
    assert figures["margin"] == pytest.approx(sum(margins) / 2)
    assert figures["chosen_logratio"] == pytest.approx(0.0)
    loss.backward()
    assert (policy_P2.grad[:, 0] < 0).all()  # type: ignore[index]
    assert (policy_P2.grad[:, 1] > 0).all()  # type: ignore[index]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_chosen_answers_become_likelier(tiny: Path, tmp_path: Path, method: str) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", ROWS)
    result = run(
        AlignConfig(
            data=str(data), model=str(tiny), held_out=str(data), method=method, lr=0.003, steps=15, batch_tokens=512
        )
    )
    assert result.scores["held_out_reward_accuracy"] > 0.9
    assert result.scores["held_out_loss"] < math.log(2)
    assert result.scores["chosen_likelier"] >= result.scores["chosen_likelier_before"]
    assert open_model("aligned").arch.dim == 32


def test_other_records_are_refused(tiny: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": str(i), "completion": "b"} for i in range(30)])
    with pytest.raises(FormatError, match=r"a completion record.*DPO needs"):
        run(AlignConfig(data=str(data), model=str(tiny)))
