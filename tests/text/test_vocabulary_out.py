"""GGUF metadata: llama.cpp cuts text the same, and what GGUF cannot say is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from mixed import HARD, mixed
from vocabularies import make

from ladderlm.errors import FormatError
from ladderlm.models.gguf_write import Entry, write_gguf
from ladderlm.text.specs import CUTS
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.text.vocabulary_out import gguf_metadata

# Where llama.cpp differs: no NFC (Qwen); Hangul, C1 blanks, spacing marks and words without limit in BERT; several
# marks on one letter in Unigram (it is SentencePiece's way, ours is that of `tokenizers`).
_OTHERWISE = {
    "qwen2 cuts": ("e\u0301", "a\u0300", "\u212a"),
    "wordpiece uncased": ("한", "\x85", "x" * 101, "\u093f"),
    "wordpiece cased": ("\x85", "x" * 101),
    "sentencepiece unigram": ("\u0301\u0302", "\u0300\u0300"),
}
Cut = Callable[[str], list[int]]


@pytest.fixture
def llama_cpp(tmp_path: Path) -> Iterator[Callable[[Tokenizer], Cut]]:
    """From a tokenizer to what llama.cpp makes of it."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is in the test extra")
    kept = []

    def load(tokenizer: Tokenizer) -> Cut:
        path = tmp_path / "m.gguf"
        write_tiny(path, gguf_metadata(tokenizer, tokenizer.vocab_size + 3), tokenizer.vocab_size + 3)
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(path), 64, 1
        params.warmup = params.fit_params = False
        kept.append(server := xllamacpp.Server(params))

        def cut(text: str) -> list[int]:
            body = {"content": text, "add_special": False, "parse_special": False}
            with httpx.Client(trust_env=False) as client:
                return list(client.post(f"{server.listening_address}/tokenize", json=body).json()["tokens"])

        return cut

    yield load
    kept.clear()


def write_tiny(path: Path, meta: dict[str, Any], size: int) -> None:
    """A llama of one layer around the vocabulary."""
    shapes = {"token_embd": (size, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {f"blk.0.{name}": (32, 32) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.ffn_{name}": (32, 32) for name in ("gate", "up", "down")}
    settings = {
        "general.architecture": "llama", "llama.context_length": 64, "llama.embedding_length": 32,
        "llama.block_count": 1, "llama.feed_forward_length": 32, "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": size,
    }  # fmt: skip

    def data(shape: tuple[int, ...]) -> Callable[[], list[np.ndarray]]:
        return lambda: [np.full(shape, 0.01, np.float32).view(np.uint8)]

    entries = [Entry(f"{name}.weight", "F32", shape, data(shape)) for name, shape in shapes.items()]
    write_gguf(path, settings | meta, entries)


@pytest.mark.parametrize(
    "kind",
    ["minimind", "llama-3 cuts", "qwen2 cuts", "sentencepiece bpe", "sentencepiece unigram", "wordpiece uncased",
     "wordpiece cased"],
)  # fmt: skip
def test_llama_cpp_cuts_text_the_same(kind: str, llama_cpp: Callable[[Tokenizer], Cut], tmp_path: Path) -> None:
    tokenizer, _ = make(kind, tmp_path)
    cut = llama_cpp(tokenizer)
    for text in [*HARD, *mixed(40_000, 5)]:
        if not any(mark in text for mark in ("\0", "\ufffe", "＜", *_OTHERWISE.get(kind, ()))):
            assert cut(text) == tokenizer.encode(text), text[:200]


def test_padding_and_special_ids(tmp_path: Path) -> None:
    tokenizer, _ = make("llama-3 cuts", tmp_path)
    meta = gguf_metadata(tokenizer, tokenizer.vocab_size + 2)
    assert meta["tokenizer.ggml.model"] == "gpt2"
    assert meta["tokenizer.ggml.pre"] == "llama-bpe"
    assert meta["tokenizer.ggml.tokens"][-2:] == [f"[PAD{tokenizer.vocab_size + i}]" for i in range(2)]
    assert list(meta["tokenizer.ggml.token_type"][[0, 3, 4, -1]]) == [3, 3, 1, 5]
    assert (meta["tokenizer.ggml.eos_token_id"], meta["tokenizer.ggml.add_bos_token"]) == (tokenizer.eos_id, False)
    with pytest.raises(FormatError, match="rows"):
        gguf_metadata(tokenizer, tokenizer.vocab_size - 1)


def byte_level(**parts: Any) -> Tokenizer:
    vocab = {c: i for i, c in enumerate("abcdefgh")}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    base = {"pre_tokenizer": level, "decoder": level, "normalizer": None, "post_processor": None, "added_tokens": []}
    model = {"type": "BPE", "vocab": vocab, "merges": [], **parts.pop("model", {})}
    return Tokenizer.from_json(json.dumps({"version": "1.0", **base, "model": model, **parts}))


@pytest.mark.parametrize("name", CUTS)
def test_every_known_cut_is_recognised(name: str) -> None:
    cut = CUTS[name]
    tokenizer = byte_level(
        pre_tokenizer={"type": "Sequence", "pretokenizers": list(cut.steps)},
        normalizer={"type": "NFC"} if cut.nfc else None,
        model={"ignore_merges": cut.whole_words},
    )
    assert CUTS[gguf_metadata(tokenizer, 8)["tokenizer.ggml.pre"]] == cut


def test_the_same_cut_written_otherwise() -> None:
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = byte_level(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]})
    assert gguf_metadata(tokenizer, 8)["tokenizer.ggml.pre"] == "gpt-2"


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "NFC"}},
        {"model": {"ignore_merges": True}},
    ],
)
def test_unknown_cuts_are_refused_with_the_known_ones(parts: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=r"cuts words.*llama-bpe"):
        gguf_metadata(byte_level(**parts), 8)


def test_other_things_gguf_has_no_word_for(tmp_path: Path) -> None:
    unigram, _ = make("unigram", tmp_path)
    with pytest.raises(FormatError, match="normaliser NFKC"):
        gguf_metadata(unigram, unigram.vocab_size)
    wordpiece, _ = make("wordpiece cased", tmp_path)
    spec = json.loads(wordpiece.to_json())
    spec["normalizer"]["handle_chinese_chars"] = False
    with pytest.raises(FormatError, match="prepares text"):
        gguf_metadata(Tokenizer.from_json(json.dumps(spec)), wordpiece.vocab_size)
    words = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
    with pytest.raises(FormatError, match="knows no tokenizer"):
        gguf_metadata(Tokenizer.from_json(json.dumps({"version": "1.0", "added_tokens": [], "model": words})), 2)


def test_scores_alone_where_they_say_the_merges(tmp_path: Path) -> None:
    own, _ = make("sentencepiece bpe", tmp_path)
    assert "tokenizer.ggml.merges" not in gguf_metadata(own, own.vocab_size)
    other, _ = make("metaspace bpe", tmp_path)
    assert "tokenizer.ggml.merges" in gguf_metadata(other, other.vocab_size)
