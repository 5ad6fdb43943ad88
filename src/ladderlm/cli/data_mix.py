"""`ladderlm data mix|split|decontaminate|licences|balance|augment`: which records go into a dataset, and how often."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm import events
from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.cli.data_look import describe
from ladderlm.config import option
from ladderlm.data.licences import licence_stage, terms
from ladderlm.data.records import write_records
from ladderlm.data.split import run_split
from ladderlm.data.stages import run_stage, stream, unpacked_name
from ladderlm.data.stats import stats
from ladderlm.errors import UsageError
from ladderlm.store import sha256_of
from ladderlm.types import Chat, Completion, Conversation, Record, Sampling


@dataclass(frozen=True, slots=True)
class SplitConfig:
    file: str = option(help="a dataset")
    fraction: float = option(0.1, "how much to hold out")
    seed: int = option(0, "another seed, another split")
    by: str = option("", "hold out whole sources, or records by id (default: sources if there are ten)",
                     choices=("", "source", "id"))  # fmt: skip
    out: str = option("", "the folder for train.jsonl and test.jsonl (default: beside the file)", short="-o")
    skip_bad: bool = option(False, "leave out lines that cannot be read, and say how many")
    json: bool = option(False, "print JSON")


def split_(argv: list[str]) -> int:
    config = parse("data split", SplitConfig, argv, description="Split a dataset in two, the same way every time.")
    file, bad = Path(config.file), Counter[str]()
    heard = (lambda name, line, rule, _: bad.update([rule])) if config.skip_bad else None
    folder = Path(config.out) if config.out else file.parent
    name = unpacked_name(file.name).rsplit(".", 1)[0]
    sides = [folder / f"{name}.{side}.jsonl" for side in ("train", "test")]
    with show.progress():
        run_split(file, *sides, fraction=config.fraction, seed=config.seed, by=config.by or None, bad=heard)  # type: ignore[arg-type]
        if bad:
            events.emit("split", f"left out {bad.total()} unreadable lines")
        describe({str(side): stats(stream(side)) for side in sides}, config.json)
    return 0


def write_splits(splits: Mapping[str, Sequence[Record]], out: Path, as_json: bool) -> int:
    """Writes NAME.train.jsonl and NAME.test.jsonl for out = NAME.jsonl."""
    zipped = ".gz" if out.name.endswith(".gz") else ""
    base = out.name.removesuffix(".gz").removesuffix(".jsonl")
    described = {}
    for name, records in splits.items():
        path = out.with_name(f"{base}.{name}.jsonl{zipped}")
        write_records(path, records)
        described[str(path)] = stats(records)
    describe(described, as_json)
    return 0


# --- Mixing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MixConfig:
    parts: tuple[str, ...] = option(help="datasets: FILE, FILE=WEIGHT (share of the budget) or FILE*EPOCHS")
    out: str = option("mix.jsonl", "where to write the records; - is stdout", short="-o")
    budget: float = option(0.0, "how much to take in all, in units; 0: as much as no dataset repeats")
    unit: str = option("bytes", "what a budget counts", choices=("bytes", "tokens", "records"))
    model: str = option("", "whose tokenizer counts the tokens")
    temperature: float = option(1.0, "without weights: shares go as size ** (1 / temperature)")
    max_epochs: float = option(4.0, "no weight makes a dataset be gone through more often")
    seed: int = option(0, "another seed, another order")
    report: str = option("", "where to write the report (default: OUT.report.json)")
    json: bool = option(False, "print JSON")


def mix_(argv: list[str]) -> int:
    from ladderlm.data.mix import Part, byte_size, mix_stage
    from ladderlm.data.rewrite import texts

    config = parse("data mix", MixConfig, argv, description="Mix datasets into one, shuffled the same way every time.")
    parts = [Part.parse(text) for text in config.parts]
    if any(part.path == "-" for part in parts):
        raise UsageError("a mixture is read twice: stdin cannot be a part of it", cure="write it to a file first")
    size = byte_size
    if config.unit == "records":
        size = lambda record: 1  # noqa: E731
    if config.unit == "tokens":
        if not config.model:
            raise UsageError("tokens of which tokenizer?", where="unit tokens", cure="--model MODEL")
        from ladderlm.models import open_model

        tokenizer = open_model(config.model).tokenizer
        size = lambda record: sum(map(len, tokenizer.encode_batch(list(texts(record)))))  # noqa: E731
    details: dict[str, Any] = {"unit": config.unit}
    stage = mix_stage(parts, budget=int(config.budget), size=size, temperature=config.temperature,
                      most_epochs=config.max_epochs, seed=config.seed, details=details)  # fmt: skip
    settings = {"parts": [[part.weight, part.epochs] for part in parts], "budget": config.budget, "seed": config.seed,
                "unit": config.unit, "model": config.model, "temperature": config.temperature,
                "max_epochs": config.max_epochs}  # fmt: skip
    with show.progress():
        report = run_stage("mix", stage, [p.path for p in parts], config.out, settings, report=config.report,
                           details=details)  # fmt: skip
    show.stage(report, config.out, config.json)
    if not config.json and config.out != "-":
        rows = [(p["name"], f"{p['records']:,}", f"{p['size']:,}", f"{p['epochs']:g}", f"{p['taken']:,}")
                for p in report.details["parts"]]  # fmt: skip
        show.table(rows, ("dataset", "records", config.unit, "epochs", "taken"))
    return 0


# --- Leaving out --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DecontaminateConfig:
    inputs: tuple[str, ...] = option(help="datasets; - is stdin")
    against: tuple[str, ...] = option((), "a benchmark file (repeatable): JSON lines, JSON, CSV, TSV or text")
    out: str = option("-", "where to write the records; - is stdout", short="-o")
    n: int = option(13, "words in an n-gram")
    action: str = option("drop", "leave out what repeats a benchmark, or cut the place and 200 characters around it",
                         choices=("drop", "cut"))  # fmt: skip
    report: str = option("", "where to write the report (default: OUT.report.json)")
    dropped: str = option("", "keep what is left out in this file")
    json: bool = option(False, "print JSON")


def decontaminate_(argv: list[str]) -> int:
    from ladderlm.data.decontaminate import Benchmarks, decontaminate_stage

    config = parse("data decontaminate", DecontaminateConfig, argv, description="Keep benchmarks out of training text.")
    if not config.against:
        raise UsageError("which benchmarks?", cure="--against FILE")
    benchmarks = Benchmarks(config.against, config.n)
    counts, details = Counter[str](), dict[str, Any]()
    stage = decontaminate_stage(benchmarks, config.action, counts=counts, details=details)  # type: ignore[arg-type]
    settings = {"against": [[Path(p).name, sha256_of(Path(p))] for p in config.against], "n": config.n,
                "action": config.action}  # fmt: skip
    with show.progress():
        report = run_stage("decontaminate", stage, config.inputs, config.out, settings, report=config.report,
                           dropped=config.dropped, changed=counts, details=details)  # fmt: skip
    show.stage(report, config.out, config.json)
    if not config.json and config.out != "-":
        rows = [(name, f"{b['items']:,}", f"{b['hit']:,} ({b['share']:.1%})", f"{b['too_short']:,}")
                for name, b in report.details["benchmarks"].items()]  # fmt: skip
        show.table(rows, ("benchmark", "items", "met in the text", "too short to tell"))
    return 0


@dataclass(frozen=True, slots=True)
class LicencesConfig:
    inputs: tuple[str, ...] = option(help="datasets; - is stdin")
    licence: str = option("", "keep what is licensed so: commercial, permissive, or a licence's name")
    out: str = option("", "where to write what is kept; - is stdout (without it: only tell)", short="-o")
    report: str = option("", "where to write the report (default: OUT.report.json)")
    dropped: str = option("", "keep what is left out in this file")
    json: bool = option(False, "print JSON")


def licences_(argv: list[str]) -> int:
    config = parse("data licences", LicencesConfig, argv, description="Tell the licences of records, or keep by them.")
    if bool(config.licence) != bool(config.out):
        raise UsageError("keeping by licence needs both --licence and -o", cure="or neither, to see what is there")
    with show.progress():
        if config.out:
            report = run_stage("licences", licence_stage(config.licence), config.inputs, config.out,
                               {"licence": config.licence}, report=config.report, dropped=config.dropped)  # fmt: skip
            show.stage(report, config.out, config.json)
            return 0
        counts = Counter(record.licence for path in config.inputs for record in stream(path, lambda *_: None))
    rows = []
    for licence, count in counts.most_common():
        told = terms(licence)
        sold = {True: "yes", False: "no", None: "unclear"}[told.commercial]
        rows.append((licence, count, sold, ", ".join(told.flags)))
    if config.json:
        show.emit_json(
            [dict(zip(("licence", "records", "commercial", "conditions"), row, strict=True)) for row in rows]
        )
    else:
        show.table(rows, ("licence", "records", "commercial use", "conditions"))
    return 0


# --- Changing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BalanceConfig:
    inputs: tuple[str, ...] = option(help="datasets; - is stdin")
    out: str = option("-", "where to write the records; - is stdout", short="-o")
    axis: str = option("gender", "whose skew to shrink")
    action: str = option(
        "swap", "exchange group words in half of the records, add a swapped copy of each, or leave out records of the "
        "side spoken of more", choices=("swap", "copy", "reweight"),
    )  # fmt: skip
    terms: str = option("", "a TOML file with lists and pairs of your own (see docs/data.md)")
    seed: int = option(0, "another seed, another choice of records")
    report: str = option("", "where to write the report (default: OUT.report.json)")
    dropped: str = option("", "keep what is left out in this file")
    json: bool = option(False, "print JSON")


def balance_(argv: list[str]) -> int:
    from ladderlm.data.balance import balance_stage
    from ladderlm.data.groups import Terms, read_terms

    config = parse("data balance", BalanceConfig, argv, description="Make a measured skew between groups smaller.")
    terms = read_terms(config.terms) if config.terms else Terms()
    counts, details = Counter[str](), dict[str, Any]()
    stage = balance_stage(terms, config.axis, config.action, seed=config.seed, counts=counts, details=details)  # type: ignore[arg-type]
    settings = {"axis": config.axis, "action": config.action, "seed": config.seed,
                "terms": sha256_of(Path(config.terms)) if config.terms else ""}  # fmt: skip
    with show.progress():
        report = run_stage("balance", stage, config.inputs, config.out, settings, report=config.report,
                           dropped=config.dropped, changed=counts, details=details)  # fmt: skip
    show.stage(report, config.out, config.json)
    if not config.json and config.out != "-":
        axes = [(when, report.details[when]["axes"].get(config.axis)) for when in ("before", "after")]
        rows = [(when, group, f"{f['mentions']:,}", f"{f['share']:.1%}", f"{axis['imbalance']:.4f}",
                 sum(s["skewed"] for shares in axis["attributes"].values() for g, s in shares.items() if g == group))
                for when, axis in axes if axis for group, f in axis["groups"].items()]  # fmt: skip
        show.table(rows, ("when", "group", "mentions", "share", "imbalance", "skewed attributes"))
    return 0


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    inputs: tuple[str, ...] = option(help="datasets; - is stdin")
    out: str = option("-", "where to write the records; - is stdout", short="-o")
    ways: tuple[str, ...] = option((), "typo, keyboard, case, space (default: all four), paraphrase (needs --model)")
    copies: int = option(1, "variants of each record")
    rate: float = option(0.05, "the share of words or blanks that change")
    keep: bool = option(True, "keep the records as they were too")
    model: str = option("", "who paraphrases: a model's name, folder, or URL#model")
    seed: int = option(0, "another seed, other variants")
    report: str = option("", "where to write the report (default: OUT.report.json)")
    json: bool = option(False, "print JSON")


def augment_(argv: list[str]) -> int:
    from ladderlm.data.augment import WAYS, augment_stage

    config = parse("data augment", AugmentConfig, argv, description="Variants of what people type.")
    ways = config.ways or (("paraphrase",) if config.model else tuple(WAYS))
    counts = Counter[str]()
    settings = {"ways": ways, "copies": config.copies, "rate": config.rate, "keep": config.keep, "seed": config.seed,
                "model": config.model}  # fmt: skip
    with show.progress(), contextlib.ExitStack() as stack:
        paraphrase = None
        if config.model:
            from ladderlm.talk import open_chat

            paraphrase = _paraphraser(stack.enter_context(contextlib.closing(open_chat(config.model))), config.seed)
        stage = augment_stage(ways, copies=config.copies, rate=config.rate, keep=config.keep, seed=config.seed,
                              paraphrase=paraphrase, counts=counts)  # fmt: skip
        report = run_stage("augment", stage, config.inputs, config.out, settings, report=config.report, changed=counts)
    show.stage(report, config.out, config.json)
    return 0


def _paraphraser(chat: Chat, seed: int) -> Callable[[str], str]:
    ask = "Say the following in other words, with the same meaning and about as long. Answer with the new text alone."

    def paraphrase(text: str) -> str:
        sampling = Sampling(temperature=0.7, seed=seed, max_tokens=max(64, len(text)))
        return Completion.fold(chat.stream(Conversation.of(text, ask), sampling)).text

    return paraphrase
