"""The tokenizer of a folder as a tokenizer.json, whatever files it brings.

tokenizer.json is taken as it is; else tokenizer.model or spiece.model (SentencePiece), vocab.json with merges.txt
(byte-level BPE), or vocab.txt (WordPiece) are turned into one, with what tokenizer_config.json says about them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladderlm.errors import FormatError, NotFound
from ladderlm.text import specs
from ladderlm.text.sentencepiece import read_sentencepiece
from ladderlm.text.specs import Bert, Spec

MAX_BYTES = 256 * 2**20
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_BPE = {  # tokenizer_class of byte-level BPE without a tokenizer.json -> how it cuts
    "GPT2": "gpt-2", "Qwen2": "qwen2", "Roberta": "gpt-2", "Bart": "gpt-2", "": "gpt-2",
}  # fmt: skip


def read_text(path: Path) -> str:
    """A UTF-8 text file. NotFound, or FormatError for one that is not text or absurdly large."""
    try:
        with path.open("rb") as f:
            data = f.read(MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound("no such file", where=str(path)) from None
    if len(data) > MAX_BYTES:
        raise FormatError("absurdly large", where=str(path))
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise FormatError("not UTF-8", where=str(path)) from None


def folder_json(path: Path) -> tuple[str, Path]:
    """The tokenizer.json text for a folder and the file it came from. NotFound when there is no tokenizer at all."""
    if (file := path / "tokenizer.json").exists():
        return read_text(file), file
    config = _object(path / "tokenizer_config.json")
    for name in _SENTENCEPIECE:
        if (file := path / name).exists():
            return _dump(_sentencepiece(file, config), path, config), file
    if (file := path / "vocab.json").exists() and (path / "merges.txt").exists():
        return _dump(_byte_level(path, config), path, config), file
    if (file := path / "vocab.txt").exists():
        return _dump(_wordpiece(file, config), path, config), file
    cure = "one of tokenizer.json, tokenizer.model, vocab.json with merges.txt, vocab.txt"
    raise NotFound("no tokenizer", where=str(path), cure=cure)


def _object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}", where=str(path)) from None
    if not isinstance(found, dict):
        raise FormatError("must hold a JSON object", where=str(path))
    return found


def _class(config: Mapping[str, Any]) -> str:
    """`tokenizer_class` without its ending: "LlamaTokenizerFast" is "Llama"."""
    return str(config.get("tokenizer_class", "")).removesuffix("Fast").removesuffix("Tokenizer")


def _named(config: Mapping[str, Any], key: str, default: str) -> str:
    entry = config.get(key)
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else default


def _dump(spec: Spec, path: Path, config: Mapping[str, Any]) -> str:
    """With the tokens that were added later: the config's `added_tokens_decoder`, or added_tokens.json."""
    known = {t["id"]: t for t in spec["added_tokens"]}
    vocab = spec["model"]["vocab"]
    texts = [p[0] for p in vocab] if isinstance(vocab, list) else list(vocab)
    table = config.get("added_tokens_decoder")
    if not isinstance(table, dict):
        table = {str(id): {"content": text} for text, id in _object(path / "added_tokens.json").items()}
    for id, entry in table.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not str(id).isdecimal():
            raise FormatError("unsound added tokens", where=str(path))
        special = entry.get("special", True) is True
        kept = {k: entry[k] is True for k in ("lstrip", "rstrip", "single_word", "normalized") if k in entry}
        known[int(id)] = {**specs.added(int(id), entry["content"], special=special), **kept}
    following = len(texts)
    for id in sorted(known):
        if id >= len(texts):
            if id != following:
                raise FormatError(f"the added tokens leave a gap before {id}", where=str(path))
            following += 1
        elif texts[id] != known[id]["content"]:
            raise FormatError(f"the added token {known[id]['content']!r} has the id of {texts[id]!r}", where=str(path))
    spec["added_tokens"] = [known[id] for id in sorted(known)]
    return json.dumps(spec, ensure_ascii=False)


# --- One file after another ---------------------------------------------------------------------------------------


