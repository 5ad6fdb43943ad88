"""`ladderlm data stats|bias|pii`: what is in a dataset, and who."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm import events
from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option
from ladderlm.data.language import identify
from ladderlm.data.page import render_page
from ladderlm.data.pii import DEFAULT, KINDS
from ladderlm.data.stages import run_stage, stream
from ladderlm.data.stats import Stats, stats
from ladderlm.errors import FormatError, UsageError, nearest
from ladderlm.store import atomic_file, write_json


@dataclass(frozen=True, slots=True)
class StatsConfig:
    file: str = option(help="a dataset; - is stdin")
    model: str = option("", "also count tokens, with this model's tokenizer")
    languages: bool = option(False, "name each record's language (needs the extra data)")
    page: str = option("", "also write a page to look at, one HTML file")
    skip_bad: bool = option(False, "leave out lines that cannot be read, and say how many")
    json: bool = option(False, "print JSON")


def stats_(argv: list[str]) -> int:
    config = parse("data stats", StatsConfig, argv, description="Count records, words, tokens, sources and licences.")
    with show.progress():
        bad = Counter[str]()
        heard = (lambda name, line, rule, _: bad.update([rule])) if config.skip_bad else None
        records = stream(config.file, heard)
        tokenizer = None
        if config.model:
            from ladderlm.models import open_model

            tokenizer = open_model(config.model).tokenizer
        found = stats(records, tokenizer, (lambda text: identify(text).code) if config.languages else None)
        if not found.records:
            raise FormatError("no readable record", where=config.file, cure="expected one JSON object a line, or text")
        if bad:
            events.emit("stats", f"left out {sum(bad.values())} unreadable lines")
        if config.page:
            with atomic_file(Path(config.page)) as file:
                file.write(render_page(Path(config.file).name, found))
    describe({str(config.file): found}, config.json)
    return 0


def describe(found: dict[str, Stats], as_json: bool) -> None:
    if as_json:
        show.emit_json({path: s.to_dict() for path, s in found.items()})
        return
    rows: list[tuple[str, str, str]] = []
    for path, s in found.items():
        rows.append((path, "records", f"{s.records:,} ({_most(s.kinds)}), {s.repeated:,} repeated"))
        rows.append((path, "size", f"{s.bytes:,} bytes, {s.words:,} words"))
        rows.append((path, "words a record", "least {:,}, median {:,}, 95 % {:,}, most {:,}".format(*s.words_each)))
        if s.tokens_each:
            each = "least {:,}, median {:,}, 95 % {:,}, most {:,}".format(*s.tokens_each)
            rows.append((path, "tokens", f"{s.tokens:,}; a record: {each}"))
        rows.append((path, "sources", f"{len(s.sources):,}: {_most(s.sources)}"))
        rows.append((path, "licences", _most(s.licences)))
        if s.domains:
            rows.append((path, "domains", f"{len(s.domains):,}: {_most(s.domains)}"))
        if s.languages:
            rows.append((path, "languages", _most(s.languages)))
        if s.labels:
            rows.append((path, "labels", _most(s.labels)))
    show.table(rows, ("dataset", "what", "figure"))


def _most(counts: Mapping[str, int], shown: int = 5) -> str:
    parts = [f"{name} {n:,}" for name, n in list(counts.items())[:shown]]
    return ", ".join(parts) + (", ..." if len(counts) > shown else "")


@dataclass(frozen=True, slots=True)
class PiiConfig:
    inputs: tuple[str, ...] = option(help="datasets; - is stdin")
    out: str = option("-", "where to write the records; - is stdout", short="-o")
    action: str = option("mask", "tell how many in meta.pii, replace, or leave such records out",
                         choices=("find", "mask", "drop"))  # fmt: skip
    kinds: tuple[str, ...] = option((), f"what to look for: {', '.join(KINDS)} (default: all but url, date, name)")
    pseudonyms: str = option("", "a file with a secret: the same person becomes the same stand-in everywhere")
    names: str = option("", "an installed spaCy pipeline that finds people's names, such as en_core_web_sm")
    report: str = option("", "where to write the report (default: OUT.report.json)")
    dropped: str = option("", "keep what is left out in this file")
    json: bool = option(False, "print JSON")


def pii_(argv: list[str]) -> int:
    from ladderlm.data.pii_stage import pii_stage, spacy_names
    from ladderlm.data.pseudonyms import Pseudonyms

    config = parse("data pii", PiiConfig, argv, description="Find, mask or drop personal data and secrets.")
    kinds = config.kinds or DEFAULT
    keyed = Pseudonyms.from_file(config.pseudonyms) if config.pseudonyms else None
    names = spacy_names(config.names) if config.names else None
    counts: Counter[str] = Counter()
    stage = pii_stage(config.action, kinds, names=names, pseudonyms=keyed, counts=counts)  # type: ignore[arg-type]
    settings = {"action": config.action, "kinds": sorted(kinds), "names": config.names,
                "key": keyed.fingerprint if keyed else ""}  # fmt: skip
    with show.progress():
        report = run_stage("pii", stage, config.inputs, config.out, settings,
                           report=config.report, dropped=config.dropped, changed=counts)  # fmt: skip
    show.stage(report, config.out, config.json)
    return 0


@dataclass(frozen=True, slots=True)
class BiasConfig:
    inputs: tuple[str, ...] = option(help="datasets; - is stdin")
    terms: str = option("", "a TOML file with lists of your own (see docs/data.md)")
    axis: tuple[str, ...] = option((), "only these axes, such as gender")
    out: str = option("", "also write the report as JSON to this file", short="-o")
    json: bool = option(False, "print JSON")


def bias_(argv: list[str]) -> int:
    from ladderlm.data.bias import Counts, Finder, bias_report
    from ladderlm.data.groups import Terms, read_terms

    config = parse("data bias", BiasConfig, argv, description="How often groups of people are spoken of, and as what.")
    terms = read_terms(config.terms) if config.terms else Terms()
    if unknown := set(config.axis) - set(terms.groups):
        raise UsageError(f"no axis {min(unknown)!r}", cure=nearest(min(unknown), terms.groups))
    if config.axis:
        terms = Terms({axis: terms.groups[axis] for axis in config.axis}, terms.attributes, terms.pairs)
    finder, counts = Finder(terms), Counts()
    with show.progress():
        for path in config.inputs:
            for record in stream(path, lambda *_: None):
                finder.add(counts, record)
    found = bias_report(counts, terms)
    if config.out:
        write_json(Path(config.out), found)
    if config.json:
        show.emit_json(found)
    else:
        bias_table(found)
    return 0


def bias_table(found: Mapping[str, Any]) -> None:
    """Mentions of each group, then the attributes whose interval excludes what is expected."""
    rows, skewed = [], []
    for axis, told in found["axes"].items():
        for group, f in told["groups"].items():
            rows.append((axis, group, f"{f['mentions']:,}", f"{f['per_million_words']:,}", f"{f['share']:.1%}"))
        for attribute, shares in told["attributes"].items():
            for group, s in shares.items():
                if s["skewed"]:
                    low, high = s["interval"]
                    skewed.append((axis, attribute, group, f"{s['records']:,}",
                                   f"{s['share']:.1%} [{low:.1%}, {high:.1%}]", f"{s['expected']:.1%}"))  # fmt: skip
    show.table(rows, ("axis", "group", "mentions", "per million words", "share"))
    if skewed:
        show.table(skewed, ("axis", "attribute", "told of", "records", "share [95 %]", "expected"))
