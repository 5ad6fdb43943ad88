"""`finetune --at URL`: a hosted model tuned through its API, with the same checks and the same page as one at home.

The routes are those of OpenAI's API: POST /files, POST /fine_tuning/jobs, GET /fine_tuning/jobs/ID and its events. The
job's number is kept before anything is waited for: a broken connection or Ctrl-C loses nothing, `--resume RUN` goes on.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ladderlm import events, store
from ladderlm.data.records import split
from ladderlm.data.shapes import conversation
from ladderlm.data.tables import parse_columns, read_table
from ladderlm.data.tasks import ClassTask, forgetting_probe
from ladderlm.errors import FormatError, LadderError, NetworkError, UsageError
from ladderlm.evals.ask import Asker, Item, Prompt, items_of, labels_of
from ladderlm.evals.helped import Scored, balanced
from ladderlm.evals.outcome import Measured, Outcome, Sample, fill
from ladderlm.evals.report import Report
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.talk.remote import DEFAULT_KEY
from ladderlm.talk.transport import Transport
from ladderlm.talk.wire import chat_body
from ladderlm.train.settings import FinetuneConfig
from ladderlm.types import Conversation, Message, Record, Run, Sampling, Value

KIND = "hosted"
HELD_OUT_SHARE = 0.05
MOST_HELD_OUT = 50  # each is asked twice, and paid for
KNOWLEDGE = 20  # questions of general knowledge
LEAST = 10  # examples that such services want
PAUSE = 5.0  # seconds between looks at a job
OVER = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class HostedResult(Value):
    """`model`: URL#name of the tuned model, for chat -m and eval; `run` the id of the run."""

    model: str
    run: str
    job: str
    tokens: int
    seconds: float
    scores: Mapping[str, Any] = field(default_factory=dict)


def run(config: FinetuneConfig, pause: float = PAUSE) -> HostedResult:
    """Checks, measures, uploads, waits, measures again, and writes the page."""
    started = time.monotonic()
    run_ = store.open_run(config.resume) if config.resume else None
    if run_:
        stored = store.read_json(run_.config)
        if stored.get("kind") != KIND:
            raise UsageError("not a run of a hosted model", where=run_.id, cure="leave out --at")
        config = FinetuneConfig.from_dict(stored["settings"])
    if not config.at or not config.data or config.model == DEFAULT_MODEL:
        raise UsageError("what shall be tuned on what?", cure="ladderlm finetune FILE --at URL -m NAME-OF-THE-MODEL")
    train, held = _records(config)
    rows = [_row(record) for record in train]
    if len(rows) < LEAST:
        raise UsageError(f"only {len(rows)} examples", where=config.data, cure=f"give {LEAST} or more")
    if run_ is None:
        run_ = store.new_run(KIND, {"settings": config.to_dict()})
    items = items_of(held)
    labels = labels_of(items_of([*train, *held]))
    api = Transport(_base(config.at), DEFAULT_KEY)
    try:
        job = _job(api, run_, config, rows, [_row(record) for record in held])
        before = _kept(run_, lambda: _measure(config, config.model, items, labels))
        done = _wait(api, run_, job["id"], pause)
    finally:
        api.close()
    name = str(done["fine_tuned_model"])
    after = _measure(config, name, items, labels)
    spent = {"wall_seconds": time.monotonic() - started, "trained_tokens": float(done.get("trained_tokens") or 0)}
    outcome = Outcome(name, config.model, "", before, after, spent, config.seed)
    result = HostedResult(
        f"{config.at}#{name}", run_.id, job["id"], int(spent["trained_tokens"]), spent["wall_seconds"],
        outcome.scores(),
    )  # fmt: skip
    outcome.save(run_)
    store.write_json(run_.path / "result.json", {"format": 1, **result.to_dict()})
    _page(config, run_, outcome, rows).write(run_.path)
    events.emit("result", f"{outcome.sentence} The model is {result.model}; report: {run_.report}")
    return result


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("not an http(s) URL", where=url, cure="such as https://api.openai.com/v1")
    return url.rstrip("/") if parts.path.strip("/") else url.rstrip("/") + "/v1"


