"""`eval` end to end: what is measured follows from the kind of the records."""

import json

import pytest

from ladderlm.cli.main import main
from ladderlm.data.records import make_record, write_records
from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.run import EvalConfig, run


def write(path, kind, *rows):
    write_records(path, [make_record(kind, row, source="s") for row in rows])
    return str(path)


def test_answers_are_compared_with_the_reference(tmp_path, capsys):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    rows = [
        {"prompt": "the cat sat on the mat", "completion": "the cat sat on the mat"},
        {"prompt": "a b c d", "completion": "x"},
    ]
    data = write(tmp_path / "d.jsonl", "completion", *rows)
    result = run(EvalConfig("echo", data, report=str(tmp_path / "report")))
    assert result.each["rougeL"] == (1.0, 0.0)
    assert result.metrics["rougeL"].mean == 0.5
    assert result.samples[0] == ("the cat sat on the mat",) * 3
    assert "rougeL" in (tmp_path / "report" / "report.md").read_text()
    assert main(["eval", "echo", "--data", data, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["metrics"]["rougeL"]["mean"] == 0.5
    assert shown["items"] == 2
    table = tmp_path / "d.csv"
    table.write_text("question,said\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in rows))
    same = run(EvalConfig("echo", str(table), columns=("prompt=question,completion=said",)))
    assert same.each == result.each


def test_refusals(tmp_path, capsys):
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"text": "a"}\n{"text": "a", "label": "b"}\n')
    with pytest.raises(FormatError, match="several kinds of record: class, text"):
        run(EvalConfig("echo", str(mixed)))
    with pytest.raises(UsageError, match="no data"):
        run(EvalConfig("echo"))
    with pytest.raises(UsageError, match=r"\{text\}"):
        run(EvalConfig("echo", "docs-match", template="nothing"))
    with pytest.raises(FormatError, match="no evaluation for triple"):
        run(
            EvalConfig("echo", write(tmp_path / "t.jsonl", "triple", {"anchor": "a", "positive": "b", "negative": "c"}))
        )
    with pytest.raises(UsageError, match="local model"):
        run(EvalConfig("http://127.0.0.1:1/v1#m", write(tmp_path / "x.jsonl", "text", {"text": "a"})))
    assert main(["eval", "echo", "--data", str(tmp_path / "none.jsonl")]) == 1
    assert "no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_default_model(tmp_path, default_model):
    found = run(EvalConfig(default_model, "forgetting-probe"))
    assert found.metrics["accuracy"].mean > 0.8
    text = write(
        tmp_path / "t.jsonl",
        "text",
        {"text": "The sun rises in the east and sets in the west."},
        {"text": "Hello there."},
    )
    twice = run(EvalConfig(default_model, text, against=default_model))
    assert 0.5 < twice.metrics["bits_per_byte"].mean < 3
    assert twice.helped.verdict == "no evidence"
    pair = {
        "prompt": "What is the opposite of hot?",
        "chosen": "The opposite of hot is cold.",
        "rejected": "Hat the of.",
    }
    assert run(EvalConfig(default_model, write(tmp_path / "p.jsonl", "preference", pair))).each["chosen_likelier"] == (
        1.0,
    )
    classes = run(EvalConfig(default_model, "docs-match", limit=8, shots=2))
    assert classes.items == 8
    assert set(classes.details) >= {"accuracy", "macro_f1", "labels", "confusion"}
