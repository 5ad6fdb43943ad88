"""Variants of what people type: the same every time, only of what is read, and named."""

import json
import random

import pytest

from ladderlm.cli.main import main
from ladderlm.data.augment import WAYS, augment_stage
from ladderlm.data.records import make_record, read_records
from ladderlm.data.rewrite import apply
from ladderlm.errors import UsageError

TEXT = "The quick brown fox jumps over the lazy dog and runs through the wide green fields of Norway"
ROW = make_record("text", {"text": TEXT}, source="s", licence="MIT")


def test_each_way_changes_a_text_and_keeps_it_readable():
    for way, change in WAYS.items():
        new = apply(TEXT, change(TEXT, random.Random(1), 0.3))
        assert new != TEXT, way
        assert abs(len(new) - len(TEXT)) < 20, way
    assert apply(TEXT, WAYS["case"](TEXT, random.Random(1), 1)).lower() == TEXT.lower()
    assert "".join(apply(TEXT, WAYS["space"](TEXT, random.Random(1), 0.5)).split()) == TEXT.replace(" ", "")


def test_a_keyboard_slip_is_a_neighbour():
    edits = WAYS["keyboard"]("Aaaa", random.Random(0), 1)
    (edit,) = edits
    changed = [(a, b) for a, b in zip("Aaaa", edit.new, strict=True) if a != b]
    assert len(changed) == 1
    assert changed[0][1].lower() in "qwsz"


def test_the_same_seed_gives_the_same_variants():
    first, again, other = (list(augment_stage(copies=3, rate=0.5, seed=s)([ROW])) for s in (0, 0, 1))
    assert first == again != other
    assert first[0] is ROW
    assert [r.id for r in first[1:]] == [f"{ROW.id}.{i}" for i in (1, 2, 3)]
    assert all(r.meta["of"] == ROW.id and r.meta["augmented"] in WAYS and r.licence == "MIT" for r in first[1:])


def test_what_a_model_shall_write_stays():
    turns = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]
    chat = make_record("messages", {"messages": turns}, source="s")
    (new,) = augment_stage(["case"], keep=False)([chat])
    assert new["messages"][0]["content"] != TEXT
    assert new["messages"][1]["content"] == TEXT
    pair = make_record("completion", {"prompt": TEXT, "completion": TEXT}, source="s")
    (new,) = augment_stage(["case"], keep=False)([pair])
    assert (new["prompt"] != TEXT, new["completion"]) == (True, TEXT)
    start = TEXT.index("Norway")
    spans = make_record("spans", {"text": TEXT, "spans": [[start, start + 6, "place"]]}, source="s")
    (new,) = augment_stage(["space"], rate=0.5, keep=False)([spans])
    a, b, _ = new["spans"][0]
    assert new["text"][a:b] == "Norway"


def test_a_paraphrase_is_asked_for():
    (new,) = augment_stage(["paraphrase"], keep=False, paraphrase=lambda t: f" In other words: {t} ")([ROW])
    assert new["text"] == f"In other words: {TEXT}"
    assert list(augment_stage(["paraphrase"], keep=False, paraphrase=lambda t: " ")([ROW])) == []


@pytest.mark.parametrize(
    "wrong", [{"ways": ["tpyo"]}, {"ways": ["paraphrase"]}, {"copies": 0}, {"rate": 0}, {"ways": []}]
)
def test_wrong_wishes(wrong):
    with pytest.raises(UsageError):
        augment_stage(**wrong)


def test_the_verb(tmp_path, capsys):
    file, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text(json.dumps({"text": TEXT}) + "\n")
    assert main(["data", "augment", str(file), "-o", str(out), "--copies", "2", "--ways", "case", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == {"case": 2}
    assert len(read_records(out)) == 3
    assert main(["data", "augment", str(file), "-o", str(out), "--model", "echo", "--no-keep"]) == 0
