"""The page that every run ends with, and what two runs say of each other."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from stories import STORIES, write_jsonl

from ladderlm import store
from ladderlm.cli import runs as runs_verb
from ladderlm.errors import NotFound
from ladderlm.evals import outcome
from ladderlm.evals.runs import compare
from ladderlm.models import open_model
from ladderlm.nn.decoder import load_decoder
from ladderlm.train import align, finetune
from ladderlm.train.held import HeldAnswers, labels_of
from ladderlm.train.page import kept

PAIRS = [{"prompt": f"Tell of the {s.split()[1]}.", "chosen": s, "rejected": s.upper()} for s in STORIES]
ASKED = [{"prompt": f"Tell of the {s.split()[1]} and the {s.split()[5][:-1]}.", "completion": s} for s in STORIES]


def test_a_chain_of_models_has_three_columns(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, pairs = write_jsonl(tmp_path / "d.jsonl", ASKED), write_jsonl(tmp_path / "p.jsonl", PAIRS)
    common = {"method": "full", "steps": 12, "batch_tokens": 512, "lr": 0.003, "threads": 1}
    one = finetune.run(finetune.FinetuneConfig(str(data), str(tiny), "instructed", held_out=str(data), **common))  # type: ignore[arg-type]
    two = align.run(align.AlignConfig(str(pairs), "instructed", "aligned", held_out=str(pairs), **common))  # type: ignore[arg-type]
    made = [outcome.load(store.open_run(r.run)) for r in (one, two)]
    assert made[0].task[0].metric == "loss per token"
    assert made[0].verdict == "helped"
    assert made[1].parent_run == one.run
    assert [s.name for s in outcome.chain(made[1])] == ["tiny", "instructed", "aligned"]
    # What the second run measured before is what the first measured after: the same figures of the same model.
    for after, before in zip(made[0].after.kept, made[1].before.kept, strict=True):
        assert after.values == pytest.approx(before.values, rel=1e-4)
    page = store.open_run(two.run).report.read_text()
    assert "## Did it help?" in page
    assert "| figure | tiny | instructed | aligned |" in page
    assert "bits per byte of general texts" in page
    assert "peak memory MB" in page
    assert "What is the capital of France?" in page

    assert runs_verb.main(["compare", one.run, two.run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "different items" in found["sentence"]
    assert ["lr", 0.003, 0.003] not in found["settings"]
    assert next(f for f in found["figures"] if f["metric"].startswith("bits per byte"))["change"]["items"] == 16
    assert runs_verb.main(["compare", one.run, two.run]) == 0
    assert "| figure | tiny | instructed | aligned |" in capsys.readouterr().out


def test_runs_on_the_same_items_are_paired(tiny: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", ASKED)
    made = []
    for steps in (1, 25):
        config = finetune.FinetuneConfig(
            str(data), str(tiny), f"m{steps}", held_out=str(data), steps=steps, lr=0.01, batch_tokens=512, threads=1,
            method="full",
        )  # fmt: skip
        made.append(store.open_run(finetune.run(config).run))
    found, page = compare(*made)
    assert found.sentence.startswith("m25 is better than m1: loss per token went from")
    assert ("steps", 1, 25) in found.settings
    assert "| tiny | m1 | m25 |" in page.to_markdown()
    back, _ = compare(*made[::-1])
    assert back.sentence.startswith("m1 is worse than m25")
    with pytest.raises(NotFound, match="no before and after"):
        compare(made[0], store.new_run("finetune", {}))


def test_general_knowledge_is_that_of_the_engine(tiny: Path) -> None:
    """The same choices as evals.classify makes through the inference engine."""
    from ladderlm import engine
    from ladderlm.data.tasks import forgetting_probe, general_texts
    from ladderlm.evals import classify, perplexity

    files = open_model(str(tiny))
    texts, knowledge = kept(load_decoder(files).eval(), files)
    with engine.load(files) as loaded:
        assert classify.choose(loaded, files.tokenizer, forgetting_probe()).correct == knowledge.values
        bits = perplexity.evaluate(loaded, files.tokenizer, [r["text"] for r in general_texts()]).bits_each
    told = [v / s for v, s in zip(texts.values, texts.sizes, strict=True)]
    assert told == pytest.approx(bits, rel=0.02)


def test_answers_that_repeat_are_labels() -> None:
    from ladderlm.data.records import make_record

    def rows(*answers: str) -> list:
        return [
            make_record("completion", {"prompt": f"{i}?", "completion": a}, source="x") for i, a in enumerate(answers)
        ]

    assert labels_of(rows(*["yes", "no"] * 10)) == ("no", "yes")
    assert labels_of(rows(*map(str, range(20)))) == ()
    assert labels_of(rows(*["yes"] * 20)) == ()
    assert labels_of([make_record("text", {"text": "a"}, source="x")]) == ()


def shuffled(seed: int, true: bool = False) -> list[dict]:
    """Stories asked for a label that belongs to the animal, or to nothing."""
    rng = random.Random(seed)
    rows = []
    for i in range(120):
        story = rng.choice(STORIES)
        label = "big" if (story.split()[1] in ("cow", "dog") if true else rng.random() < 0.3) else "small"
        rows.append({"text": f"{story} {i}", "label": label})
    return rows


def verdict(tiny: Path, folder: Path, seed: int, steps: int, true: bool = False) -> str:
    rows = shuffled(seed, true)
    train, held = write_jsonl(folder / "t.jsonl", rows[:80]), write_jsonl(folder / "h.jsonl", rows[80:])
    config = finetune.FinetuneConfig(
        str(train), str(tiny), "labels", held_out=str(held), method="full", lr=0.003, steps=steps, batch_tokens=1024,
        seed=seed, threads=1, replace=True,
    )  # fmt: skip
    return str(finetune.run(config).scores["verdict"])


@pytest.mark.slow
def test_shuffled_labels_seldom_earn_the_word(tiny: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found = [verdict(tiny, tmp_path, seed, steps=12) for seed in range(20)]
    assert found.count("helped") <= 1, found


@pytest.mark.slow
def test_true_labels_do_earn_it(tiny: Path, tmp_path: Path) -> None:
    assert verdict(tiny, tmp_path, 0, steps=240, true=True) == "helped"


def test_a_label_file_is_measured_by_its_labels(tiny: Path, tmp_path: Path) -> None:
    from ladderlm.data.records import read_records

    records = read_records(write_jsonl(tmp_path / "d.jsonl", shuffled(0)))
    files = open_model(str(tiny))
    found = HeldAnswers(records[:20], records[20:], files, 128).measure(load_decoder(files).eval())
    assert [s.metric for s in found] == ["balanced accuracy", "loss per token"]
    assert sum(found[0].sizes) == pytest.approx(20)
