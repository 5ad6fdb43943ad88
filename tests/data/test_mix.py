"""Mixtures: shares, epochs and budgets are met, the shuffle is uniform, and the same every time."""

import json
from collections import Counter

import numpy as np
import pytest

from ladderlm.cli.main import main
from ladderlm.data import mix
from ladderlm.data.mix import Part, mix_stage, shares
from ladderlm.data.records import make_record, read_records, write_records
from ladderlm.data.stages import stream
from ladderlm.errors import UsageError


@pytest.fixture
def files(tmp_path):
    for name, count, length in (("a", 300, 10), ("b", 60, 50)):
        rows = [make_record("text", {"text": f"{name}{i:04d}".ljust(length, ".")}, source=name) for i in range(count)]
        write_records(tmp_path / f"{name}.jsonl", rows)
    return str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")  # 3,000 bytes each


def mixed(parts, **options):
    return list(mix_stage(parts, **options)([r for p in parts for r in stream(p.path)]))


def by_source(rows):
    return Counter({s: sum(len(r["text"]) for r in rows if r.source == s) for s in {r.source for r in rows}})


def test_parts_are_parsed(tmp_path):
    assert Part.parse("a=b.jsonl=0.5") == Part("a=b.jsonl", 0.5)
    assert Part.parse("a.jsonl*2.5") == Part("a.jsonl", None, 2.5)
    assert Part.parse("a.jsonl") == Part("a.jsonl")
    (tmp_path / "x=1").write_text("")
    assert Part.parse(str(tmp_path / "x=1")).weight is None
    with pytest.raises(UsageError):
        Part.parse("a=-1")


def test_shares():
    a, b = Part("a"), Part("b")
    assert shares([a, b], [100, 900], 0, 1.0, 4) == [1, 1]
    assert shares([Part("a", 1), Part("b", 1)], [100, 900], 0, 1.0, 4) == pytest.approx([1, 1 / 9])
    assert shares([Part("a", 3), Part("b", 1)], [100, 900], 200, 1.0, 4) == pytest.approx([1.5, 50 / 900])
    assert shares([Part("a", 3), Part("b", 1)], [100, 900], 1000, 1.0, 4) == pytest.approx([4, 600 / 900])
    hot = shares([a, b], [100, 900], 400, 1e9, 4)
    assert [hot[0] * 100, hot[1] * 900] == pytest.approx([200, 200], rel=1e-3)
    assert shares([Part("a", None, 2), b], [100, 900], 500, 1.0, 4) == pytest.approx([2, 300 / 900])
    for parts, budget in (([Part("a", 1), b], 10), ([Part("a", None, 9), b], 10)):
        with pytest.raises(UsageError):
            shares(parts, [100, 900], budget, 1.0, 4)
    with pytest.raises(UsageError, match="without text"):
        shares([a, b], [0, 1], 0, 1.0, 4)


def test_weights_and_budgets_are_met(files):
    rows = mixed([Part(files[0], 3), Part(files[1], 1)], budget=4000)
    assert by_source(rows) == {"a": 3000, "b": 1000}
    assert len({r.id for r in rows}) == len(rows)
    rows = mixed([Part(files[0], None, 2.5), Part(files[1], None, 0.5)])
    assert by_source(rows) == {"a": 7500, "b": 1500}
    times = Counter(Counter(r.id for r in rows if r.source == "a").values())
    assert times == {2: 150, 3: 150}


def test_the_order_is_shuffled_and_the_seeds(files):
    parts = [Part(files[0]), Part(files[1])]
    first, again, other = mixed(parts), mixed(parts), mixed(parts, seed=1)
    assert first == again
    assert first != other
    assert sorted(r.id for r in first) == sorted(r.id for r in other)
    places = [i for i, r in enumerate(first) if r.source == "b"]
    assert abs(np.mean(places) - 180) < 30  # even over the whole: a standard deviation is 13
    order = [int(r["text"][1:5]) for r in first if r.source == "a"]
    assert abs(np.corrcoef(order, range(len(order)))[0, 1]) < 0.2


def test_which_are_taken_says_nothing_of_their_order(files):
    rows = mixed([Part(files[0], None, 1.5)])
    twice = {i for i, n in Counter(r.id for r in rows).items() if n == 2}
    places = [i for i, r in enumerate(rows) if r.id in twice]
    assert abs(np.mean(places) - 225) < 30


def test_many_buckets_give_the_same_records(files, monkeypatch):
    whole = mixed([Part(files[0]), Part(files[1])])
    monkeypatch.setattr(mix, "BUCKET", 500)
    assert mixed([Part(files[0]), Part(files[1])]) == whole


def test_the_verb(files, tmp_path, capsys):
    out = tmp_path / "m.jsonl"
    run = ["data", "mix", files[0] + "=1", files[1] + "=1", "--budget", "100", "--unit", "records", "-o", str(out)]
    assert main([*run, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [p["taken"] for p in told["details"]["parts"]] == [50, 50]
    assert Counter(r.source for r in read_records(out)) == {"a": 50, "b": 50}
    assert main(["data", "mix", files[0], "-"]) == 2
    assert main(["data", "mix", files[0], "--unit", "tokens", "-o", str(out)]) == 2
