"""The losses of every task are those of transformers on the same batch, padded there and packed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tuned_models import KINDS, encoder, encoder_decoder

from ladderlm.data.records import to_record
from ladderlm.models import open_model
from ladderlm.models.folder import save_model
from ladderlm.train.finetune import FinetuneConfig
from ladderlm.train.tasks.choose import choose

transformers = pytest.importorskip("transformers", reason="no transformers to compare with")
CLASSES = {
    "class": "AutoModelForSequenceClassification", "spans": "AutoModelForTokenClassification",
    "qa": "AutoModelForQuestionAnswering", "translation": "T5ForConditionalGeneration",
}  # fmt: skip


def both(kind: str, folder: Path) -> tuple[Any, Any, Any, list[Any]]:
    """The task, our model, theirs with the same weights, and examples of different lengths."""
    base = (encoder_decoder if kind == "translation" else encoder)(folder / "base")
    records = [to_record(row, "x", "") for row in KINDS[kind]]
    files = open_model(str(base))
    task = choose(FinetuneConfig(data="x", model=str(base)), files, records)
    model = task.load().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh network is an identity: give it something to do
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_model(folder / "made", model.arch, model.state(), files.tokenizer, None, generation={}, lineage={})
    theirs = getattr(transformers, CLASSES[kind]).from_pretrained(folder / "made").eval()
    examples = sorted((task.example(r) for r in records[:7]), key=lambda e: e.tokens)
    return task, model, theirs, examples


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return torch.tensor([[*row, *[value] * (max(map(len, rows)) - len(row))] for row in rows])


@pytest.mark.parametrize("kind", ["class", "spans"])
def test_heads_on_encoders(kind: str, tmp_path: Path) -> None:
    task, model, theirs, examples = both(kind, tmp_path)
    ids = [e.ids for e in examples]
    labels = padded([e.targets for e in examples], -100)
    labels = labels.squeeze(1) if kind == "class" else labels
    with torch.no_grad():
        ours = task.loss(model, task.batch(examples))[0].item()
        expected = theirs(
            input_ids=padded(ids, 0), attention_mask=padded([[1] * len(i) for i in ids], 0),
            token_type_ids=padded([e.types for e in examples], 0), labels=labels,
        ).loss.item()  # fmt: skip
    assert ours == pytest.approx(expected, abs=1e-5)


def test_answers_in_a_text(tmp_path: Path) -> None:
    task, model, theirs, examples = both("qa", tmp_path)
    expected = []
    with torch.no_grad():
        ours = task.loss(model, task.batch(examples))[0].item()
        for example in examples:  # theirs counts padding among the places, so one by one
            start, end = (torch.tensor([place]) for place in example.targets)
            found = theirs(
                input_ids=torch.tensor([example.ids]), token_type_ids=torch.tensor([example.types]),
                start_positions=start, end_positions=end,
            )  # fmt: skip
            expected.append(found.loss.item())
    assert ours == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_translation(tmp_path: Path) -> None:
    task, model, theirs, examples = both("translation", tmp_path)
    sources = [e.source for e in examples]
    with torch.no_grad():
        ours = task.loss(model, task.batch(examples))[0].item()
        expected = theirs(
            input_ids=padded(sources, 0), attention_mask=padded([[1] * len(s) for s in sources], 0),
            labels=padded([e.target for e in examples], -100),
        ).loss.item()  # fmt: skip
    assert ours == pytest.approx(expected, abs=1e-5)
