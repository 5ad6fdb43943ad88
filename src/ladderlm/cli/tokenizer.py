"""`ladderlm tokenizer train|encode|stats`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option
from ladderlm.errors import UsageError, nearest

if TYPE_CHECKING:
    from ladderlm.text.tokenizer import Tokenizer

USAGE = """usage: ladderlm tokenizer train FILE... --out FILE | encode [TEXT] | stats FILE...  [--json]

  train   learn a byte-level BPE vocabulary from text or records, write tokenizer.json
  encode  the tokens of a text (or of stdin)
  stats   how well a tokenizer packs texts: bytes and words per token, vocabulary used, speed"""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    files: tuple[str, ...] = option((), "texts or records: .txt, .md, .jsonl, .json, perhaps .gz", positional=True)
    out: str = option("tokenizer.json", "the file to write")
    vocab_size: int = option(4096, "number of tokens")
    special: tuple[str, ...] = option((), "special tokens, the first ends a document (default: ChatML's)")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class EncodeConfig:
    text: str = option("", "the text; stdin when absent", positional=True)
    tokenizer: str = option("smollm2-135m-instruct", "a model, a model folder or a tokenizer.json")
    special: bool = option(False, "let spelled control tokens become tokens")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class StatsConfig:
    files: tuple[str, ...] = option((), "texts or records", positional=True)
    tokenizer: str = option("smollm2-135m-instruct", "a model, a model folder or a tokenizer.json")
    json: bool = option(False, "print JSON")


def main(argv: list[str]) -> int:
    verbs: dict[str, Callable[[list[str]], int]] = {"train": train, "encode": encode, "stats": stats}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in verbs:
        raise UsageError(f"unknown: tokenizer {argv[0]}", cure=nearest(argv[0], verbs))
    return verbs[argv[0]](argv[1:])


def train(argv: list[str]) -> int:
    from ladderlm import store
    from ladderlm.text.bpe import SPECIAL, train_bpe

    config = parse("tokenizer train", TrainConfig, argv, description="Learn a byte-level BPE vocabulary.")
    out = Path(config.out)
    if out.is_dir():
        raise UsageError("--out names a folder", where=config.out, cure="name the file, as in DIR/tokenizer.json")
    with show.progress():
        made = train_bpe(_texts(config.files), config.vocab_size, config.special or SPECIAL)
    with store.atomic_file(out) as f:
        f.write(made.to_json())
    found = {"path": config.out, "vocab_size": made.vocab_size}
    show.emit_json(found) if config.json else print(f"{config.out}: {made.vocab_size:,} tokens")
    return 0


def encode(argv: list[str]) -> int:
    config = parse("tokenizer encode", EncodeConfig, argv, description="The tokens of a text.")
    text = config.text or sys.stdin.read()
    with show.progress():
        tokenizer = open_tokenizer(config.tokenizer)
    ids = tokenizer.encode(text, special=config.special)
    pieces = [tokenizer.token_text(i) for i in ids]
    if config.json:
        show.emit_json({"ids": ids, "tokens": pieces})
    else:
        show.table([(i, repr(piece)) for i, piece in zip(ids, pieces, strict=True)], ("id", "token"))
    return 0


def stats(argv: list[str]) -> int:
    config = parse("tokenizer stats", StatsConfig, argv, description="How well a tokenizer packs texts.")
    with show.progress():
        texts = _texts(config.files)
        found = measure(open_tokenizer(config.tokenizer), texts)
    if config.json:
        show.emit_json(found)
    else:
        show.table([(k.replace("_", " "), v) for k, v in found.items()], ("what", "value"))
    return 0


def measure(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Any]:
    """Bytes and words per token, the share of the vocabulary that is used, whether all texts round-trip, MB/s."""
    start = time.perf_counter()
    encoded = tokenizer.encode_batch(texts)
    seconds = time.perf_counter() - start
    tokens, size = sum(map(len, encoded)), sum(len(t.encode()) for t in texts)
    words = sum(len(t.split()) for t in texts)
    used = len({i for ids in encoded for i in ids})
    return {
        "vocab_size": tokenizer.vocab_size,
        "texts": len(texts),
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": round(size / max(tokens, 1), 3),
        "tokens_per_word": round(tokens / max(words, 1), 3),
        "vocabulary_used": round(used / tokenizer.vocab_size, 4),
        "round_trip": all(tokenizer.decode(ids) == t for ids, t in zip(encoded, texts, strict=True)),
        "megabytes_per_second": round(size / 1e6 / max(seconds, 1e-9), 2),
    }


def _texts(files: tuple[str, ...]) -> list[str]:
    from ladderlm.data.records import read_records
    from ladderlm.data.stats import content

    if not files:
        raise UsageError("no files", cure="name text files or records")
    return [content(record) for file in files for record in read_records(file)]


def open_tokenizer(ref: str) -> Tokenizer:
    from ladderlm.text.tokenizer import Tokenizer

    if ref.endswith(".json"):
        return Tokenizer.from_file(ref)
    from ladderlm.models import open_model

    return open_model(ref).tokenizer
