"""From a request for fine-tuning to a command line: the data as the command reads it, its flags, what it will take."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm import store
from ladderlm.data.shapes import conversation
from ladderlm.data.tables import read_table
from ladderlm.errors import FormatError, LadderError, UsageError
from ladderlm.models import open_model
from ladderlm.models.arch import Architecture
from ladderlm.models.folder import ModelFiles
from ladderlm.serve.files import File
from ladderlm.serve.wire.jobs import Estimate, JobBody, Reinforcement, StringCheck
from ladderlm.text.render import render
from ladderlm.train.settings import RATES, WEIGHTS
from ladderlm.types import Record

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll", ".txt")
SHOWN = 5  # bad rows in a message
SAMPLED = 200  # rows whose tokens are counted
# nn.loss.ROWS and train.memory.GROWTH, which cannot be had without loading torch into the server.
BLOCK, GAPS = 256, 1.9
# The usual rates of LoRA and of full training, which a learning_rate_multiplier multiplies.
USUAL = {"supervised": (5e-4, 5e-5), "dpo": (1e-4, 1e-5), "reinforcement": (2e-4, 2e-6)}
OUTPUT = re.compile(r"\s*\{\{\s*sample\.output_text\s*\}\}\s*")
ITEM = re.compile(r"\{\{\s*item\.([\w.]+)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Material:
    """The files that the command will read, the records in them and how long those are."""

    training: Path
    validation: Path | None
    records: int
    mean_tokens: float


def prepare(body: JobBody, folder: Path, reference: str, training: File, validation: File | None) -> Material:
    """Writes the data into `folder`. UsageError with lines and reasons where rows cannot be learnt from."""
    paths, records = [], list[Record]()
    for name, file in (("training_file", training), ("validation_file", validation)):
        if file is None:
            continue
        if file.purpose != "fine-tune":
            raise UsageError(f"the file's purpose is {file.purpose}", where=name, cure="upload it for: fine-tune")
        suffix = next((s for s in SUFFIXES if file.filename.lower().endswith(s)), ".jsonl")
        path = folder / (name + suffix)
        convert = _converter(body)
        with store.storage_errors(path):
            if convert is None:
                path.write_bytes(file.path.read_bytes())
            else:
                _convert(file.path, path, convert, name)
        found = _checked(path, name, body)
        paths.append(path)
        records = records or found
    mean = mean_tokens(records, open_model(reference))
    return Material(paths[0], paths[1] if validation else None, len(records), mean)


def _checked(path: Path, name: str, body: JobBody) -> list[Record]:
    """The records, by the same reader as the command's."""
    try:
        table = read_table(path)
    except LadderError as error:
        raise UsageError(error.what, where=name, cure=error.cure) from None
    if table.bad and not (body.settings and body.settings.skip_bad):
        shown = "; ".join(f"line {b.line}: {b.reason}" for b in table.bad[:SHOWN])
        more = f"; and {len(table.bad) - SHOWN} more" if len(table.bad) > SHOWN else ""
        raise UsageError(f"{len(table.bad)} bad rows: {shown}{more}", where=name)
    wanted = {"dpo": ("preference", "kto"), "reinforcement": ("checked", "answer")}.get(body.kind)
    for row in table.rows:
        if wanted and row.record.kind not in wanted:
            raise UsageError(f"line {row.line}: a {row.record.kind} record, not {' or '.join(wanted)}", where=name)
        if row.record.kind == "messages":
            turns = row.record["messages"]
            if not any(m["role"] == "assistant" and (m.get("content") or m.get("tool_calls")) for m in turns):
                raise UsageError(f"line {row.line}: the assistant says nothing", where=name)
    if not table.rows:
        raise UsageError("no usable record", where=name)
    return table.records


# --- Rows of the OpenAI API as ours -------------------------------------------------------------------------------


def _converter(body: JobBody) -> Callable[[Any], Any] | None:
    """What makes a row of the API's layout ours; None where theirs are known as they are."""
    if body.kind == "dpo":
        return preference
    if body.kind == "reinforcement":
        chosen = body.method.reinforcement if body.method else None
        if chosen is None:
            raise UsageError("reinforcement needs a grader", where="method.reinforcement")
        return grader(chosen)
    return None


