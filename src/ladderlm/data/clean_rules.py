"""The rules of cleaning: each with its name, its threshold and where it is from; switched and set by name.

Families: `repair` and `lines` mend a text, the others judge it.

- gopher: Rae et al. 2021, arXiv:2112.11446, section A.1.1 and table A1
- c4: Raffel et al. 2020, JMLR 21(140), section 2.2 (its list of bad words: any list, --words)
- fineweb: Penedo et al. 2024, arXiv:2406.17557, section 3.6 and appendix; its language threshold
- refinedweb: Penedo et al. 2023, arXiv:2306.01116, table 9 (lines of web pages)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ladderlm.errors import UsageError, nearest

MENDING = ("repair", "lines")
DEFAULT = ("gopher",)


@dataclass(frozen=True, slots=True)
class Rule:
    """`least` and `most` rules leave a text out whose `stat` (clean_kernels.STATS) is beyond the threshold."""

    name: str
    text: str
    kind: Literal["least", "most", "mend"] = "mend"
    threshold: float = math.nan
    stat: str = ""

    @property
    def family(self) -> str:
        return self.name.split("-")[0]


_REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_TABLE = (
    Rule("repair-newlines", "\\r\\n, \\r and form feeds become \\n"),
    Rule("repair-mojibake", "UTF-8 that was read in another encoding, where signs of it are there (ftfy)"),
    Rule("repair-control", "control, zero-width and private characters, half surrogates and byte-order marks go"),
    Rule("repair-nfc", "Unicode normal form C"),
    Rule("repair-space", "no space at the ends of lines, at most one empty line together"),
    Rule("lines-web", "short lines of a page's frame go: counters, sign-in, cookies, share, all rights reserved"),
    Rule("length-most", "characters; a longer text is not looked into", "most", 10_000_000, "characters"),
    Rule("gopher-words-least", "words with a letter or digit", "least", 50, "plain_words"),
    Rule("gopher-words-most", "words with a letter or digit", "most", 100_000, "plain_words"),
    Rule("gopher-word-length-least", "mean characters of such a word", "least", 3, "word_length"),
    Rule("gopher-word-length-most", "mean characters of such a word", "most", 10, "word_length"),
    Rule("gopher-hashes", "# per word", "most", 0.1, "hashes"),
    Rule("gopher-ellipses", "ellipses per word", "most", 0.1, "ellipses"),
    Rule("gopher-bullets", "share of lines that begin with a bullet", "most", 0.9, "bullet_lines"),
    Rule("gopher-ellipsis-lines", "share of lines that end with an ellipsis", "most", 0.3, "ellipsis_lines"),
    Rule("gopher-alpha", "share of words with a letter", "least", 0.8, "alpha_words"),
    Rule("gopher-stop-words", "how many of: the be to of and that have with (English)", "least", 2, "stop_words"),
    Rule("gopher-duplicate-lines", "share of lines that came before", "most", 0.3, "duplicate_lines"),
    Rule("gopher-duplicate-paragraphs", "share of paragraphs that came before", "most", 0.3, "duplicate_paragraphs"),
    Rule("gopher-duplicate-line-characters", "share of characters in such lines", "most", 0.2,
         "duplicate_line_characters"),
    Rule("gopher-duplicate-paragraph-characters", "share of characters in such paragraphs", "most", 0.2,
         "duplicate_paragraph_characters"),
    *(Rule(f"gopher-top-{n}-gram", f"share of characters in the most frequent {n} words", "most", most, f"top_{n}_gram")
      for n, most in ((2, 0.20), (3, 0.18), (4, 0.16))),
    *(Rule(f"gopher-duplicate-{n}-gram", f"share of characters in {n} words that came before", "most", most,
           f"duplicate_{n}_gram") for n, most in _REPEATED.items()),
    Rule("c4-line-end", "lines that do not end with . ! ? or a quotation mark go"),
    Rule("c4-line-words", "lines of fewer words go", threshold=5),
    Rule("c4-line-word-length", "lines with a longer word go", threshold=1000),
    Rule("c4-line-javascript", "lines that name Javascript go"),
    Rule("c4-line-policy", "lines of privacy, cookie and usage policies go"),
    Rule("c4-citations", "[1], [edit] and [citation needed] go"),
    Rule("c4-lorem-ipsum", "texts with \"lorem ipsum\"", "most", 0, "lorem_ipsum"),
    Rule("c4-braces", "texts with {, a sign of code", "most", 0, "braces"),
    Rule("c4-words", "different words and phrases of the list that --words names", "most", 0, "listed_words"),
    Rule("c4-sentences", "sentences", "least", 3, "sentences"),
    Rule("fineweb-line-end", "share of lines that end like prose", "least", 0.12, "terminal_lines"),
    Rule("fineweb-short-lines", "share of lines of at most 30 characters", "most", 0.67, "short_lines"),
    Rule("fineweb-duplicate-line-characters", "share of characters in lines that came before", "most", 0.01,
         "duplicate_line_characters"),
    Rule("fineweb-newlines", "newlines per word", "most", 0.3, "newlines_per_word"),
    Rule("language-score", "how sure the language is, where languages are asked for", threshold=0.65),
    Rule("quality-score", "the quality score (see `quality`)", "least", 0, "quality"),
)  # fmt: skip
RULES: Mapping[str, Rule] = {rule.name: rule for rule in _TABLE}
FAMILIES = tuple(dict.fromkeys(rule.family for rule in _TABLE))
_ALWAYS = (*MENDING, "length", "language", "quality")


def choose(
    rules: Sequence[str] = DEFAULT, without: Iterable[str] = (), values: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Rule -> threshold of those that are on, in their order.

    `rules` and `without` hold names of families and rules; "none" is no rule that judges. Mending rules, the greatest
    length, and the language where one is asked for, are on unless `without` names them. A rule given a value is on.
    Raises UsageError for an unknown name or a rule that takes no value.
    """
    values = values or {}
    on = {name for wanted in (*_ALWAYS, *rules) if wanted != "none" for name in _named(wanted)}
    on -= {name for unwanted in without for name in _named(unwanted)}
    for name in values:
        if name not in RULES:
            raise UsageError(f"unknown rule {name!r}", cure=nearest(name, RULES))
        if math.isnan(RULES[name].threshold):
            raise UsageError(f"the rule {name!r} takes no value", cure=f"leave it out: --without {name}")
    return {name: float(values.get(name, rule.threshold)) for name, rule in RULES.items() if name in on | set(values)}


