"""Our scanner, trainer and encoder of byte-level BPE against the `tokenizers` library: equal words, merges, ids."""

from __future__ import annotations

import itertools
import json
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, trainers

from ladderlm.errors import UsageError
from ladderlm.text import bpe, fast, patterns, scan
from ladderlm.text.bpe import train_bpe, train_unigram, train_wordpiece
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.text.words import WordCounts, learn_merges

PIECES = [*" \n\r\t'aAsStTrReEvVlLmMdD019!.-_é日ſ½²٣①🤖", "\xa0", "\u3000", "\u2028", "\x85", "\u0301", "\u180e",
          "\u200b", "\x00", "\x1c", "\u202f", "'s", "'ll", "'RE", "  ", "\r\n", " the", "2024", "İ", "K"]  # fmt: skip
LETTERS = str.maketrans("0123456789", "qrstuvwxyz")
TRICKY = st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8"), max_size=40).map("".join)


def library(name: str, vocab: dict[str, int] | None = None, merges: Any = ()) -> tokenizers.Tokenizer:
    model = {"type": "BPE", "vocab": vocab or {}, "merges": [list(m) for m in merges]}
    spec = {"version": "1.0", "added_tokens": [], "pre_tokenizer": patterns.pre_tokenizer_spec(name), "model": model}
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [f.read_text(encoding="utf-8", errors="replace") for f in files]


@pytest.mark.parametrize("name", patterns.PATTERNS)
@settings(max_examples=300, deadline=None)
@given(text=TRICKY)
def test_words_are_cut_where_the_regex_cuts_them(name: str, text: str) -> None:
    pieces = [len(piece) for piece, _ in library(name).pre_tokenizer.pre_tokenize_str(text)]
    data, out = np.frombuffer(text.encode(), np.uint8), np.empty(len(text.encode()), np.int64)
    count = scan.cut(data, len(data), patterns.classes(), *patterns.PATTERNS[name], out)
    assert out[:count].tolist() == np.cumsum(pieces).tolist()


@pytest.mark.parametrize("name", patterns.PATTERNS)
def test_the_trainer_learns_what_the_library_learns(name: str, texts: list[str]) -> None:
    special, texts = ["<|endoftext|>", "self", "Ġimport"], [*texts[:25], "naïve café 日本語 " * 9, "aaaaaaa " * 50]
    counts = WordCounts(patterns.PATTERNS[name])
    counts.add(t.encode() for t in texts)
    vocab, merges = learn_merges(counts, 1500, special)
    theirs = library(name)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )  # fmt: skip
    model = json.loads(theirs.to_str())["model"]
    assert vocab == model["vocab"]
    assert merges == [tuple(m) for m in model["merges"]]


def test_both_ways_of_training_give_the_same_file(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = train_bpe(texts[:5], 500)
    monkeypatch.setattr(bpe, "SMALL", 1)
    assert json.loads(train_bpe(texts[:5], 500).to_json()) == json.loads(small.to_json())
    assert train_bpe(["\ud800 x"], 300).vocab_size <= 300


def test_word_counts_grow() -> None:
    many = " ".join(np.base_repr(i, 26).translate(LETTERS) * 5 for i in range(70_000)).encode()
    counts = WordCounts(patterns.PATTERNS["gpt-2"])
    counts.add([many, many])
    data, starts, each = counts.words()
    words = [data[i:j].tobytes() for i, j in itertools.pairwise(starts)]
    assert len(set(words)) == len(words) > 69_000
    assert sum(len(w) * int(n) for w, n in zip(words, each, strict=True)) == 2 * len(many)


@pytest.fixture(scope="module")
def trained(texts: list[str]) -> dict[str, Tokenizer]:
    return {name: train_bpe(texts[:30], 1000, pattern=name) for name in patterns.PATTERNS}


def test_ids_are_those_of_the_library(trained: dict[str, Tokenizer], texts: list[str]) -> None:
    for tokenizer in trained.values():
        assert tokenizer._fast is not None
        ids, ends = tokenizer.encode_arrays(texts[:60])
        found = [part.tolist() for part in np.split(ids, ends[:-1])]
        assert found == [tokenizer.encode(t) for t in texts[:60]] == tokenizer.encode_batch(texts[:60])


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(TRICKY | st.text("ab ", max_size=300), max_size=4))
def test_ids_of_any_text_are_those_of_the_library(trained: dict[str, Tokenizer], rows: list[str]) -> None:
    for tokenizer in trained.values():
        ids, ends = tokenizer._fast.encode(rows)  # type: ignore[union-attr]
        assert [ids[i:j].tolist() for i, j in zip([0, *ends], ends, strict=False)] == [
            tokenizer.encode(r) for r in rows
        ]


