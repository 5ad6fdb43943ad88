"""Tokenizers of every kind: equal to the reference, no control token from text, there and back through GGUF."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from mixed import HARD, mixed
from vocabularies import KINDS, Reference, make

from ladderlm.text.detokenise import Detokeniser
from ladderlm.text.render import render
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.text.vocabulary_out import gguf_metadata
from ladderlm.types import Conversation, Token

Made = tuple[str, Tokenizer, Reference]


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    smollm = request.getfixturevalue("fetched") if request.param == "smollm" else None
    return request.param, *make(request.param, tmp_path_factory.mktemp("made"), smollm)


def texts_of(made: Made, size: int) -> list[str]:
    """Text without what is on purpose not as in the reference (see there)."""
    kind, tokenizer, _ = made
    texts = [*HARD, *mixed(size)]
    if kind == "sentencepiece unigram":  # `tokenizers` composes only short clusters of marks, SentencePiece all
        texts = [t for t in texts if "\u0300" * 2 not in t and "\u0301\u0302" not in t]
    names = [name for name in tokenizer.control if name not in ("<unk>", "[UNK]")]
    return [t for t in texts if not any(name in t for name in names) and "＜" not in t]


def same(made: Made, size: int) -> None:
    kind, tokenizer, wanted = made
    texts = texts_of(made, size)
    for text in [*texts, "".join(texts)]:
        ids, theirs = tokenizer.encode(text), wanted(text)
        if ids != theirs and kind == "sentencepiece unigram":  # of equally probable cuts its 32-bit sums choose
            ids, theirs = sorted(ids), sorted(theirs)
        assert ids == theirs, (kind, text[:200])


def test_ids_equal_the_reference(made: Made) -> None:
    same(made, 60_000)


@pytest.mark.slow
def test_ids_equal_the_reference_on_a_megabyte(made: Made) -> None:
    same(made, 1_000_000)


def test_batches_and_spans_agree_with_encode(made: Made) -> None:
    _, tokenizer, _ = made
    texts = texts_of(made, 20_000)
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]
    for text in texts:
        ((ids, spans),) = tokenizer.encode_pieces([(text, None)])
        assert ids == tokenizer.encode(text)
        assert len(spans) == len(ids)
        assert all(0 <= a <= b <= len(text) for a, b in spans)


def test_decoding_equals_the_reference(made: Made) -> None:
    kind, tokenizer, _ = made
    theirs = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    for text in texts_of(made, 20_000):
        ids = tokenizer.encode(text)
        got = tokenizer.decode(ids)
        if tokenizer.byte_level or not text.startswith((" ", "▁")):  # there it may take away the text's own spaces
            assert got == theirs.decode(ids, skip_special_tokens=True), (kind, text[:80])


def test_the_stream_is_the_text_with_its_first_space(made: Made) -> None:
    _, tokenizer, _ = made
    ids = tokenizer.encode("the quick brown fox, été 日本 🤖")
    machine = Detokeniser(tokenizer)
    shown = "".join([*(machine.feed(Token(i))[0] for i in ids), machine.finish()])
    assert shown.removeprefix(" ") == tokenizer.decode(ids)


def test_text_never_becomes_a_control_token(made: Made) -> None:
    kind, tokenizer, _ = made
    for name, id in tokenizer.control.items():
        wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in name)  # full width: NFKC makes it ASCII
        broken = name[:-1] + "\u200b" + name[-1:]  # normalisation may take that away
        for text in [name, f"a{name}b", f" {name} {name}", name + name, broken, wide, f"x {wide}y", name.lower()]:
            found = set(tokenizer.encode(text)) & set(tokenizer.control.values())
            assert found <= {tokenizer.unk_id}, (kind, text, found)
        assert tokenizer.encode(name) != [id]
        assert tokenizer.encode(name, special=True).count(id) == 1
        assert tokenizer.encode_batch([name, "a"])[0] == tokenizer.encode(name)


def test_messages_never_become_control_tokens(made: Made) -> None:
    kind, tokenizer, _ = made
    names = [n for n, id in tokenizer.control.items() if id != tokenizer.unk_id]
    if not names:
        pytest.skip(f"{kind} has no control tokens")
    mark = names[-1]
    template = ChatTemplate("{% for m in messages %}" + mark + "{{ m.role }}: {{ m.content }}\n{% endfor %}")
    for name in names:
        content = f"{name} a{name}b {name[:-1]}"
        rendered = render(Conversation.of(content, content), tokenizer, template)
        found = [i for i in rendered.ids if i in tokenizer.control.values() and i != tokenizer.unk_id]
        assert found == [tokenizer.control[mark]] * 2, (kind, name)
        assert rendered.text.count(content) == 2
        assert len(rendered.spans) == len(rendered.mask) == len(rendered.ids)


@pytest.mark.parametrize("special", [False, True])
def test_there_and_back_through_gguf(made: Made, special: bool) -> None:
    kind, tokenizer, _ = made
    if kind == "unigram":
        pytest.skip("its normaliser has no word in GGUF: see the errors")
    size = tokenizer.vocab_size + 5
    again = Tokenizer.from_gguf(gguf_metadata(tokenizer, size))
    assert again.vocab_size == size
    for text in [*texts_of(made, 20_000), *tokenizer.control]:
        assert again.encode(text, special=special) == tokenizer.encode(text, special=special), (kind, text[:100])
    assert again.special == tokenizer.special
    assert (again.pad_id, again.mask_id, again.unk_id) == (tokenizer.pad_id, tokenizer.mask_id, tokenizer.unk_id)
    assert again.encode_pair("one two", "three") == tokenizer.encode_pair("one two", "three")
    assert [again.token_bytes(i) for i in range(size - 5)] == [tokenizer.token_bytes(i) for i in range(size - 5)]
    third = Tokenizer.from_json(again.to_json())  # the tokenizer.json made of GGUF metadata is a whole one
    assert third.encode(HARD[4]) == tokenizer.encode(HARD[4])
    assert third.encode_pair("one") == tokenizer.encode_pair("one")


@pytest.mark.parametrize("kind", ["wordpiece uncased", "unigram"])
def test_pairs_equal_the_reference(kind: str, tmp_path: Path) -> None:
    tokenizer, _ = make(kind, tmp_path)
    theirs = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    texts = ["", "one", "a few more words here", "ten words are " * 9]
    for length in (None, 3, 7, 8, 20, 33):
        theirs.no_truncation()
        if length:
            theirs.enable_truncation(length)
        for first in texts:
            wanted = theirs.encode(first)
            assert tokenizer.encode_pair(first, max_length=length) == (wanted.ids, wanted.type_ids)
            for second in texts:
                wanted = theirs.encode(first, second)
                got = tokenizer.encode_pair(first, second, max_length=length)
                assert got == (wanted.ids, wanted.type_ids), (length, first, second)


def test_sentencepiece_goes_on_where_text_ended(tmp_path: Path) -> None:
    for kind in ("sentencepiece bpe", "metaspace bpe"):
        (folder := tmp_path / kind).mkdir()
        tokenizer, _ = make(kind, folder)
        start, rest = tokenizer.encode("the"), tokenizer.encode(" end", continues=True)
        assert tokenizer.decode(start + rest) == "the end"
        assert tokenizer.decode(tokenizer.encode("the") + tokenizer.encode("re", continues=True)) == "there"
        assert tokenizer.encode(" end", continues=True) == tokenizer.encode("end")


def test_blanks_that_a_control_token_eats(tmp_path: Path) -> None:
    """Phi-3's turn tokens eat the line break after them: the same, whether or not a message spells one."""
    tokenizer, _ = make("metaspace bpe", tmp_path)
    spec = json.loads(tokenizer.to_json())
    for entry in spec["added_tokens"]:
        entry["rstrip"] = entry["content"] == "<s>"
        entry["lstrip"] = entry["content"] == "</s>"
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    text = "<s>\n\nhello there  </s>\n<s>  again"
    pieces = [("<s>", 1), ("\n\nhello there  ", None), ("</s>", 2), ("\n", None), ("<s>", 1), ("  again", None)]
    got = tokenizer.encode_pieces(pieces)
    assert [i for ids, _ in got for i in ids] == tokenizer.encode(text, special=True)
    assert got[1][1][0][0] == 2
    assert pieces[1][0][got[1][1][-1][0] : got[1][1][-1][1]].endswith("e")
