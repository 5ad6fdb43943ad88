"""Groups counted, words swapped, skews made smaller."""

import json
import re
from collections import Counter

import pytest

from ladderlm.cli.main import main
from ladderlm.data.balance import balance_stage
from ladderlm.data.bias import Finder, bias_report, wilson
from ladderlm.data.groups import Terms, read_terms
from ladderlm.data.records import make_record, read_records
from ladderlm.data.rewrite import apply
from ladderlm.data.stages import Dropped
from ladderlm.data.swap import Swapper
from ladderlm.errors import FormatError, UsageError
from ladderlm.types import Record


def swap(text):
    return apply(text, Swapper().edits(text))


def text(value, at=0):
    return make_record("text", {"text": value, "at": str(at)}, source="s")


SWAPS = [
    ("He gave her his book.", "She gave him her book."),
    ("The book is hers, not his.", "The book is his, not hers."),
    ("I saw her.", "I saw him."),
    ("I told her that he left her at the station.", "I told him that she left him at the station."),
    ("Her mother's brothers' house; HIS FATHER", "His father's sisters' house; HER MOTHER"),
    ("Her family told her quietly.", "His family told him quietly."),
    ("her slowly growing fear", "his slowly growing fear"),
    ("She let her go. They drove her home. Her home town", "He let him go. They drove him home. His home town"),
    ("She'd hurt herself", "He'd hurt himself"),
    ("Mr. King and Stephen King met the King.", "Ms. King and Stephen King met the Queen."),
    ("A mannequin, a woman-hater, humans, the chairman", "A mannequin, a man-hater, humans, the chairwoman"),
]


@pytest.mark.parametrize(("old", "new"), SWAPS)
def test_words_are_swapped(old, new):
    assert swap(old) == new


def test_whole_schemas_are_swapped(shared_data):
    """Sentences that differ in the pronoun's gender alone turn into one another."""
    lines = (shared_data / "bias" / "winogender-all_sentences.tsv").read_text().splitlines()[1:]
    rows = dict(line.split("\t") for line in lines)
    pairs = [(rows[k], rows[k.replace(".male.", ".female.")]) for k in rows if ".male." in k]
    assert len(pairs) == 240
    assert all(swap(a) == b and swap(b) == a for a, b in pairs)


def test_harder_schemas_are_mostly_swapped(shared_data):
    def lines(kind):
        found = (shared_data / "bias" / "winobias" / f"{kind}_stereotyped_type2.txt.dev").read_text().splitlines()
        return [re.sub(r"[\[\]]", "", line.split(" ", 1)[1]).strip().lower() for line in found]

    def bare(line):
        return re.sub(r"\b(he|she|him|her|his|hers)\b", "_", line)

    pairs = [(a, b) for a, b in zip(lines("pro"), lines("anti"), strict=True) if bare(a) == bare(b)]
    right = [swap(a) == b for a, b in pairs]
    assert len(right) > 300
    assert sum(right) / len(right) > 0.94


def test_own_pairs():
    swapper = Swapper((("church", "mosque"),))
    assert apply("The Church and her mosque", swapper.edits("The Church and her mosque")) == "The Mosque and her church"


def test_wilson():
    assert wilson(0, 0) == (0, 1)
    low, high = wilson(50, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)  # Wilson 1927, by hand


def test_mentions_and_what_is_told():
    filler = "x " * 30
    rows = [text(f"She is a nurse. {filler} The engineer slept.", i) for i in range(60)]
    rows += [text(f"He is an engineer. He works. Black people and black cats. {filler} nurse", i) for i in range(40)]
    found = bias_report(Finder(Terms()).count(rows), Terms())
    gender = found["axes"]["gender"]
    assert gender["groups"]["female"]["mentions"] == 60
    assert gender["groups"]["male"]["mentions"] == 80
    assert found["axes"]["ethnicity"]["groups"]["black"]["mentions"] == 40
    assert gender["attributes"]["caring"]["female"]["share"] == 1
    assert gender["attributes"]["caring"]["female"]["skewed"]
    assert gender["attributes"]["science"]["male"]["records"] == 40
    assert "arts" not in gender["attributes"] or not gender["attributes"]["arts"]


@pytest.fixture
def skewed():
    return [text("She is a nurse and loves her work.", i) for i in range(30)] + [
        text("He is an engineer; his boss praised him.", i) for i in range(170)
    ]


@pytest.mark.parametrize("action", ["swap", "copy", "reweight"])
def test_the_skew_shrinks(skewed, action):
    details, counts = {}, Counter()
    found = list(balance_stage(Terms(), action=action, details=details, counts=counts)(iter(skewed)))
    before, after = (details[when]["axes"]["gender"] for when in ("before", "after"))
    assert before["imbalance"] > 0.2
    assert after["imbalance"] < 0.02
    kept = [r for r in found if isinstance(r, Record)]
    measured = bias_report(Finder(Terms()).count(kept), Terms())["axes"]["gender"]
    assert measured["groups"] == after["groups"]
    if action == "swap":
        assert [r.id for r in kept] == [r.id for r in skewed]
        assert 60 < counts["swapped"] < 140
    elif action == "copy":
        assert len(kept) == 400
        assert after["groups"]["male"]["mentions"] == after["groups"]["female"]["mentions"]
    else:
        assert {r.rule for r in found if isinstance(r, Dropped)} == {"balance"}


def test_wrong_wishes():
    with pytest.raises(UsageError, match="gender"):
        balance_stage(Terms(), "gendre")
    with pytest.raises(UsageError, match="two groups"):
        balance_stage(Terms(), "religion", "reweight")


def test_own_terms(tmp_path):
    path = tmp_path / "t.toml"
    path.write_text('[groups.pets]\ncat = ["cat", "house cat"]\ndog = ["dog"]\n[swap]\npairs = [["cat", "dog"]]\n')
    terms = read_terms(path)
    assert terms.groups["pets"]["cat"] == ("cat", "house cat")
    assert terms.pairs == (("cat", "dog"),)
    for wrong in ("[group.x]\n", "[groups.x]\na = 3\n", '[swap]\npairs = [["a"]]\n', '[attributes]\na = ["a b c d"]\n'):
        path.write_text(wrong)
        with pytest.raises(FormatError):
            read_terms(path)


def test_the_verbs(skewed, tmp_path, capsys):
    file, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text("".join(json.dumps({"text": r["text"]}) + "\n" for r in skewed))
    assert main(["data", "bias", str(file), "--axis", "gender"]) == 0
    assert "gender\tmale" in capsys.readouterr().out
    assert main(["data", "bias", str(file), "--axis", "gendre"]) == 2
    assert main(["data", "balance", str(file), "-o", str(out), "--action", "copy"]) == 0
    assert "before\tmale" in capsys.readouterr().out
    assert len(read_records(out)) == 400
