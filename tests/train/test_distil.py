"""Distillation and rejection sampling on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from stories import STORIES, write_jsonl

from ladderlm.errors import UsageError
from ladderlm.models import open_model
from ladderlm.nn.decoder import load_decoder
from ladderlm.nn.loss import make_batch
from ladderlm.store import open_run, read_json
from ladderlm.train.align import AlignConfig, run
from ladderlm.train.distil import divergence

ROWS = [{"prompt": f"Tell of the {s.split()[1]}.", "completion": s} for s in STORIES]


def test_the_divergence_is_kullbacks(tiny: Path) -> None:
    files = open_model(str(tiny))
    teacher, student = load_decoder(files), load_decoder(files).initialise(3)
    batch = make_batch([([5, 6, 7, 8], [False, False, True, True]), ([9, 10, 11], [True] * 3)])
    found = divergence(student, teacher, batch)
    p, q = (m.logits(m(batch.ids_T, batch.lengths)[batch.wanted_N]).log_softmax(-1) for m in (teacher, student))
    assert torch.allclose(found, (p.exp() * (p - q)).sum(-1), atol=1e-5)
    assert torch.allclose(divergence(teacher, teacher, batch), torch.zeros(4), atol=1e-6)
    found.sum().backward()
    head = student.head_VD.grad
    student.zero_grad()
    F.kl_div(q, p.detach(), reduction="sum", log_target=True).backward()
    assert torch.allclose(head, student.head_VD.grad, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("learn", ["logits", "text"])
def test_a_student_comes_nearer_to_its_teacher(tiny: Path, tmp_path: Path, learn: str) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", ROWS)
    given = {"data": str(data), "held_out": str(data), "threads": 1, "batch_tokens": 512, "warmup": 1}
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "zzz"} for r in ROWS]
    other = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    teacher = tmp_path / "teacher"
    run(AlignConfig(**{**given, "data": str(other), "held_out": str(other)}, model=str(tiny), objective="orpo",
                    method="full", lr=0.003, steps=10, out=str(teacher)))  # type: ignore[arg-type]  # fmt: skip
    result = run(AlignConfig(**given, model=str(tiny), objective="distil", teacher=str(teacher), learn=learn,
                             method="full", lr=0.003, steps=12, max_tokens=12, out=str(tmp_path / "s")))  # type: ignore[arg-type]  # fmt: skip
    assert result.scores["held_out"] < result.scores["held_out_before"]
    assert (open_run(result.run).path / "teacher.json").exists() == (learn == "text")


def test_a_teacher_is_needed(tiny: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(UsageError, match="whom to learn from"):
        run(AlignConfig(data=str(data), model=str(tiny), objective="distil"))


def test_the_best_answers_are_learnt(tiny: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": r["prompt"], "pattern": "[^e]*"} for r in ROWS])
    result = run(AlignConfig(
        data=str(data), held_out=str(data), model=str(tiny), objective="best-of-n", samples=6, max_tokens=60, threads=1,
        batch_tokens=512, method="full", lr=0.003, steps=10, out=str(tmp_path / "best"),
    ))  # fmt: skip
    kept = read_json(open_run(result.run).path / "best.json")["answers"]
    assert 0 < result.scores["prompts_kept"] == len(kept) <= len(ROWS)
    assert all(answer["reward"] == 1.0 and "e" not in answer.get("text", "") for answer in kept)