def test_the_memory_of_words_may_overflow(trained: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "WORDS", 64)
    tokenizer = Tokenizer.from_json(trained["gpt-2"].to_json())
    text = " ".join(
        f"{word}{i % 97}" for i in range(400) for word in ("alpha", "averyveryverylongwordindeed", "日本語")
    )
    ids, _ = tokenizer._fast.encode([text])  # type: ignore[union-attr]
    assert ids.tolist() == tokenizer.encode(text)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"\w+|\W+"}, "behavior": "Isolated", "invert": False}},
        {"added_tokens": [{"id": 300, "content": "import", "special": False, "normalized": False, "single_word": False,
                           "lstrip": False, "rstrip": False}]},
    ],
)  # fmt: skip
def test_what_is_not_known_is_left_to_the_library(trained: dict[str, Tokenizer], change: dict[str, Any]) -> None:
    spec = {**json.loads(trained["gpt-2"].to_json()), **change}
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    assert tokenizer._fast is None
    texts = ["import x", "Hello  World"]
    ids, ends = tokenizer.encode_arrays(texts)
    assert [part.tolist() for part in np.split(ids, ends[:-1])] == [tokenizer.encode(t) for t in texts]


def test_a_wrong_encoder_is_noticed(trained: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "pattern_of", lambda part: patterns.PATTERNS["llama-bpe"])
    assert Tokenizer.from_json(trained["gpt-2"].to_json())._fast is None


def test_nfc_is_applied(trained: dict[str, Tokenizer]) -> None:
    spec = {**json.loads(trained["qwen2"].to_json()), "normalizer": {"type": "NFC"}}
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    ids, _ = tokenizer._fast.encode(["e\u0301te\u0301 \u1112\u1161"])  # type: ignore[union-attr]
    assert ids.tolist() == tokenizer.encode("e\u0301te\u0301 \u1112\u1161") == tokenizer.encode("été \ud558")


def test_files_load_in_transformers(tmp_path: Path, trained: dict[str, Tokenizer]) -> None:
    transformers = pytest.importorskip("transformers")
    lines = ["Once upon a time there was a fox.", "The fox saw 12 hens; it said: hello!"] * 20
    for made in (trained["smollm"], train_wordpiece(lines, 120), train_unigram(lines, 400)):
        (tmp_path / "tokenizer.json").write_text(made.to_json(), encoding="utf-8")
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
        for line in lines[:2]:
            assert theirs(line, add_special_tokens=False)["input_ids"] == made.encode(line)
            assert made.decode(made.encode(line)).replace(" ", "") == line.replace(" ", "")
        assert theirs(lines[0])["input_ids"] == made.encode_pair(lines[0])[0]


def test_unigram_spells_what_it_never_saw() -> None:
    made = train_unigram(["hello world " * 20], 400)
    assert made.decode(made.encode("日本 hello\n🤖")) == "日本 hello\n🤖"


def test_what_cannot_be_trained() -> None:
    with pytest.raises(UsageError, match="did you mean"):
        train_bpe(["x"], 300, pattern="gpt2")
    with pytest.raises(UsageError, match=r"\[PAD\]"):
        train_wordpiece(["x"], 300, ["[UNK]"])
    with pytest.raises(UsageError, match="at least"):
        train_unigram(["x"], 200)