def _named(wanted: str) -> list[str]:
    found = [name for name, rule in RULES.items() if wanted in (name, rule.family)]
    if not found:
        raise UsageError(f"unknown rule {wanted!r}", cure=nearest(wanted, (*FAMILIES, *RULES)))
    return found


def values_of(settings: Iterable[str]) -> dict[str, float]:
    """{"RULE": VALUE} of "RULE=VALUE" texts. Raises UsageError."""
    found = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise UsageError("not a rule and its value", where=setting, cure="--set RULE=NUMBER") from None
        if math.isnan(found[name]):
            raise UsageError("not a number", where=setting, cure="--set RULE=NUMBER")
    return found


def broken(stats: Mapping[str, float], chosen: Mapping[str, float]) -> str:
    """The first rule that a text with these `stats` breaks, or "". A rule whose stat is not there is kept to."""
    for name, threshold in chosen.items():
        rule = RULES[name]
        if rule.kind == "mend" or rule.stat not in stats:
            continue
        value = stats[rule.stat]
        if value < threshold if rule.kind == "least" else value > threshold:
            return name
    return ""


def quality(stats: Mapping[str, float]) -> float:
    """0 to 1: how much a text looks like prose. The mean of five shares, each 1 at what good prose has.

    Words with a letter; lines that end like prose (half is enough); stop words (a tenth is enough); characters
    outside repeated lines; characters outside repeated 5-grams. For texts that are not English the stop words count
    as met.
    """
    english = stats["stop_words"] > 0
    parts = (
        stats["alpha_words"],
        min(2 * stats["terminal_lines"], 1),
        min(10 * stats["stop_word_share"], 1) if english else 1,
        1 - min(stats["duplicate_line_characters"], 1),
        1 - min(stats["duplicate_5_gram"], 1),
    )
    return round(sum(parts) / len(parts), 4)
