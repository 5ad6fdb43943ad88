"""Cleaning: text mended, lines of a page's frame taken out, and texts left out by rules that have names."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ladderlm.data.clean_rules import broken, choose, quality
from ladderlm.data.language import identify
from ladderlm.data.stages import Dropped, Stage, open_bytes
from ladderlm.errors import FormatError, MissingExtra
from ladderlm.types import Record

# What UTF-8 read as Latin-1 or Windows-1252 looks like: the lead byte as a letter, then a continuation byte.
_MOJIBAKE = re.compile(
    "[ÂÃ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â[\u0080\u0082€‚][\u0080-\u00bf™œ\u009d“”˜¢¦]|ï»¿|ðŸ"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
_CONTROL_WIDE = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\ud800-\udfff\ue000-\uf8ff]"
)
_EMPTY = re.compile(r"\n{3,}")
_CITATION = re.compile(r"\[(?:\d*|(?i:edit|citation needed))\]")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Lao, Khmer, kana, Han
_FRAME_WORDS = 10  # a frame's line has no more
_FRAME = re.compile(
    r"\W*(?:[\d.,]+[km]?\s+(?:likes?|shares?|comments?|retweets?|views?|followers?|repl(?:y|ies))"
    r"|(?:sign|log)[ -]?(?:in|up|out)(?:\s+(?:or|to|with|now)\b.*)?|read more|items? in cart.*"
    r"|skip to (?:main )?content"
    r"|(?:share|follow us) on \w+|(?:accept|reject) (?:all )?cookies|cookie (?:settings|policy)|privacy policy"
    r"|terms (?:of (?:use|service)|and conditions)|all rights reserved"
    r"|(?:copyright\s*)?(?:©|\(c\)).{0,60}|copyright\s+\d{4}.{0,40}|subscribe(?: now)?"
    r"|(?:back|return) to top|advertisements?|leave a (?:comment|reply)|click here.*)\W*",
    re.IGNORECASE,
)
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def clean(
    rules: Mapping[str, float] | None = None,
    *,
    languages: Sequence[str] = (),
    words: Words | None = None,
    changed: Counter[str] | None = None,
) -> Stage:
    """The stage that cleans. `rules` is what clean_rules.choose gives (default: its default).

    Text records are mended, measured and judged; of other kinds only the text within is mended. `languages` (codes
    such as "en") are those that stay; "any" keeps all; either way meta tells each text's `language`. meta.quality is
    the score of clean_rules.quality. `words` is the list of the rule c4-words. The id stays that of the text as it came
    in. Mended texts are counted by rule
    into `changed`. Raises MissingExtra when a rule's package is not there.
    """
    chosen = dict(choose() if rules is None else rules)
    counts: Counter[str] = Counter() if changed is None else changed
    if "repair-mojibake" in chosen and importlib.util.find_spec("ftfy") is None:
        raise MissingExtra("ftfy", "data")
    if languages:
        identify("a text")

    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        for record in records:
            if record.kind == "text":
                yield _cleaned(record, chosen, languages, words, counts)
            else:
                fields = {k: repair(v, chosen, counts) if isinstance(v, str) else v for k, v in record.fields.items()}
                yield record if fields == record.fields else dataclasses.replace(record, fields=fields)

    return stage


def _cleaned(
    record: Record, chosen: Mapping[str, float], languages: Sequence[str], words: Words | None, counts: Counter[str]
) -> Record | Dropped:
    before = record["text"]
    if len(before) > chosen.get("length-most", len(before)):
        return Dropped(record, "length-most")
    text = repair(before, chosen, counts)
    if any(name.startswith(("lines-", "c4-line-", "c4-citations")) for name in chosen):
        text = _mend_lines(text, chosen, counts)
    if not text.strip():
        return Dropped(record, "empty")
    from ladderlm.data.clean_kernels import measure, points

    stats = dict(measure(points(text)))
    stats["quality"] = quality(stats)
    if "c4-lorem-ipsum" in chosen:
        stats["lorem_ipsum"] = "lorem ipsum" in text.lower()
    if words and "c4-words" in chosen:
        stats["listed_words"] = len(words.found(text))
    if rule := broken(stats, chosen):
        return Dropped(record, rule)
    meta = {**record.meta, "quality": stats["quality"]}
    if languages:
        found = identify(text)
        sure = found.score >= chosen.get("language-score", 0.0)
        if "any" not in languages and (found.code not in languages or not sure):
            return Dropped(record, "language" if found.code not in languages else "language-score")
        meta |= {"language": found.code, "language_score": round(found.score, 4)}
    fields = record.fields if text == before else {**record.fields, "text": text}
    return dataclasses.replace(record, fields=fields, meta=meta)


class Words:
    """A list of words and phrases: one a line, matched whole and in any case; in scripts without spaces anywhere."""

    def __init__(self, listed: Iterable[str]) -> None:
        terms = {" ".join(_WORD.findall(line.lower())) for line in listed} - {""}
        self._anywhere = sorted(t for t in terms if _UNSPACED.search(t))
        self._phrases = sorted(t for t in terms if " " in t and not _UNSPACED.search(t))
        self._words = terms - {*self._anywhere, *self._phrases}

    @classmethod
    def read(cls, path: str | Path) -> Words:
        """The list in a UTF-8 file. Raises NotFound, FormatError for a file without a word."""
        with open_bytes(Path(path)) as file:
            found = cls(file.read().decode("utf-8-sig", "replace").splitlines())
        if not (found._anywhere or found._phrases or found._words):
            raise FormatError("no word in it", where=str(path), cure="one word or phrase a line")
        return found

    def found(self, text: str) -> set[str]:
        """Those that are in a text."""
        lower = text.lower()
        all_ = _WORD.findall(lower)
        hits = self._words.intersection(all_) | {t for t in self._anywhere if t in lower}
        if self._phrases:
            joined = f" {' '.join(all_)} "
            hits |= {phrase for phrase in self._phrases if f" {phrase} " in joined}
        return hits


# --- Mending ------------------------------------------------------------------------------------------------------


def repair(text: str, chosen: Mapping[str, float], counts: Counter[str]) -> str:
    """`text` after the repair rules in `chosen`; each that changed something is counted."""
    for name, mend in _REPAIRS.items():
        if name in chosen and (new := mend(text)) != text:
            counts[name] += 1
            text = new
    return text


def _newlines(text: str) -> str:
    if "\r" not in text and "\f" not in text:
        return text
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")


def _mojibake(text: str) -> str:
    if text.isascii() or not _MOJIBAKE.search(text):
        return text
    from ftfy import fix_encoding

    # line by line, and only lines with signs of it: the library is slow
    return "\n".join(fix_encoding(line) if _MOJIBAKE.search(line) else line for line in text.split("\n"))


def _control(text: str) -> str:
    return (_CONTROL if text.isascii() else _CONTROL_WIDE).sub("", text)


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _space(text: str) -> str:
    if " \n" in text or "\t\n" in text or "\u00a0\n" in text or text[-1:] in (" ", "\t", "\u00a0"):
        text = "\n".join(line.rstrip(" \t\u00a0") for line in text.split("\n"))
    return _EMPTY.sub("\n\n", text) if "\n\n\n" in text else text


_REPAIRS: Mapping[str, Callable[[str], str]] = {
    "repair-newlines": _newlines,
    "repair-mojibake": _mojibake,
    "repair-control": _control,
    "repair-nfc": _nfc,
    "repair-space": _space,
}


def _mend_lines(text: str, chosen: Mapping[str, float], counts: Counter[str]) -> str:
    """`text` without the lines that the line rules in `chosen` take out; empty lines between paragraphs stay."""
    from ladderlm.data.clean_kernels import lines, points

    if "c4-citations" in chosen and "[" in text:
        text = _counted("c4-citations", text, _CITATION.sub("", text), counts)
    start, end, words, longest, terminal = lines(points(text))
    full = words > 0
    gone = np.zeros(len(start), bool)

    def take(name: str, where: np.ndarray) -> None:
        nonlocal gone
        if (new := where & full & ~gone).any():
            counts[name] += 1
            gone = gone | new

    def matching(candidates: np.ndarray, fits: Callable[[str], object]) -> np.ndarray:
        found = np.zeros(len(start), bool)
        for i in np.flatnonzero(candidates & full & ~gone).tolist():
            found[i] = bool(fits(text[start[i] : end[i]]))
        return found

    if "c4-line-end" in chosen:
        take("c4-line-end", terminal == 0)
    if "c4-line-words" in chosen:
        take("c4-line-words", words < chosen["c4-line-words"])
    if "c4-line-word-length" in chosen:
        take("c4-line-word-length", longest > chosen["c4-line-word-length"])
    if "lines-web" in chosen:
        take("lines-web", matching(words <= _FRAME_WORDS, lambda line: _FRAME.fullmatch(line.strip())))
    for name, phrases in (("c4-line-javascript", ("javascript",)), ("c4-line-policy", _POLICY)):
        if name in chosen and _holds(text.lower(), phrases):
            take(name, matching(full, functools.partial(_holds_lower, phrases=phrases)))
    if not gone.any():
        return text
    kept = "\n".join(text[start[i] : end[i]] for i in np.flatnonzero(~gone).tolist())
    return _EMPTY.sub("\n\n", kept)


def _holds(text: str, phrases: Sequence[str]) -> bool:
    return any(phrase in text for phrase in phrases)


def _holds_lower(line: str, phrases: Sequence[str]) -> bool:
    return _holds(line.lower(), phrases)


def _counted(name: str, before: str, after: str, counts: Counter[str]) -> str:
    if before != after:
        counts[name] += 1
    return after
