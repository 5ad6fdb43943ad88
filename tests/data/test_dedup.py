"""Duplicates: exact and near ones, documents and paragraphs, the bars on seeded edits, and settings."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bench.near import jaccard, judged, near_duplicates, shingles

from ladderlm.cli.main import main
from ladderlm.data.dedup import dedup
from ladderlm.data.minhash import Index, MinHash, bands_of, rows_of
from ladderlm.data.records import make_record
from ladderlm.data.stages import Dropped, Record, stream, to_line
from ladderlm.errors import UsageError

WORDS = [f"w{i}" for i in range(500)]


def text(value: str, source: str = "test") -> Record:
    return make_record("text", {"text": value}, source=source)


def some(seed: int, words: int = 100) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words))


def rules(records: list[Record], **settings: object) -> list[str]:
    out = dedup(**settings)(records)  # type: ignore[arg-type]
    return [item.rule if isinstance(item, Dropped) else "" for item in out]


def test_near_duplicates_meet_the_bars() -> None:
    records = near_duplicates(150, seed=3)
    out = list(dedup()(records))
    dropped = [(o.record, o.record.meta["duplicate_of"]) for o in out if isinstance(o, Dropped)]
    found = judged(records, dropped)
    assert found["recall"] >= 0.95
    assert found["precision"] >= 0.98


def test_the_estimate_is_that_of_the_sets() -> None:
    records, minhash = near_duplicates(60, seed=1), MinHash(512)
    groups: dict[int, list[str]] = {}
    for record in records:
        groups.setdefault(record.meta["group"], []).append(record["text"])
    errors = [
        float(np.mean(minhash(a) == minhash(b))) - jaccard(a, b) for a, *others in groups.values() for b in others
    ]
    assert abs(np.mean(errors)) < 0.006  # unbiased
    assert np.std(errors) < 1.3 * np.sqrt(0.25 / 512)  # and as sharp as the theory says
    assert float(np.mean(minhash(some(1)) == minhash(some(2)))) < 0.02


def test_the_first_stays_and_the_drop_names_it() -> None:
    base, other = some(1), some(2)
    near = base.replace(" ", "  ", 3).replace(base.split()[50], "changed", 1)
    records = [text(base), text(other), text(base + "\n"), text(near)]
    out = list(dedup()(records))
    assert [o.rule if isinstance(o, Dropped) else "" for o in out] == ["", "", "exact-duplicate", "near-duplicate"]
    assert [o.record.meta["duplicate_of"] for o in out if isinstance(o, Dropped)] == [records[0].id] * 2
    assert out[2].record.meta["similarity"] == 1  # type: ignore[union-attr]
    assert out[3].record.meta["similarity"] == pytest.approx(jaccard(base, near), abs=0.08)  # type: ignore[union-attr]
    backwards = list(dedup()(records[::-1]))
    assert [isinstance(o, Dropped) for o in backwards] == [False, True, False, True]


def test_exact_only_and_thresholds() -> None:
    base = some(1)
    near = text(base.replace(base.split()[50], "changed", 1))
    assert rules([text(base), near, text(base)], exact=True) == ["", "", "exact-duplicate"]
    assert rules([text(base), near], threshold=1.0) == ["", ""]
    assert rules([text(base), text(some(1, 60))], threshold=0.4) == ["", "near-duplicate"]


def test_other_words_case_and_marks() -> None:
    base = some(1)
    assert rules([text(base), text(base.upper().replace(" ", ", "))]) == ["", "near-duplicate"]
    chinese = "今天天气很好我们一起去公园散步然后回家吃饭看书写字听音乐睡觉做梦"
    assert rules([text(chinese), text("“" + chinese + "”!")]) == ["", "near-duplicate"]
    assert rules([text("one two three"), text("Three, two, one"), text("ONE two three!")]) == ["", "", "near-duplicate"]
    assert rules([text(""), text("?"), text("…"), text("")])[:2] == ["", ""]


def test_a_generator_is_enough_and_other_kinds_count_as_a_whole() -> None:
    rows = [("a", "x"), ("a", "y"), ("a", "x")]
    records = (make_record("class", {"text": t, "label": label}, source="t") for t, label in rows)
    assert [isinstance(o, Dropped) for o in dedup(exact=True)(records)] == [False, False, True]


def test_many_copies_and_a_long_chain() -> None:
    base = some(5).split()
    chain = [" ".join([f"new{j}" for j in range(2 * i)] + base[2 * i :]) for i in range(12)]
    assert rules([text(c) for c in chain]) == [""] + ["near-duplicate"] * 11
    assert Counter(rules([text(some(9)) for _ in range(500)])) == {"": 1, "exact-duplicate": 499}


def test_paragraphs() -> None:
    notice, a, b = some(1, 40), some(2, 40), some(3, 40)
    changed: Counter[str] = Counter()
    records = [text(f"{a}\n\n{notice}"), text(f"{notice}\n\n{b}\n\nshort"), text(notice), text("short"), text("short")]
    out = list(dedup("paragraph", changed=changed)(records))
    assert out[0] == records[0]
    assert isinstance(out[1], Record)
    assert (out[1]["text"], out[1].id) == (f"{b}\n\nshort", records[1].id)
    assert isinstance(out[2], Dropped)
    assert out[2].rule == "duplicate-paragraphs"
    assert out[3:] == records[3:]
    assert changed == {"exact-paragraph": 2}


def test_the_same_on_every_machine() -> None:
    signature = MinHash(16)("The quick brown fox jumps over the lazy dog and runs away.")
    assert signature.tolist() == [
        162589690,
        303667957,
        881686457,
        351172934,
        401597813,
        915242316,
        436922622,
        481707931,
        277508241,
        943563262,
        166970731,
        866263266,
        387542527,
        117484273,
        657297389,
        468851189,
    ]


def test_more_texts_than_a_chunk(tmp_path: Path) -> None:
    index = Index(tmp_path, MinHash(32, 5), permutations=32, threshold=0.5)
    for i in range(9000):
        index.add(f"number {i % 4500}")
    links = index.link()
    assert np.array_equal(links.root, np.tile(np.arange(4500), 2))
    assert links.exact[4500:].all()
    assert not links.exact[:4500].any()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.65, 0.8, 0.95, 1.0])
def test_bands_find_nearly_all_pairs_above_the_threshold(threshold: float) -> None:
    rows = rows_of(threshold, 512)
    bands, alike = bands_of(threshold, rows, 512), min(threshold + 0.05, 1)
    assert rows * bands <= 512
    assert 1 - (1 - alike**rows) ** bands >= 0.989


def test_settings_out_of_range() -> None:
    for wrong in ({"threshold": 0.0}, {"threshold": 1.5}, {"permutations": 1}, {"ngram": 0}, {"level": "word"}):
        with pytest.raises(UsageError):
            dedup(**wrong)  # type: ignore[arg-type]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "out.jsonl"
    a.write_bytes(to_line(text(some(1))) + to_line(text(some(2))))
    b.write_bytes(to_line(text(some(2))) + b"broken\n" + to_line(text(some(3))))
    command = ["data", "dedup", str(a), str(b), "-o", str(out), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == {"broken-json": 1, "exact-duplicate": 1}
    assert [r["text"] for r in stream(out)] == [some(i) for i in (1, 2, 3)]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] is True
    assert main(["data", "dedup", str(a), "-o", str(out), "--level", "paragraph"]) == 0


def test_the_generator_keeps_its_word() -> None:
    records = near_duplicates(40, seed=7)
    assert records == near_duplicates(40, seed=7)
    groups: dict[int, dict[str, list[str]]] = {}
    for r in records:
        groups.setdefault(r.meta["group"], {}).setdefault(r.meta["role"], []).append(r["text"])
    for group in groups.values():
        (original,) = group["original"]
        assert all(0.7 <= jaccard(original, t) <= 0.95 for t in group["edit"])
        assert all(0.4 <= jaccard(original, t) <= 0.6 for t in group["distractor"])
    assert shingles("A b, c d e f.") == {("a", "b", "c", "d", "e"), ("b", "c", "d", "e", "f")}


def test_spans_of_three_sentences() -> None:
    """After Raffel et al. 2020: of a span of three sentences that comes more than once, one stays."""
    notice = (
        "This is the first thing that we all have to say. Here is the second one of them! Is there a third one too?"
    )
    changed: Counter[str] = Counter()
    records = [
        text(f"A tale begins here and now. {notice} It ends."),
        text(f"Another one.\n{notice}\nIt goes on and on."),
        text(notice),
        text("No. Yes. No. Yes."),
        text("No. Yes. No. Yes."),
        text(notice.replace("third", "fourth")),
    ]
    out = list(dedup("sentences", changed=changed)(records))
    assert [o.rule if isinstance(o, Dropped) else "" for o in out] == ["", "", "duplicate-sentences", "", "", ""]
    assert [out[i] for i in (0, 3, 4, 5)] == [records[i] for i in (0, 3, 4, 5)]
    assert out[1]["text"] == "Another one.\nIt goes on and on."  # type: ignore[index]
    assert changed == {"repeated-sentences": 6}
    twice = next(dedup("sentences")([text(f"{notice} In between. {notice} The end.")]))
    assert twice["text"] == f"{notice} In between. The end."  # type: ignore[index]
    short = list(dedup("sentences", least_words=2)([records[3], records[4]]))
    assert [isinstance(o, Dropped) for o in short] == [False, True]