# --- Data ---------------------------------------------------------------------------------------------------------


def _records(config: FinetuneConfig) -> tuple[list[Record], list[Record]]:
    """(train, held out) as conversations with an answer. What cannot be used is an error that names it."""
    columns = parse_columns(config.columns)
    records = read_table(config.data, columns, config.licence).settled(config.skip_bad)
    if config.held_out:
        train, held = records, read_table(config.held_out, columns, config.licence).settled(config.skip_bad)
    else:
        train, held = split(records, max(HELD_OUT_SHARE, min(0.3, 20 / len(records))), config.seed, by="id")
    task = ClassTask.of("classes", {"train": tuple(records)}) if records[0].kind == "class" else None
    sides = []
    for name, side in ((config.data, train), ("held out", held[:MOST_HELD_OUT])):
        kept, problems = list[Record](), list[str]()
        for number, record in enumerate(side, 1):
            try:
                kept.append(_usable(record, task))
            except LadderError as error:
                problems.append(f"record {number}: {error}")
        if problems and not config.skip_bad:
            shown = "; ".join(problems[:5])
            raise FormatError(f"{len(problems)} bad records: {shown}", where=name, cure="mend them, or --skip-bad")
        if problems:
            events.emit("data", f"left out {len(problems)} records of {name}: {'; '.join(problems[:5])}")
        if not kept:
            raise UsageError("no usable record", where=name)
        sides.append(kept)
    return sides[0], sides[1]


def _usable(record: Record, task: ClassTask | None) -> Record:
    """The record as a conversation; a class record in the words that ask for its label."""
    if record.kind == "class" and task:
        turns = [{"role": m.role, "content": m.text} for m in task.prompt(record).messages]
        turns.append({"role": "assistant", "content": record["label"]})
        return dataclasses.replace(record, kind="messages", fields={"messages": turns})
    last = conversation(record).messages[-1]
    if last.role != "assistant" or not last.text.strip():
        raise UsageError("the assistant says nothing")
    return record


def _row(record: Record) -> dict[str, Any]:
    """A line of the file that is uploaded: the same wire form in which the model is asked."""
    body = chat_body("", conversation(record), Sampling(), "max_tokens")
    return {name: body[name] for name in ("messages", "tools") if name in body}


# --- The job ------------------------------------------------------------------------------------------------------


def _job(
    api: Transport, run: Run, config: FinetuneConfig, rows: Sequence[Any], held: Sequence[Any]
) -> Mapping[str, Any]:
    """The job that this run has begun, or a new one."""
    path = run.path / "job.json"
    if path.exists():
        return dict(store.read_json(path))
    files = {}
    for name, side in (("training_file", rows), ("validation_file", held)):
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in side).encode()
        events.emit("upload", f"{len(side):,} examples, {len(data) / 1e6:.2f} MB")
        files[name] = str(api.upload("/files", {"purpose": "fine-tune"}, f"{name}.jsonl", data)["id"])
    hyper = {"n_epochs": max(1, round(config.epochs))} | ({"learning_rate_multiplier": config.lr} if config.lr else {})
    body = {
        "model": config.model, **files, "suffix": config.out[:18], "seed": config.seed,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
    }  # fmt: skip
    made = api.call("/fine_tuning/jobs", body)
    if not isinstance(made.get("id"), str):
        raise FormatError("the server names no job", where=api.host)
    store.write_json(path, {"id": made["id"], "files": files})
    events.emit("job", f"{made['id']} has begun at {api.host}; to go on waiting: --at {config.at} --resume {run.id}")
    return made


