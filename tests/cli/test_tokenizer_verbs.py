"""`ladderlm tokenizer`: train each kind, encode and decode, look at one and compare several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ladderlm.cli.main import main
from ladderlm.text.quality import measure
from ladderlm.text.tokenizer import Tokenizer


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"The quick brown fox number {i} jumps over the lazy dog."} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "code.txt").write_text("def f(x):\n    return x + 1\n" * 20, encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    capsys.readouterr()
    assert main(["tokenizer", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_train_encode_decode(kind: str, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / kind / "tokenizer.json"
    made = run(capsys, "train", str(texts), "--out", str(out), "--kind", kind, "--vocab-size", "400")
    assert made["vocab_size"] <= 400
    found = run(capsys, "encode", "The lazy fox", "--tokenizer", str(out))
    ids = [str(i) for i in found["ids"]]
    assert run(capsys, "decode", *ids, "--tokenizer", str(out)) == {"text": "The lazy fox"}


def test_stats_and_compare(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for pattern in ("smollm", "gpt-2"):
        names.append(str(tmp_path / f"{pattern}.json"))
        run(capsys, "train", str(texts), "--out", names[-1], "--pattern", pattern, "--vocab-size", "320")
    files = [str(texts), str(tmp_path / "code.txt")]
    found = run(capsys, "stats", *files, "--tokenizer", names[0])
    assert set(found["by_kind"]) == set(files)
    assert found["by_kind"][files[0]] > found["by_kind"][files[1]]
    assert found["round_trip"] is True
    both = run(capsys, "compare", *files, "--tokenizer", names[0], "--tokenizer", names[1])
    assert list(both) == names
    same = {k: v for k, v in both[names[0]].items() if k != "megabytes_per_second"}
    assert same == {k: v for k, v in found.items() if k != "megabytes_per_second"}
    assert main(["tokenizer", "compare", *files, "--tokenizer", names[0]]) == 0
    assert f"bytes per token: {files[1]}" in capsys.readouterr().out


def test_texts_that_do_not_come_back_are_counted(texts: Path) -> None:
    spec = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}
    split = {"type": "Whitespace"}
    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": spec}
    found = measure(Tokenizer.from_json(json.dumps(whole)), {"x": ["a", "b", "c d"]})
    assert (found["texts_changed"], found["round_trip"]) == (2, False)


def test_what_is_no_id(tmp_path: Path) -> None:
    assert main(["tokenizer", "decode", "one", "two"]) == 2
    assert main(["tokenizer", "compare", "x.txt"]) == 2
