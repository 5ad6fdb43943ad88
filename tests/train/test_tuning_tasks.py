"""Every task on every kind of model: it learns, its result opens, and packing changes nothing."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from stories import STORIES, write_jsonl
from tuned_models import CLASSES, KINDS, PAIRS, TRIPLES, encoder, encoder_decoder

from ladderlm import store
from ladderlm.data.records import to_record
from ladderlm.errors import Cancelled, FormatError, UsageError
from ladderlm.models import open_model
from ladderlm.nn import load_model
from ladderlm.train.finetune import FinetuneConfig, look, run
from ladderlm.train.material import load_material
from ladderlm.train.tasks.choose import choose
from ladderlm.train.tasks.classify import Classify
from ladderlm.train.tasks.embed import Embed
from ladderlm.train.tasks.tag import Tag, entities, tags_of
from ladderlm.train.tasks.translate import Translate
from ladderlm.types import Record


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tuned")
    return {
        "decoder": tiny,
        "encoder": encoder(folder / "encoder"),
        "encoder-decoder": encoder_decoder(folder / "encoder-decoder"),
    }


def records(kind: str) -> list[Record]:
    return [to_record(row, "x", "CC0-1.0") for row in KINDS[kind]]


def task_of(models: dict[str, Path], base: str, kind: str, **more: Any) -> Any:
    files = open_model(str(models[base]))
    return choose(FinetuneConfig(data="x", model=str(models[base]), **more), files, records(kind)), files


LEARN = [
    ("encoder", "class", "full"), ("encoder", "class", "lora"), ("encoder", "spans", "full"), ("encoder", "qa", "full"),
    ("encoder", "triple", "full"), ("encoder-decoder", "translation", "full"),
    ("encoder-decoder", "translation", "lora"), ("decoder", "class", "full"), ("decoder", "triple", "full"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "kind", "method"), LEARN)
def test_it_learns_and_the_result_opens(
    models: dict[str, Path], tmp_path: Path, base: str, kind: str, method: str
) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", KINDS[kind])
    config = FinetuneConfig(
        data=str(data), model=str(models[base]), held_out=str(data), method=method, lr=0.005, steps=120,
        batch_tokens=512, threads=1, licence="CC0-1.0", out=str(tmp_path / "out"), temperature=0.2,
    )  # fmt: skip
    result = run(config)
    helped = result.scores["helped"]
    assert helped["verdict"] == "helped", helped
    files = open_model(result.model)
    if base == "encoder" or method == "full":  # else an adapter
        assert files.lineage["parent"]["name"] == models[base].name
        assert files.lineage["scores"]["task"] == result.scores["task"]
    model = load_model(files)  # every tensor is there and has its shape
    assert model.arch.kind == base
    task = choose(dataclasses.replace(config, model=result.model), files, records(kind))
    held = task.held(records(kind), [task.example(r) for r in records(kind)], records(kind))
    first = held.measure(model.eval())[0]
    assert sum(first.values) / sum(first.per) == pytest.approx(helped["after"]["mean"], abs=2e-3)


@pytest.mark.parametrize(
    ("base", "kind"),
    [(b, k) for b in ("encoder", "encoder-decoder", "decoder") for k in KINDS if (b, k) not in
     {("encoder", "translation"), ("encoder-decoder", "triple"), ("encoder", "triple"), ("decoder", "triple")}],
)  # fmt: skip
def test_packing_changes_neither_loss_nor_gradient(models: dict[str, Path], base: str, kind: str) -> None:
    task, files = task_of(models, base, kind)
    model = task.load() if task.load else load_model(files)
    model.eval()
    examples = [task.example(r) for r in records(kind)][:6]
    packed, weight = task.batch(examples), task.batch(examples).weight
    loss = task.loss(model, packed)[0]
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    alone = 0.0
    for example in examples:
        batch = task.batch([example])
        part = task.loss(model, batch)[0] * batch.weight / weight
        part.backward()
        alone += part.item()
    assert alone == pytest.approx(loss.item(), rel=1e-5)
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) == len(after) > 0
    scale = max(g.abs().max().item() for g in grads)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * scale) for a, b in zip(grads, after, strict=True))


@pytest.mark.parametrize("base", ["encoder", "decoder"])
def test_vectors_do_not_depend_on_the_batch_and_are_those_served(models: dict[str, Path], base: str) -> None:
    from ladderlm.engine import load_embedder

    task, files = task_of(models, base, "triple")
    model = task.load() if base == "encoder" else load_model(files)
    texts = [t.anchor for t in map(task.example, records("triple"))] + [[5], [7, 8, 9]]
    with torch.no_grad():
        together = task.vectors(model, torch.tensor([i for t in texts for i in t]), [len(t) for t in texts])
        alone = torch.cat([task.vectors(model, torch.tensor(t), [len(t)]) for t in texts])
    assert torch.allclose(together, alone, atol=1e-5)
    served = torch.from_numpy(load_embedder(files).embed(texts))
    assert torch.allclose(together, served, atol=1e-4)


def test_the_contrastive_loss_is_the_textbook_one(models: dict[str, Path]) -> None:
    task, _ = task_of(models, "encoder", "triple", temperature=0.1)
    rows = [*TRIPLES[:2], {**TRIPLES[2], "negative": "a stone"}, {**TRIPLES[3], "positive": TRIPLES[0]["positive"]}]
    model = task.load().eval()
    examples = [task.example(to_record(r, "x", "")) for r in rows]
    with torch.no_grad():
        loss = task.loss(model, task.batch(examples))[0].item()
        one = [task.vectors(model, torch.tensor(i), [len(i)])[0] for e in examples for i in (e.anchor, e.positive)]
        stone = task.vectors(model, torch.tensor(examples[2].negative), [len(examples[2].negative)])[0]
    anchors, candidates = one[::2], [*one[1::2], stone]
    expected = []
    for i, anchor in enumerate(anchors):
        scores = [float(anchor @ c) / 0.1 for c in candidates]
        twin = {0: 3, 3: 0}.get(i)  # the same words in another row are no mistake
        kept = [s for j, s in enumerate(scores) if j != twin]
        expected.append(torch.tensor(kept).logsumexp(0).item() - scores[i])
    assert loss == pytest.approx(sum(expected) / 4, rel=1e-4)


def test_a_new_head_is_compared_with_the_commonest_label(models: dict[str, Path]) -> None:
    task, _ = task_of(models, "encoder", "class")
    rows = records("class")
    balanced, accuracy = task.held(rows, [task.example(r) for r in rows], rows).measure(task.load())
    assert sum(balanced.values) / sum(balanced.per) == pytest.approx(0.5)
    assert sum(accuracy.values) / len(rows) == pytest.approx(sum(r["label"] == "small" for r in rows) / len(rows))


def test_tags_and_entities_are_each_others_inverse() -> None:
    spots = [(0, 3), (4, 7), (8, 10), (11, 15), (15, 16)]
    spans = [{"start": 4, "end": 10, "label": "x"}, {"start": 11, "end": 15, "label": "x"}]
    tags = tags_of(spots, spans)
    assert tags == ["O", "B-x", "I-x", "B-x", "O"]
    assert entities(spots, tags) == [(4, 10, "x"), (11, 15, "x")]
    assert entities(spots, ["I-x", "I-y", "O", "I-y", "I-y"]) == [(0, 3, "x"), (4, 7, "y"), (11, 16, "y")]


def test_a_long_context_is_read_in_windows(models: dict[str, Path]) -> None:
    text = "The hen sat. " * 30 + "The fox went to the barn. " + "The hen sat. " * 10
    record = to_record({"context": text, "question": "Who went?", "answers": ["fox"]}, "x", "")
    task, files = task_of(models, "encoder", "qa")
    windows = task.windows(record)
    assert len(windows) > 2
    assert all(w.document.tokens <= files.arch.context_length for w in windows)
    held = [w for w in windows if w.document.targets != [0, 0]]
    assert held
    for window in held:
        start, end = window.document.targets
        assert files.tokenizer.decode(window.document.ids[start : end + 1]).strip() == "fox"
    ids = files.tokenizer.encode(text)
    covered = {i for w in windows for i in range(w.at, w.at + w.width)}
    assert covered == set(range(len(ids)))


def test_what_a_model_cannot_learn_is_said_with_what_it_can(models: dict[str, Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", PAIRS)
    with pytest.raises(UsageError, match=r"records are nothing for a megatron-bert encoder.*class, spans, qa"):
        run(FinetuneConfig(data=str(data), model=str(models["encoder"]), out=str(tmp_path / "o")))
    one = write_jsonl(tmp_path / "one.jsonl", [{**r, "label": "big"} for r in CLASSES])
    with pytest.raises(UsageError, match="nothing to tell apart"):
        run(FinetuneConfig(data=str(one), model=str(models["encoder"]), out=str(tmp_path / "o")))


@pytest.mark.parametrize(
    ("base", "kind", "method", "loss"),
    [("encoder", "class", "lora", Classify), ("encoder", "spans", "full", Tag),
     ("encoder-decoder", "translation", "full", Translate), ("encoder", "triple", "full", Embed),
     ("decoder", "triple", "full", Embed)],
)  # fmt: skip
def test_a_stopped_run_goes_on_to_the_same_bits(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, kind: str, method: str,
    loss: Any,
) -> None:  # fmt: skip
    data = write_jsonl(tmp_path / "d.jsonl", KINDS[kind])
    config = FinetuneConfig(
        data=str(data), model=str(models[base]), held_out=str(data), method=method, lr=0.01, steps=6,
        batch_tokens=128, threads=1, out=str(tmp_path / "whole"),
    )  # fmt: skip
    whole = run(config)
    honest, calls = loss.loss, []

    def stopping(self: Any, model: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return honest(self, model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loss, "loss", stopping)
        with pytest.raises(Cancelled, match="--resume") as stopped:
            run(dataclasses.replace(config, out=str(tmp_path / "parts")))
    assert len(calls) == 3
    parts = run(FinetuneConfig(resume=str(stopped.value.where).removeprefix("run ")))
    assert parts.steps == whole.steps == 6
    one, other = (open_model(result.model).weights for result in (whole, parts))
    assert all((one.float32(name) == other.float32(name)).all() for name in one.names())


# --- Hostile data -------------------------------------------------------------------------------------------------

GOOD = [
    {"prompt": f"{i}. Who went to the {s.split()[5][:-1]}?", "completion": f"The {s.split()[1]}."}
    for i, s in enumerate(STORIES)
]


def config_for(data: Path, models: dict[str, Path], **more: Any) -> FinetuneConfig:
    return FinetuneConfig(data=str(data), model=str(models["decoder"]), threads=1, steps=1, **more)


def test_hostile_rows_are_named_by_line_and_reason(models: dict[str, Path], tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "  "}, {"role": "user", "content": "b"}]
    rows = [
        *GOOD,
        {"messages": [*turns, {"role": "assistant", "content": "c"}]},
        {"prompt": "long", "completion": "hen " * 100_000},
        {"prompt": 3, "completion": "c"},
        {"nothing": "known"},
        {"messages": [{"role": "king", "content": "a"}]},
        {"prompt": "empty", "completion": ""},
    ]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    with data.open("a") as file:
        file.write('{"prompt": "a", \n')
    material = load_material(config_for(data, models), open_model(str(models["decoder"])))
    reasons = {b.line: b.reason for b in material.bad}
    assert set(reasons) == set(range(21, 28))
    for line, part in {
        21: "the assistant says nothing (message 2)", 22: "tokens, more than max_length", 23: "prompt must be text",
        24: "unknown layout", 25: "unknown role 'king'", 26: "the assistant says nothing", 27: "broken JSON",
    }.items():  # fmt: skip
        assert part in reasons[line]
    with pytest.raises(FormatError, match=r"7 bad rows: d.jsonl:\d+: .*and 2 more"):
        run(config_for(data, models, out=str(tmp_path / "a")))
    result = run(config_for(data, models, out=str(tmp_path / "b"), skip_bad=True))
    folder = store.open_run(result.run).path
    written = [json.loads(line) for line in (folder / "bad_rows.jsonl").read_text().splitlines()]
    assert sorted(row["line"] for row in written) == list(range(21, 28))
    assert "7 rows are left out" in (folder / "report.md").read_text()


def test_long_records_are_cut_and_counted_where_asked(models: dict[str, Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [*GOOD, {"prompt": "long", "completion": "hen " * 100_000}])
    held = write_jsonl(tmp_path / "h.jsonl", GOOD)
    material = load_material(config_for(data, models, cut=True, held_out=str(held)), open_model(str(models["decoder"])))
    assert not material.bad
    assert material.lengths.cut == 1
    assert material.lengths.longest == open_model(str(models["decoder"])).arch.context_length
    assert "1 cut" in str(material.lengths)


def test_repeated_and_mixed_records_are_counted(models: dict[str, Path], tmp_path: Path) -> None:
    mixed = [{"text": "Plain."}, {"instruction": "Say a.", "output": "a"}]
    data = write_jsonl(tmp_path / "d.jsonl", [*GOOD, *GOOD[:3], *mixed])
    held = write_jsonl(tmp_path / "h.jsonl", [*GOOD[:2], {"prompt": "new", "completion": "x"}])
    material = load_material(config_for(data, models, held_out=str(held)), open_model(str(models["decoder"])))
    told = " ".join(material.notes)
    assert "3 records have an id that came before" in told
    assert "2 of 3 held-out records are learnt from too" in told
    assert "23 completion, 1 text, 1 messages" in told


def test_a_token_outside_the_vocabulary_is_an_error(models: dict[str, Path]) -> None:
    for base, kind in (("decoder", "class"), ("encoder", "class"), ("encoder-decoder", "translation")):
        task, _ = task_of(models, base, kind)
        task.limits.vocab_size = 20
        with pytest.raises(UsageError, match=r"token \d+ is outside the model's vocabulary of 20"):
            task.example(records(kind)[0])


@pytest.mark.parametrize(
    ("base", "kind", "learnt"),
    [("decoder", "class", "small"), ("encoder", "spans", "cat"), ("encoder", "qa", "cat"),
     ("encoder-decoder", "translation", "barn cat")],
)  # fmt: skip
def test_show_marks_what_is_learnt(models: dict[str, Path], tmp_path: Path, base: str, kind: str, learnt: str) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", KINDS[kind])
    _, shown = look(FinetuneConfig(data=str(data), held_out=str(data), model=str(models[base]), show=2))
    assert len(shown) == 2
    wanted = [p.text for p in shown[0] if p.learnt and p.note != "O"]
    assert learnt in "".join(wanted)
    assert any(not p.learnt or p.note == "O" for p in shown[0])


def test_check_looks_and_trains_nothing(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ladderlm.cli.train import finetune

    data = tmp_path / "d.csv"
    data.write_text("review,stars\n" + "".join(f"{r['text']},{r['label']}\n" for r in CLASSES) + "one\n")
    args = [str(data), "-m", str(models["encoder"]), "--columns", "text=review,label=stars", "--check", "--show", "1"]
    assert finetune(args) == 1
    told = capsys.readouterr()
    assert "d.csv:22" in told.out
    assert "«»<" in told.out
    assert "classify: 1" in told.out
    assert finetune([*args, "--skip-bad", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bad"][0]["line"] == 22
