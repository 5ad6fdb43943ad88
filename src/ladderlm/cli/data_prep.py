"""`ladderlm data clean|dedup`: texts mended and judged by named rules; duplicates left out."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option
from ladderlm.data.clean_rules import DEFAULT, FAMILIES, RULES, choose, values_of
from ladderlm.data.stages import StageReport, run_stage
from ladderlm.errors import UsageError
from ladderlm.store import sha256_of


@dataclass(frozen=True, slots=True)
class CleanConfig:
    inputs: tuple[str, ...] = option((), "datasets; - is stdin", positional=True)
    out: str = option("-", "where to write what stays; - is stdout", short="-o")
    rules: str = option(",".join(DEFAULT), f"families or rules that judge ({', '.join(FAMILIES)}); none")
    without: tuple[str, ...] = option((), "a family or rule to switch off; may be repeated")
    set: tuple[str, ...] = option((), "RULE=VALUE: another threshold; may be repeated")
    language: str = option("", "keep these languages (en,de); any: only tell each text's")
    words: str = option("", "a list of words, one a line: texts with one of them go (rule c4-words)")
    list: bool = option(False, "list every rule with its threshold, and stop")
    report: str = option("", "where to write the report (default: beside the output)")
    dropped: str = option("", "where to write what was left out, with its rule in meta")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class DedupConfig:
    inputs: tuple[str, ...] = option((), "datasets; - is stdin", positional=True)
    out: str = option("-", "where to write what stays; - is stdout", short="-o")
    level: str = option("document", "what must repeat", choices=("document", "paragraph", "sentences"))
    exact: bool = option(False, "exact duplicates only")
    threshold: float = option(0.65, "the Jaccard index of word n-grams from which texts are near duplicates")
    ngram: int = option(5, "words of an n-gram")
    permutations: int = option(512, "hashes of a signature: more are surer and slower")
    least_words: int = option(20, "shorter paragraphs, or spans of three sentences, may repeat")
    report: str = option("", "where to write the report (default: beside the output)")
    dropped: str = option("", "where to write what was left out, with its rule in meta")
    json: bool = option(False, "print JSON")


def run_clean(config: CleanConfig) -> StageReport:
    """Raises UsageError for an unknown rule, MissingExtra when a rule's package is not there."""
    from ladderlm.data.clean import Words, clean

    values = values_of(config.set)
    if config.words:
        values.setdefault("c4-words", RULES["c4-words"].threshold)
    elif "c4-words" in values:
        raise UsageError("which words?", where="c4-words", cure="--words FILE")
    rules = choose(_listed(config.rules) or ["none"], config.without, values)
    words = Words.read(config.words) if config.words else None
    languages, changed = _listed(config.language), Counter[str]()
    settings = {"rules": rules, "languages": languages} | ({"words": sha256_of(Path(config.words))} if words else {})
    stage = clean(rules, languages=languages, words=words, changed=changed)
    return run_stage(
        "clean", stage, config.inputs or ("-",), config.out, settings,
        report=config.report, dropped=config.dropped, changed=changed,
    )  # fmt: skip


def run_dedup(config: DedupConfig) -> StageReport:
    """Raises UsageError for a setting out of range."""
    from ladderlm.data.dedup import dedup

    names = ("level", "exact", "threshold", "permutations", "ngram", "least_words")
    settings = {name: getattr(config, name) for name in names}
    changed = Counter[str]()
    return run_stage(
        "dedup", dedup(**settings, changed=changed), config.inputs or ("-",), config.out, settings,
        report=config.report, dropped=config.dropped, changed=changed,
    )  # fmt: skip


def clean_(argv: list[str]) -> int:
    config = parse("data clean", CleanConfig, argv, description="Mend texts, and leave out what breaks a rule.")
    if config.list:
        _list(config.json)
        return 0
    with show.progress():
        report = run_clean(config)
    show.stage(report, config.out, config.json)
    return 0


def dedup_(argv: list[str]) -> int:
    config = parse("data dedup", DedupConfig, argv, description="Leave out exact and near duplicates; the first stays.")
    with show.progress():
        report = run_dedup(config)
    show.stage(report, config.out, config.json)
    return 0


def _list(as_json: bool) -> None:
    if as_json:
        show.emit_json([dataclasses.asdict(rule) for rule in RULES.values()])
        return
    on = choose()
    signs = {"least": "at least", "most": "at most", "mend": ""}
    rows = []
    for name, rule in RULES.items():
        threshold = "" if math.isnan(rule.threshold) else f"{signs[rule.kind]} {rule.threshold:g}".strip()
        rows.append((name, "on" if name in on else "", threshold, rule.text))
    show.table(rows, ("rule", "default", "threshold", "what"))


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
