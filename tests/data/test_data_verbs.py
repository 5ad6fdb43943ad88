"""`ladderlm data`: collect, split, stats."""

import json

from ladderlm.cli.main import main
from ladderlm.data.records import make_record, read_records
from ladderlm.data.stats import stats


def test_collect_split_stats(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for i in range(12):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"Text number {i}.\n")
    out = tmp_path / "corpus.jsonl.gz"
    assert main(["data", "collect", str(tmp_path / "texts"), "-o", str(out), "--licence", "CC0-1.0"]) == 0
    assert len(read_records(out)) == 12
    capsys.readouterr()
    assert main(["data", "split", str(out), "--fraction", "0.25", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    train, test = (read_records(tmp_path / f"corpus.{name}.jsonl") for name in ("train", "test"))
    assert sorted(r.id for r in (*train, *test)) == sorted(r.id for r in read_records(out))
    assert sum(s["records"] for s in shown.values()) == 12
    assert main(["data", "stats", str(out)]) == 0
    assert "CC0-1.0 12" in capsys.readouterr().out


def test_wrong_uses(tmp_path, capsys):
    assert main(["data"]) == 0
    assert main(["data", "colect"]) == 2
    assert "did you mean 'collect'?" in capsys.readouterr().err
    assert main(["data", "stats", str(tmp_path / "none")]) == 1
    assert main(["data", "collect", "docs-match", str(tmp_path), "-o", str(tmp_path / "x.jsonl")]) == 2


def test_builtin_tasks_are_written_as_two_files(tmp_path):
    assert main(["data", "collect", "docs-questions", "-o", str(tmp_path / "q.jsonl")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.test.jsonl", "q.train.jsonl"]


def test_stats_count_everything():
    class Letters:
        def encode_batch(self, texts):
            return [list(t.encode()) for t in texts]

    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c d"}]
    records = [make_record("messages", {"messages": turns}, source="s"),
               make_record("class", {"text": "x", "label": "y"}, source="s", licence="MIT")] * 2  # fmt: skip
    found = stats(records, Letters())
    assert (found.records, found.repeated, found.words, found.tokens) == (4, 2, 10, 18)
    assert found.tokens_each == (3, 4, 6, 6)
    assert dict(found.labels) == {"y": 2}
    assert dict(found.licences) == {"unknown": 2, "MIT": 2}
