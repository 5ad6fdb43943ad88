"""A folder's tokenizer from whatever files it brings; what is not sound is refused quickly."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed import HARD
from vocabularies import make

from ladderlm.errors import FormatError, NotFound
from ladderlm.text.sentencepiece import read_sentencepiece
from ladderlm.text.specs import byte_alphabet
from ladderlm.text.tokenizer import Tokenizer

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "##s", "world", ",", "Hello", "a", "##b", "e"]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text: str, score: float, kind: int = 1) -> bytes:
    return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + field(3, kind))


PIECES = (("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), ("▁a", -1, 1), ("▁", -2, 1), ("a", -3, 1), ("b", -3, 1))


def model(*, kind: int, more: bytes = b"", pieces: tuple[tuple[str, float, int], ...] = PIECES) -> bytes:
    return b"".join(piece(*p) for p in pieces) + field(2, field(3, kind)) + more


def write(folder: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        data = content if isinstance(content, (bytes, str)) else json.dumps(content)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def test_tokenizer_json_comes_first(tmp_path: Path) -> None:
    made, _ = make("wordpiece cased", tmp_path)
    write(tmp_path, {"tokenizer.json": made.to_json(), "vocab.txt": "nonsense", "tokenizer.model": b"nonsense"})
    assert Tokenizer.from_folder(tmp_path).encode("hello") == made.encode("hello")


def test_sentencepiece_file(tmp_path: Path) -> None:
    for kind in (1, 2):
        folder = write(tmp_path, {"tokenizer.model": model(kind=kind)})
        tokenizer = Tokenizer.from_folder(folder)
        assert tokenizer.kind == "sentencepiece"
        assert tokenizer.encode("a b") == [3, 4, 6]
        assert tokenizer.decode([3, 4, 6]) == "a b"
        assert tokenizer.control == {"<unk>": 0, "<s>": 1, "</s>": 2}
        assert not tokenizer.add_bos
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert Tokenizer.from_folder(tmp_path).encode_pair("a") == ([1, 3], [0, 0])
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 3}')
    t5 = Tokenizer.from_folder(tmp_path)
    assert t5.encode_pair("a", "b") == ([3, 2, 4, 6, 2], [0] * 5)
    assert [t5.token_text(i) for i in (7, 8, 9)] == ["<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]


@pytest.mark.parametrize("kind", ["sentencepiece bpe", "sentencepiece unigram"])
def test_sentencepiece_equals_its_library(kind: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentencepiece", reason="SentencePiece is the reference here")
    tokenizer, wanted = make(kind, tmp_path)
    theirs = library.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    pieces = read_sentencepiece(tmp_path / "tokenizer.model")
    assert pieces.texts == [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]
    assert pieces.scores == [theirs.get_score(i) for i in range(theirs.get_piece_size())]
    for text in HARD:
        if "\u0300\u0300" not in text and "\u0301\u0302" not in text and "＜" not in text:
            ids = wanted(text)
            assert tokenizer.encode(text) == ids
            if "\0" not in text and not text.startswith(" "):
                assert tokenizer.decode(ids) == theirs.decode(ids).replace(" ⁇ ", "") or 0 in ids


def test_vocab_json_with_merges(tmp_path: Path) -> None:
    vocab = {c: i for i, c in enumerate(byte_alphabet())} | {"he": 256, "<|endoftext|>": 257}
    folder = write(tmp_path, {"vocab.json": vocab, "merges.txt": "#version: 0.2\nh e\n"})
    tokenizer = Tokenizer.from_folder(folder)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("hero 12")] == ["he", "r", "o", " ", "1", "2"]
    assert tokenizer.eos_id == 257
    assert 257 not in tokenizer.encode("<|endoftext|>")
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {"258": {"content": "<x>", "special": True}}}
    tokenizer = Tokenizer.from_folder(write(tmp_path, {"tokenizer_config.json": config}))
    assert tokenizer.control["<x>"] == 258
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")  # Qwen's NFC
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "OddTokenizer"}')
    with pytest.raises(FormatError, match="GPT2Tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_roberta_surrounds_pairs_its_way(tmp_path: Path) -> None:
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{c: i + 4 for i, c in enumerate(byte_alphabet())}}
    config = {"tokenizer_class": "RobertaTokenizer"}
    folder = write(tmp_path, {"vocab.json": vocab, "merges.txt": "", "tokenizer_config.json": config})
    tokenizer = Tokenizer.from_folder(folder)
    theirs = tokenizers.Tokenizer.from_str(tokenizer.to_json()).encode("a", "b")
    assert tokenizer.encode_pair("a", "b") == (theirs.ids, theirs.type_ids)
    assert theirs.ids.count(2) == 3


def test_vocab_txt(tmp_path: Path) -> None:
    folder = write(tmp_path, {"vocab.txt": "\n".join(BERT) + "\n"})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.kind == "wordpiece"
    assert tokenizer.encode("Hellos, ABé world!") == [5, 6, 8, 1, 7, 1]
    assert tokenizer.decode([5, 6, 8, 7]) == "hellos, world"
    assert tokenizer.encode_pair("a", "world") == ([2, 10, 3, 7, 3], [0, 0, 0, 1, 1])
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.unk_id, tokenizer.bos_id) == (0, 4, 1, 2)
    cased = Tokenizer.from_folder(write(tmp_path, {"tokenizer_config.json": {"do_lower_case": False}}))
    assert cased.encode("Hello") == [9]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no tokenizer.*vocab.txt"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(NotFound):
        read_sentencepiece(tmp_path / "none.model")


HOSTILE: dict[str, dict[str, object]] = {
    "empty model": {"tokenizer.model": b""},
    "no pieces": {"tokenizer.model": field(2, field(3, 1))},
    "a cut model": {"tokenizer.model": model(kind=1)[:-3]},
    "a long number": {"tokenizer.model": b"\x80" * 40},
    "a huge field": {"tokenizer.model": b"\x0a" + varint(2**60) + b"x"},
    "a piece twice": {"tokenizer.model": model(kind=1, pieces=(*PIECES, ("a", -1.0, 1)))},
    "no unknown piece": {"tokenizer.model": model(kind=1, pieces=PIECES[1:])},
    "word model": {"tokenizer.model": model(kind=3)},
    "an odd piece type": {"tokenizer.model": model(kind=1, pieces=(*PIECES, ("z", -1.0, 99)))},
    "a piece not UTF-8": {"tokenizer.model": model(kind=1) + field(1, field(1, b"\xff\xfe"))},
    "an unsound charsmap": {"tokenizer.model": model(kind=1, more=field(3, field(2, b"\xff" * 9)))},
    "absurd extra_ids": {
        "tokenizer.model": model(kind=1),
        "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 10**12},
    },
    "ids with gaps": {"vocab.json": {"a": 0, "b": 7}, "merges.txt": ""},
    "ids no numbers": {"vocab.json": {"a": "x"}, "merges.txt": ""},
    "merges of three": {"vocab.json": {"a": 0}, "merges.txt": "a b c\n"},
    "merges unknown": {"vocab.json": {"a": 0}, "merges.txt": "a b\n"},
    "vocab no JSON": {"vocab.json": b"[" * 100_000, "merges.txt": ""},
    "vocab a list": {"vocab.json": [], "merges.txt": ""},
    "no [UNK]": {"vocab.txt": "a\nb\n"},
    "words twice": {"vocab.txt": "[UNK]\na\na\n"},
    "not UTF-8": {"vocab.txt": b"\xff\xfe\x00"},
    "added with a gap": {
        "vocab.txt": "[UNK]\na\n",
        "tokenizer_config.json": {"added_tokens_decoder": {"99": {"content": "<x>"}}},
    },
    "added over another": {
        "vocab.txt": "[UNK]\na\n",
        "tokenizer_config.json": {"added_tokens_decoder": {"1": {"content": "<x>"}}},
    },
    "added unsound": {"vocab.txt": "[UNK]\na\n", "tokenizer_config.json": {"added_tokens_decoder": {"x": 3}}},
    "config a list": {"vocab.txt": "[UNK]\na\n", "tokenizer_config.json": []},
    "json too deep": {"tokenizer.json": b"[" * 200_000},
    "json a list": {"tokenizer.json": b"[]"},
    "an id of 2^40": {
        "tokenizer.json": {
            "version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 2**31}, "merges": []}
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_quickly(name: str, tmp_path: Path) -> None:
    write(tmp_path, HOSTILE[name])
    start = time.process_time()
    with pytest.raises(FormatError):
        Tokenizer.from_folder(tmp_path)
    assert time.process_time() - start < 5


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_models_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(model(kind=data.draw(st.integers(1, 2))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "tokenizer.model").write_bytes(bytes(content))
    try:
        tokenizer = Tokenizer.from_folder(folder)
    except FormatError:
        return
    tokenizer.decode(tokenizer.encode("a b"))