def _convert(source: Path, target: Path, convert: Callable[[Any], Any], name: str) -> None:
    """Line by line, so that the numbers of lines stay. What is no JSON is left for the reader to name."""
    with source.open(encoding="utf-8", errors="strict") as lines, store.atomic_file(target) as out:
        try:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line) if line.strip() else None
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    try:
                        line = json.dumps(convert(row), ensure_ascii=False) + "\n"
                    except LadderError as error:
                        raise UsageError(f"line {number}: {error.what}", where=name, cure=error.cure) from None
                out.write(line if line.endswith("\n") else line + "\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"not UTF-8 text at byte {error.start}", where=name) from None


def preference(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """{"input", "preferred_output", "non_preferred_output"} as a preference pair; our own layouts stay."""
    if "preferred_output" not in row:
        return row
    messages = (row.get("input") or {}).get("messages") if isinstance(row.get("input"), Mapping) else None
    if not messages:
        raise FormatError("input.messages is missing")
    return {"prompt": messages, "chosen": row["preferred_output"], "rejected": row.get("non_preferred_output")}


def grader(chosen: Reinforcement) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """What makes a row a record whose answers are checked."""
    check = chosen.grader
    if isinstance(check, StringCheck) and not OUTPUT.fullmatch(check.input):
        cure = "{{sample.output_text}}"
        raise UsageError("only the whole answer can be checked", where="method.reinforcement.grader.input", cure=cure)

    def convert(row: Mapping[str, Any]) -> Mapping[str, Any]:
        fields: dict[str, Any] = {}
        if isinstance(check, StringCheck):
            fields["pattern"] = pattern(check.operation, _filled(check.reference, row))
        else:
            fields = {k: row[k] for k in ("answer", "pattern", "schema", "tests") if row.get(k) is not None}
            if not fields:
                raise FormatError("nothing that an answer can be checked by: answer, pattern, schema or tests")
        messages = row.get("messages")
        if isinstance(messages, list) and messages:
            said = [m for m in messages if isinstance(m, Mapping) and isinstance(m.get("content"), str)]
            if len(said) != len(messages) or said[-1].get("role") != "user":
                raise FormatError("messages must be texts that end with one of the user")
            fields |= {
                "prompt": said[-1]["content"],
                "messages": [{k: m[k] for k in ("role", "content")} for m in said],
            }
        elif isinstance(row.get("prompt"), str):
            fields["prompt"] = row["prompt"]
        else:
            raise FormatError("messages are missing")
        if "answer" in fields:
            fields["answer"] = str(fields["answer"])
        return {"kind": "checked", "fields": fields}

    return convert


def pattern(operation: str, reference: str) -> str:
    """The regular expression that a whole answer matches where the string check passes."""
    exact = re.escape(reference.strip())
    return {
        "eq": exact, "ne": rf"(?!{exact}\Z)[\s\S]*", "like": rf"[\s\S]*{exact}[\s\S]*",
        "ilike": rf"(?i)[\s\S]*{exact}[\s\S]*",
    }[operation]  # fmt: skip


def _filled(template: str, row: Mapping[str, Any]) -> str:
    def value(found: re.Match[str]) -> str:
        here: Any = row
        for name in found[1].split("."):
            if not isinstance(here, Mapping) or name not in here:
                raise FormatError(f"the row has no {found[1]}, which the grader's reference names")
            here = here[name]
        return here if isinstance(here, str) else json.dumps(here, ensure_ascii=False)

    return ITEM.sub(value, template)


# --- The command --------------------------------------------------------------------------------------------------


def command(body: JobBody, reference: str, material: Material, out: str, seed: int) -> list[str]:
    """The verb and its arguments. Every value stands behind its own flag, so none can be taken for one."""
    flags: dict[str, Any] = {"model": reference, "out": out, "seed": seed}
    if material.validation:
        flags["held_out"] = material.validation
    hyper, settings = body.hyper, body.settings
    if isinstance(hyper.n_epochs, int):
        flags["epochs"] = hyper.n_epochs
    if isinstance(hyper.batch_size, int):
        if body.kind == "reinforcement":
            flags["prompts"] = hyper.batch_size
        else:
            flags["batch_tokens"] = math.ceil(hyper.batch_size * material.mean_tokens)
    method = (settings and settings.method) or "lora"
    if isinstance(hyper.learning_rate_multiplier, float):
        low, full = USUAL[body.kind]
        usual = (full if method in WEIGHTS else low) * RATES.get(method, 1.0)
        flags["lr"] = hyper.learning_rate_multiplier * usual
    beta = getattr(hyper, "beta", None)
    if isinstance(beta, float):
        flags["beta"] = beta
    verb = "finetune"
    if body.kind != "supervised":
        verb = "align"
        flags["objective"] = "grpo" if body.kind == "reinforcement" else "dpo"
    given = settings.model_dump(exclude_none=True) if settings else {}
    _check_settings(given, body.kind)
    flags |= given
    argv = [verb, str(material.training)]
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            argv += [flag] if value else []
        else:
            argv.append(f"{flag}={value}")
    return [*argv, "--replace", "--json"]


def _check_settings(given: Mapping[str, Any], kind: str) -> None:
    """Settings that the verb does not have are an error, as on the command line."""
    aligning = ("objective", "samples", "prompts", "max_tokens")
    wrong = {
        "supervised": aligning, "dpo": ("samples", "prompts", "max_tokens", "cut"),
        "reinforcement": ("objective", "cut"),
    }[kind]  # fmt: skip
    for name in given:
        if name in wrong:
            raise UsageError(f"{kind} has no such setting", where=f"settings.{name}", cure="leave it out")


# --- What it will take --------------------------------------------------------------------------------------------


def mean_tokens(records: Sequence[Record], files: ModelFiles) -> float:
    """Of the first records, as the model reads them."""
    some = records[:SAMPLED]
    return max(1.0, sum(_tokens(record, files) for record in some) / max(1, len(some)))


def _tokens(record: Record, files: ModelFiles) -> int:
    try:
        found = conversation(record, answer=record.kind not in ("checked", "answer"))
        return len(render(found, files.tokenizer, files.template).ids)
    except LadderError:
        text = " ".join(str(value) for value in record.fields.values())
        return len(files.tokenizer.encode(text))


def estimate(body: JobBody, material: Material, reference: str, seconds_a_token: float | None) -> Estimate:
    files, settings, hyper = open_model(reference), body.settings, body.hyper
    epochs = hyper.n_epochs if isinstance(hyper.n_epochs, int) else 1
    tokens = round(material.records * material.mean_tokens)
    budget = (settings and settings.batch_tokens) or (1024 if body.kind == "supervised" else 2048)
    if isinstance(hyper.batch_size, int) and not (settings and settings.batch_tokens):
        budget = math.ceil(hyper.batch_size * material.mean_tokens)
    steps: int | None = max(1, math.ceil(tokens * epochs / budget))
    if settings and settings.steps:
        steps = settings.steps
    elif (settings and settings.minutes) or body.kind == "reinforcement":
        steps = None
    trained = tokens * epochs if steps is None else min(tokens * epochs, steps * budget)
    if settings and settings.minutes:
        seconds: float | None = 60 * settings.minutes
    else:
        seconds = None if seconds_a_token is None else seconds_a_token * trained
    method, rank = (settings and settings.method) or "lora", (settings and settings.rank) or 8
    return Estimate(
        records=material.records, tokens_per_epoch=tokens, trained_tokens=trained, steps=steps,
        memory_bytes=memory(files.arch, budget, method, rank)[0],
        seconds=None if seconds is None else math.ceil(seconds),
    )  # fmt: skip


def memory(arch: Architecture, tokens: int, method: str, rank: int) -> tuple[int, int]:
    """(bytes, weights that are learnt) of steps over so many tokens.

    Weights in fp32, what is learnt with its gradients and two moments, what the way back needs, and logits of a block.
    """
    shapes = arch.tensor_shapes().values()
    weights = sum(math.prod(shape) for shape in shapes)
    learnt = weights
    if method not in WEIGHTS:
        learnt = sum(rank * sum(shape) for shape in shapes if len(shape) == 2)
    kept = tokens * arch.layers * (8 * arch.dim + 3 * arch.hidden) + 2 * min(BLOCK, tokens) * arch.vocab_size
    return round(4 * (weights + 3 * learnt + GAPS * kept)), learnt
