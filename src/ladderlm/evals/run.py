"""`eval`: a model on a dataset. What is measured follows from the kind of the records.

text         bits per byte and perplexity
class        accuracy, macro F1 and each label's precision, recall and F1, by the likelihood of the labels
messages, completion   BLEU and ROUGE of a greedy answer against the reference
preference   how often the chosen answer is likelier than the rejected one
answer       with `choices`: how often the right one is the likeliest ending
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm import events
from ladderlm.config import option
from ladderlm.data.shapes import conversation
from ladderlm.data.tables import parse_columns, read_table
from ladderlm.data.tasks import BUILTIN, ClassTask, DocsMatch
from ladderlm.errors import FormatError, UsageError
from ladderlm.evals import classify, metrics, perplexity
from ladderlm.evals.helped import Helped, did_it_help
from ladderlm.evals.intervals import Interval, bootstrap
from ladderlm.evals.report import Report
from ladderlm.talk.device import DEVICE, load
from ladderlm.types import Completion, Record, Sampling, Value

LOWER_IS_BETTER = ("bits_per_byte", "perplexity")


@dataclass(frozen=True, slots=True)
class EvalConfig:
    model: str = option(help="a model: name, folder, file.gguf, base+adapter; for answers also url#model")
    data: str = option("", "records, a table or a text, or one of " + ", ".join(BUILTIN))
    columns: tuple[str, ...] = option(
        (), "field=column of a table, such as text=review,label=stars; numbers where columns have no names"
    )
    against: str = option("", "a second model on the same records: did MODEL help over it?")
    limit: int = option(0, "use only the first N records (0: all)")
    shots: int = option(0, "class records: show N solved examples first")
    examples: str = option(
        "", "class records: where the examples come from (default: the built-in task's training part)"
    )
    template: str = option("", "class records: the user's turn, with {text} in it")
    system: str = option("", "class records: the system message")
    calibrate: bool = option(False, "class records: correct for what the model says of an empty text")
    context: int = option(0, "text records: tokens per window (0: the model's context)")
    max_tokens: int = option(64, "messages and completion records: the longest answer")
    skip_bad: bool = option(False, "leave out lines that cannot be read, and say how many")
    report: str = option("", "a folder to write report.md and report.html to")
    seed: int = option(0, "for examples and intervals")
    device: str = option("auto", DEVICE)
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class EvalResult(Value):
    """What was measured. `each` holds per-record scores, for paired comparisons; `samples` are (prompt, reference,
    answer) of the first records."""

    model: str
    data: str
    kind: str
    items: int
    metrics: Mapping[str, Interval]
    each: Mapping[str, tuple[float, ...]]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    samples: tuple[tuple[str, str, str], ...] = ()
    helped: Helped | None = None


def run(config: EvalConfig) -> EvalResult:
    """Evaluates `config.model`; with `against`, also says whether it is better than that one."""
    records, task = _records(config)
    result = _evaluate(config, config.model, records, task)
    if config.against:
        before = _evaluate(config, config.against, records, task)
        name = next(iter(result.each))
        helped = did_it_help(
            name, before.each[name], result.each[name], higher_is_better=name not in LOWER_IS_BETTER, seed=config.seed
        )
        result = dataclasses.replace(result, helped=helped)
    if config.report:
        make_report(result, config.against).write(config.report)
    return result


def _records(config: EvalConfig) -> tuple[Sequence[Record], ClassTask | None]:
    """The records, all of one kind, and the task where they are class records."""
    if not config.data:
        raise UsageError("no data to evaluate on", cure="--data FILE, or one of " + ", ".join(BUILTIN))
    columns = parse_columns(config.columns)
    if config.data in BUILTIN:
        splits = dict(BUILTIN[config.data]())
    else:
        splits = {"test": tuple(read_table(config.data, columns).settled(config.skip_bad))}
    records = splits["test"][: config.limit or None]
    kinds = sorted({r.kind for r in records})
    if len(kinds) != 1:
        raise FormatError(f"several kinds of record: {', '.join(kinds)}", where=config.data, cure="one kind a file")
    if kinds != ["class"]:
        return records, None
    if config.template and "{text}" not in config.template:
        raise UsageError("the template must have {text} in it", where=config.template)
    if config.examples:
        splits["train"] = tuple(read_table(config.examples, columns).settled(config.skip_bad))
    task = DocsMatch() if config.data == "docs-match" else ClassTask.of(Path(config.data).stem, splits, config.template)
    changes = {"template": config.template or task.template, "system": config.system or task.system, "splits": splits}
    return records, ClassTask(**{**task.__dict__, **changes})


def _evaluate(config: EvalConfig, model: str, records: Sequence[Record], task: ClassTask | None) -> EvalResult:
    kind = records[0].kind
    if kind in ("messages", "completion"):
        parts = _answers(config, model, records)
    else:
        measure = _MEASURES.get(kind)
        if measure is None:
            known = ", ".join(sorted({*_MEASURES, "messages", "completion"}))
            raise FormatError(f"no evaluation for {kind} records", where=config.data, cure=f"known: {known}")
        if "#" in model and "://" in model:
            raise UsageError(f"{kind} records need a local model's probabilities", where=model)
        from ladderlm.models import open_model

        files = open_model(model)
        engine = load(files, config.device)
        try:
            parts = measure(config, files, engine, records, task)
        finally:
            engine.close()
    return EvalResult(model, config.data, kind, len(records), **parts)


# --- One function per kind: metrics, each, details, samples -------------------------------------------------------


def _texts(config: EvalConfig, files: Any, engine: Any, records: Sequence[Record], task: Any) -> dict[str, Any]:
    texts = [r["text"] for r in records]
    found = perplexity.evaluate(engine, files.tokenizer, texts, config.context or None)
    details = {"nats": found.nats, "tokens": found.tokens, "bytes": found.bytes}
    shown = {"bits_per_byte": found.interval, "perplexity": found.perplexity_interval}
    return {"metrics": shown, "each": {"bits_per_byte": found.bits_each}, "details": details}


def _classes(config: EvalConfig, files: Any, engine: Any, records: Sequence[Record], task: Any) -> dict[str, Any]:
    examples: Sequence[Record] = ()
    if config.shots:
        if "train" not in task.splits:
            raise UsageError("shots need examples", where=f"shots={config.shots}", cure="name a file: --examples FILE")
        examples = classify.pick_examples(task.splits["train"], config.shots, config.seed)
    found = classify.classify(
        engine, files.tokenizer, files.template, task, records, examples=examples, calibrate=config.calibrate
    )
    truth = [r["label"] for r in records]
    macro = _over_items(truth, found.predictions, found.labels, config.seed)
    samples = [(r["text"], r["label"], p) for r, p in zip(records, found.predictions, strict=True)]
    return {
        "metrics": {"accuracy": found.accuracy, "macro_f1": macro},
        "each": {"accuracy": found.correct},
        "details": found.scores.to_dict(),
        "samples": tuple(samples[:10]),
    }


def _over_items(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str], seed: int) -> Interval:
    """Macro F1 with a bootstrap interval over the records."""
    import numpy as np

    pairs = list(zip(truth, predicted, strict=True))
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(500):
        some = [pairs[i] for i in rng.integers(0, len(pairs), len(pairs))]
        drawn.append(metrics.classification([t for t, _ in some], [p for _, p in some], labels).macro_f1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(metrics.classification(truth, predicted, labels).macro_f1, float(low), float(high))


def _choices(config: EvalConfig, files: Any, engine: Any, records: Sequence[Record], task: Any) -> dict[str, Any]:
    found = classify.choose(engine, files.tokenizer, records)
    return {"metrics": {"accuracy": found.accuracy}, "each": {"accuracy": found.correct}}


def _preferences(config: EvalConfig, files: Any, engine: Any, records: Sequence[Record], task: Any) -> dict[str, Any]:
    correct = []
    for record in events.track(records, "preferences", unit="records"):
        prefix = classify.prompt_ids(files.tokenizer, files.template, conversation(record, answer=False))
        answers = [files.tokenizer.encode(record[name]) for name in ("chosen", "rejected")]
        chosen, rejected = (math.fsum(row) for row in engine.score(prefix, answers))
        correct.append(float(chosen > rejected))
    return {"metrics": {"chosen_likelier": bootstrap(correct)}, "each": {"chosen_likelier": tuple(correct)}}


_MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "text": _texts,
    "class": _classes,
    "answer": _choices,
    "preference": _preferences,
}


def _answers(config: EvalConfig, model: str, records: Sequence[Record]) -> dict[str, Any]:
    from ladderlm.talk import open_chat

    chat = open_chat(model, device=config.device)
    sampling = Sampling(temperature=0, max_tokens=config.max_tokens)
    prompts, references, answers = [], [], []
    for record in events.track(records, "answers", unit="records"):
        asked, whole = conversation(record, answer=False), conversation(record)
        if whole.messages[-1].role != "assistant":
            raise FormatError("the conversation has no answer to compare with", where=f"record {record.id}")
        prompts.append(asked.messages[-1].text)
        references.append(whole.messages[-1].text)
        answers.append(Completion.fold(chat.stream(asked, sampling)).text.strip())
    rouge = metrics.rouge(answers, references)
    shown = {"bleu": metrics.bleu(answers, references, config.seed)}
    shown |= {name: bootstrap(values, seed=config.seed) for name, values in rouge.items()}
    each = {name: tuple(rouge[name]) for name in ("rougeL", "rouge1", "rouge2")}
    return {"metrics": shown, "each": each, "samples": tuple(zip(prompts, references, answers, strict=True))[:10]}


# --- The report ---------------------------------------------------------------------------------------------------


def metric_rows(result: EvalResult) -> list[tuple[str, float, float, float]]:
    """(metric, value, low, high) rows."""
    return [(name, i.mean, i.low, i.high) for name, i in result.metrics.items()]


def make_report(result: EvalResult, against: str = "") -> Report:
    """One page: the verdict if there is one, the metrics with intervals, per-label scores, samples."""
    report = Report(f"{result.model} on {result.data}", f"{result.items:,} {result.kind} records.")
    if result.helped:
        report.section(f"Did it help, against {against}?", str(result.helped))
    report.section("Metrics").table(
        ("metric", "value", "low", "high"), metric_rows(result), "95 % bootstrap intervals."
    )
    if result.kind == "class":
        rows = [(s["label"], s["precision"], s["recall"], s["f1"], s["support"]) for s in result.details["labels"]]
        report.table(("label", "precision", "recall", "F1", "records"), rows)
    if result.samples:
        report.section("Samples").samples(("prompt", "reference", "answer"), result.samples)
    return report
