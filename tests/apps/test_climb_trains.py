"""The climb on a tiny model of our own, training included."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))
from stories import SIZES, STORIES, write_jsonl

from ladderlm.apps.climb.run import ClimbConfig, run


@pytest.mark.slow
def test_every_rung(tmp_path: Path) -> None:
    from ladderlm.train.pretrain import PretrainConfig
    from ladderlm.train.pretrain import run as pretrain

    data = write_jsonl(tmp_path / "s.jsonl", [{"text": s * 12, "source": str(i)} for i, s in enumerate(STORIES)])
    pretrain(PretrainConfig(data=str(data), out=str(tmp_path / "tiny"), steps=30, seed=1, **SIZES | {"seq_len": 640}))  # type: ignore[arg-type]
    rows = [
        {"text": f"{s} {i}", "label": "big" if s.split()[1] in ("cow", "dog") else "small"}
        for i in range(12)
        for s in STORIES
    ]
    found = run(
        ClimbConfig(str(write_jsonl(tmp_path / "d.jsonl", rows)), str(tmp_path / "tiny"), minutes=1.5, threads=1,
                    out=str(tmp_path / "made"))
    )  # fmt: skip
    by_name = {r.tried.rung: r.tried for r in found.rungs}
    assert all(t.scores for t in by_name.values()), [t.skipped for t in by_name.values()]
    assert by_name["from scratch"].ship_bytes < by_name["zero-shot"].ship_bytes < by_name["LoRA"].ship_bytes
    assert by_name["full fine-tuning"].memory_mb > 100
    assert (tmp_path / "made-lora").exists()
    assert json.loads(json.dumps(found.to_dict()))["recommended"] == found.recommended
