"""One tokenizer of each kind, small ones trained here, and the reference for each."""

from __future__ import annotations

import functools
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from mixed import mixed
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from ladderlm.models.gguf import read_gguf
from ladderlm.text.tokenizer import Tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
Reference = Callable[[str], list[int]]
KINDS = (
    "gpt-2", "torchtitan", "minimind", "smollm", "llama-3 cuts", "qwen2 cuts", "sentencepiece bpe", "metaspace bpe",
    "sentencepiece unigram", "unigram", "wordpiece uncased", "wordpiece cased",
)  # fmt: skip


def reference(text: str) -> Reference:
    """The `tokenizers` library on the same file."""
    theirs = tokenizers.Tokenizer.from_str(text)
    theirs.no_truncation()
    theirs.no_padding()
    return lambda s: list(theirs.encode(s, add_special_tokens=False).ids)


def make(kind: str, folder: Path, smollm: Path | None = None) -> tuple[Tokenizer, Reference]:
    """A tokenizer and what gives the ids it must give."""
    if kind == "smollm":
        assert smollm is not None
        ours = Tokenizer.from_gguf(read_gguf(smollm).meta)
        return ours, reference(_smollm(ours))
    if kind in ("gpt-2", "torchtitan", "minimind"):
        if not SHARED.exists():
            pytest.skip("../shared/data is not there")
        if kind != "gpt-2":
            file = SHARED / {"torchtitan": "torchtitan-test"}.get(kind, kind) / "tokenizer.json"
            return Tokenizer.from_file(file), reference(file.read_text(encoding="utf-8"))
        return _gpt2(folder)
    if kind.startswith("sentencepiece"):
        return _sentencepiece(kind, folder)
    text = _trained(kind)
    return Tokenizer.from_json(text), reference(text)


def _smollm(ours: Tokenizer) -> str:
    """The default model's file as its authors write it: digits alone, then GPT-2's words."""
    theirs = tokenizers.Tokenizer.from_str(ours.to_json())
    digits = pre_tokenizers.Digits(individual_digits=True)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return str(theirs.to_str())


def _gpt2(folder: Path) -> tuple[Tokenizer, Reference]:
    (folder / "vocab.json").write_bytes(gzip.decompress((SHARED / "gpt2" / "encoder.json.gz").read_bytes()))
    (folder / "merges.txt").write_bytes((SHARED / "gpt2" / "vocab.bpe").read_bytes())
    theirs = tokenizers.ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return Tokenizer.from_folder(folder), lambda s: list(theirs.encode(s).ids)


def _sentencepiece(kind: str, folder: Path) -> tuple[Tokenizer, Reference]:
    library = pytest.importorskip("sentencepiece", reason="SentencePiece is the reference here")
    made = io.BytesIO()
    lines = [line for text in mixed(150_000, 3) for line in text.split("\n") if line and "\0" not in line]
    bpe = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, vocab_size=1200, minloglevel=2,
        model_type=kind.split()[1], **(bpe if kind.endswith("bpe") else {"pad_id": 3}),
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    if kind.endswith("unigram"):
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 2}')
    return Tokenizer.from_folder(folder), library.SentencePieceProcessor(model_proto=made.getvalue()).encode


_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}NN| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@functools.cache
def _trained(kind: str) -> str:
    texts = mixed(60_000 if kind == "unigram" else 200_000, 3)
    if kind.endswith("cuts"):
        made = tokenizers.Tokenizer(models.BPE(ignore_merges=kind.startswith("llama")))
        pattern = tokenizers.Regex(_GPT4.replace("NN", "{1,3}" if kind.startswith("llama") else ""))
        words = pre_tokenizers.Split(pattern, "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        if kind.startswith("qwen"):
            made.normalizer = normalizers.NFC()
        made.decoder = decoders.ByteLevel()
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: object = trainers.BpeTrainer(
            vocab_size=1500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "metaspace bpe":
        made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
        special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
        texts = [line for text in texts for line in text.replace("\0", "").split("\n")]
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False, max_token_length=12)
    elif kind == "unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        squeeze = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), squeeze])
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=700, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        )
    else:
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=kind.endswith("uncased"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=1500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
        )
    made.train_from_iterator(texts, trainer)
    if kind.startswith("wordpiece"):
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    if kind == "unigram":
        made.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
        )
    spec = json.loads(made.to_str())
    if kind == "metaspace bpe":  # bytes are no added tokens
        spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    return json.dumps(spec)
