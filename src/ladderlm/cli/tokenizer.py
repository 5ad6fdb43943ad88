"""`ladderlm tokenizer train|encode|decode|stats|compare`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option
from ladderlm.errors import UsageError, nearest

if TYPE_CHECKING:
    from ladderlm.text.tokenizer import Tokenizer

USAGE = """usage: ladderlm tokenizer train FILE... --out FILE | encode [TEXT] | decode [ID...] | stats FILE... |
       compare FILE... --tokenizer A B  [--json]

  train    learn a vocabulary (byte-level BPE, WordPiece, Unigram) from text or records, write tokenizer.json
  encode   the tokens of a text (or of stdin)
  decode   the text of ids (or of the numbers on stdin)
  stats    how well a tokenizer packs texts: bytes and words per token by file, vocabulary used, round trip, speed
  compare  the same for several tokenizers, side by side"""
KINDS = ("bpe", "wordpiece", "unigram")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    files: tuple[str, ...] = option((), "texts or records: .txt, .md, .jsonl, .json, perhaps .gz", positional=True)
    out: str = option("tokenizer.json", "the file to write")
    vocab_size: int = option(4096, "number of tokens")
    kind: str = option("bpe", "byte-level BPE, WordPiece or Unigram", choices=KINDS)
    pattern: str = option(
        "smollm", "how BPE cuts words: smollm (digits alone), gpt-2, llama-bpe (1 to 3 digits), qwen2"
    )
    lowercase: bool = option(False, "WordPiece without capitals and accents")
    special: tuple[str, ...] = option(
        (), "special and chat tokens, of BPE the first ends a document (default: by kind)"
    )
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class EncodeConfig:
    text: str = option("", "the text; stdin when absent", positional=True)
    tokenizer: str = option("smollm2-135m-instruct", "a model, a model folder or a tokenizer.json")
    special: bool = option(False, "let spelled control tokens become tokens")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    ids: tuple[str, ...] = option((), "token ids; the numbers on stdin when absent", positional=True)
    tokenizer: str = option("smollm2-135m-instruct", "a model, a model folder or a tokenizer.json")
    special: bool = option(False, "show control tokens")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class CompareConfig:
    files: tuple[str, ...] = option((), "texts or records, a file for each kind of text", positional=True)
    tokenizer: tuple[str, ...] = option((), "models, model folders or tokenizer.json files")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class StatsConfig:
    files: tuple[str, ...] = option((), "texts or records", positional=True)
    tokenizer: str = option("smollm2-135m-instruct", "a model, a model folder or a tokenizer.json")
    json: bool = option(False, "print JSON")


def main(argv: list[str]) -> int:
    verbs: dict[str, Callable[[list[str]], int]] = {
        "train": train, "encode": encode, "decode": decode, "stats": stats, "compare": compare,
    }  # fmt: skip
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in verbs:
        raise UsageError(f"unknown: tokenizer {argv[0]}", cure=nearest(argv[0], verbs))
    return verbs[argv[0]](argv[1:])


def train(argv: list[str]) -> int:
    from ladderlm import store
    from ladderlm.data.stages import stream
    from ladderlm.data.stats import content
    from ladderlm.text import bpe

    config = parse("tokenizer train", TrainConfig, argv, description="Learn a vocabulary.")
    out = Path(config.out)
    if out.is_dir():
        raise UsageError("--out names a folder", where=config.out, cure="name the file, as in DIR/tokenizer.json")
    if not config.files:
        raise UsageError("no files", cure="name text files or records")
    texts = (content(record) for file in config.files for record in stream(file))
    with show.progress():
        if config.kind == "wordpiece":
            special = config.special or bpe.WORDPIECE_SPECIAL
            made = bpe.train_wordpiece(texts, config.vocab_size, special, lowercase=config.lowercase)
        elif config.kind == "unigram":
            made = bpe.train_unigram(texts, config.vocab_size, config.special or bpe.UNIGRAM_SPECIAL)
        else:
            made = bpe.train_bpe(texts, config.vocab_size, config.special or bpe.SPECIAL, pattern=config.pattern)
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


def decode(argv: list[str]) -> int:
    config = parse("tokenizer decode", DecodeConfig, argv, description="The text of token ids.")
    said = " ".join(config.ids) or sys.stdin.read()
    try:
        ids = [int(word) for word in said.replace(",", " ").strip("[] \n").split()]
    except ValueError as error:
        raise UsageError("ids are whole numbers", where=str(error)[-60:]) from None
    with show.progress():
        tokenizer = open_tokenizer(config.tokenizer)
    text = tokenizer.decode(ids, special=config.special)
    show.emit_json({"text": text}) if config.json else print(text)
    return 0


def stats(argv: list[str]) -> int:
    config = parse("tokenizer stats", StatsConfig, argv, description="How well a tokenizer packs texts.")
    from ladderlm.text.quality import measure

    with show.progress():
        found = measure(open_tokenizer(config.tokenizer), _texts(config.files))
    if config.json:
        show.emit_json(found)
    else:
        rows = [(k.replace("_", " "), v) for k, v in found.items() if k != "by_kind"]
        show.table([*rows, *((f"bytes per token: {k}", v) for k, v in found["by_kind"].items())], ("what", "value"))
    return 0


def compare(argv: list[str]) -> int:
    config = parse("tokenizer compare", CompareConfig, argv, description="Tokenizers side by side on the same texts.")
    from ladderlm.text.quality import measure

    if not config.tokenizer:
        raise UsageError("no tokenizers", cure="--tokenizer A B")
    with show.progress():
        kinds = _texts(config.files)
        found = {ref: measure(open_tokenizer(ref), kinds) for ref in config.tokenizer}
    if config.json:
        show.emit_json(found)
        return 0
    first = next(iter(found.values()))
    rows = [(f"bytes per token: {k}", *(f["by_kind"][k] for f in found.values())) for k in first["by_kind"]]
    rows += [(k.replace("_", " "), *(f[k] for f in found.values())) for k in first if k != "by_kind"]
    show.table(rows, ("what", *found))
    return 0


def _texts(files: tuple[str, ...]) -> dict[str, list[str]]:
    """The texts of each file, by its name."""
    from ladderlm.data.stages import stream
    from ladderlm.data.stats import content

    if not files:
        raise UsageError("no files", cure="name text files or records")
    return {file: [content(record) for record in stream(file)] for file in files}


def open_tokenizer(ref: str) -> Tokenizer:
    from ladderlm.text.tokenizer import Tokenizer

    if ref.endswith(".json"):
        return Tokenizer.from_file(ref)
    from ladderlm.models import open_model

    return open_model(ref).tokenizer
