"""Adapters and full models out of records; what cannot be used is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stories import STORIES, write_jsonl

from ladderlm.data.asking import Asking
from ladderlm.data.records import make_record
from ladderlm.errors import FormatError, UsageError
from ladderlm.models import open_model
from ladderlm.nn.decoder import load_decoder
from ladderlm.nn.loss import mean_nats, nats
from ladderlm.train.examples import Packing, example_nats, make_example, per_document, sorted_batch
from ladderlm.train.finetune import FinetuneConfig, run

ROWS = [{"prompt": f"Who went to the {s.split()[5][:-1]}?", "completion": f"The {s.split()[1]}."} for s in STORIES]
CLASSES = [{"text": s, "label": "big" if s.split()[1] in ("cow", "dog") else "small"} for s in STORIES]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_helps_and_the_result_opens(tiny: Path, tmp_path: Path, method: str) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", ROWS)
    result = run(
        FinetuneConfig(
            data=str(data), model=str(tiny), held_out=str(data), method=method, lr=0.01, steps=25, batch_tokens=256,
            licence="CC0-1.0",
        )
    )  # fmt: skip
    assert result.scores["held_out_loss"] < result.scores["held_out_loss_before"] - 1
    # The answers are better told by far, but nobody can know which animal is meant: the page is not fooled.
    assert result.scores["verdict"] == result.scores["helped"]["verdict"] == "no evidence"
    assert result.scores["helped"]["metric"] == "balanced accuracy"
    files = open_model("tuned")
    lineage = files.lineage["adapter"] if method == "lora" else files.lineage
    assert lineage["parent"]["name"] == "tiny"
    assert lineage["licence"] == "CC0-1.0 and unknown"
    examples = [make_example(make_record("completion", r, source="x"), files, 128) for r in ROWS]
    loss = sum(example_nats(load_decoder(files), examples, 512, "x")) / sum(sum(e.mask[1:]) for e in examples)
    assert loss == pytest.approx(result.scores["held_out_loss"], rel=0.05)


def test_class_records_are_asked_for_their_label(tiny: Path, tmp_path: Path) -> None:
    records = [make_record("class", r, source="x") for r in CLASSES]
    record = Asking.of(records).as_messages(records[0])
    assert [m["role"] for m in record["messages"]] == ["user", "assistant"]
    assert record["messages"][0]["content"].endswith("Answer with one of: big, small.")
    assert record["messages"][1]["content"] == "small"
    files = open_model(str(tiny))
    example = make_example(record, files, 128)
    assert example.mask[-1]
    learnt = [i for i, wanted in zip(example.ids, example.mask, strict=True) if wanted]
    assert files.tokenizer.decode(learnt) == "small"
    assert learnt[-1] in files.tokenizer.stop_ids


def test_only_the_answer_of_a_long_prompt_is_learnt(tiny: Path) -> None:
    files = open_model(str(tiny))
    turns = [{"role": r, "content": c} for r, c in (("user", "Who?"), ("assistant", "The cow."), ("user", "Who else?"))]
    row = {"prompt": "Who else?", "messages": turns, "chosen": "The dog.", "rejected": "The owl."}
    liked = {"prompt": "Who else?", "messages": turns, "completion": "The dog.", "label": True}
    talk = {"messages": [*turns, {"role": "assistant", "content": "The dog."}]}
    for kind, fields, learnt in (
        ("preference", row, ["The dog."]), ("kto", liked, ["The dog."]), ("messages", talk, ["The cow.", "The dog."]),
    ):  # fmt: skip
        example = make_example(make_record(kind, fields, source="x"), files, 128)
        said = files.tokenizer.decode([i for i, m in zip(example.ids, example.mask, strict=True) if m])
        assert [text for text in ("The cow.", "The dog.") if text in said] == learnt


def test_bad_records_are_named_with_their_reason(tiny: Path, tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "x" * 900, "completion": "y"}, {"messages": [{"role": "user", "content": "hm"}]}]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    settings = {"data": str(data), "model": str(tiny), "steps": 1, "held_out": str(write_jsonl(tmp_path / "h", ROWS))}
    settings["held_out"] = str(write_jsonl(tmp_path / "h.jsonl", ROWS))
    with pytest.raises(FormatError, match=r"2 bad rows: d.jsonl:21: \d+ tokens, more.*d.jsonl:22: the assistant"):
        run(FinetuneConfig(**settings))  # type: ignore[arg-type]
    assert run(FinetuneConfig(**settings, skip_bad=True)).steps == 1  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one record"):
        run(FinetuneConfig(data=str(write_jsonl(tmp_path / "one.jsonl", ROWS[:1])), model=str(tiny), out="o"))


def test_packing_keeps_the_budget_and_sees_everything_each_epoch() -> None:
    sizes = [3, 5, 90, 7, 20, 1, 40, 33]
    packing = Packing(sizes, 50, seed=1)
    count = packing.batches_in(1)
    first = [packing(i) for i in range(count)]
    assert sorted(i for b in first for i in b) == list(range(8))
    assert all(sum(sizes[i] for i in b) <= 50 or len(b) == 1 for b in first)
    again = Packing(sizes, 50, seed=1)
    assert [again(i) for i in range(30)] == [packing(i) for i in range(30)]
    assert packing.batches_in(2) > count


def test_sums_per_document(tiny: Path) -> None:
    files = open_model(str(tiny))
    decoder = load_decoder(files)
    examples = [make_example(make_record("completion", r, source="x"), files, 128) for r in ROWS[:5]]
    each = example_nats(decoder, examples, 60, "x")
    batch = sorted_batch(examples)
    with torch.no_grad():
        assert sum(each) == pytest.approx(per_document(nats(decoder, batch), batch).sum().item(), rel=1e-5)
        assert sum(each) / batch.weight == pytest.approx(mean_nats(decoder, batch)[0].item(), rel=1e-5)
