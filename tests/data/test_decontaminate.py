"""Benchmarks are kept out of training text: whatever their layout, however they are quoted."""

import gzip
import json
import random

import pytest

from ladderlm.cli.main import main
from ladderlm.data.decontaminate import Benchmarks, decontaminate_stage, items
from ladderlm.data.records import make_record, read_records
from ladderlm.data.stages import Dropped
from ladderlm.errors import FormatError, UsageError

QUESTION = "A farmer has seven red hens and each hen lays three brown eggs on every second day of May."
SHORT = "What is the largest town of northern Norway?"
RNG = random.Random(3)
FILLER = " ".join("".join(RNG.choice("abcdefghij") for _ in range(5)) for _ in range(400))


@pytest.fixture
def bench(tmp_path):
    path = tmp_path / "bench.jsonl"
    rows = [
        {"question": QUESTION, "answer": "52"},
        {"question": SHORT, "answer": "x"},
        {"question": "Who?", "answer": "Me"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text(value):
    return make_record("text", {"text": value}, source="s")


def test_any_layout_is_read(tmp_path):
    layouts = {
        "a.jsonl": json.dumps({"q": QUESTION, "choices": ["x", "y"]}) + "\nplain line\n",
        "b.json": json.dumps({"version": 1, "examples": [{"input": QUESTION}, {"input": "b"}]}),
        "c.tsv": f"1\t{QUESTION}\n2\tother\n",
        "d.txt": QUESTION + "\nother\n",
    }
    for name, content in layouts.items():
        (tmp_path / name).write_text(content)
        found = items(tmp_path / name)
        assert len(found) == 2, name
        assert any(QUESTION in t for t in found[0]), name
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(layouts["a.jsonl"].encode()))
    assert items(tmp_path / "e.jsonl.gz") == items(tmp_path / "a.jsonl")
    (tmp_path / "f.txt").write_text("\n")
    with pytest.raises(FormatError):
        items(tmp_path / "f.txt")


def test_repeats_are_found_and_places_told(bench):
    benchmarks = Benchmarks([bench])
    quoted = QUESTION.upper().replace(" ", " \n ").replace("hens", "«hens»,")
    spans = benchmarks.spans(f"{FILLER} {quoted} {FILLER}")
    assert len(spans) == 1
    assert spans[0] == (len(FILLER) + 1, len(FILLER) + 1 + len(quoted) - 1)  # the full stop is not part of it
    assert benchmarks.spans(f"{FILLER} {SHORT}") == [(len(FILLER) + 1, len(FILLER) + len(SHORT))]
    twelve = " ".join(QUESTION.split()[:12])
    assert benchmarks.spans(f"{twelve} {FILLER}") == []
    assert benchmarks.spans("Who? Me") == []
    assert benchmarks.report() == {
        "bench.jsonl": {"items": 3, "too_short": 1, "hit": 2, "share": 0.6667, "first_hit": [0, 1]}
    }


def test_places_hold_where_small_letters_are_longer(bench):
    benchmarks = Benchmarks([bench])
    before = "İİİ Straße " * 5
    assert benchmarks.spans(before + QUESTION) == [(len(before), len(before) + len(QUESTION) - 1)]


def test_random_windows_agree_with_a_plain_search(tmp_path):
    rng = random.Random(7)
    words = [f"w{i}" for i in range(6)]
    lines = [" ".join(rng.choice(words) for _ in range(rng.randint(8, 20))) for _ in range(30)]
    (tmp_path / "b.txt").write_text("\n".join(lines))
    benchmarks = Benchmarks([tmp_path / "b.txt"], n=8)
    grams = {tuple(line.split()[i : i + 8]) for line in lines for i in range(len(line.split()) - 7)}
    hits = 0
    for _ in range(300):
        sample = [rng.choice([*words, "new"]) for _ in range(30)]
        if rng.random() < 0.5:
            sample[4:4] = rng.choice(lines).split()[:9]
        wanted = any(tuple(sample[i : i + 8]) in grams for i in range(len(sample) - 7))
        assert bool(benchmarks.spans(" ".join(sample))) == wanted
        hits += wanted
    assert 0 < hits < 300


def test_drop_and_cut(bench):
    rows = [text(FILLER), text(f"{FILLER} {QUESTION} {FILLER}"), text(QUESTION)]
    dropped = list(decontaminate_stage(Benchmarks([bench]))(rows))
    assert dropped == [rows[0], Dropped(rows[1], "contaminated"), Dropped(rows[2], "contaminated")]
    cut = list(decontaminate_stage(Benchmarks([bench]), "cut")(rows))
    assert [getattr(r, "id", "") for r in cut[:3]] == [rows[0].id, f"{rows[1].id}.1", f"{rows[1].id}.2"]
    assert all("hens" not in r["text"] for r in cut[:3])
    assert cut[1]["text"] == FILLER[: len(FILLER) + 1 - 200].strip()
    assert cut[3] == Dropped(rows[2], "contaminated")


def test_a_short_n_is_refused(bench):
    with pytest.raises(UsageError):
        Benchmarks([bench], n=5)


def test_the_verb(bench, tmp_path, capsys):
    file, out = tmp_path / "train.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in (FILLER, FILLER + QUESTION)))
    run = ["data", "decontaminate", str(file), "--against", str(bench), "-o", str(out)]
    assert main([*run, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dropped"] == {"contaminated": 1}
    assert told["details"]["benchmarks"]["bench.jsonl"]["hit"] == 1
    assert [r["text"] for r in read_records(out)] == [FILLER]
    assert main(run) == 0
    assert "done before" in capsys.readouterr().out
    bench.write_text(json.dumps({"question": "another question of at least eight words in all"}))
    assert main(run) == 0  # another benchmark of the same name is other work
    assert len(read_records(out)) == 2
    assert main(["data", "decontaminate", str(file)]) == 2