def _wait(api: Transport, run: Run, job: str, pause: float) -> Mapping[str, Any]:
    """The finished job. Its events go to ours and to metrics.jsonl. NetworkError where it failed."""
    seen: set[str] = {row["id"] for row in store.read_jsonl(run.metrics)}
    while True:
        state = api.get(f"/fine_tuning/jobs/{job}")
        for event in reversed(api.get(f"/fine_tuning/jobs/{job}/events?limit=100").get("data", [])):
            if str(event.get("id")) in seen:
                continue
            seen.add(str(event.get("id")))
            told = event.get("data") or {}
            store.append_jsonl(run.metrics, {"id": str(event.get("id")), **_figures(told)})
            events.emit("job", str(event.get("message", "")), data=_figures(told))
        if state.get("status") in OVER:
            break
        time.sleep(pause)
    if state["status"] != "succeeded" or not state.get("fine_tuned_model"):
        why = (state.get("error") or {}).get("message") or state["status"]
        raise NetworkError(f"the job {job} did not succeed: {why}", where=api.host)
    return dict(state)


def _figures(told: Mapping[str, Any]) -> dict[str, Any]:
    names = {"step": "step", "train_loss": "loss", "valid_loss": "held_out_loss"}
    found = {ours: told[theirs] for theirs, ours in names.items() if isinstance(told.get(theirs), int | float)}
    return found if "step" in found else {}


# --- Before and after ---------------------------------------------------------------------------------------------


def _kept(run: Run, measure: Any) -> Measured:
    """What was measured before, once in a run, however often it goes on."""
    path = run.path / "before.json"
    if not path.exists():
        store.write_json(path, measure().to_dict())
    return Measured.from_dict(store.read_json(path))


def _measure(config: FinetuneConfig, model: str, items: Sequence[Item], labels: Sequence[str]) -> Measured:
    """The held-out questions answered in writing, and some general ones."""
    with Asker(f"{config.at}#{model}", labels) as asker:
        said = asker.ask(Prompt(), items, "held out")
        names = tuple(item.id for item in items)
        if labels:
            heard = [item.answer if s.score else s.answer for item, s in zip(items, said, strict=True)]
            task = balanced(names, [item.answer for item in items], heard)
        else:
            task = Scored("F1 of words", names, tuple(s.score for s in said))
        samples = tuple(Sample(i.text, i.answer, s.answer) for i, s in zip(items[:4], said[:4], strict=True))
        return Measured((task,), (_knowledge(asker),), samples)


def _knowledge(asker: Asker) -> Scored:
    """The probe of general knowledge as questions. The order of the endings is fixed, and not always the same."""
    right, records = [], forgetting_probe()[::2][:KNOWLEDGE]
    for number, record in enumerate(records):
        choices = [c.strip() for c in record["choices"]]
        shown = choices if number % 2 else choices[::-1]
        ask = f"How does this go on?\n\n{record['prompt'].strip()} ...\n\nAnswer with one of: {'; '.join(shown)}."
        said = asker.write(Conversation((Message.of("user", ask),)), most=16)
        found = [c for c in choices if c.casefold() in said.casefold()]
        right.append(float(bool(found) and max(found, key=len) == record["answer"].strip()))
    return Scored("accuracy on general knowledge", tuple(r.id for r in records), tuple(right))


def _page(config: FinetuneConfig, run: Run, outcome: Outcome, rows: Sequence[Any]) -> Report:
    report = Report(f"Fine-tuning of {config.model} at {_base(config.at)}", outcome.sentence)
    fill(report, outcome)
    told = [row for row in store.read_jsonl(run.metrics) if "loss" in row]
    if told:
        held = [(row["step"], row["held_out_loss"]) for row in told if "held_out_loss" in row]
        lines = {"training": [(row["step"], row["loss"]) for row in told]} | ({"held out": held} if held else {})
        report.section("Course").curve("loss", lines, y="loss")
    report.section("Data").table(("what", "how much"), [("examples", len(rows))])
    return report