def _sentencepiece(file: Path, config: Mapping[str, Any]) -> Spec:
    pieces = read_sentencepiece(file)
    spec, tokens = pieces.spec(), pieces.added()
    ids = {text: i for i, text in enumerate(pieces.texts)}
    bos, eos = _named(config, "bos_token", "<s>"), _named(config, "eos_token", "</s>")
    kind = _class(config)
    if kind == "T5":
        extra = config.get("extra_ids", 100)
        if not isinstance(extra, int) or not 0 <= extra <= 10_000:
            raise FormatError(f"absurd extra_ids {extra!r}", where=str(file))
        if "added_tokens_decoder" not in config and "<extra_id_0>" not in ids:  # T5's sentinels, counted downwards
            first = len(pieces.texts)
            tokens += [specs.added(first + i, f"<extra_id_{extra - 1 - i}>") for i in range(extra)]
    add_bos = bool(config.get("add_bos_token", kind in ("Llama", "Gemma"))) and bos in ids
    add_eos = bool(config.get("add_eos_token", kind == "T5")) and eos in ids
    post = specs.template([(bos, ids[bos])] if add_bos else [], [(eos, ids[eos])] if add_eos else [])
    return specs.whole({**spec, "post_processor": post}, tokens)


def _byte_level(path: Path, config: Mapping[str, Any]) -> Spec:
    kind = _class(config)
    if kind not in _BPE:
        known = ", ".join(k + "Tokenizer" for k in _BPE if k)
        cure = f"without a tokenizer.json: {known}"
        raise FormatError(f"how {kind}Tokenizer cuts words is not known", where=str(path), cure=cure)
    vocab = _object(path / "vocab.json")
    if sorted(map(str, vocab.values())) != sorted(map(str, range(len(vocab)))) or not vocab:
        raise FormatError("the ids are not 0, 1, 2...", where=str(path / "vocab.json"))
    vocab = dict(sorted(vocab.items(), key=lambda item: int(item[1])))
    lines = read_text(path / "merges.txt").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in merges):
        raise FormatError("a line is not two tokens", where=str(path / "merges.txt"))
    tokens = [specs.added(i, text) for text, i in vocab.items() if _looks_special(text)]
    post: Spec | None = None
    if kind in ("Roberta", "Bart") and {"<s>", "</s>"} <= vocab.keys():
        ends = {name: [text, vocab[text]] for name, text in (("cls", "<s>"), ("sep", "</s>"))}
        post = {"type": "RobertaProcessing", **ends, "trim_offsets": False, "add_prefix_space": False}
    return specs.whole({**specs.byte_level(vocab, merges, specs.CUTS[_BPE[kind]]), "post_processor": post}, tokens)


def _looks_special(text: str) -> bool:
    return text in ("<s>", "</s>", "<pad>", "<unk>", "<mask>") or (text.startswith("<|") and text.endswith("|>"))


def _wordpiece(file: Path, config: Mapping[str, Any]) -> Spec:
    lines = read_text(file).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    vocab = {line.rstrip("\r"): i for i, line in enumerate(lines)}
    if len(vocab) != len(lines):
        raise FormatError("a token appears twice", where=str(file))
    accents = config.get("strip_accents")
    bert = Bert(
        config.get("do_lower_case", True) is not False,
        accents if isinstance(accents, bool) else None,
        config.get("tokenize_chinese_chars", True) is not False,
    )
    names = [_named(config, f"{n}_token", f"[{n.upper()}]") for n in ("pad", "unk", "cls", "sep", "mask")]
    if names[1] not in vocab:
        raise FormatError(f"the unknown token {names[1]!r} is not in the vocabulary", where=str(file))
    tokens = [specs.added(vocab[name], name) for name in dict.fromkeys(names) if name in vocab]
    ends = [[(name, vocab[name])] if name in vocab else [] for name in names[2:4]]
    post = specs.template(*ends, types=True)
    return specs.whole({**specs.wordpiece(vocab, bert, names[1]), "post_processor": post}, tokens)
