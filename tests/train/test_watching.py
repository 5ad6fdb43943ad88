"""The held-out loss on the way: it ends where the page ends, and the best of it can be kept."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from stories import ANIMALS, STORIES, write_jsonl
from tuned_models import CLASSES, encoder

from ladderlm.errors import UsageError
from ladderlm.store import list_runs, open_run, read_jsonl
from ladderlm.train import align, finetune
from ladderlm.train.result import Result
from ladderlm.train.settings import AlignConfig, FinetuneConfig

PAIRS = [{"prompt": f"Say {a}.", "chosen": f"The {a}.", "rejected": f"No {a} here."} for a in ANIMALS]


def on_the_way(result: Result) -> dict[int, float]:
    rows = read_jsonl(open_run(result.run).metrics)
    return {row["step"]: row["held_out_loss"] for row in rows if "held_out_loss" in row}


def aligned(tiny: Path, data: Path, objective: str, **changes: object) -> AlignConfig:
    return AlignConfig(
        data=str(data), held_out=str(data), model=str(tiny), objective=objective, lr=0.003, steps=6, evaluate_every=2,
        precision="fp32", threads=1, batch_tokens=256, out=f"by-{objective}", **changes,  # type: ignore[arg-type]
    )  # fmt: skip


def test_it_ends_where_the_page_ends(tiny: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", PAIRS)
    for objective in ("dpo", "ipo", "simpo"):
        result = align.run(aligned(tiny, data, objective))
        found = on_the_way(result)
        assert list(found) == [2, 4, 6]
        assert found[6] == pytest.approx(result.scores["held_out_loss"], abs=1e-4)
        assert found[6] < found[2]
    result = align.run(aligned(tiny, data, "reward"))
    assert on_the_way(result)[6] == pytest.approx(result.scores["held_out_loss"], abs=0.02)  # beside it, CENTRE
    words = write_jsonl(tmp_path / "w.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in PAIRS])
    result = align.run(aligned(tiny, words, "distil", teacher=str(tiny)))
    assert all(math.isfinite(loss) for loss in on_the_way(result).values())


def test_an_encoders_ends_there_too(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "c.jsonl", CLASSES)
    result = finetune.run(FinetuneConfig(
        data=str(data), held_out=str(data), model=str(encoder(tmp_path / "base")), method="full", lr=0.003, steps=9,
        evaluate_every=4, batch_tokens=128, precision="fp32", threads=1,
    ))  # fmt: skip
    found = on_the_way(result)
    assert list(found) == [4, 8, 9]
    assert found[9] == pytest.approx(result.scores["held_out_loss"], abs=1e-4)


def test_the_best_weights_are_kept(tiny: Path, tmp_path: Path) -> None:
    """A rate so high that what is unseen is soon told worse: then the last weights are not the best."""
    seen = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "Who?", "completion": f"The {a}!"} for a in ANIMALS[:2]] * 4)
    unseen = write_jsonl(tmp_path / "h.jsonl", [{"text": s} for s in STORIES[:8]])
    told = {}
    for best in (True, False):
        result = finetune.run(FinetuneConfig(
            data=str(seen), held_out=str(unseen), model=str(tiny), method="full", lr=0.01, steps=8, warmup=0,
            evaluate_every=1, best=best, batch_tokens=64, out=f"best-{best}", precision="fp32", threads=1,
        ))  # fmt: skip
        told[best] = result.scores["held_out_loss"]
        found = on_the_way(result)
        lowest = min(found, key=found.__getitem__)
        assert lowest < 8
        said = f"those of step {lowest}," in open_run(result.run).report.read_text()
        assert said == best
    assert told[True] < told[False]


def test_what_cannot_be_measured_is_said(tiny: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", PAIRS)
    with pytest.raises(UsageError, match="which measurements"):
        align.run(AlignConfig(data=str(data), model=str(tiny), best=True))
    with pytest.raises(UsageError, match="which measurements"):
        finetune.run(FinetuneConfig(data=str(data), model=str(tiny), best=True))
    with pytest.raises(UsageError, match="own loss is for dpo"):
        align.run(AlignConfig(data=str(data), model=str(tiny), objective="orpo", sft=1.0))
    with pytest.raises(UsageError, match="draw what they learn from"):
        align.run(AlignConfig(data=str(data), model=str(tiny), objective="grpo", evaluate_every=2))
    assert list_runs() == []  # none was begun for any of them
