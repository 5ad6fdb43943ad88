"""Tokenizer: equal to the reference, round-trips all text, never forges a control token."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladderlm.errors import FormatError, NotFound, UsageError
from ladderlm.models.gguf import read_gguf
from ladderlm.text.bpe import train_bpe
from ladderlm.text.specs import byte_alphabet
from ladderlm.text.tokenizer import SpecialTokens, Tokenizer

SAMPLES = [
    "Hello world", "  two  spaces\n\n\ttab", "12345 3.14 2024-01-01", "don't I'll we've", "été Ünïcødé 日本語 🤖👩‍👩‍👧",
    "def f(x):\n    return x**2\n", "", " ", "\x00\x7f", "<|im_end|>", "a<|im_start|>b", "<0x0A> ▁x",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_bpe(["the quick brown fox jumps over the lazy dog " * 20, "12 34 été"], 320)


@pytest.fixture(scope="module")
def smollm(fetched: Path) -> Tokenizer:
    return Tokenizer.from_gguf(read_gguf(fetched).meta)


def test_smollm_special_tokens(smollm: Tokenizer) -> None:
    assert (smollm.bos_id, smollm.eos_id, smollm.add_bos) == (1, 2, False)
    assert smollm.stop_ids == (2, 0)
    assert smollm.document_start_id == 0
    assert smollm.vocab_size == 49152
    assert smollm.token_text(0) == "<|endoftext|>"


def test_smollm_cuts_digits_and_words_as_its_authors_do(smollm: Tokenizer) -> None:
    def pieces(text: str) -> list[str]:
        return [smollm.token_text(i) for i in smollm.encode(text)]

    assert pieces("in 2024") == ["in", " ", "2", "0", "2", "4"]
    assert pieces("Hello  world") == ["Hello", " ", " world"]
    assert pieces("don't") == ["don", "'t"]
    robot = smollm.encode("🤖")
    assert b"".join(smollm.token_bytes(i) for i in robot) == "🤖".encode()
    assert any("\\x" in smollm.token_text(i) for i in robot)


@pytest.mark.parametrize("text", SAMPLES)
def test_round_trip_and_no_control_tokens(smollm: Tokenizer, trained: Tokenizer, text: str) -> None:
    for tokenizer in (smollm, trained):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.control.values())
    assert trained.encode_batch([text, text]) == [trained.encode(text)] * 2


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8")) | st.lists(st.sampled_from([*SAMPLES, "<|", "|>", "im_end"])).map("".join))
def test_any_text_round_trips(trained: Tokenizer, text: str) -> None:
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert not set(ids) & set(trained.control.values())


def test_special_tokens_on_request(trained: Tokenizer) -> None:
    assert trained.encode("<|im_end|>", special=True) == [2]
    assert trained.encode("x<|im_start|>y", special=True)[1] == 1
    assert trained.decode([2]) == ""
    assert trained.decode([2], special=True) == "<|im_end|>"


def test_all_bytes_are_in_a_trained_vocabulary(trained: Tokenizer) -> None:
    singles = {trained.token_bytes(i) for i in range(trained.vocab_size)}
    assert singles >= {bytes([b]) for b in range(256)}
    assert len(set(byte_alphabet())) == 256
    assert trained.token_bytes(10**6) == trained.token_bytes(-1) == b""


def test_trained_special_tokens(trained: Tokenizer) -> None:
    assert trained.eos_id == trained.document_start_id == 0
    assert set(trained.stop_ids) == {0, 2}
    with pytest.raises(UsageError, match="at least 259"):
        train_bpe(["x"], 258)
    with pytest.raises(UsageError, match="distinct"):
        train_bpe(["x"], 300, ["<a>", "<a>"])


def test_lone_surrogates_become_question_marks(trained: Tokenizer) -> None:
    assert trained.decode(trained.encode("a\ud800b")) == "a?b"


def test_json_round_trip(trained: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(trained.to_json(), encoding="utf-8")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json", SpecialTokens(eos=0, document_start=0))
    assert again.special == trained.special
    assert again.encode(SAMPLES[4]) == trained.encode(SAMPLES[4])


def test_a_post_processor_that_adds_bos_is_noticed(trained: Tokenizer) -> None:
    spec = json.loads(trained.to_json())
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    assert tokenizer.add_bos
    assert tokenizer.bos_id == tokenizer.document_start_id == 1
    assert 1 not in tokenizer.encode("the fox")  # encode itself adds nothing


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Tokenizer.from_file(tmp_path / "none.json")
    for bad in ("", "{}", "[]", '{"model": 3}'):
        with pytest.raises(FormatError, match="not a tokenizer"):
            Tokenizer.from_json(bad)


def gguf_meta(pre: str) -> dict[str, object]:
    tokens = [*byte_alphabet(), "<|endoftext|>"]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 256 + [3], "tokenizer.ggml.merges": ["1 2", "12 3"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pre", "wanted"),
    [
        ("gpt-2", ["123"]), ("smollm", ["1", "2", "3"]), ("llama-bpe", ["123"]), ("qwen2", ["1", "2", "3"]),
        ("default", ["123"]),
    ],
)  # fmt: skip
def test_pre_tokenizers_group_digits_their_way(pre: str, wanted: list[str]) -> None:
    meta = gguf_meta(pre)
    meta["tokenizer.ggml.tokens"] = [*byte_alphabet(), "12", "123", "<|endoftext|>"]
    meta["tokenizer.ggml.token_type"] = [1] * 258 + [3]
    tokenizer = Tokenizer.from_gguf(meta)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("123")] == wanted
    assert all(tokenizer.decode(tokenizer.encode(s)) == s for s in SAMPLES if pre != "qwen2" or s.isascii())


def test_unknown_gguf_tokenizers_are_named() -> None:
    with pytest.raises(FormatError, match="smollm"):
        Tokenizer.from_gguf(gguf_meta("smolm"))
    with pytest.raises(FormatError, match="'rwkv'"):
        Tokenizer.from_gguf({**gguf_meta("gpt-2"), "tokenizer.ggml.model": "rwkv"})
    with pytest.raises(FormatError, match="no vocabulary"):
        Tokenizer.from_gguf({})
    with pytest.raises(FormatError, match="differ in length"):
        Tokenizer.from_gguf({**gguf_meta("gpt-2"), "tokenizer.ggml.token_type": [1]})


def test_sentencepiece_with_scores_and_byte_fallback() -> None:
    pieces = ["▁", "h", "e", "l", "o", "▁h", "el", "lo", "▁hel", "▁hello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    meta = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(len(pieces) - i) for i in range(len(pieces))],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    tokenizer = Tokenizer.from_gguf(meta)
    assert tokenizer.add_bos
    assert tokenizer.document_start_id == 1
    assert [tokens[i] for i in tokenizer.encode("hello")] == ["▁hello"]
    assert tokenizer.decode(tokenizer.encode("hello été hello")) == "hello été hello"
    assert 2 not in tokenizer.encode("</s>")
    assert tokenizer.encode("</s>", special=True) == [2]
    assert tokenizer.token_bytes(3 + 0xE9) == b"\xe9"
