"""Every way to align, killed between two steps, goes on to the same bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from stories import write_jsonl

from ladderlm.models.safetensors import read_safetensors
from ladderlm.store import open_run, read_jsonl
from ladderlm.train import loop
from ladderlm.train.align import AlignConfig, run

PAIRS = [{"prompt": f"Tell {i} of the cat.", "chosen": f"The hen {i}.", "rejected": "zzz q"} for i in range(10)]
ASKED = [{"prompt": row["prompt"], "completion": "The hen.", "pattern": "[^e]*"} for row in PAIRS]
PROMPTS = [{"prompt": row["prompt"], "pattern": "[^e]*"} for row in PAIRS]
SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {}, "kto": {}, "reward": {}, "grpo": {"updates": 2}, "ppo": {"updates": 2, "target_kl": 0.5},
    "best-of-n": {"max_tokens": 60}, "distil": {"learn": "logits"},
}  # fmt: skip


def untimed(run_id: str) -> list[dict[str, Any]]:
    rows = read_jsonl(open_run(run_id).metrics)
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


@pytest.mark.parametrize("objective", SETTINGS)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(
    tiny: Path, tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = PAIRS if objective in ("dpo", "kto", "reward") else ASKED if objective == "distil" else PROMPTS
    data = str(write_jsonl(tmp_path / "d.jsonl", rows))
    given = AlignConfig(
        data=data, held_out=data, model=str(tiny), teacher=str(tiny), objective=objective, prompts=3, samples=4,
        lr=0.01, steps=5, warmup=1, threads=1, batch_tokens=300, out=str(tmp_path / "whole"),
        **{"max_tokens": 8, **SETTINGS[objective]},
    )  # fmt: skip
    whole = run(given)
    real, steps = loop._Loop.count, list[int]()

    def count(self, progress, row):  # type: ignore[no-untyped-def]
        real(self, progress, row)
        steps.append(progress.step)
        if steps == [1, 2, 3]:  # in the middle of a round of two steps
            self.save(progress)
        if steps == [1, 2, 3, 4]:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Loop, "count", count)
    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(given, out=str(tmp_path / "parts")))
    killed = next(p.name for p in open_run(whole.run).path.parent.iterdir() if p.name != whole.run)
    rest = run(dataclasses.replace(given, resume=killed))
    assert steps == [1, 2, 3, 4, 4, 5]
    first, second = (read_safetensors(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "parts"))
    assert all((first[name].array() == second[name].array()).all() for name in first)
    assert rest.scores == whole.scores
    assert untimed(rest.run) == untimed(whole.run)
